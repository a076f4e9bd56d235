"""Batches of a subset dealt to this process or to Ray workers, with progress; every batch exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from data2vec.errors import DataError

from ..bars import Bars
from .decoding import Job, all_records, batches, decode_batch, open_dataset

Record = dict[str, Any]


def decode_subset(job: Job, num_workers: int, console: Console | None = None) -> list[Record]:
    """All records of a subset, by id.

    Args:
        job: the subset.
        num_workers: Ray workers; 0 is this process. Each takes the next batch when it is free, so what comes
            out does not depend on their number.
        console: where progress is shown.
    """
    dataset = open_dataset(job)
    parts = batches(dataset, job)
    if num_workers == 0 or len(parts) < 2:
        stream = all_records(job, parts)
    else:
        stream = _over_ray(job, parts, min(num_workers, len(parts)))
    records: list[Record] = []
    bar = Bars(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("utterances"),
        TimeRemainingColumn(), console=console or Console(quiet=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(job.subset, total=len(dataset))
        for found in stream:
            records += found
            bar.update(task, advance=len(found))
    ids = [record["id"] for record in records]
    if len(set(ids)) != len(ids) or len(ids) != len(dataset):
        raise DataError(
            f"subset {job.subset}: {len(ids)} of {len(dataset)} utterances were decoded, {len(set(ids))} "
            "different ones; this is a bug, please report it"
        )
    return sorted(records, key=lambda record: record["id"])


class DecodingWorker:
    """One Ray worker: keeps data, model and decoder of a subset."""

    def __init__(self, job: Job) -> None:
        self.job, self.dataset = job, open_dataset(job)

    def decode(self, indices: list[int]) -> list[Record]:
        """Records of a batch."""
        return decode_batch(self.job, self.dataset, indices)


def _over_ray(job: Job, parts: Sequence[Sequence[int]], num_workers: int) -> Iterator[list[Record]]:
    from ..training.ray_session import connected

    with connected() as cluster:
        import ray  # after the connection has set what Ray reads when it is imported

        gpus = 0.0
        if job.device != "cpu":
            if not cluster.gpus:
                raise DataError(
                    f"platform.device = {job.device!r}: the Ray cluster has no GPU; use auto or cpu"
                )
            gpus = min(1.0, cluster.gpus / num_workers)
        else:
            job = replace(job, threads=1)
        remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=2, max_task_retries=2)(
            DecodingWorker
        )
        workers = [remote.remote(job) for _ in range(num_workers)]
        waiting = list(parts)
        running: dict[Any, Any] = {}
        for worker in workers:
            running[worker.decode.remote(waiting.pop(0))] = worker
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            worker = running.pop(done)
            if waiting:
                running[worker.decode.remote(waiting.pop(0))] = worker
            yield ray.get(done)
