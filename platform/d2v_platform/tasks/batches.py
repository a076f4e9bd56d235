"""A worker's micro-batches: which they are, read ahead of the loop by processes of their own, and how they
reach its device while it computes the one before. What cannot be read is told all at once.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data2vec.errors import DataError
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


DECIDES = frozenset({"id", "padding_mask", "frames", "target_lengths", "sides"})
"""Tensors of a batch that masks and shapes follow from."""


def to_device(
    batch: Mapping[str, Any], device: torch.device, on_cpu: frozenset[str] = DECIDES
) -> dict[str, Any]:
    """Tensors of a batch on the device, but for those that Python reads: nothing waits for the copies."""
    return {
        key: moved(value, device) if isinstance(value, torch.Tensor) and key not in on_cpu else value
        for key, value in batch.items()
    }


class Ahead(Iterator[dict[str, Any]]):
    """Batches on their device, of which the next one is on its way while one is computed.

    On a GPU it travels and is prepared in a stream of its own: what computes it waits for that, not the host.

    Args:
        batches: as they are read.
        arrive: brings one to the device, and does there what is left to do.
        device: where that is.
        waited: is told the seconds that reading took while the device had nothing to do.
    """

    def __init__(
        self,
        batches: Iterator[Any],
        arrive: Callable[[Any], dict[str, Any]],
        device: torch.device,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.batches, self.arrive, self.device, self.waited = batches, arrive, device, waited
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: dict[str, Any] | Exception | None = None

    def fetch(self) -> None:
        """Send the next batch on its way, unless it is; an error is raised by whoever asks for the batch."""
        if self._next is not None:
            return
        busy = None
        if self.stream is not None:
            busy = torch.cuda.current_stream(self.device).record_event()
        begin = time.perf_counter()
        try:
            try:
                read = next(self.batches)
            finally:
                if busy is None or busy.query():
                    self.waited(time.perf_counter() - begin)
            with torch.cuda.stream(self.stream):
                self._next = self.arrive(read)
        except Exception as error:
            self._next = error

    def __next__(self) -> dict[str, Any]:
        self.fetch()
        batch, self._next = self._next, None
        if isinstance(batch, Exception):
            raise batch
        assert batch is not None
        if self.stream is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self.stream)
            for value in batch.values():  # their memory is that of the other stream
                if isinstance(value, torch.Tensor) and value.device.type == "cuda":
                    value.record_stream(computing)
        return batch


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


def make_loader(
    dataset: Any, batches: Iterable[list[int]], processes: int = 0, *, pinned: bool = False
) -> Iterator[Any]:
    """Collated batches in order.

    Args:
        dataset: the samples.
        batches: their numbers.
        processes: that read ahead of the loop; 0: this one reads.
        pinned: their tensors go to a GPU, which fetches them itself from memory that stays in place.

    Raises:
        DataError: samples of a batch cannot be read; all of them are named.
    """
    readable = _Readable(dataset)
    loader = torch.utils.data.DataLoader(
        readable,  # pyright: ignore[reportArgumentType] - map-style by its methods
        batch_sampler=batches,  # pyright: ignore[reportArgumentType] - any iterable of index lists works
        collate_fn=readable.collate,
        num_workers=processes,
        pin_memory=pinned,
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
