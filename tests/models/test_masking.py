"""Masks: exact counts, independence of the batch, and the way from samples to kept positions and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.masking import MaskSet, batch_mask_prob, clone_ids, random_masks, row_noise

lengths = st.integers(2, 70)
shares = st.floats(0.05, 0.95)
seeds = st.integers(0, 2**40)
id_lists = st.lists(st.integers(0, 2**50), min_size=1, max_size=6, unique=True)


@settings(max_examples=60, deadline=None)
@given(ids=id_lists, length=lengths, share=shares, seed=seeds, clones=st.integers(1, 4))
def test_every_row_has_the_exact_count_and_is_a_partition(
    ids: list[int], length: int, share: float, seed: int, clones: int
) -> None:
    masks = random_masks(clone_ids(torch.tensor(ids), clones), length, share, seed, 3)
    keep = int(length * (1.0 - share))
    assert masks.num_kept == keep
    assert masks.mask_RT.shape == (len(ids) * clones, length)
    assert (masks.mask_RT.sum(dim=1) == length - keep).all()
    for row in range(len(masks.mask_RT)):
        kept = masks.ids_keep_RK[row]
        assert kept.tolist() == (~masks.mask_RT[row]).nonzero().squeeze(1).tolist()
        assert sorted(masks.ids_restore_RT[row].tolist()) == list(range(length))
        assert masks.ids_restore_RT[row][kept].tolist() == list(range(keep))
    assert masks.masked_N.tolist() == masks.mask_RT.flatten().nonzero().squeeze(1).tolist()


@pytest.mark.parametrize(("share", "keep"), [(0.48, 266), (0.5, 256)])
def test_counts_of_the_recipes(share: float, keep: int) -> None:
    masks = random_masks(torch.arange(5), 512, share, 1, 0)
    assert masks.num_kept == keep
    assert (masks.mask_RT.sum(dim=1) == 512 - keep).all()


@settings(max_examples=40, deadline=None)
@given(ids=id_lists, length=lengths, seed=seeds, data=st.data())
def test_a_sample_keeps_its_masks_in_any_batch(
    ids: list[int], length: int, seed: int, data: st.DataObject
) -> None:
    clones = 3
    whole = random_masks(clone_ids(torch.tensor(ids), clones), length, 0.5, seed, 7).mask_RT
    other = data.draw(st.permutations(ids))[: data.draw(st.integers(1, len(ids)))]
    part = random_masks(clone_ids(torch.tensor(other), clones), length, 0.5, seed, 7).mask_RT
    for position, sample in enumerate(other):
        index = ids.index(sample)
        assert torch.equal(
            part[position * clones : (position + 1) * clones], whole[index * clones : (index + 1) * clones]
        )


def test_clones_samples_updates_and_seeds_differ() -> None:
    rows = clone_ids(torch.arange(4), 4)
    mask_RT = random_masks(rows, 64, 0.5, 1, 0).mask_RT
    assert len({tuple(row.tolist()) for row in mask_RT}) == 16
    for key in ((1, 1), (2, 0)):
        assert not torch.equal(random_masks(rows, 64, 0.5, *key).mask_RT, mask_RT)
    assert torch.equal(random_masks(rows, 64, 0.5, 1, 0).mask_RT, mask_RT)


def test_first_clone_keeps_the_samples_id_and_rows_lie_sample_by_sample() -> None:
    rows = clone_ids(torch.tensor([5, 9]), 3)
    assert rows[0] == 5
    assert rows[3] == 9
    assert (rows[1] - rows[0]) == (rows[4] - rows[3])
    assert len(set(rows.tolist())) == 6


def test_every_position_is_masked_equally_often() -> None:
    rate_T = random_masks(torch.arange(20_000), 20, 0.4, 1, 0).mask_RT.float().mean(dim=0)
    assert rate_T == pytest.approx(torch.full((20,), 0.4), abs=0.02)  # standard error 0.0035


def test_positions_are_masked_independently() -> None:
    mask_RT = random_masks(torch.arange(20_000), 20, 0.5, 1, 0).mask_RT.float()
    correlation_TT = torch.corrcoef(mask_RT.T)
    off_diagonal = correlation_TT[~torch.eye(20, dtype=torch.bool)]
    expected = -1 / 19  # exactly half is masked
    assert off_diagonal == pytest.approx(torch.full((380,), expected), abs=0.035)


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 4), clones=st.integers(1, 3), length=lengths, seed=seeds)
def test_scattering_undoes_gathering(samples: int, clones: int, length: int, seed: int) -> None:
    x_BTD = torch.randn(samples, length, 3)
    masks = random_masks(clone_ids(torch.arange(samples), clones), length, 0.5, seed)
    kept_RKD = masks.gather_kept(x_BTD)
    back_RTD = masks.scatter_kept(kept_RKD, torch.zeros(len(kept_RKD), length - masks.num_kept, 3))
    cloned_RTD = x_BTD.repeat_interleave(clones, dim=0)
    assert torch.equal(back_RTD, cloned_RTD * ~masks.mask_RT[..., None])


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 4), clones=st.integers(1, 3), length=lengths, seed=seeds)
def test_gathering_at_masked_positions_equals_plain_indexing(
    samples: int, clones: int, length: int, seed: int
) -> None:
    x_BTD = torch.randn(samples, length, 3)
    masks = random_masks(clone_ids(torch.arange(samples), clones), length, 0.3, seed)
    cloned_RTD = x_BTD.repeat_interleave(clones, dim=0)
    assert torch.equal(masks.gather_masked_targets(x_BTD), cloned_RTD[masks.mask_RT])
    assert torch.equal(masks.gather_masked(cloned_RTD), cloned_RTD[masks.mask_RT])


def test_noise_lands_where_ids_restore_says() -> None:
    mask_RT = torch.tensor([[1, 0, 1, 0, 1]]).bool()
    ids_keep, ids_restore = torch.tensor([[3, 1]]), torch.tensor([[4, 1, 2, 0, 3]])
    masks = MaskSet.from_mask(mask_RT, ids_keep, ids_restore)
    kept, noise = masks.gather_kept(torch.arange(5.0).view(1, 5, 1)), torch.tensor([[[10.0], [11], [12]]])
    assert kept.flatten().tolist() == [3, 1]
    assert masks.scatter_kept(kept, noise).flatten().tolist() == [12, 1, 10, 3, 11]


def test_a_plain_mask_is_completed_in_ascending_order() -> None:
    masks = MaskSet.from_mask(torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]]))
    assert masks.ids_keep_RK.tolist() == [[1, 2], [0, 3]]
    assert masks.masked_N.tolist() == [0, 3, 5, 6]
    assert masks.gather_kept_flags(torch.tensor([[True, False, True, False]])).tolist() == [
        [False, True],
        [True, False],
    ]


def test_loss_positions_follow_the_mask_where_masked_positions_are_kept() -> None:
    """A row may feed some masked positions to the student (unequal rows, ``keep_masked_pct``)."""
    mask_RT = torch.tensor([[1, 0, 1, 1]]).bool()
    masks = MaskSet.from_mask(mask_RT, torch.tensor([[1, 0]]), torch.tensor([[1, 0, 2, 3]]))
    assert masks.num_kept == 2
    assert masks.masked_N.tolist() == [0, 2, 3]
    full = masks.scatter_kept(torch.tensor([[[1.0], [0]]]), torch.tensor([[[8.0], [9]]]))
    assert full.flatten().tolist() == [0, 1, 8, 9]


def test_noise_belongs_to_the_row_and_has_the_given_deviation() -> None:
    noise = row_noise(torch.tensor([4, 8]), 50, 30, 0.01, 1, 2)
    swapped = row_noise(torch.tensor([8, 4, 5]), 50, 30, 0.01, 1, 2)
    assert torch.equal(noise, swapped[[1, 0]])
    assert float(noise.std()) == pytest.approx(0.01, rel=0.05)
    later = row_noise(torch.tensor([4, 8]), 50, 30, 0.01, 1, 3)
    assert not torch.equal(noise, later)


def test_masked_share_of_a_batch() -> None:
    assert batch_mask_prob(0.5, None, 1) == 0.5
    drawn = [batch_mask_prob(0.6, 0.2, 1, update) for update in range(2000)]
    assert min(drawn) >= 0.2
    assert max(drawn) < 0.6
    assert sum(drawn) / len(drawn) == pytest.approx(0.4, abs=0.01)
    assert drawn[5] == batch_mask_prob(0.6, 0.2, 1, 5)


def test_a_share_is_drawn_only_where_there_is_a_range() -> None:
    for low in (None, 0.5, 0.6, -0.1):
        assert batch_mask_prob(0.5, low, 1, 2) == 0.5
    assert 0.0 <= batch_mask_prob(0.5, 0.0, 1, 2) < 0.5
    assert 0.4 <= batch_mask_prob(0.5, 0.4, 1, 2) < 0.5


def test_positions_that_are_not_gathered_have_a_gradient_of_zero() -> None:
    torch.use_deterministic_algorithms(True)  # fills memory that nobody wrote with NaN
    try:
        masks = random_masks(clone_ids(torch.arange(2), 2), 9, 0.4, 1)
        x = torch.randn(4, 9, 3, requires_grad=True)
        weights = torch.randn(int(masks.mask_RT.sum()), 3)
        (masks.gather_masked(x) * weights).sum().backward()
        wanted = torch.zeros(4, 9, 3)
        wanted[masks.mask_RT] = weights
        assert torch.equal(x.grad, wanted)  # type: ignore[arg-type]
    finally:
        torch.use_deterministic_algorithms(False)
