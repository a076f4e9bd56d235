"""Drop path (stochastic depth) that spares the work: a branch runs on the rows that keep it.

The usual form runs a branch on every row and multiplies some of its rows by zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .placing import moved


@dataclass(frozen=True)
class KeptRows:
    """The rows of a batch whose branch runs."""

    index: torch.Tensor | None = None  # (K,) int64; ``None`` = all rows
    scale: float = 1.0  # of the branch, so that its mean over draws is that without drop path

    def of(self, x_R: torch.Tensor) -> torch.Tensor:
        """(R, ...) to (K, ...); what has one row belongs to all of them and stays."""
        return x_R if self.index is None or len(x_R) == 1 else x_R.index_select(0, self.index)

    def add(self, x_R: torch.Tensor, branch_K: torch.Tensor) -> torch.Tensor:
        """(R, ...) plus the scaled branch (K, ...) of these rows."""
        if self.index is None:
            return torch.add(x_R, branch_K, alpha=self.scale)
        dtype = torch.promote_types(x_R.dtype, branch_K.dtype)
        return x_R.to(dtype).index_add(0, self.index, branch_K.to(dtype), alpha=self.scale)


ALL_ROWS = KeptRows()


def draw_kept_rows(rows: int, rate: float, device: torch.device) -> KeptRows:
    """Each row with probability ``1 - rate``, from the CPU's default generator.

    The number of rows decides shapes, which a GPU's generator would make the CPU wait for. Where no row is
    kept, the first one runs with scale zero: its parameters have gradients then, as other workers' have.
    """
    if rate == 0.0:
        return ALL_ROWS
    keep = 1.0 - rate
    index = torch.empty(rows, device="cpu").bernoulli_(keep).nonzero()[:, 0]
    if len(index) == rows:
        return KeptRows(scale=1.0 / keep)
    if len(index) == 0:
        return KeptRows(torch.zeros(1, dtype=torch.int64, device=device), scale=0.0)
    return KeptRows(moved(index, device), scale=1.0 / keep)
