"""ALiBi: attention falls off with distance, at another rate in every head (Press et al. 2022), symmetric.

The bias of a pair of positions depends on their distance alone, so it is computed for the kept positions
directly; a full (T, T) bias never exists for a student that sees a part of them.

R rows, K kept positions, H heads.
"""

from __future__ import annotations

import math

import torch

from .placing import moved


def alibi_slopes(num_heads: int) -> list[float]:
    """Rate of each head: powers of ``2 ** (-8 / n)``; other counts of heads take every second rate of 2 n."""

    def powers(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (head + 1) / n) for head in range(n)]

    closest = 2 ** math.floor(math.log2(num_heads))
    if closest == num_heads:
        return powers(num_heads)
    return powers(closest) + powers(2 * closest)[0::2][: num_heads - closest]


def distances(positions_RK: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """|i - j| of every pair of positions: (R, K) int64 to (R, 1, K, K)."""
    positions = positions_RK.to(dtype)
    return (positions[:, None, :, None] - positions[:, None, None, :]).abs_()


def alibi_bias(distances_R1KK: torch.Tensor, scale_H: torch.Tensor) -> torch.Tensor:
    """``-slope * scale * distance``; the gradient reaches the scale of each head.

    Args:
        distances_R1KK: (R, 1, K, K), see :func:`distances`.
        scale_H: (H,), clamped at 0 from below here.

    Returns:
        (R, H, K, K) float32.
    """
    slopes_H = moved(torch.tensor(alibi_slopes(len(scale_H))), scale_H.device)
    return distances_R1KK * (-slopes_H * scale_H.clamp_min(0.0).float())[None, :, None, None]
