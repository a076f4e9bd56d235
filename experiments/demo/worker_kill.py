"""Killing a training worker in mid-run, and the proof that nothing was repeated.

A thread of the driver watches the run from outside: ``workers.jsonl`` names the workers' processes, the
checkpoint folder and MLflow say how far it is. When a figure has been logged that is newer than the newest
checkpoint, rank 0 gets SIGKILL: the restarted workers must compute that figure a second time, so that logging
it twice would show.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from d2v_platform.home import default_tracking_uri, home_folder
from d2v_platform.tracking.mlflow_access import open_client
from d2v_platform.training.checkpoint import CheckpointStore

logger = logging.getLogger(__name__)

WATCHED = "train/loss"
_POLL_S = 0.25


@dataclass(frozen=True)
class Killed:
    """What was killed."""

    pid: int  # the worker's process
    rank: int  # its rank
    logged: int  # update of the newest figure in MLflow at that time
    checkpoint: int  # update of the newest checkpoint, which the restarted workers began from


@dataclass(frozen=True)
class KillProof:
    """A killed worker, and what the finished run's records say."""

    killed: Killed  # what was killed
    starts: int  # worker starts after which the run ended, from ``workers.jsonl``
    updates: int  # updates that the finished run counts
    metrics: int  # metric names of the run
    points: int  # metric points of the run
    repeated: int  # points that share name and step with another one
    steps: tuple[int, ...]  # steps of the watched metric
    expected: tuple[int, ...]  # steps it must have

    @property
    def holds(self) -> bool:
        """Every step once, none missing."""
        return self.repeated == 0 and self.steps == self.expected

    def lines(self) -> list[str]:
        """The proof in words."""
        killed = self.killed
        verdict = "each step once, none missing" if self.holds else "NOT exactly once"
        return [
            f"worker pid {killed.pid} (rank {killed.rank}) got SIGKILL when update {killed.logged} was "
            f"logged; restarted from checkpoint {killed.checkpoint} ({self.starts} worker starts in all)",
            f"{self.updates} updates counted; {len(self.steps)} points of {WATCHED} for {len(self.expected)} "
            f"steps, {self.points} points of {self.metrics} metrics, {self.repeated} repeated: {verdict}",
        ]


class WorkerKiller(threading.Thread):
    """Kills rank 0 of the run of this name, once.

    Args:
        run_name: ``platform.run_name``.
        updates: length of the run; the kill happens after the first checkpoint and before the end.
    """

    def __init__(self, run_name: str, updates: int) -> None:
        super().__init__(name="d2v-demo-killer", daemon=True)
        self.run_name, self.updates = run_name, updates
        self.killed: Killed | None = None
        self._over = threading.Event()

    def stop(self) -> None:
        """The run is over."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """Wait for the moment and kill."""
        folder = self._run_folder()
        client = open_client(default_tracking_uri()) if folder is not None else None
        while folder is not None and client is not None and not self._over.wait(_POLL_S):
            checkpoints = CheckpointStore(folder).updates()
            if not checkpoints:
                continue
            steps = [point.step for point in client.get_metric_history(folder.name, WATCHED)]
            if steps and checkpoints[-1] < max(steps) < self.updates:
                self.killed = _kill(folder, max(steps))
                return

    def _run_folder(self) -> Path | None:
        """The folder of the run, once its workers have started."""
        while not self._over.wait(_POLL_S):
            for path in home_folder("runs").glob("*/workers.jsonl"):
                recipe = json.loads((path.parent / "recipe.json").read_text(encoding="utf-8"))
                if recipe["platform"]["run_name"] == self.run_name:
                    return path.parent
        return None


def prove(killed: Killed, run_folder: Path, updates: int, log_interval: int) -> KillProof:
    """Read the finished run's records back.

    Args:
        killed: what was killed.
        run_folder: of the run; its name is the run id.
        updates: updates that the run counted.
        log_interval: updates between two points.
    """
    client = open_client(default_tracking_uri())
    names = sorted(client.get_run(run_folder.name).data.metrics)
    history = {name: client.get_metric_history(run_folder.name, name) for name in names}
    return proof_from(killed, history, len(worker_starts(run_folder)), updates, log_interval)


def proof_from(
    killed: Killed, history: Mapping[str, Sequence[Any]], starts: int, updates: int, log_interval: int
) -> KillProof:
    """Count the points of each metric's history (objects with ``step``)."""
    repeated = sum(
        number - 1 for points in history.values() for number in Counter(p.step for p in points).values()
    )
    due = list(range(log_interval, updates + 1, log_interval))
    expected = due if due and due[-1] == updates else [*due, updates]  # the end is always logged
    return KillProof(
        killed=killed,
        starts=starts,
        updates=updates,
        metrics=len(history),
        points=sum(len(points) for points in history.values()),
        repeated=repeated,
        steps=tuple(sorted(point.step for point in history.get(WATCHED, ()))),
        expected=tuple(expected),
    )


def worker_starts(run_folder: Path) -> list[dict[str, Any]]:
    """Every start of a worker of this run, in order."""
    lines = (run_folder / "workers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _kill(folder: Path, logged: int) -> Killed | None:
    """SIGKILL for the newest rank 0, if it is a process of Ray's."""
    pid = next(start["pid"] for start in reversed(worker_starts(folder)) if start["rank"] == 0)
    try:
        process = psutil.Process(pid)
        if not any("ray" in part.lower() for part in process.cmdline()):  # never a stranger's process
            return None
        os.kill(pid, signal.SIGKILL)
        process.wait(timeout=30)
    except (psutil.Error, ProcessLookupError):
        return None
    newest = CheckpointStore(folder).updates()[-1]
    logger.info("killed worker pid %d after update %d; newest checkpoint: %d", pid, logged, newest)
    return Killed(pid=pid, rank=0, logged=logged, checkpoint=newest)
