"""Relative position tables for another grid than the one they were trained on (BEiT's interpolation).

G grid side, H heads.
"""

from __future__ import annotations

import numpy as np
import torch

_CLASS_ROWS = 3  # class to patch, patch to class, class to class: kept as they are


def interpolate_bias_table(table: torch.Tensor, grid: int) -> torch.Tensor:
    """A table of offsets for ``grid``: cubic splines over offsets that are spaced geometrically.

    Near offsets matter most, so the trained offsets are placed at 0, 1, 1 + q, 1 + q + q^2, ... with q chosen
    so that the last one falls on the largest offset of the new grid.

    Args:
        table: ((2 G - 1)^2 + 3, H).
        grid: the new G.

    Returns:
        ((2 grid - 1)^2 + 3, H).
    """
    old, new = round((table.shape[0] - _CLASS_ROWS) ** 0.5), 2 * grid - 1
    if old == new:
        return table
    at = _offsets(old, new)
    wanted = np.arange(new) - new // 2
    planes = table[:-_CLASS_ROWS].double().reshape(old, old, -1).permute(2, 0, 1).numpy()
    degree = min(3, old - 1)
    from scipy.interpolate import RectBivariateSpline  # more than a tenth of a training's imports

    made = [RectBivariateSpline(at, at, plane, kx=degree, ky=degree)(wanted, wanted) for plane in planes]
    grown = torch.from_numpy(np.stack(made, axis=-1)).reshape(new * new, -1).to(table.dtype)
    return torch.cat([grown, table[-_CLASS_ROWS:]])


def _offsets(old: int, new: int) -> np.ndarray:
    """Where the old offsets lie among the new ones; symmetric about 0."""
    count, reach = old // 2, new // 2
    low, high, q = 1e-3, 20.0, 1.0
    for _ in range(100):  # the sum of the geometric series grows with q
        q = (low + high) / 2
        total = count if abs(q - 1) < 1e-12 else (1 - q**count) / (1 - q)
        low, high = (low, q) if total > reach else (q, high)
    steps = np.cumsum(q ** np.arange(count))
    return np.concatenate([-steps[::-1], [0.0], steps])
