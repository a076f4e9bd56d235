"""Dropout that remembers one byte an entry and draws four entries from one random number.

PyTorch's dropout on a CPU draws entry by entry on one thread, and keeps a float for each of them until the
backward pass. This one draws from the default generators too, which
:func:`~data2vec.randomness.seed_dropout` seeds.
"""

from __future__ import annotations

import torch
from torch import nn


class Dropout(nn.Dropout):
    """``nn.Dropout`` under another generator of masks, where PyTorch's keeps floats."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Shape is kept."""
        if not self.training or self.p == 0.0:
            return input
        if keeps_flags(input) or torch.compiler.is_compiling():
            return super().forward(input)
        return select(input, keep_flags(input.shape, 1.0 - self.p, input.device), self.p)


def keeps_flags(x: torch.Tensor) -> bool:
    """Whether PyTorch's dropout draws in parallel and keeps flags, as its GPU kernels do; a CPU's do not."""
    return x.device.type != "cpu"


def select(x: torch.Tensor, kept: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """What dropout lets pass, scaled so that the mean stays: ``x`` itself where no flags are given."""
    if kept is None:
        return x
    return (x * (1.0 / (1.0 - dropout) if dropout < 1.0 else 0.0)).mul_(factors(kept))


def factors(kept: torch.Tensor) -> torch.Tensor:
    """Flags as numbers 0 and 1 to multiply with: no copy, and several times faster than flags on a CPU."""
    return kept.view(torch.uint8)


def keep_flags(
    shape: torch.Size, keep: float, device: torch.device, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Random flags, true with probability ``keep`` to within 2**-17: four of them from each 64-bit number.

    Args:
        shape: of the flags.
        keep: probability of true.
        device: where they are drawn.
        out: contiguous bool tensor of that shape to fill.
    """
    numbers = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64, device=device)
    lanes = numbers.random_(torch.iinfo(torch.int64).min, None).view(torch.int16)[: shape.numel()]
    lowest = -(2**15)  # int16 holds the highest value that is kept, but not the one after it
    chosen = round(keep * 2**16)
    flags = torch.le(lanes.view(shape), lowest + max(chosen, 1) - 1, out=out)
    return flags if chosen else flags.zero_()
