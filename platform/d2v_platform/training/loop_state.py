"""What goes into and comes out of the training loop, and what it remembers between updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from data2vec.errors import Data2VecError


class TrainingStopped(Data2VecError):
    """Training cannot go on: collapse, diverging loss, too many bad updates in a row."""


class TrainingInterrupted(Exception):
    """Training was asked to stop, and did so after a checkpoint: the run goes on from there.

    Args:
        update: the last one.
        saved: whether there is a checkpoint of it; not with ``checkpoint.no_save``.
    """

    def __init__(self, update: int, saved: bool) -> None:
        super().__init__(update, saved)
        self.update, self.saved = update, saved

    def __str__(self) -> str:
        saved = "a checkpoint of it is saved" if self.saved else "nothing is saved (checkpoint.no_save)"
        return f"stopped at update {self.update}; {saved}"


class Reporter(Protocol):
    """Where rank 0's figures go."""

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Metric points of one update; kept exactly once for each name and update."""
        ...

    def flush(self) -> None:
        """Return when everything logged so far is durable."""
        ...

    def evaluated(self, update: int, metrics: Mapping[str, float]) -> bool:
        """An evaluation or checkpoint is done (every worker calls this); returns whether to stop early."""
        ...


@runtime_checkable
class MetricCarrier(Protocol):
    """A reporter whose undelivered figures travel with checkpoints: its machine may be lost."""

    def unsent(self) -> Mapping[str, Any]:
        """What MLflow does not have yet, as plain values; called after ``flush``."""
        ...

    def take_over(self, unsent: Mapping[str, Any]) -> None:
        """Deliver what an earlier machine could not; doing it twice changes nothing."""
        ...


@runtime_checkable
class GroupMember(Protocol):
    """A reporter of a worker whose group others start, lose and start again."""

    def resumed(self, update: int) -> None:
        """Every worker goes on from this update.

        Raises:
            Data2VecError: the group was started too often from it.
        """
        ...

    def preempted(self) -> bool:
        """Whether a node of the group is about to be taken away; every worker asks at the same update."""
        ...


@dataclass(frozen=True)
class Worker:
    """This process among the k physical workers.

    Attributes:
        rank: 0 ... size - 1.
        size: k.
        device: where it computes.
        threads: PyTorch's threads, ``None`` leaves them.
        loader_processes: data-loading processes.
        sharded: each worker holds a part of the model (FSDP2) instead of all of it.
        compiled: the network is compiled.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int | None = None
    loader_processes: int = 0
    sharded: bool = False
    compiled: bool = False


@dataclass
class LoopState:
    """Everything that changes over a run besides tensors; stored in every checkpoint."""

    update: int = 0
    epoch: int = 1
    cursor: int = 0  # micro-batches of this epoch already consumed; moves on over skipped updates too
    best: float | None = None
    best_update: int | None = None
    validations_without_gain: int = 0
    bad_updates: int = 0  # skipped in all
    bad_in_a_row: int = 0
    elapsed_s: float = 0.0
    cpu_s: float = 0.0  # of all training processes, validations aside
    first_loss: float | None = None
    collapse_streaks: dict[str, int] = field(default_factory=dict)  # log lines in a row, by collapsed stage
    metrics: dict[str, float] = field(default_factory=dict)  # of the last log line and validation


@dataclass(frozen=True)
class Summary:
    """How a training ended.

    Attributes:
        update: completed updates.
        metrics: last training and validation figures, and the first loss.
        best: best validation metric, if any.
        best_update: when it was reached.
        reason: why it ended.
        export: model folder, written by rank 0.
        facts: lineage.
        seconds: training time, earlier attempts included.
        bad_updates: skipped updates.
    """

    update: int
    metrics: dict[str, float]
    best: float | None
    best_update: int | None
    reason: str
    export: str | None
    facts: dict[str, str]
    seconds: float
    bad_updates: int
