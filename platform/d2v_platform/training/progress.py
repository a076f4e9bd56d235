"""One line an interval from rank 0: what a person wants to see of a running training."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from ..figures import clock
from ..recipe.schema import Recipe
from ..tasks import task_class
from ..tasks.statistics import Sums

if TYPE_CHECKING:
    from .loop_state import LoopState, Worker

logger = logging.getLogger(__name__)


class Progress:
    """Clock of a run: speed, share of time spent waiting for data, memory, time to the end.

    Args:
        recipe: its limits.
        worker: this process.
        work: FLOPs of a micro-batch as (samples, length) -> FLOPs; ``None`` where they are not known.
        rate: matrix rate of this worker's device in FLOP/s; ``None`` where it is not known.
    """

    def __init__(
        self,
        recipe: Recipe,
        worker: Worker,
        work: Callable[[int, int], float] | None = None,
        rate: float | None = None,
    ) -> None:
        self.recipe, self.worker, self.work, self.rate = recipe, worker, work, rate
        self.flops = 0.0  # of this worker's micro-batches in this interval
        self.epoch_length = 1  # updates an epoch
        self.data_wait_s = 0.0
        self.checkpoint_s = 0.0  # that the loop waited for saves in this interval
        self._begin = self._interval_begin = time.perf_counter()
        self._begin_cpu = self._interval_cpu = time.process_time()
        self._first_update = self._interval_update = 0
        self._speed: dict[str, float] = {}
        self._unit, self._key, self._size = task_class(recipe).speed_unit
        self._quiet = {"lr", "epoch", *_asked_only(recipe)}

    def start(self, state: LoopState) -> None:
        """The first update of this attempt is about to run."""
        self._begin = self._interval_begin = time.perf_counter()
        self._begin_cpu = self._interval_cpu = time.process_time()
        self._first_update = self._interval_update = state.update

    def since_start(self) -> float:
        """Seconds of this attempt."""
        return time.perf_counter() - self._begin

    def cpu_since_start(self) -> float:
        """CPU seconds of this attempt without validations: this process's, for each of the workers."""
        return (time.process_time() - self._begin_cpu) * self.worker.size

    def line(self, state: LoopState, metrics: Mapping[str, float], sums: Sums) -> None:
        """Measure the interval and print its line."""
        seconds = max(time.perf_counter() - self._interval_begin, 1e-9)
        updates = max(state.update - self._interval_update, 1)
        self._speed = {
            f"speed/{self._key}_per_s": sums["ntokens"] / self._size / seconds,
            "speed/s_per_update": seconds / updates,
            "speed/cpu_s_per_update": (time.process_time() - self._interval_cpu) / updates,
            "speed/data_wait_pct": 100.0 * self.data_wait_s / seconds,
            "speed/cpu_minutes": (state.cpu_s + self.cpu_since_start()) / 60,
            "speed/memory_gb": peak_memory_gb(self.worker.device),
        }
        if self.checkpoint_s:
            self._speed["speed/checkpoint_stall_s"] = self.checkpoint_s
        share = ""
        if self.rate and self.flops:
            cuda = self.worker.device.type == "cuda"
            if not cuda:  # measured while others were busy: what has been reached is the better measure
                self.rate = max(self.rate, self.flops / seconds)
            self._speed["speed/matrix_rate_pct"] = 100.0 * self.flops / (seconds * self.rate)
            whose = "the GPU's peak" if cuda else "the CPU's matrix rate"
            share = f"  {self._speed['speed/matrix_rate_pct']:.0f}% of {whose}"
        if self.worker.rank != 0:
            return
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name not in self._quiet)
        logger.info(
            "update %s  epoch %.2f  %s  lr %.3g  %s %s/s%s  wait %.0f%%  mem %.1f GB  eta %s",
            f"{state.update}/{self.recipe.optimization.max_update or '-'}",
            metrics["epoch"],
            shown,
            metrics["lr"],
            f"{self._speed[f'speed/{self._key}_per_s']:.{1 if self._size > 1 else 0}f}",
            self._unit,
            share,
            self._speed["speed/data_wait_pct"],
            self._speed["speed/memory_gb"],
            self._eta(state),
        )

    def clock(self) -> tuple[float, float]:
        """Now, in seconds and CPU-seconds: what comes after it may be left out of the speed."""
        return time.perf_counter(), time.process_time()

    def leave_out(self, since: tuple[float, float]) -> None:
        """What happened since that clock (a validation) is no part of this interval's speed."""
        self._interval_begin += time.perf_counter() - since[0]
        cpu = time.process_time() - since[1]
        self._interval_cpu += cpu
        self._begin_cpu += cpu

    def validation(self, state: LoopState, scores: Mapping[str, float]) -> None:
        """Print the figures of a validation."""
        if self.worker.rank == 0:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
            logger.info("update %d  %s", state.update, shown)

    def speed_metrics(self) -> dict[str, float]:
        """Figures of the last line's interval, for the tracker."""
        return dict(self._speed)

    def reset_interval(self, state: LoopState) -> None:
        """Begin the next interval."""
        self._interval_begin, self._interval_update = time.perf_counter(), state.update
        self._interval_cpu = time.process_time()
        self.data_wait_s = self.flops = self.checkpoint_s = 0.0

    def waited(self, seconds: float) -> None:
        """So long was a batch read while nothing could be computed."""
        self.data_wait_s += seconds

    def micro_batch(self, batch: Mapping[str, torch.Tensor]) -> None:
        """A micro-batch is about to be computed: count its work."""
        source = batch.get("source")
        if self.work is not None and isinstance(source, torch.Tensor):
            self.flops += self.work(source.shape[0], source.shape[-1])

    def _eta(self, state: LoopState) -> str:
        done = state.update - self._first_update
        limits = self.recipe.optimization
        ends = [limits.max_update] if limits.max_update else []
        if limits.max_epoch:
            ends.append(limits.max_epoch * self.epoch_length)
        left = [self.since_start() / done * max(min(ends) - state.update, 0)] if done and ends else []
        if limits.stop_time_hours:
            left.append(max(3600 * limits.stop_time_hours - state.elapsed_s - self.since_start(), 0.0))
        if limits.stop_cpu_minutes and (cpu := self.cpu_since_start()) > 0:
            cpu_left = max(60 * limits.stop_cpu_minutes - state.cpu_s - cpu, 0.0)
            left.append(cpu_left * self.since_start() / cpu)
        if not left:
            return "-"
        return clock(min(left))


def _asked_only(recipe: Recipe) -> tuple[str, ...]:
    """Figures that are always in MLflow, and in the line where ``criterion.log_keys`` names them."""
    keys = getattr(recipe.criterion, "log_keys", None) or ()
    return tuple(name for name in ("model_norm", "ema_norm") if name not in keys)


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process (CPU) or of the GPU, in GB (1e9 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
