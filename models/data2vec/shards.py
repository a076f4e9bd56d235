"""Tensors that are spread over workers by rows, as PyTorch's FSDP2 keeps parameters, and their own part here.

Everything that works element by element (the teacher's average, Adam, scaling) works on the own parts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a ``DTensor``, found out without the second that importing its module takes."""
    return hasattr(tensor, "to_local")


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this worker holds of a tensor, as a view: its rows of a sharded one, all of another."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the rows of all workers, which must all call this; a tensor that is whole is returned."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def own_rows(tensor: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """The part of ``full`` that belongs into :func:`own_part` of ``tensor``, as a view.

    Rows are dealt as ``torch.chunk`` deals them: the first workers have ``ceil(rows / workers)`` each, the
    last ones may have none.
    """
    if not is_sharded(tensor):
        return full
    mesh, rows = tensor.device_mesh, full.shape[0]
    each = -(-rows // mesh.size())
    start = min(mesh.get_local_rank() * each, rows)
    return full[start : min(start + each, rows)]


@torch.no_grad()
def set_part(tensor: torch.Tensor, full: torch.Tensor) -> None:
    """Copy this worker's rows of a whole tensor into a tensor that may be sharded."""
    own_part(tensor).copy_(own_rows(tensor, full))


@torch.no_grad()
def full_norm(tensors: Sequence[torch.Tensor]) -> float:
    """The norm of whole tensors taken together; where they are sharded, every worker must call this."""
    square = torch.stack(torch._foreach_norm([own_part(t).float() for t in tensors])).square().sum()
    if is_sharded(tensors[0]):
        torch.distributed.all_reduce(square, group=tensors[0].device_mesh.get_group())
    return float(square.sqrt())
