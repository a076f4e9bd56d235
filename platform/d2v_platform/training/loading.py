"""Which micro-batches a worker computes, and how they reach its device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .loop_state import Worker


@dataclass(frozen=True)
class Share:
    """One worker's micro-batches: those of each update are dealt out in turn.

    Attributes:
        batches: all micro-batches of the epoch.
        start: first micro-batch not yet consumed.
        per_update: micro-batches of an update.
        rank: this worker.
        size: k.
    """

    batches: Sequence[np.ndarray]
    start: int
    per_update: int
    rank: int
    size: int

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start, len(self.batches), self.per_update):
            for index in range(self.rank, min(self.per_update, len(self.batches) - first), self.size):
                yield self.batches[first + index].tolist()

    def __len__(self) -> int:
        whole, rest = divmod(len(self.batches) - self.start, self.per_update)
        mine = len(range(self.rank, self.per_update, self.size))
        return whole * mine + len(range(self.rank, rest, self.size))


def make_loader(dataset: Any, batches: Iterable[list[int]], worker: Worker) -> Iterator[Any]:
    """Collated batches in order."""
    return iter(
        torch.utils.data.DataLoader(
            dataset,
            batch_sampler=batches,  # pyright: ignore[reportArgumentType] - any iterable of index lists works
            collate_fn=dataset.collate,
            num_workers=worker.loader_processes,
            pin_memory=worker.device.type == "cuda",
        )
    )


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors of a batch on the device."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
