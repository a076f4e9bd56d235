"""data2vec 1 for text: masks, teacher's input, copied embeddings, initial sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.errors import ConfigError, DataError
from data2vec.text import PAD
from data2vec.v1.text import Data2VecTextPretraining, SpanMasking, token_spans
from data2vec.v1.text_config import Data2VecTextConfig
from tests.parity.intermediates import intermediates

VOCAB = 30


def tiny(**fields: object) -> Data2VecTextConfig:
    transformer = {
        "activation_fn": "gelu", "dropout": 0.0, "max_source_positions": 24, "layernorm_embedding": True,
        "no_scale_embedding": True,
        "encoder": {"embed_dim": 16, "ffn_embed_dim": 32, "layers": 3, "attention_heads": 2,
                    "learned_pos": True},
    }  # fmt: skip
    values = {"head_layers": 2, "transformer": transformer, "loss_beta": 4.0, "loss_scale": 1.0,
              "average_top_k_layers": 2, "layer_norm_target_layer": True}  # fmt: skip
    return Data2VecTextConfig.from_dict({**values, **fields})


@pytest.fixture
def batch() -> torch.Tensor:
    source = torch.randint(4, VOCAB - 1, (3, 20), generator=torch.Generator().manual_seed(3))
    source[1, 12:], source[2, 5:] = PAD, PAD
    return source


def test_masks_have_the_share_of_the_formula_and_belong_to_their_row() -> None:
    masking = SpanMasking(mask_prob=0.35, mask_multiple_length=4)
    ids, real = torch.arange(2000), torch.ones(2000, 512, dtype=torch.bool)
    mask = token_spans(ids, real, masking, 1, 7)
    # n starts among T without replacement: a position is visible unless one of the 4 before it is a start.
    share = 1 - (1 - 0.35 / 4) ** 4
    assert mask.float().mean().item() == pytest.approx(share, abs=0.003)
    assert mask[:, 0].float().mean().item() == pytest.approx(0.35 / 4, abs=0.02)  # <s> may be masked
    alone = token_spans(ids[5:6], real[5:6], masking, 1, 7)
    assert torch.equal(alone[0], mask[5])
    assert not torch.equal(token_spans(ids, real, masking, 1, 8), mask)
    assert not torch.equal(token_spans(ids, real, masking, 2, 7), mask)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 17), min_size=1, max_size=5),
    prob=st.floats(0.0, 1.0),
    span=st.integers(1, 20),
    update=st.integers(0, 10**6),
)
def test_masks_stay_inside_the_text_and_are_spans(
    lengths: list[int], prob: float, span: int, update: int
) -> None:
    real = torch.arange(17)[None] < torch.tensor(lengths)[:, None]
    mask = token_spans(
        torch.arange(len(lengths)), real, SpanMasking(mask_prob=prob, mask_multiple_length=span), update
    )
    assert not bool((mask & ~real).any())
    for row, length in zip(mask.tolist(), lengths, strict=True):
        runs = "".join("x" if on else " " for on in row[:length]).split(" ")
        inner = "".join("x" if on else " " for on in row[:length]).rstrip("x").split()
        assert all(len(run) >= span for run in inner)  # only a span at the end may be cut
        most = int(prob * length / span + 1)
        assert sum(map(len, runs)) <= most * span


def test_padding_changes_nothing_and_the_loss_sees_masked_tokens_only(batch: torch.Tensor) -> None:
    model = Data2VecTextPretraining(tiny(), vocab_size=VOCAB).train()
    mask = torch.zeros_like(batch, dtype=torch.bool)
    mask[0, 3:7], mask[1, 2:4], mask[2, 1] = True, True, True
    output = model(batch, mask_BT=mask)
    assert output.sample_size == 7
    longer = torch.nn.functional.pad(batch, (0, 4), value=PAD)
    again = model(longer, mask_BT=torch.nn.functional.pad(mask, (0, 4)))
    torch.testing.assert_close(again.loss, output.loss)
    hidden = torch.where(mask, torch.full_like(batch, 5), batch)  # the student cannot see what is masked
    with intermediates(model) as prediction:
        model(batch, mask_BT=mask)
    with intermediates(model) as other:
        model(hidden, mask_BT=mask)
    torch.testing.assert_close(other["pred_masked"], prediction["pred_masked"])
    assert not torch.allclose(other["targets_masked"], prediction["targets_masked"])  # its teacher does


def test_the_reference_switch_gives_the_teacher_the_masked_tokens_alone(batch: torch.Tensor) -> None:
    mask = torch.zeros_like(batch, dtype=torch.bool)
    mask[:, 1:4] = True
    changed = batch.clone()
    changed[0, 10] = 4 if int(batch[0, 10]) != 4 else 5  # a visible token
    targets = {}
    for only in (False, True):
        model = Data2VecTextPretraining(tiny(teacher_sees_masked_only=only), vocab_size=VOCAB)
        for name, source in (("one", batch), ("other", changed)):
            with intermediates(model) as found:
                model(source, mask_BT=mask)
            targets[only, name] = found["targets_masked"]
    assert torch.equal(targets[True, "one"], targets[True, "other"])
    assert not torch.allclose(targets[False, "one"], targets[False, "other"])
    assert not torch.allclose(targets[False, "one"], targets[True, "one"])


def test_embeddings_are_copied_and_layers_averaged_once_an_update(batch: torch.Tensor) -> None:
    model = Data2VecTextPretraining(tiny(ema_decay=0.5, ema_end_decay=0.5), vocab_size=VOCAB)
    before = {name: value.clone() for name, value in model.teacher.module.state_dict().items()}
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    assert model.teacher.step(1) and not model.teacher.step(1)
    for name, value in model.teacher.module.state_dict().items():
        moved = {"version": 0.0}.get(name, 0.5 if name.startswith("layers.") else 1.0)
        torch.testing.assert_close(value, before[name] + moved)
    averaged = Data2VecTextPretraining(
        tiny(ema_transformer_layers_only=False, ema_decay=0.5, ema_end_decay=0.5), vocab_size=VOCAB
    )
    old = averaged.teacher.module.embed_tokens.weight.clone()
    with torch.no_grad():
        averaged.student.sentence_encoder.embed_tokens.weight.add_(1.0)
    averaged.teacher.step(1)
    torch.testing.assert_close(averaged.teacher.module.embed_tokens.weight, old + 0.5)


def test_the_untrained_teacher_gives_the_students_own_features(batch: torch.Tensor) -> None:
    model = Data2VecTextPretraining(tiny(), vocab_size=VOCAB).eval()
    features = model.student(batch, all_layers=True)
    assert len(features.layers) == 3
    teacher: Any = model.teacher.module
    found = teacher(teacher.local_features(batch), batch.eq(PAD))
    torch.testing.assert_close(found, features.x_BTD)


def test_impossible_configurations_and_too_long_texts_are_told(batch: torch.Tensor) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(average_top_k_layers=4, head_layers=0, loss_beta=-1).check()
    assert {p.field for p in caught.value.problems} == {
        "model.average_top_k_layers",
        "model.head_layers",
        "model.loss_beta",
    }
    model = Data2VecTextPretraining(tiny(), vocab_size=VOCAB)
    with pytest.raises(DataError, match="25 tokens are more than the model's 24"):
        model(torch.full((1, 25), 4))


def test_a_loss_scale_of_null_means_one_over_the_root_of_the_width(batch: torch.Tensor) -> None:
    mask = batch.ne(PAD) & (torch.arange(20) % 3 == 0)
    plain = Data2VecTextPretraining(tiny(loss_scale=1.0), vocab_size=VOCAB)(batch, mask_BT=mask).loss
    scaled = Data2VecTextPretraining(tiny(loss_scale=None), vocab_size=VOCAB)(batch, mask_BT=mask).loss
    torch.testing.assert_close(scaled, plain / 4)
