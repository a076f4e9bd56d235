"""The v2 objective: who sees what, what the loss is divided by, and where gradients go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.config import Data2VecMultiConfig
from data2vec.errors import ConfigError
from data2vec.masking import clone_ids, random_masks
from data2vec.optim import scale_and_clip
from data2vec.pretraining import Data2VecPretraining, Moments
from data2vec.transformer import transformer_blocks
from tests.parity.intermediates import intermediates

MakeConfig = Callable[..., Data2VecMultiConfig]
VOCAB, LENGTH = 50, 20


def build(config: Data2VecMultiConfig) -> Data2VecPretraining:
    """A model whose every weight is informative (biases too), with a teacher of its own."""
    model = Data2VecPretraining(config, vocab_size=VOCAB)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in [*model.student.parameters(), *model.teacher.parameters()]:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.train()


def tokens(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, VOCAB, (samples, LENGTH), generator=torch.Generator().manual_seed(seed))


def seen(model: Data2VecPretraining, source: torch.Tensor, **arguments: Any) -> dict[str, torch.Tensor]:
    with intermediates(model) as found:
        model(source, **arguments)
    return found


def test_student_does_not_see_masked_tokens(make_config: MakeConfig) -> None:
    model, source = build(make_config(text={"prenet_depth": 1})), tokens(3)
    masks = random_masks(clone_ids(torch.arange(3), 2), LENGTH, 0.6, 1)
    everywhere_BT = masks.mask_RT.view(3, 2, LENGTH).all(dim=1)  # masked in every clone
    assert everywhere_BT.any(dim=1).all()
    changed = torch.where(everywhere_BT, (source + 7) % (VOCAB - 4) + 4, source)
    assert (changed != source)[everywhere_BT].all()
    before, after = (seen(model, x, masks=masks) for x in (source, changed))
    for name in ("student_encoder_input", "student_block0_x", "student_encoder_output"):
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["targets"], after["targets"]), "the teacher does see them"


def test_student_sees_every_kept_token(make_config: MakeConfig) -> None:
    model, source = build(make_config(clone_batch=1)), tokens(1)
    masks = random_masks(torch.arange(1), LENGTH, 0.5, 1)
    before = seen(model, source, masks=masks)["student_encoder_output"]
    for position in masks.ids_keep_RK[0].tolist():
        changed = source.clone()
        changed[0, position] = (source[0, position] + 3) % (VOCAB - 4) + 4
        assert not torch.equal(before, seen(model, changed, masks=masks)["student_encoder_output"])


def test_teacher_does_not_depend_on_masks(make_config: MakeConfig) -> None:
    model, source = build(make_config()), tokens(2)
    first, second = (seen(model, source, update=update) for update in (1, 2))
    assert torch.equal(first["targets"], second["targets"])
    assert not torch.equal(first["decoder_output"], second["decoder_output"])


def test_masks_and_losses_belong_to_the_sample(make_config: MakeConfig) -> None:
    """Each sample's loss is the same alone, in a batch, and in a batch in another order."""
    model, source, ids = build(make_config()), tokens(4), torch.tensor([11, 5, 8, 2**40])

    def loss(rows: torch.Tensor, **arguments: int) -> float:
        return model(source[rows], ids=ids[rows], **{"update": 3, **arguments}).loss.item()

    everything = torch.arange(4)
    whole = loss(everything)
    assert whole == pytest.approx(sum(loss(torch.tensor([row])) for row in range(4)), rel=1e-5)
    assert whole == pytest.approx(loss(torch.tensor([2, 0, 3, 1])), rel=1e-5)
    assert whole != loss(everything, update=4)
    assert whole != loss(everything, seed=2)
    assert whole == loss(everything, seed=1), "the configuration's seed is 1"


