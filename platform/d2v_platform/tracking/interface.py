"""What trainings, sweeps and the registry may ask of the tracker, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from .metric_queue import MetricPoint
from .scores import Score
from .tracker import ExistingRun, FinalStatus, NewRun, RunHandle, Tracker

Given = ParamSpec("Given")
Result = TypeVar("Result")


class RunTracker(Protocol):
    """A tracker in this process, behind an actor, or that actor itself.

    A method that names a run may be repeated when the actor had to be started again; :meth:`run` is not.
    """

    # -- runs: see the methods of Tracker

    def find_run(self, experiment: str, name: str) -> ExistingRun | None:
        """The newest run of an experiment that was opened under this name or resume key."""
        ...

    def open_run(self, run: NewRun) -> RunHandle:
        """Create a run, or go on with an unfinished one of the same key."""
        ...

    def finish(self, run_id: str, status: FinalStatus, tags: Mapping[str, str] | None = None) -> None:
        """End a run; what the server does not take now is sent by a later start of d2v."""
        ...

    def finish_soon(self, run_id: str, status: FinalStatus, tags: Mapping[str, str] | None = None) -> None:
        """End a run without waiting for it; :meth:`wait_for_sent` does."""
        ...

    def close_orphans(self) -> list[str]:
        """Close runs of dead processes; returns their names."""
        ...

    # -- what is told of a run

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Metric points; on disk when :meth:`wait_for_sent` returns."""
        ...

    def wait_for_sent(self) -> None:
        """Return when everything that was not waited for is on disk; raises what it raised."""
        ...

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run, redacted."""
        ...

    def log_input(self, run_id: str, data: Mapping[str, Any], context: str) -> None:
        """Name a data set that a run uses."""
        ...

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """Store a text, redacted, as the artifact ``file``."""
        ...

    def log_dict(self, run_id: str, values: Mapping[str, Any], file: str) -> None:
        """Store a plain dictionary, redacted, as a JSON artifact."""
        ...

    def log_artifact(self, run_id: str, path: Path | str, folder: str = "") -> None:
        """Store a copy of a small file or folder as an artifact."""
        ...

    def record_scores(
        self, scores: Sequence[Score], run_id: str | None, version: tuple[str, int] | None = None
    ) -> list[str]:
        """Scores of test subsets, for a run and a version; returns what was done, a line each."""
        ...

    # -- a run that changes machines

    def unsent(self, run_id: str) -> dict[str, Any]:
        """The run's metric points that MLflow does not have yet, for its checkpoint."""
        ...

    def take_over(self, run_id: str, unsent: Mapping[str, Any]) -> None:
        """Queue the points of a checkpoint that was written on a machine now lost."""
        ...

    # -- between a driver and its workers

    def leave_mistake(self, attempt: str, message: str) -> None:
        """One worker met a user's mistake: its group, when Ray has started it again, need not try."""
        ...

    def mistake_of(self, attempt: str) -> str | None:
        """What a worker of an earlier start of this attempt met."""
        ...

    def ask_to_stop(self, attempt: str) -> bool:
        """Leave the driver's wish for rank 0; returns whether its updates have begun."""
        ...

    def stop_asked(self, attempt: str) -> bool:
        """Rank 0's question in its updates: is it to stop?"""
        ...

    def workers_started(self, attempt: str) -> None:
        """Rank 0 of a group of workers has begun."""
        ...

    def workers_lost(self, attempt: str) -> None:
        """The group is gone."""
        ...

    def workers_there(self, attempt: str) -> bool:
        """Whether a group is at work."""
        ...

    def times_started(self, attempt: str) -> int:
        """Groups that began."""
        ...

    def goes_on_from(self, attempt: str, update: int) -> int:
        """A group begins at this update; returns how many before it in a row failed from there on."""
        ...

    # -- anything else

    def run(
        self, action: Callable[Concatenate[Tracker, Given], Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Call a function of a module with the tracker first, where it runs; never repeated by itself."""
        ...

    def close(self) -> None:
        """Send what is queued and stop."""
        ...
