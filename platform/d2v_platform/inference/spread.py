"""Batches of a subset dealt to this process or to Ray workers, with progress; every batch exactly once."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from data2vec.errors import Data2VecError, DataError

from ..bars import Bars
from ..training.ray_session import ClusterInfo, connected
from .decoding import DecodingJob, all_records, batches, decode_batch, job_on_this_node, open_dataset

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def decode_subset(job: DecodingJob, num_workers: int, console: Console | None = None) -> list[Record]:
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

    def __init__(self, job: DecodingJob) -> None:
        self.job, self.dataset = job, None

    def decode(self, indices: list[int]) -> list[Record]:
        """Records of a batch.

        Raises:
            Data2VecError: model or data is not on this node. Said here: an actor that fails in its beginning
                dies without the words.
        """
        if self.dataset is None:
            self.job = job_on_this_node(self.job)
            self.dataset = open_dataset(self.job)
        return decode_batch(self.job, self.dataset, indices)


def _over_ray(job: DecodingJob, parts: Sequence[Sequence[int]], num_workers: int) -> Iterator[list[Record]]:

    with connected() as cluster:
        import ray  # after the connection has set what Ray reads when it is imported
        import ray.exceptions
        from ray.util import ActorPool

        size, gpus = pool_size(cluster, num_workers, job.device)
        if size < num_workers:
            logger.info("%d workers, not %d: the cluster has %s", size, num_workers, cluster.line())
        if not gpus:
            job = replace(job, threads=1)
        remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=2, max_task_retries=2)(
            DecodingWorker
        )
        pool = ActorPool([remote.remote(job) for _ in range(size)])
        try:
            yield from pool.map_unordered(lambda worker, part: worker.decode.remote(part), list(parts))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Data2VecError):
                raise error.cause from None
            raise


def pool_size(cluster: ClusterInfo, asked: int, device: str) -> tuple[int, float]:
    """How many workers decode, and how much of a GPU each takes.

    Args:
        cluster: where.
        asked: as many as are wanted.
        device: "cpu", or what ``platform.device`` says.

    Raises:
        DataError: none fits.
    """
    if device == "cpu":
        gpus = 0.0
    elif not cluster.gpus:
        raise DataError(f"platform.device = {device!r}: the Ray cluster has no GPU; use auto or cpu")
    else:  # whole processes on each GPU: of two thirds the last third would lie idle
        gpus = 1 / math.ceil(asked / cluster.gpus)
    room = cluster.holds(1, gpus)
    if room < 1:
        raise DataError(f"no worker of 1 CPU and {gpus:g} GPU fits; the cluster has {cluster.line()}")
    return min(asked, room), gpus
