"""Blocks and rectangles look like those of plain simulations: how often neighbours are masked together."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from data2vec.audio_masking import block_masks_1d
from data2vec.config import ImageModalityConfig
from data2vec.image_masking import block_masks, image_masks
from data2vec.masking import random_masks
from data2vec.v1.image import Data2VecVisionPretraining
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.image_masking import rectangle_masks
from tests.parity.intermediates import intermediates

ROWS = 600


def chosen(rng: np.random.Generator, inside: np.ndarray, count: int) -> np.ndarray:
    """``count`` cells: those inside blocks first, surplus dropped and missing ones drawn at random."""
    own, other = rng.permutation(np.flatnonzero(inside)), rng.permutation(np.flatnonzero(~inside))
    found = np.zeros(inside.size, dtype=bool)
    found[np.concatenate([own, other])[:count]] = True
    return found


def simulated_blocks(
    side: int, dims: int, prob: float, width: int, adjust: float, dropout: float, inverse: bool
) -> np.ndarray:
    """Rows of blocks over a line (``dims`` 1) or a square grid (2), around even centres, cut at borders."""
    rng, size, rows = np.random.default_rng(3), side**dims, []
    share = 1 - prob if inverse else prob
    for _ in range(ROWS):
        inside = np.zeros([side] * dims, dtype=bool)
        for _ in range(int(size * (share + adjust) / width**dims * (1 + dropout))):
            reach = []
            for centre in rng.integers(side, size=dims):
                start = int(centre) - width // 2
                reach.append(slice(max(start, 0), max(min(start + width, side), 1)))
            inside[tuple(reach)] = True
        found = chosen(rng, inside.ravel(), int(size * share))
        rows.append(~found if inverse else found)
    return np.stack(rows)


def together(masks: np.ndarray, side: int, dims: int) -> list[float]:
    """Shares of pairs at distances 1, 2 and 3 along each axis that are both masked or both visible."""
    grid = masks.reshape(-1, *[side] * dims)
    found = []
    for axis in range(1, dims + 1):
        for step in (1, 2, 3):
            near, far = np.take(grid, range(side - step), axis), np.take(grid, range(step, side), axis)
            found.append(float((near == far).mean()))
    return found


BLOCKS: list[dict[str, Any]] = [
    {"mask_prob": 0.8, "mask_length": 3, "mask_prob_adjust": 0.07, "inverse_mask": True},
    {"mask_prob": 0.8, "mask_length": 3, "mask_prob_adjust": 0.0, "inverse_mask": True},
    {"mask_prob": 0.4, "mask_length": 4, "mask_prob_adjust": 0.05},
    {"mask_prob": 0.3, "mask_length": 2, "mask_dropout": 0.6},
]


@pytest.mark.parametrize("values", BLOCKS)
def test_blocks_over_a_grid(values: dict[str, Any]) -> None:
    side = 12
    ours = block_masks(torch.arange(ROWS), side * side, **values).numpy()
    plain = simulated_blocks(
        side, 2, values["mask_prob"], values["mask_length"], values.get("mask_prob_adjust", 0.0),
        values.get("mask_dropout", 0.0), values.get("inverse_mask", False),
    )  # fmt: skip
    assert set(ours.sum(1)) == set(plain.sum(1))
    assert together(ours, side, 2) == pytest.approx(together(plain, side, 2), abs=0.012)
    assert ours.mean(0) == pytest.approx(plain.mean(0), abs=0.13)


@pytest.mark.parametrize("values", BLOCKS)
def test_blocks_over_time(values: dict[str, Any]) -> None:
    length = 120
    ours = block_masks_1d(torch.arange(ROWS), length, **values).numpy()
    plain = simulated_blocks(
        length, 1, values["mask_prob"], values["mask_length"], values.get("mask_prob_adjust", 0.0),
        values.get("mask_dropout", 0.0), values.get("inverse_mask", False),
    )  # fmt: skip
    assert set(ours.sum(1)) == set(plain.sum(1))
    assert together(ours, length, 1) == pytest.approx(together(plain, length, 1), abs=0.012)
    assert ours.mean(0) == pytest.approx(plain.mean(0), abs=0.13)


@pytest.mark.parametrize("values", [*BLOCKS, {"mask_prob": 0.6, "mask_length": 1}])
def test_an_image_configuration_asks_for_its_blocks(values: dict[str, Any]) -> None:
    rows = torch.arange(20)
    found = image_masks(rows, 144, ImageModalityConfig(**values), 1, 7)
    if values["mask_length"] == 1:
        wanted = random_masks(rows, 144, values["mask_prob"], 1, 7).mask_RT
    else:
        wanted = block_masks(rows, 144, **values, key=(1, 7))
    assert torch.equal(found.mask_RT, wanted) and torch.equal(
        found.ids_keep_RK, (~wanted).nonzero()[:, 1].view(20, -1)
    )
    shown = image_masks(rows, 144, ImageModalityConfig(**values, keep_masked_pct=0.25), 1, 7)
    assert torch.equal(shown.mask_RT, wanted)
    seen = torch.zeros_like(wanted).scatter_(1, shown.ids_keep_RK, True)
    assert (seen | wanted).all() and (seen & wanted).sum(1).tolist() == [
        round(0.25 * int(wanted[0].sum()))
    ] * 20
    other = image_masks(rows, 144, ImageModalityConfig(**values, keep_masked_pct=0.25), 1, 8)
    assert not torch.equal(other.ids_keep_RK, shown.ids_keep_RK)


def simulated_rectangles(grid: int, wanted: int, low: int, high: int) -> np.ndarray:
    """BEiT's: rectangles of random area and aspect until enough is masked or ten attempts fail."""
    draw, rows = random.Random(5), []
    for _ in range(ROWS):
        mask, count = np.zeros((grid, grid), dtype=bool), 0
        while count < wanted:
            most = min(wanted - count, high)
            for _ in range(10):
                area = draw.uniform(low, most)
                aspect = math.exp(draw.uniform(math.log(0.3), math.log(1 / 0.3)))
                height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if height < grid and width < grid:
                    y, x = draw.randint(0, grid - height), draw.randint(0, grid - width)
                    new = int((~mask[y : y + height, x : x + width]).sum())
                    if 0 < new <= most:
                        mask[y : y + height, x : x + width] = True
                        count += new
                        break
            else:
                break
        rows.append(mask.ravel())
    return np.stack(rows)


