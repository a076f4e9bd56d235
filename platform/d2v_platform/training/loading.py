"""Which micro-batches a worker computes, and how they reach its device."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data2vec.errors import DataError

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
        padded: every worker has equally many in each update; the ones too many repeat others'.
    """

    batches: Sequence[np.ndarray]
    start: int
    per_update: int
    rank: int
    size: int
    padded: bool = False

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start, len(self.batches), self.per_update):
            count = min(self.per_update, len(self.batches) - first)
            for index in self.turns(count):
                yield self.batches[first + index % count].tolist()

    def __len__(self) -> int:
        whole, rest = divmod(len(self.batches) - self.start, self.per_update)
        return whole * len(self.turns(self.per_update)) + len(self.turns(rest))

    def turns(self, count: int) -> range:
        """This worker's micro-batches of an update of ``count``; from ``count`` on they are repetitions."""
        return range(self.rank, -(-count // self.size) * self.size if self.padded else count, self.size)


@dataclass(frozen=True)
class _Unreadable:
    """In place of a sample, or of a batch, that cannot be read."""

    problems: tuple[str, ...]


class _Readable:
    """A data set whose unreadable samples come as values.

    An exception of a loader process would reach the user wrapped in that process's stack trace, and only the
    first of a batch would be told.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except DataError as error:
            return _Unreadable((str(error),))

    def collate(self, samples: Sequence[Any]) -> Any:
        problems = [text for s in samples if isinstance(s, _Unreadable) for text in s.problems]
        return _Unreadable(tuple(problems)) if problems else self.dataset.collate(samples)


def make_loader(dataset: Any, batches: Iterable[list[int]], worker: Worker) -> Iterator[Any]:
    """Collated batches in order.

    Raises:
        DataError: samples of a batch cannot be read; all of them are named.
    """
    readable = _Readable(dataset)
    loader = torch.utils.data.DataLoader(
        readable,  # pyright: ignore[reportArgumentType] - map-style by its methods
        batch_sampler=batches,  # pyright: ignore[reportArgumentType] - any iterable of index lists works
        collate_fn=readable.collate,
        num_workers=worker.loader_processes,
        pin_memory=worker.device.type == "cuda",
        worker_init_fn=_leave_signals,
    )
    return _checked(iter(loader))


def _leave_signals(_: int) -> None:
    """A terminal's Ctrl-C reaches loader processes too, whose trainer decides; it ends them by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _checked(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, _Unreadable):
            raise DataError("\n".join(batch.problems))
        yield batch


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors of a batch on the device."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
