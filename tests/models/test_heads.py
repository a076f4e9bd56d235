"""The sentence head: formula, losses, initial weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data2vec.config import Data2VecMultiConfig, SentenceHeadConfig
from data2vec.heads import SentenceClassifier, SentenceHead, max_text_positions
from data2vec.student import Data2VecMulti
from data2vec.v1.text_config import Data2VecTextConfig

MakeConfig = Callable[..., Data2VecMultiConfig]
FORMULAS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "relu": lambda x: x.clamp_min(0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "linear": lambda x: x,
}


def make(make_config: MakeConfig, classes: int = 3, seed: int = 1, **text: float) -> SentenceClassifier:
    return SentenceClassifier(
        make_config(text=text), SentenceHeadConfig(num_classes=classes), vocab_size=30, seed=seed
    )


@pytest.mark.parametrize("activation", FORMULAS)
def test_formula(activation: str) -> None:
    torch.manual_seed(0)
    head = SentenceHead(8, SentenceHeadConfig(num_classes=3, pooler_activation_fn=activation))  # type: ignore[arg-type]
    x = torch.randn(4, 8)
    hidden = FORMULAS[activation](x @ head.dense.weight.T + head.dense.bias)
    torch.testing.assert_close(head(x), hidden @ head.out_proj.weight.T + head.out_proj.bias)


def test_dropout_before_each_linear_layer() -> None:
    torch.manual_seed(0)
    config = SentenceHeadConfig(num_classes=64, pooler_activation_fn="linear", pooler_dropout=0.5)
    head = SentenceHead(64, config)
    for layer in (head.dense, head.out_proj):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    kept = head(torch.ones(200, 64))
    assert set(kept.flatten().tolist()) == {0.0, 4.0}
    assert float((kept > 0).float().mean().detach()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(head.eval()(torch.ones(1, 64)), torch.ones(1, 64))


def test_reads_the_first_token_of_the_last_block(make_config: MakeConfig) -> None:
    model = make(make_config)
    source = torch.randint(4, 30, (2, 9))
    features = model.model(source).x_BTD
    head = model.classification_heads["sentence_classification_head"]
    torch.testing.assert_close(model(source), head(features[:, 0]))


def test_classification_loss_is_a_sum(make_config: MakeConfig) -> None:
    model, logits = make(make_config), torch.randn(5, 3)
    target = torch.tensor([0, 2, 1, 1, 0])
    output = model.loss(logits, target, regression=False)
    expected = -sum(float(logits[i].log_softmax(0)[target[i]]) for i in range(5))
    assert float(output.loss) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, target, reduction="sum"))


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_regression_loss_is_a_sum(make_config: MakeConfig, shape: tuple[int, ...]) -> None:
    """STS-B: scores divided by 5; raw outputs."""
    model, logits = make(make_config, classes=1), torch.randn(5, 1)
    target = torch.rand(5)
    output = model.loss(logits, target.double().view(shape), regression=True)
    assert float(output.loss) == pytest.approx(float((logits[:, 0] - target).square().sum()), rel=1e-6)


def test_head_is_uniform_and_seeded_and_leaves_the_network_alone(make_config: MakeConfig) -> None:
    first, same, other = (make(make_config, seed=seed) for seed in (1, 1, 2))
    head = first.classification_heads["sentence_classification_head"]
    for name, parameter in head.named_parameters():
        values = parameter.detach().flatten()
        assert values.abs().max() <= 16**-0.5, name
        assert torch.equal(
            parameter, same.classification_heads.get_parameter(f"sentence_classification_head.{name}")
        )
        assert not torch.equal(
            parameter, other.classification_heads.get_parameter(f"sentence_classification_head.{name}")
        )
    assert float(head.get_parameter("dense.weight").std().detach()) == pytest.approx(
        16**-0.5 / 3**0.5, rel=0.15
    )
    network = Data2VecMulti(make_config(), vocab_size=30, with_decoder=False, seed=1)
    for name, value in network.state_dict().items():
        assert torch.equal(first.model.state_dict()[name], value)


def test_names_are_the_references_and_there_is_no_decoder(make_config: MakeConfig) -> None:
    names = set(make(make_config).state_dict())
    assert "classification_heads.sentence_classification_head.dense.weight" in names
    assert "classification_heads.sentence_classification_head.out_proj.bias" in names
    assert "model.blocks.1.mlp.fc2.bias" in names
    assert not any("decoder" in name for name in names)


def test_pretraining_dropouts_stay_in_force(make_config: MakeConfig) -> None:
    model = make(make_config, dropout=0.5)
    source = torch.randint(4, 30, (2, 9))
    assert not torch.equal(model(source), model(source))
    model.eval()
    assert torch.equal(model(source), model(source))


def test_layer_drop_of_the_network_follows_the_key(make_config: MakeConfig) -> None:
    config = make_config(depth=4, layerdrop=0.5)
    model = SentenceClassifier(config, SentenceHeadConfig(num_classes=3), vocab_size=30).train()
    source = torch.randint(4, 30, (2, 9))
    found = [model(source, None, 1, update) for update in range(8)]
    assert torch.equal(found[0], model(source, None, 1, 0))
    assert len({round(float(logits.sum().detach()), 5) for logits in found}) > 2


def test_padding_reaches_the_network(make_config: MakeConfig) -> None:
    model = make(make_config).eval()
    source = torch.randint(4, 30, (1, 9))
    padding = torch.arange(9)[None] >= 6
    torch.testing.assert_close(model(source, padding), model(source[:, :6]), rtol=1e-4, atol=1e-5)


def test_the_longest_text_is_the_configurations(make_config: MakeConfig) -> None:
    assert max_text_positions(make_config()) == 40
    first = Data2VecTextConfig.from_dict({"transformer": {"max_source_positions": 77}})
    assert max_text_positions(first) == 77
