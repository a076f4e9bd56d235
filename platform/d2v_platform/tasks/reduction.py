"""What workers tell each other: above all one sum of gradients an update, after its last micro-batch.

Gradients are summed in buckets over the parameters that any worker used, so that a parameter without a
gradient anywhere stays without one and the optimizer leaves it alone, wherever the micro-batches ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

_BUCKET_BYTES = 32 * 2**20


def reduce_gradients(parameters: Sequence[nn.Parameter], device: torch.device) -> None:
    """Sum gradients over the workers of the default process group, in place.

    Args:
        parameters: all trainable parameters, in the same order on every worker.
        device: where the process group communicates.
    """
    if not _distributed():
        return
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    chosen = [p for p, flag in zip(parameters, used.tolist(), strict=True) if flag]
    for parameter in chosen:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets(chosen):
        gradients = [p.grad for p in bucket if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()


def reduce_vector(vector: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The sum of a float64 vector over the workers, on the CPU."""
    return add_up(vector.to(device)).cpu()


def add_up(vector: torch.Tensor) -> torch.Tensor:
    """The sum over the workers, where the vector is, which is where the process group communicates."""
    if _distributed():
        dist.all_reduce(vector)
    return vector


def gather_objects(value: Any) -> list[Any]:
    """Every worker's plain value, in the order of ranks."""
    if not _distributed():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def object_of_first(value: Any) -> Any:
    """Rank 0's plain value, on every worker."""
    if not _distributed():
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def tensor_of_first(tensor: torch.Tensor) -> torch.Tensor:
    """Fill a contiguous tensor with rank 0's, bit for bit; all have the same shape and type."""
    if _distributed() and tensor.numel():
        dist.broadcast(tensor.view(-1).view(torch.uint8), src=0)
    return tensor


def rank_and_size() -> tuple[int, int]:
    """This worker's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)


def barrier() -> None:
    """Wait for all workers."""
    if _distributed():
        dist.barrier()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    size = _BUCKET_BYTES
    for parameter in parameters:
        nbytes = parameter.numel() * parameter.element_size()
        if size + nbytes > _BUCKET_BYTES or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += nbytes
    return buckets
