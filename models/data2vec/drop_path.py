"""Drop path (stochastic depth) that spares the work: a branch runs on the rows that keep it.

The usual form runs a branch on every row and multiplies some of its rows by zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .placing import moved


@dataclass(frozen=True)
class KeptRows:
    """The rows of a batch whose branch runs.

    Tensors alone, of which compiled blocks need one variant: a number would be a constant of its code.
    """

    index: torch.Tensor | None = None  # (K,) int64; ``None`` = all rows, as they are
    scale_K: torch.Tensor | None = None  # of each row's branch, so that its mean over draws is that without

    def of(self, x_R: torch.Tensor) -> torch.Tensor:
        """(R, ...) to (K, ...); what has one row belongs to all of them and stays."""
        return x_R if self.index is None or len(x_R) == 1 else x_R.index_select(0, self.index)

    def add(self, x_R: torch.Tensor, branch_K: torch.Tensor) -> torch.Tensor:
        """(R, ...) plus the scaled branch (K, ...) of these rows."""
        if self.index is None or self.scale_K is None:
            return x_R + branch_K
        dtype = torch.promote_types(x_R.dtype, branch_K.dtype)
        scaled_K = branch_K * self.scale_K.view(-1, *[1] * (branch_K.dim() - 1))
        return x_R.to(dtype).index_add(0, self.index, scaled_K.to(dtype))


ALL_ROWS = KeptRows()
FEWEST = 2  # rows that run, of more than one: one row is another case for a compiler


def draw_kept_rows(rows: int, rate: float, device: torch.device) -> KeptRows:
    """Each row with probability ``1 - rate``, from the CPU's default generator.

    The number of rows decides shapes, which a GPU's generator would make the CPU wait for. Where fewer are
    kept than :data:`FEWEST`, others run with scale zero: the branch's parameters always have gradients, as
    other workers' have.
    """
    if rate == 0.0:
        return ALL_ROWS
    kept_R = torch.empty(rows, device="cpu").bernoulli_(1.0 - rate)
    order_R, kept = kept_R.argsort(descending=True, stable=True), int(kept_R.sum())
    index = order_R[: max(kept, min(FEWEST, rows))]
    scale_K = torch.full((len(index),), 1.0 / (1.0 - rate), device=device)
    scale_K[kept:] = 0.0
    return KeptRows(moved(index, device), scale_K)
