"""Masks of images: exact counts, block shapes, and keys that alone decide them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.config import ImageModalityConfig
from data2vec.image_masking import block_masks, image_masks
from data2vec.masking import clone_ids
from data2vec.v1.image_masking import rectangle_masks

BASE = {"mask_prob": 0.8, "mask_prob_adjust": 0.07, "mask_length": 3, "inverse_mask": True}
LARGE = {"mask_prob": 0.75, "mask_prob_adjust": 0.1, "mask_length": 3, "inverse_mask": True}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    update=st.integers(0, 10**6),
    recipe=st.sampled_from([(BASE, 196, 157), (LARGE, 196, 147), (LARGE, 256, 192)]),
)
def test_recipes_mask_exact_counts(seed: int, update: int, recipe: tuple[dict[str, float], int, int]) -> None:
    values, length, masked = recipe
    config = ImageModalityConfig(**values)  # type: ignore[arg-type]
    masks = image_masks(clone_ids(torch.tensor([3, seed]), 8), length, config, seed, update)
    assert (masks.mask_RT.sum(1) == masked).all()
    assert masks.num_kept == length - masked
    both = torch.cat([masks.ids_keep_RK, masks.masked_N.view(16, -1) % length], dim=1)
    assert (both.sort(dim=1).values == torch.arange(length)).all(), "kept and masked part every row"
    assert len({tuple(row) for row in masks.mask_RT.int().tolist()}) == 16, "no two clones alike"


@settings(max_examples=40, deadline=None)
@given(
    side=st.integers(3, 12),
    share=st.floats(0.1, 0.9),
    block=st.integers(1, 5),
    adjust=st.floats(0.0, 0.3),
    inverse=st.booleans(),
)
def test_any_setting_gives_equal_counts(
    side: int, share: float, block: int, adjust: float, inverse: bool
) -> None:
    mask = block_masks(
        torch.arange(5),
        side * side,
        mask_prob=share,
        mask_length=block,
        mask_prob_adjust=adjust,
        inverse_mask=inverse,
    )
    ones = int(side * side * ((1 - share) if inverse else share))
    assert (mask.sum(1) == (side * side - ones if inverse else ones)).all()


def test_a_row_does_not_depend_on_its_batch() -> None:
    config = ImageModalityConfig(**BASE)  # type: ignore[arg-type]
    together = image_masks(torch.tensor([5, 6, 7]), 196, config, 1, 2).mask_RT
    alone = image_masks(torch.tensor([6]), 196, config, 1, 2).mask_RT
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(alone, image_masks(torch.tensor([6]), 196, config, 1, 3).mask_RT)
    assert not torch.equal(alone, image_masks(torch.tensor([6]), 196, config, 2, 2).mask_RT)


def test_one_block_is_a_square_around_its_centre() -> None:
    """One centre, and exactly as many cells as the block has: nothing is added or dropped."""
    rows = torch.arange(400)
    mask = block_masks(rows, 100, mask_prob=0.09, mask_length=3)
    assert (mask.sum(1) == 9).all()
    grid = mask.view(-1, 10, 10)
    square = [(int(r.any(1).sum()), int(r.any(0).sum())) == (3, 3) for r in grid]
    # A centre on the border collapses there, and single cells make up for it: 36 of 100 centres.
    assert 0.5 < sum(square) / len(square) < 0.8


def test_shown_masked_cells_stay_in_the_loss() -> None:
    config = ImageModalityConfig(**BASE, keep_masked_pct=0.25)  # type: ignore[arg-type]
    masks = image_masks(torch.arange(4), 196, config, 1, 0)
    assert masks.num_kept == 39 + round(157 * 0.25)
    assert masks.masked_N.numel() == 4 * 157
    seen = masks.mask_RT.gather(1, masks.ids_keep_RK)
    assert (seen.sum(1) == round(157 * 0.25)).all()
    x = torch.randn(4, 196, 2)
    full = masks.scatter_kept(masks.gather_kept(x), torch.zeros(4, 196 - masks.num_kept, 2))
    assert torch.equal(full.gather(1, masks.ids_keep_RK[..., None].expand(-1, -1, 2)), masks.gather_kept(x))


@pytest.mark.parametrize("wanted", [30, 75, 120])
def test_rectangles_never_exceed_their_number(wanted: int) -> None:
    settings_ = {"num_patches": wanted, "min_per_block": 16, "max_per_block": 196}
    mask = rectangle_masks(torch.arange(50), 14, **settings_, key=(1, 0))
    counts = mask.sum(1)
    assert counts.max() <= wanted and counts.float().mean() > 0.95 * wanted
    assert torch.equal(mask[7:8], rectangle_masks(torch.tensor([7]), 14, **settings_, key=(1, 0)))
    assert not torch.equal(mask, rectangle_masks(torch.arange(50), 14, **settings_, key=(1, 1)))
