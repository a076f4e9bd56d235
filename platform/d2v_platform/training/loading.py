"""Batches read ahead of the loop, by processes of their own; what cannot be read is told all at once."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data2vec.errors import DataError

from .loop_state import Worker


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
