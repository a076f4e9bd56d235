"""Which micro-batches a worker computes, and how they reach its device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data2vec.placing import moved


@dataclass(frozen=True)
class Share:
    """One worker's micro-batches: those of each update are dealt out in turn."""

    batches: Sequence[np.ndarray]  # all micro-batches of the epoch
    start: int  # first micro-batch not yet consumed
    per_update: int  # micro-batches of an update
    rank: int  # this worker
    size: int  # k
    padded: bool = False  # every worker has equally many in each update; the ones too many repeat others'

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start, len(self.batches), self.per_update):
            count = min(self.per_update, len(self.batches) - first)
            for index in self.own_indices(count):
                yield self.batches[first + index % count].tolist()

    def __len__(self) -> int:
        whole, rest = divmod(len(self.batches) - self.start, self.per_update)
        return whole * len(self.own_indices(self.per_update)) + len(self.own_indices(rest))

    def own_indices(self, count: int) -> range:
        """This worker's micro-batches of an update of ``count``; from ``count`` on they are repetitions."""
        return range(self.rank, -(-count // self.size) * self.size if self.padded else count, self.size)


DECIDES = frozenset({"id", "padding_mask", "frames", "target_lengths"})
"""Tensors of a batch that masks and shapes follow from."""


def to_device(
    batch: Mapping[str, Any], device: torch.device, on_cpu: frozenset[str] = DECIDES
) -> dict[str, Any]:
    """Tensors of a batch on the device, but for those that Python reads: nothing waits for the copies."""
    return {
        key: moved(value, device) if isinstance(value, torch.Tensor) and key not in on_cpu else value
        for key, value in batch.items()
    }
