"""Block-wise masks of data2vec 1 (BEiT's): rectangles of random area and shape until enough is masked.

B images, G grid side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from ..placing import moved
from ..randomness import hashed_scores, row_keys

_ATTEMPTS = 10  # for each rectangle; an image for which none fits keeps fewer masked patches
_LOG_ASPECT = math.log(0.3)  # height / width between 0.3 and 1 / 0.3, uniform in its logarithm
_DRAWS = 512  # uniform numbers made at once; most images need fewer


def rectangle_masks(
    ids_B: torch.Tensor,
    grid: int,
    *,
    num_patches: int,
    min_per_block: int,
    max_per_block: int,
    key: tuple[int | str, ...] = (),
) -> torch.Tensor:
    """Masks of rectangles; the count of an image never exceeds ``num_patches`` but may be lower.

    Args:
        ids_B: (B,) int64 sample ids.
        grid: G.
        num_patches: patches to mask.
        min_per_block: smallest area drawn for a rectangle.
        max_per_block: largest area.
        key: further parts of the key, such as the seed and the update.

    Returns:
        (B, G * G) bool, true where masked.
    """
    device, ids_B = ids_B.device, ids_B.cpu()  # once: a GPU would be asked for each id
    draws = hashed_scores(row_keys("rectangles", *key, ids_R=ids_B), _DRAWS)
    uniform = (draws.numpy().view(np.uint64) >> np.uint64(11)) * 2.0**-53
    masks = np.zeros((len(ids_B), grid, grid), dtype=bool)
    for row, mask in enumerate(masks):
        numbers = _endless(uniform[row], int(ids_B[row]), key)
        masked = 0
        while masked < num_patches:
            budget = min(num_patches - masked, max_per_block)
            added = _add_rectangle(mask, budget, min_per_block, numbers)
            if added == 0:
                break
            masked += added
    return moved(torch.from_numpy(masks.reshape(len(ids_B), -1)), device)


def _add_rectangle(mask_GG: np.ndarray, budget: int, smallest: int, numbers: Iterator[float]) -> int:
    """Mask one more rectangle in place; returns how many cells it added, 0 if none of the attempts fitted."""
    grid = len(mask_GG)
    for _ in range(_ATTEMPTS):
        area = smallest + (budget - smallest) * next(numbers)  # a budget below the smallest area is allowed
        aspect = math.exp(_LOG_ASPECT * (1.0 - 2.0 * next(numbers)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= grid or width >= grid:
            continue
        top = int(next(numbers) * (grid - height + 1))
        left = int(next(numbers) * (grid - width + 1))
        block = mask_GG[top : top + height, left : left + width]
        new = block.size - int(block.sum())
        if 0 < new <= budget:
            block[:] = True
            return new
    return 0


def _endless(first: np.ndarray, sample_id: int, key: tuple[int | str, ...]) -> Iterator[float]:
    """The numbers made in advance, then further ones of the same sample."""
    yield from first.tolist()
    part = 0
    while True:
        part += 1
        row = torch.tensor([sample_id])
        more = hashed_scores(row_keys("rectangles", part, *key, ids_R=row), _DRAWS)
        yield from ((more.numpy().view(np.uint64)[0] >> np.uint64(11)) * 2.0**-53).tolist()