@pytest.mark.parametrize(("wanted", "low", "high"), [(75, 16, 196), (60, 4, 9), (30, 16, 20)])
def test_rectangles(wanted: int, low: int, high: int) -> None:
    values = {"num_patches": wanted, "min_per_block": low, "max_per_block": high}
    ours = rectangle_masks(torch.arange(ROWS), 14, **values, key=(1, 0)).numpy()
    plain = simulated_rectangles(14, wanted, low, high)
    assert ours.sum(1).mean() == pytest.approx(plain.sum(1).mean(), rel=0.02)
    assert together(ours, 14, 2) == pytest.approx(together(plain, 14, 2), abs=0.012)
    assert ours.mean(0) == pytest.approx(plain.mean(0), abs=0.13)
    grids = [masks.reshape(-1, 14, 14) for masks in (ours, plain)]
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
        assert grids[0][edge].mean() == pytest.approx(grids[1][edge].mean(), abs=0.03)


def test_a_configuration_of_data2vec_1_asks_for_its_rectangles() -> None:
    config = Data2VecVisionConfig(
        image_size=40, patch_size=4, embed_dim=8, num_heads=1, depth=1, average_top_k_layers=1, seed=6,
        num_mask_patches=50, min_mask_patches_per_block=5, max_mask_patches_per_block=12,
    )  # fmt: skip
    model, ids = Data2VecVisionPretraining(config), torch.tensor([3, 8])
    images = torch.randn(2, 3, 40, 40)
    for seed, update in ((None, 0), (None, 4), (2, 4)):
        with intermediates(model) as found:
            model(images, ids=ids, seed=seed, update=update)
        wanted = rectangle_masks(
            ids,
            10,
            num_patches=50,
            min_per_block=5,
            max_per_block=12,
            key=(6 if seed is None else seed, update),
        )
        whole = model.student.with_class_token(found["local_features"])
        assert torch.equal((found["masked_encoder_input_with_cls"] != whole).any(2)[:, 1:], wanted)