@pytest.mark.parametrize("split", [[4], [2, 2], [1, 3], [1, 1, 1, 1]])
def test_accumulation_leaves_the_gradient_unchanged(make_config: MakeConfig, split: list[int]) -> None:
    """Gradients are summed and divided by the global number of masked positions."""
    model, source, ids = build(make_config()), tokens(4), torch.arange(4)
    reference = model(source, ids=ids)
    reference.loss.backward()
    scale_and_clip(model.parameters(), reference.sample_size, 0.0)
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total = 0
    for part_source, part_ids in zip(source.split(split), ids.split(split), strict=True):
        output = model(part_source, ids=part_ids)
        output.loss.backward()
        total += output.sample_size
    scale_and_clip(model.parameters(), total, 0.0)
    assert total == reference.sample_size == 4 * 2 * LENGTH // 2
    for name, parameter in model.named_parameters():
        if name in expected:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_loss_formulas(make_config: MakeConfig) -> None:
    source = tokens(2)
    for beta, scale, weight in ((0.0, None, 1.0), (0.0, 2.0, 0.5), (0.7, None, 3.0)):
        model = build(make_config(loss_beta=beta, loss_scale=scale, d2v_loss=weight))
        taps = seen(model, source)
        mask_RT = random_masks(clone_ids(torch.arange(2), 2), LENGTH, 0.5, 1, 0).mask_RT
        error = (taps["decoder_output"] - taps["targets"].repeat_interleave(2, dim=0))[mask_RT].double()
        if beta == 0:
            distance = error.square()
        else:
            distance = torch.where(error.abs() < beta, error.square() / (2 * beta), error.abs() - beta / 2)
        rows = distance.sum(dim=1) * (16**-0.5 if scale is None else scale) * weight
        torch.testing.assert_close(taps["loss_rowsum/TEXT_regression"].double(), rows, rtol=1e-4, atol=1e-5)
        output = model(source)
        assert list(output.losses) == ["TEXT_regression"]
        assert output.loss.item() == pytest.approx(rows.sum().item(), rel=1e-5)
        assert output.masked_pct == 0.5


def test_gradients_reach_all_of_the_student_and_none_of_the_teacher(make_config: MakeConfig) -> None:
    model = build(make_config(text={"prenet_depth": 1}))
    model(tokens(3)).loss.backward()
    for name, parameter in model.student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def test_targets_carry_no_gradient(make_config: MakeConfig) -> None:
    """With the student's kept tokens fixed, tokens seen by the teacher alone get no gradient."""
    model, source = build(make_config(clone_batch=1)), torch.arange(4, 4 + LENGTH)[None]
    masks = random_masks(torch.arange(1), LENGTH, 0.5, 1)
    model(source, masks=masks).loss.backward()
    gradient = model.student.encoder.local_encoder.embed_tokens.weight.grad
    assert gradient is not None
    touched = gradient.abs().sum(dim=1) > 0
    assert torch.equal(touched[source[0]], ~masks.mask_RT[0])


