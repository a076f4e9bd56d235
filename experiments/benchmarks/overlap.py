"""How much of the communication of gradients the backward pass hides, on a CPU stand-in of several GPUs.

Each of k processes (gloo, one thread) makes updates of two micro-batches of a shallow ViT-B, in three ways in
turn: without communication, with all buckets sent after the last backward pass, and during it. Beside what
gloo takes of the CPU, a link is stated: a bucket is not there before its bytes of a ring, ``2 (k - 1) / k``
of its size, have gone over it at the stated rate, one bucket after the other.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
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
OVERRIDES = ["model.depth=4", "model.average_top_k_layers=4", "model.clone_batch=2"]
WAYS = ("none", "after", "during")


@dataclass(frozen=True)
class Hidden:
    """Medians over updates of the slowest process.

    Attributes:
        workers: k.
        link: of the stated link, bytes a second; ``None`` without one.
        seconds: of an update by way.
        gradient_bytes: of the model.
    """

    workers: int
    link: float | None
    seconds: dict[str, float]
    gradient_bytes: int

    @property
    def share(self) -> float:
        """Of the seconds that communication costs after the backward pass, how many it does not during it."""
        none, after, during = (self.seconds[way] for way in WAYS)
        return (after - during) / max(after - none, 1e-9)


class Link:
    """Sums that arrive no earlier than a link of that rate lets them."""

    def __init__(self, rate: float, workers: int) -> None:
        self.factor, self.free = 2 * (workers - 1) / workers / rate, 0.0
        self.honest = dist.all_reduce

    def all_reduce(self, flat: torch.Tensor, async_op: bool = False, **options: Any) -> Any:
        """As :func:`torch.distributed.all_reduce`."""
        work = self.honest(flat, async_op=async_op, **options)
        if not async_op:
            return work
        self.free = max(self.free, time.perf_counter()) + self.factor * flat.nbytes
        return _Travelling(work, self.free)


@dataclass(frozen=True)
class _Travelling:
    work: Any
    until: float

    def wait(self) -> None:
        self.work.wait()
        time.sleep(max(0.0, self.until - time.perf_counter()))


def measure(workers: int, updates: int, link: float | None = None) -> Hidden:
    """Run it in processes of their own.

    Args:
        workers: k.
        updates: measured ones of each way, after one that warms up.
        link: bytes a second of the stated link.
    """
    with tempfile.TemporaryDirectory(prefix="d2v_overlap_") as place:
        mp.start_processes(_work, (workers, place, updates, link), nprocs=workers, start_method="spawn")
        found = [json.loads(Path(place, f"{rank}.json").read_text()) for rank in range(workers)]
    seconds = {
        way: statistics.median(max(times) for times in zip(*(f[way] for f in found), strict=True))
        for way in WAYS
    }
    return Hidden(workers, link, seconds, found[0]["gradient_bytes"])


def _work(rank: int, workers: int, place: str, updates: int, link: float | None) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{place}/rendezvous", workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    recipe = load(RECIPE, OVERRIDES)
    model = make_model(recipe).train()
    images = random_input(recipe, 1, 224)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if link is not None:
        reduction.dist.all_reduce = Link(link, workers).all_reduce
    placement = Replicated(Worker(rank=rank, size=workers), model)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for update in range(updates + 1):
        for way in WAYS:
            for parameter in parameters:
                parameter.grad = None
            dist.barrier()
            begin = time.perf_counter()
            for last in (False, True):
                loss = model(images, None, torch.tensor([rank]), update=update, seed=1).loss
                placement.backward(loss, True, last and way == "during")
            if way != "none":
                placement.reduce(parameters)
            if update:
                times[way].append(time.perf_counter() - begin)
    size = sum(p.nbytes for p in parameters)
    Path(place, f"{rank}.json").write_text(json.dumps({**times, "gradient_bytes": size}))
    dist.barrier()


def as_markdown(rows: list[Hidden]) -> str:
    """The table."""
    out = ["| processes | link | s without communication | s after | s during | hidden |",
           "|---:|---|---:|---:|---:|---:|"]  # fmt: skip
    for row in rows:
        link = "loopback alone" if row.link is None else f"{row.link / 1e6:.0f} MB/s"
        none, after, during = (f"{row.seconds[way]:.2f}" for way in WAYS)
        out.append(f"| {row.workers} | {link} | {none} | {after} | {during} | {row.share:.0%} |")
    return "\n".join(out)
