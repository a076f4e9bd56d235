"""How much of the communication of gradients the backward pass hides, on a CPU stand-in of several GPUs.

Each of k processes (gloo, one thread) makes updates of two micro-batches of ViT-S, in buckets of a quarter so
that each holds a block as ViT-B's do, all sent after the last backward pass and each during it. What travels
is gloo's; how long it takes is stated: the bytes of a ring, ``2 (k - 1) / k`` of a bucket, go over a link of
that rate, one bucket after the other. Time is the CPU time of the thread that trains and what it then waits
for the link, so that what else this machine does counts for nothing.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from d2v_platform.tasks import reduction
from d2v_platform.training.loop_state import Worker
from d2v_platform.training.sharding import Replicated

from .pretraining import load, make_model, random_input

RECIPE = "v2/base_images_only_task"
OVERRIDES = ("model.clone_batch=2", "model.embed_dim=384", "model.num_heads=6")
WAYS = ("after", "during")


@dataclass(frozen=True)
class Hidden:
    """Means over updates and processes.

    Attributes:
        workers: k.
        link: bytes a second.
        computing: CPU-seconds of an update.
        waiting: seconds for the link, after the backward pass and during it.
    """

    workers: int
    link: float
    computing: float
    waiting: dict[str, float]

    @property
    def share(self) -> float:
        """Of what communication costs after the backward pass, how much it does not cost during it."""
        return 1.0 - self.waiting["during"] / self.waiting["after"]


class Link:
    """Sums that arrive no earlier than a link lets them.

    Attributes:
        rate: bytes a second.
        waited: seconds for it.
    """

    def __init__(self, workers: int) -> None:
        self.ring, self.rate, self.free, self.waited = 2 * (workers - 1) / workers, 1.0, 0.0, 0.0
        self._send = dist.all_reduce

    def now(self) -> float:
        """Seconds that this thread has computed and waited."""
        return time.thread_time() + self.waited

    def all_reduce(self, flat: torch.Tensor, async_op: bool = False, **options: Any) -> Any:
        """As :func:`torch.distributed.all_reduce`."""
        sent = self._send(flat, async_op=async_op, **options)
        if not async_op:
            return sent
        self.free = max(self.free, self.now()) + self.ring * flat.nbytes / self.rate
        return _Travelling(self, sent, self.free)


@dataclass(frozen=True)
class _Travelling:
    link: Link
    work: Any
    until: float

    def wait(self) -> None:
        self.work.wait()
        self.link.waited += max(0.0, self.until - self.link.now())


def measure(workers: int, updates: int, links: Sequence[float]) -> list[Hidden]:
    """Run it in processes of their own.

    Args:
        workers: k.
        updates: measured ones of each way, after one that warms up.
        links: bytes a second of each.
    """
    with tempfile.TemporaryDirectory(prefix="d2v_overlap_") as place:
        given = (workers, place, updates, links, OVERRIDES)
        mp.start_processes(work, given, nprocs=workers, start_method="spawn")
        found = [json.loads(Path(place, f"{rank}.json").read_text()) for rank in range(workers)]
    rows = list[Hidden]()
    for number, link in enumerate(links):
        mean = {
            name: statistics.mean(value for one in found for value in one[number][name])
            for name in found[0][number]
        }
        rows.append(Hidden(workers, link, mean.pop("computing"), mean))
    return rows


def work(
    rank: int, workers: int, place: str, updates: int, links: Sequence[float], overrides: Sequence[str]
) -> None:
    """One process: its seconds of each update, by link, as ``RANK.json``."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{place}/rendezvous", workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    recipe = load(RECIPE, overrides)
    model = make_model(recipe).train()
    images = random_input(recipe, 1, 224)
    parameters = [p for p in model.parameters() if p.requires_grad]
    link = Link(workers)
    reduction.dist.all_reduce = link.all_reduce
    reduction._BUCKET_BYTES //= 4
    placement = Replicated(Worker(rank=rank, size=workers), model)

    def update(way: str) -> tuple[float, float]:
        for parameter in parameters:
            parameter.grad = None
        begin, waited = time.thread_time(), link.waited
        for last in (False, True):
            loss = model(images, None, torch.tensor([rank]), update=1, seed=1).loss
            placement.backward(loss, True, last and way == "during")
        placement.reduce(parameters)
        return time.thread_time() - begin, link.waited - waited

    update("during")
    rows: list[dict[str, list[float]]] = []
    for link.rate in links:
        measured = {way: [update(way) for _ in range(updates)] for way in WAYS}
        rows.append({way: [waiting for _, waiting in pairs] for way, pairs in measured.items()})
        rows[-1]["computing"] = [computing for pairs in measured.values() for computing, _ in pairs]
    Path(place, f"{rank}.json").write_text(json.dumps(rows))
    dist.barrier()


def as_markdown(rows: Sequence[Hidden]) -> str:
    """The table."""
    out = ["| processes | link, MB/s | computing, s | waiting after it, s | waiting beside it, s | hidden |",
           "|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for row in rows:
        numbers = " | ".join(f"{value:.2f}" for value in (row.computing, *(row.waiting[way] for way in WAYS)))
        out.append(f"| {row.workers} | {row.link / 1e6:.0f} | {numbers} | {row.share:.0%} |")
    return "\n".join(out)
