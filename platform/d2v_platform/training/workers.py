"""The function that runs in each Ray Train worker: one call of the training loop."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data2vec.errors import Data2VecError

from ..redaction import redact_logs
from ..tracking.tracker_actor import RemoteTracker, TrackingReporter
from .evaluation_log import EvaluationLog
from .job import Job
from .loop_state import TrainingInterrupted, TrainingStopped
from .start_times import reached
from .stopping import StopQuestion
from .train_loop import train

logger = logging.getLogger(__name__)


class RayTrainReporter(TrackingReporter):
    """Also tells Ray Train about evaluations and checkpoints; every worker reports, as Ray asks."""

    def __init__(
        self, tracker: RemoteTracker | None, run_id: str, evaluations: EvaluationLog | None = None
    ) -> None:
        self._has_tracker = tracker is not None
        self._evaluations = evaluations
        if tracker is not None:
            super().__init__(tracker, run_id)

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """One point for each metric; validations also into the sweep's file."""
        if self._evaluations is not None:
            self._evaluations.add(update, metrics)
        super().log(update, metrics)

    def flush(self) -> None:
        """Only rank 0 has anything to wait for."""
        if self._has_tracker:
            super().flush()

    def evaluated(self, update: int, metrics: Mapping[str, float]) -> bool:
        """Our checkpoint store is the only truth, so no checkpoint goes along."""
        import ray.train

        ray.train.report({"update": update, **metrics})
        return False


def run_worker(told: dict[str, Any]) -> dict[str, Any]:
    """Train; a user's mistake is returned as ``{"error": message}`` so that Ray does not try again.

    Args:
        told: ``job`` (a :class:`Job` as plain values), ``tracker`` (name of the actor) and ``attempt`` (which
            distinguishes launches of the same run).
    """
    import ray.train
    import ray.train.torch

    configure_logging()
    reached("workers started")
    tracker, attempt = RemoteTracker(told["tracker"]), told["attempt"]
    if (mistake := tracker.mistake_of(attempt)) is not None:
        return {"error": mistake}
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    try:
        job = Job.from_dict(told["job"])
        note_worker(job.folder, attempt, rank)
        reporter = RayTrainReporter(
            tracker if rank == 0 else None,
            job.run_id,
            EvaluationLog(job.evaluations) if job.evaluations and rank == 0 else None,
        )
        worker = job.worker(rank, size, ray.train.torch.get_device())
        summary = train(job, reporter, worker, stop_asked=StopQuestion(tracker, attempt))
    except TrainingInterrupted as stopped:
        return {"interrupted": stopped.args}
    except TrainingStopped as error:
        tracker.settle()
        return {"error": str(error), "stopped": True}  # all workers decide this from the same sums
    except Data2VecError as error:
        if size > 1:
            # The others wait for this one: end them by an exception. The tracker remembers, not a file: the
            # mistake may be a full disk, and the next start may be on another node.
            tracker.leave_mistake(attempt, str(error))
            raise
        return {"error": str(error)}
    return asdict(summary)


def why_it_failed(error: Exception, allowed: int, run_folder: Path) -> str:
    """Why Ray Train gave up, in a line or two; ``allowed`` restarts were not enough."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    reasons = {f"worker {rank}: {_last_line(failure)}" for rank, failure in sorted(failures.items())}
    told = "; ".join(sorted(reasons)) or _last_line(error)
    return (
        f"training failed more often than platform.max_failures = {allowed} allows ({told}); the same "
        f"platform.run_name goes on from the newest checkpoint in {run_folder}; Ray's logs hold the traces"
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def note_worker(run_folder: Path, attempt: str, rank: int) -> None:
    """Write down where this worker runs, one line for every start: ``workers.jsonl`` in the run folder."""
    run_folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"attempt": attempt, "rank": rank, "pid": os.getpid()})
    with (run_folder / "workers.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def configure_logging() -> None:
    """One line a message from rank 0's loop; other libraries speak only of trouble.

    Ray has set up the root logger of its workers already, and names some of its own after files.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger().setLevel(logging.WARNING)
    redact_logs()
    level = os.environ.get("D2V_LOG_LEVEL", "INFO").upper()
    for name in ("data2vec", "d2v_platform"):
        logging.getLogger(name).setLevel(level)
