"""The function that runs in each Ray Train worker: one call of the training loop."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from data2vec.errors import Data2VecError

from ..recipe.schema import Recipe
from ..redaction import redact_logs
from ..tracking.tracker_actor import RemoteTracker, TrackingReporter
from .evaluation_log import EvaluationLog
from .job import Job, ResolvedModels
from .loop_state import TrainingInterrupted, TrainingStopped
from .ray_output import LOST_PEER, last_line
from .shared_folder import see_shared_folder
from .start_times import start_part_over
from .stopping import StopQuestion
from .train_loop import train

logger = logging.getLogger(__name__)


class RayTrainReporter(TrackingReporter):
    """Also tells Ray Train about evaluations and checkpoints; every worker reports, as Ray asks."""

    def __init__(self, tracker: RemoteTracker | None, job: Job, attempt: str) -> None:
        self._has_tracker = tracker is not None
        self._attempt, self._allowed = attempt, job.recipe.platform.max_failures
        self._evaluations = EvaluationLog(job.evaluations) if job.evaluations and tracker else None
        if tracker is not None:
            super().__init__(tracker, job.run_id)

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

    def resumed(self, update: int) -> None:
        """Rank 0 asks how often the group has begun there.

        Raises:
            Data2VecError: more often than ``platform.max_failures`` allows.
        """
        if not self._has_tracker:
            return
        failed = self._tracker.goes_on_from(self._attempt, update)
        if failed > self._allowed:
            raise Data2VecError(
                f"the workers failed {failed} times in a row from update {update} on, without a newer "
                f"checkpoint (platform.max_failures = {self._allowed}); the same platform.run_name goes on "
                "from there; Ray's logs hold the traces"
            )

    def preempted(self) -> bool:
        """Ray's own answer, one for all workers."""
        import ray.train

        return ray.train.get_preemption_info() is not None


def run_worker(
    told: dict[str, Any],
    on_this_node: Callable[[ResolvedModels, Recipe], ResolvedModels] = lambda models, recipe: models,
) -> dict[str, Any]:
    """Train; a user's mistake is returned as ``{"error": message}`` so that Ray does not try again.

    Args:
        told: ``job`` (a :class:`Job` as plain values), ``tracker`` (name of the actor) and ``attempt`` (which
            distinguishes launches of the same run).
        on_this_node: brings the job's models here where the driver's folders are not.
    """
    import ray.train
    import ray.train.torch

    configure_worker_logging()
    start_part_over("workers started")
    tracker, attempt = RemoteTracker(told["tracker"]), told["attempt"]
    if (mistake := tracker.mistake_of(attempt)) is not None:
        return {"error": mistake}
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    try:
        job = Job.from_dict(told["job"])
        job = replace(job, models=on_this_node(job.models, job.recipe))
        note_worker(job.folder, attempt, rank, size)
        if rank == 0:
            tracker.workers_started(attempt)
        see_shared_folder(job, attempt)
        reporter = RayTrainReporter(tracker if rank == 0 else None, job, attempt)
        worker = job.worker(rank, size, ray.train.torch.get_device())
        summary = train(job, reporter, worker, stop_asked=StopQuestion(tracker, attempt))
    except TrainingInterrupted as stopped:
        return {"interrupted": stopped.args}
    except TrainingStopped as error:
        tracker.wait_for_sent()
        return {"error": str(error), "stopped": True}  # all workers decide this from the same sums
    except Exception as error:
        if (mistake := lasting(error)) is None:
            raise  # Ray starts the group again
        if not isinstance(error, Data2VecError):
            logger.exception("worker %d", rank)
        if size > 1:
            # The others wait for this one: end them by an exception. The tracker remembers, not a file: the
            # mistake may be a full disk, and the next start may be on another node.
            tracker.leave_mistake(attempt, mistake)
            raise
        return {"error": mistake}
    return asdict(summary)


def lasting(error: Exception) -> str | None:
    """What a new start would only meet again, in words; ``None`` for what may pass: a lost peer, a disk."""
    if isinstance(error, Data2VecError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the device has too little memory: {str(error).splitlines()[0]} Lower dataset.max_tokens or "
            "dataset.batch_size (and raise optimization.update_freq), or set platform.clone_chunk, "
            "platform.checkpoint_activations=true or platform.sharding=full"
        )
    if isinstance(error, OSError) or any(words in str(error) for words in LOST_PEER):
        return None
    return f"the program failed, and is not started again: {type(error).__name__}: {error}"


def why_it_failed(error: Exception, allowed: int, run_folder: Path) -> str:
    """Why Ray Train gave up, in a line or two; ``allowed`` restarts were not enough."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    reasons = {f"worker {rank}: {last_line(failure)}" for rank, failure in sorted(failures.items())}
    told = "; ".join(sorted(reasons)) or last_line(error)
    return (
        f"training failed more often than platform.max_failures = {allowed} allows ({told}); the same "
        f"platform.run_name goes on from the newest checkpoint in {run_folder}; Ray's logs hold the traces"
    )


def head_lost(error: Exception, run_folder: Path) -> str:
    """Ray itself does not answer: its head is gone, or was started again and knows nothing of this run."""
    return (
        f"Ray's head was lost ({last_line(error)}); when there is one again, the same platform.run_name goes "
        f"on from the newest checkpoint in {run_folder}"
    )


def note_worker(run_folder: Path, attempt: str, rank: int, size: int) -> None:
    """Write down where this worker runs, one line for every start: ``workers.jsonl`` in the run folder."""
    run_folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"attempt": attempt, "rank": rank, "of": size, "pid": os.getpid()})
    with (run_folder / "workers.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def configure_worker_logging() -> None:
    """One line a message from rank 0's loop; other libraries speak only of trouble.

    Ray has set up the root logger of its workers already, and names some of its own after files.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger().setLevel(logging.WARNING)
    redact_logs()
    level = os.environ.get("D2V_LOG_LEVEL", "INFO").upper()
    for name in ("data2vec", "d2v_platform"):
        logging.getLogger(name).setLevel(level)