@pytest.mark.parametrize("factor", [0.25, 0.0])
def test_gradient_multiplier_of_the_front_end(make_config: MakeConfig, factor: float) -> None:
    source, plain = tokens(2), build(make_config())
    scaled = build(make_config(text={"local_grad_mult": factor}))
    scaled.load_state_dict(plain.state_dict())
    losses = [model(source).loss for model in (plain, scaled)]
    assert torch.equal(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for (name, a), (_, b) in zip(
        plain.student.named_parameters(), scaled.student.named_parameters(), strict=True
    ):
        assert a.grad is not None
        if "local_encoder" not in name:
            torch.testing.assert_close(a.grad, b.grad)
        elif factor == 0.0:
            assert b.grad is None, "no gradient at all, so that weight decay leaves it alone"
        else:
            torch.testing.assert_close(a.grad * factor, b.grad)


def test_padding_does_not_change_features(make_config: MakeConfig) -> None:
    """A sentence alone equals the same sentence padded in a batch."""
    network = build(make_config(text={"prenet_depth": 1})).student.eval()
    source, lengths = tokens(3), [20, 12, 5]
    padding = torch.arange(LENGTH)[None] >= torch.tensor(lengths)[:, None]
    batch = network(source.masked_fill(padding, 1), padding, all_layers=True)
    assert len(batch.layers) == 2
    for row, length in enumerate(lengths):
        alone = network(source[row : row + 1, :length])
        torch.testing.assert_close(batch.x_BTD[row, :length], alone.x_BTD[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch.layers[-1][row], batch.x_BTD[row])
    unpadded = network(source[:1], torch.zeros(1, LENGTH, dtype=torch.bool))
    assert torch.equal(unpadded.x_BTD, network(source[:1]).x_BTD)


def test_a_short_sample_in_a_long_batch_gives_a_finite_loss(make_config: MakeConfig) -> None:
    """Masks may leave such a sample nothing but padding."""
    model, source = build(make_config()), tokens(6)
    padding = torch.zeros(6, LENGTH, dtype=torch.bool)
    padding[1:, 1:] = True
    output = model(source.masked_fill(padding, 1), padding)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_dropout_of_the_embeddings_is_shared_with_the_teacher(make_config: MakeConfig) -> None:
    """As the published models were trained: the teacher reads the student's corrupted embeddings."""
    model = build(make_config(text={"dropout": 0.3}))
    taps = seen(model, tokens(1))
    assert torch.equal(taps["teacher_encoder_input"], taps["local_features"])
    assert (taps["local_features"] == 0).any()


class PrenetRuns:
    """Which prenet blocks of the student ran in the student's pass and in the teacher's, of the last call."""

    def __init__(self, model: Data2VecPretraining) -> None:
        self.student: list[int] = []
        self.teacher: list[int] = []
        self.model = model
        for index, block in enumerate(model.student.encoder.context_encoder.blocks):
            block.register_forward_hook(lambda *_, index=index: self._note(index))

    def _note(self, index: int) -> None:
        (self.student if torch.is_grad_enabled() else self.teacher).append(index)

    def call(self, source: torch.Tensor, **arguments: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        self.student, self.teacher = [], []
        self.model(source, **arguments)
        return tuple(self.student), tuple(self.teacher)


def test_layer_drop_of_the_teachers_pass_follows_seed_and_update(make_config: MakeConfig) -> None:
    """Where the student's own front end feeds the teacher, its prenet blocks drop there too, newly drawn."""
    text = {"prenet_depth": 3, "prenet_layerdrop": 0.5}
    runs = PrenetRuns(build(make_config(text=text, ema_encoder_only=True, depth=1, average_top_k_layers=1)))
    source = tokens(1)
    drawn = [runs.call(source, update=update, seed=1) for update in range(40)]
    for index in range(3):
        assert 10 <= sum(index in teacher for _, teacher in drawn) <= 30
    assert sum(student == teacher for student, teacher in drawn) < 16, "not the student's own choice"
    assert [runs.call(source, update=update, seed=1) for update in range(40)] == drawn
    others = [runs.call(tokens(3, seed=9), ids=torch.tensor([7, 8, 9]), update=u, seed=1) for u in range(9)]
    assert others == drawn[:9], "whatever the samples: every worker draws the same"
    reseeded = [runs.call(source, update=update, seed=2)[1] for update in range(9)]
    assert reseeded != [teacher for _, teacher in drawn[:9]]
    runs.model.eval()
    assert runs.call(source, update=3) == ((0, 1, 2), (0, 1, 2))


def test_the_teacher_may_compute_in_fp32(make_config: MakeConfig) -> None:
    """``ema_same_dtype=false``; the embeddings that both read are no matrix product, so equal in each."""

    def targets(same: bool, autocast: bool) -> dict[str, torch.Tensor]:
        model = build(make_config(ema_same_dtype=same))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return seen(model, tokens(2))

    exact, low, kept = targets(True, False), targets(True, True), targets(False, True)
    assert torch.equal(kept["targets"], exact["targets"])
    assert not torch.equal(low["targets"], exact["targets"])
    assert torch.equal(kept["student_encoder_output"], low["student_encoder_output"])
    blocks = transformer_blocks(build(make_config(ema_same_dtype=False)))
    assert [block.in_fp32 for block in blocks] == [False, False, True, True]


def test_pretraining_without_a_teacher_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"model\.skip_ema = True .* use false"):
        Data2VecPretraining(make_config(skip_ema=True), vocab_size=VOCAB)


def test_pretraining_without_a_decoder_is_refused() -> None:
    config = Data2VecMultiConfig.from_dict(
        {"modalities": {"text": {"mask_length": 1, "decoder": None}}, "embed_dim": 16, "num_heads": 2}
    )
    with pytest.raises(ConfigError, match="decoder"):
        Data2VecPretraining(config, vocab_size=VOCAB)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_moments_add_up_to_the_deviation_of_everything(sizes: list[int], seed: int) -> None:
    x_ND = 3.0 + torch.randn(sum(sizes), 5, generator=torch.Generator().manual_seed(seed))
    parts = [Moments.of(part) for part in x_ND.split(sizes)]
    merged = Moments(
        sum(part.count for part in parts),
        torch.stack([part.total_D for part in parts]).sum(dim=0),
        torch.stack([part.square_D for part in parts]).sum(dim=0),
    )
    expected = float((x_ND.var(dim=0) + 1e-6).sqrt().mean()) if len(x_ND) > 1 else 0.0
    assert merged.deviation() == pytest.approx(expected, rel=1e-4, abs=1e-5)
