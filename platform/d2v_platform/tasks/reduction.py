"""What workers tell each other: above all one sum of gradients an update, during its last backward pass.

With each gradient goes how many workers had one, so that a parameter without a gradient anywhere stays
without one and the optimizer leaves it alone, wherever the micro-batches ran.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from data2vec.placing import moved

_BUCKET_BYTES = 32 * 2**20


class GradientSum:
    """The sum of gradients over the workers of the default process group, while the backward pass goes on.

    In the last pass of an update a bucket is sent once all its gradients are there and the ones before it are
    sent, so that every worker sends the same ones in the same order; :meth:`finish` sends those that wait for
    a parameter without a gradient, or for a pass that this worker has not. Gradients then lie in the buckets.

    Args:
        parameters: all trainable ones, about as a backward pass comes to them, the same on every worker.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._buckets = _buckets(parameters) if _distributed() else []
        self._bucket_of = {p: number for number, bucket in enumerate(self._buckets) for p in bucket}
        self._missing: list[int] | None = None  # gradients that each bucket waits for, in the last pass
        self._sent: list[tuple[dist.Work, torch.Tensor]] = []
        for parameter in self._bucket_of:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def last_pass(self, spared: Collection[nn.Parameter] = ()) -> None:
        """The backward pass that begins now is the last one of this update.

        Args:
            spared: what it does not come to.
        """
        self._missing = [sum(p not in spared for p in bucket) for bucket in self._buckets]

    def finish(self) -> torch.Tensor:
        """Wait for the sums.

        Returns:
            For each parameter of :attr:`order`, how many workers had a gradient, on the gradients' device.
        """
        while len(self._sent) < len(self._buckets):
            self._send()
        for work, _ in self._sent:
            work.wait()
        counts = [count.double() for _, count in self._sent]
        self._sent, self._missing = [], None
        return torch.cat(counts) if counts else torch.zeros(0, dtype=torch.float64)

    @property
    def order(self) -> list[nn.Parameter]:
        """Parameters as the buckets hold them."""
        return list(self._bucket_of)

    def _arrived(self, parameter: torch.Tensor) -> None:
        if self._missing is None:
            return
        number = self._bucket_of[parameter]  # pyright: ignore[reportArgumentType]
        assert number >= len(self._sent), "a gradient came after its bucket was sent"
        self._missing[number] -= 1
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send()

    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        had = [parameter.grad is not None for parameter in bucket]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        count = torch.tensor(had, dtype=bucket[0].dtype)
        flat = torch.cat([*(g.reshape(-1) for g in gradients), moved(count, bucket[0].device)])
        numbers, count = flat.split([len(flat) - len(bucket), len(bucket)])
        for parameter, part in zip(bucket, numbers.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = part.view_as(parameter)
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._sent.append((work, count))


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
