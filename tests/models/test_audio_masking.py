"""Spans over time: their number, where they start, what is equalised, and what they are a function of."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from data2vec.audio_masking import audio_span_masks, block_masks_1d, span_masks
from data2vec.config import AudioModalityConfig
from data2vec.masking import clone_ids
from data2vec.v1.audio import Data2VecAudio
from data2vec.v1.config import Data2VecAudioConfig

ROWS = torch.arange(4000)


def spans(length: int, **values: Any) -> torch.Tensor:
    given = {"mask_prob": 0.5, "mask_length": 1, "equal_counts": False, "key": (1, 0)}
    return span_masks(ROWS, length, **{**given, **values})


def runs(row: torch.Tensor) -> list[tuple[int, int]]:
    """(start, length) of every masked run."""
    found, start = [], None
    for at, on in enumerate([*row.tolist(), False]):
        if on and start is None:
            start = at
        if not on and start is not None:
            found.append((start, at - start))
            start = None
    return found


@pytest.mark.parametrize("share", [0.31, 0.5, 0.04])
def test_the_number_of_spans_is_rounded_at_random(share: float) -> None:
    """Spans of one frame do not overlap: a row has one of two whole numbers, p * t on average."""
    count = spans(21, mask_prob=share).sum(dim=1)
    wanted = share * 21
    assert set(count.tolist()) == {max(math.floor(wanted), 1), math.ceil(wanted)}
    if wanted > 1:
        assert float(count.float().mean()) == pytest.approx(wanted, abs=0.03)  # standard error below 0.008


def test_a_row_has_one_span_at_least_unless_none_is_allowed() -> None:
    assert set(spans(30, mask_prob=0.0, mask_length=4).sum(dim=1).tolist()) == {4}
    assert not spans(30, mask_prob=0.0, mask_length=4, min_spans=0).any()
    assert float(spans(30, mask_prob=0.1, mask_length=6, min_spans=0).any(1).float().mean()) == pytest.approx(
        0.5, abs=0.03
    )


@pytest.mark.parametrize("span", [1, 2, 5])
def test_one_span_starts_anywhere_before_its_length_from_the_end(span: int) -> None:
    """``t - length`` starts, all equally likely: no span reaches the last frame, as in the reference."""
    found = [runs(row) for row in spans(12, mask_prob=0.0, mask_length=span)]
    assert all(len(row) == 1 and row[0][1] == span for row in found)
    starts = torch.tensor([row[0][0] for row in found])
    share = torch.bincount(starts, minlength=12).float() / len(ROWS)
    assert share[12 - span :].sum() == 0
    assert share[: 12 - span] == pytest.approx(torch.full((12 - span,), 1 / (12 - span)), abs=0.03)


def test_spans_may_overlap_and_start_at_different_frames() -> None:
    """Three spans of four frames of twenty: every choice of three distinct starts is as likely as another."""
    mask = spans(20, mask_prob=0.6, mask_length=4)  # 0.6 * 20 / 4 = 3 exactly
    assert all(length >= 4 for row in mask[:300] for _, length in runs(row))
    assert int(mask.sum(1).max()) == 12 and int(mask.sum(1).min()) == 6  # side by side; starts 0, 1, 2
    hidden = [1 - math.comb(16 - min(t + 1, 4, 16 - max(t - 3, 0)), 3) / math.comb(16, 3) for t in range(20)]
    assert mask.float().mean(dim=0) == pytest.approx(torch.tensor(hidden), abs=0.04)


def test_short_rows_have_fewer_spans_within_their_own_frames() -> None:
    valid = torch.where(ROWS % 2 == 0, 40, 10)
    mask = spans(40, mask_prob=0.5, mask_length=2, valid_R=valid)
    for length, part in ((40, mask[::2]), (10, mask[1::2])):
        count = part.sum(dim=1).float()
        assert not part[:, length:].any() and not part[:, length - 1].any()
        starts = length - 2
        n = 0.5 * length / 2
        # A frame in the middle is in no span if none of its 2 starts is among the n chosen.
        seen = torch.stack([~part[:, t] for t in range(2, length - 2)]).float().mean()
        low, high = math.floor(n), math.ceil(n)
        chance = [math.comb(starts - 2, k) / math.comb(starts, k) for k in (low, high)]
        assert float(seen) == pytest.approx(chance[0] + (n - low) * (chance[1] - chance[0]), abs=0.02)
        assert float(count.max()) <= 2 * high


def test_counts_are_made_equal_by_dropping_or_adding() -> None:
    rows = torch.arange(30)
    values = {"mask_prob": 0.5, "mask_length": 5, "key": (3,)}
    own = span_masks(rows, 60, equal_counts=False, **values)
    fewest, most = int(own.sum(1).min()), int(own.sum(1).max())
    assert fewest < most
    less, more = (span_masks(rows, 60, add_masks=add, **values) for add in (False, True))
    assert set(less.sum(1).tolist()) == {fewest} and not (less & ~own).any()
    assert set(more.sum(1).tolist()) == {most} and not (own & ~more).any()


@pytest.mark.parametrize("equal", [False, True])
def test_mask_dropout_shows_a_share_of_the_masked_frames_again(equal: bool) -> None:
    rows = torch.arange(30)
    values = {"mask_prob": 0.5, "mask_length": 5, "key": (3,), "equal_counts": equal}
    whole, part = (span_masks(rows, 60, mask_dropout=p, **values) for p in (0.0, 0.25))
    assert not (part & ~whole).any()
    assert part.sum(1).tolist() == [n - round(n * 0.25) for n in whole.sum(1).tolist()]


def test_masks_are_functions_of_the_rows_id_and_the_key() -> None:
    whole = spans(50, mask_length=4)
    some = torch.tensor([17, 5, 900])
    alone = span_masks(some, 50, mask_prob=0.5, mask_length=4, equal_counts=False, key=(1, 0))
    assert torch.equal(alone, whole[some])
    for key in ((1, 1), (2, 0)):
        assert not torch.equal(spans(50, mask_length=4, key=key), whole)
    # Their number, too: rows of one key do not round together.
    counts = [spans(21, mask_prob=0.5, key=(1, update)).sum(1) for update in (0, 1)]
    assert float((counts[0] == counts[1]).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_something_stays_visible_of_the_shortest_clips() -> None:
    for length in (1, 2, 3):
        mask = spans(length, mask_prob=0.9, mask_length=10)
        assert (mask.sum(1) == length - 1).all()


@pytest.mark.parametrize("seed", range(12))
def test_padding_behind_a_clip_changes_nothing(seed: int) -> None:
    """A row of t frames has the mask that it has alone, as far as its own frames go."""
    pick = random.Random(seed)
    length, span = pick.randint(1, 25), pick.randint(1, 12)
    values = {"mask_prob": pick.random(), "mask_length": span, "mask_dropout": pick.choice([0.0, 0.3])}
    rows = torch.arange(40)
    alone = span_masks(rows, length, equal_counts=False, key=(seed,), **values)
    valid = torch.full_like(rows, length)
    padded = span_masks(rows, length + 17, equal_counts=False, key=(seed,), valid_R=valid, **values)
    assert torch.equal(padded[:, :length], alone) and not padded[:, length:].any()


def test_starts_have_room_even_where_spans_fill_the_clip() -> None:
    """Four spans of one frame in five frames leave each frame visible equally often, the last one too."""
    visible = (~spans(5, mask_prob=0.8)).float().mean(dim=0)
    assert visible == pytest.approx(torch.full((5,), 0.2), abs=0.03)


def test_clones_of_a_sample_lie_together_and_have_its_length() -> None:
    padding = torch.arange(40)[None] >= torch.tensor([40, 12, 25])[:, None]
    rows = clone_ids(torch.arange(3), 4)
    config = AudioModalityConfig(mask_length=3, add_masks=True)
    mask = audio_span_masks(rows, 40, 0.5, config, padding, 1, 0).mask_RT
    assert not (mask & padding.repeat_interleave(4, dim=0)).any(), "padding is never masked"
    reach = [int(row.nonzero().max()) for row in mask.view(3, -1, 40).any(dim=1)]
    assert reach[0] > 24 and reach[1] <= 11 and 11 < reach[2] <= 24


def test_pretraining_masks_follow_the_configuration() -> None:
    rows = torch.arange(20)

    def count(share: float, **values: Any) -> set[int]:
        config = AudioModalityConfig(**{"mask_length": 5, **values})
        return set(audio_span_masks(rows, 80, share, config, None, 1, 0).mask_RT.sum(1).tolist())

    own = span_masks(rows, 80, mask_prob=0.5, mask_length=5, equal_counts=False, key=(1, 0)).sum(1)
    few, most = int(own.min()), int(own.max())
    assert count(0.5) == {few}
    assert count(0.5, add_masks=True) == {most}
    assert count(0.5, mask_dropout=0.3) == {few - round(0.3 * few)}
    assert count(0.2) != count(0.5) != count(0.5, mask_length=9)


def test_one_block_surrounds_its_centre() -> None:
    """One block of five of fifty frames: nothing is added or dropped, the border cuts it."""
    mask = block_masks_1d(ROWS, 50, mask_prob=0.1, mask_length=5)
    whole = [row for row in map(runs, mask) if len(row) == 1 and row[0][1] == 5]
    assert len(whole) / len(ROWS) == pytest.approx(46 / 50, abs=0.03)  # centres 0, 1, 48, 49 lose frames
    starts = torch.bincount(torch.tensor([row[0][0] for row in whole]), minlength=46)
    assert starts.min() > 0 and starts.max() < 2.2 * len(ROWS) / 50
    rate = mask.float().mean(dim=0)
    assert rate[:5] == pytest.approx(rate[-5:].flip(0), abs=0.02), "alike at both ends"


# ---- what data2vec 1 asks for ----------------------------------------------------------------------------


def network(**values: Any) -> Data2VecAudio:
    return Data2VecAudio(Data2VecAudioConfig.from_dict(
        {"extractor_mode": "layer_norm", "encoder_layers": 1, "encoder_embed_dim": 32,
         "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2, "conv_feature_layers": "[(8, 4, 2)]",
         "conv_pos": 9, "conv_pos_groups": 2, "pos_conv_depth": 3, "average_top_k_layers": 1,
         "mask_length": 4, "mask_prob": 0.5, **values}
    ))  # fmt: skip


def test_time_masks_of_data2vec_1_follow_the_configuration() -> None:
    ids = torch.arange(12)
    padding = torch.arange(50)[None] >= torch.where(ids % 2 == 0, 50, 20)[:, None]
    same, own = (
        network(require_same_masks=on).draw_time_mask(ids, 50, padding, 1, 0) for on in (True, False)
    )
    assert len(set(same.sum(1).tolist())) == 1 and int(own[::2].sum(1).min()) > int(own[1::2].sum(1).max())
    assert not (own & padding).any()
    part = network(require_same_masks=False, mask_dropout=0.5).draw_time_mask(ids, 50, padding, 1, 0)
    assert part.sum(1).tolist() == [n - round(n * 0.5) for n in own.sum(1).tolist()]
    assert not torch.equal(own, network(require_same_masks=False).draw_time_mask(ids, 50, padding, 1, 1))


def test_channel_masks_of_data2vec_1_follow_the_configuration() -> None:
    ids = torch.arange(200)
    assert network().draw_channel_mask(ids, 1, 0) is None
    model = network(mask_channel_prob=0.1, mask_channel_length=8, require_same_masks=False)
    mask = model.draw_channel_mask(ids, 1, 0)
    assert mask is not None and mask.shape == (200, 32)
    assert set(mask.sum(1).tolist()) == {0, 8}, "0.1 * 32 / 8 = 0.4 spans: none, or one"
    again, later = (model.draw_channel_mask(ids, 1, update) for update in (0, 1))
    assert again is not None and torch.equal(again, mask) and not torch.equal(later, mask)  # type: ignore[arg-type]
    assert not torch.equal(mask, model.draw_time_mask(ids, 32, None, 1, 0))
    equal = network(mask_channel_prob=0.1, mask_channel_length=8).draw_channel_mask(ids, 1, 0)
    assert equal is not None and not equal.any(), "the fewest of all rows is none"


@pytest.mark.parametrize("before", [False, True])
def test_hidden_frames_become_the_learned_vector_and_hidden_channels_zero(before: bool) -> None:
    model = network(mask_channel_before=before)
    x = torch.randn(2, 3, 32)
    frames = torch.tensor([[True, False, False], [False, True, False]])
    channels = torch.zeros(2, 32, dtype=torch.bool)
    channels[0, :5] = channels[1, 3:9] = True
    out = model.hide(x, frames, channels)
    for row in range(2):
        for frame in range(3):
            wanted = (model.mask_emb if frames[row, frame] else x[row, frame]).clone()
            if not (before and frames[row, frame]):  # the vector is put in last: its channels stay
                wanted[channels[row]] = 0.0
            assert torch.equal(out[row, frame], wanted)
    assert torch.equal(model.hide(x, None, None), x)
