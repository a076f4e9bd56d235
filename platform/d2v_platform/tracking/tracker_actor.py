"""One process writes to MLflow: an actor beside the driver, which workers and trials send to.

Workers therefore need neither MLflow's libraries nor its credentials, and a SQLite backend has one writer.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from ..home import d2v_home
from ..redaction import redact_logs
from .interface import RunTracker
from .run_liveness import JobTry
from .scores import Score, record_scores
from .tracker import ExistingRun, FinalStatus, MetricPoint, NewRun, RunHandle, Tracker, now_ms

logger = logging.getLogger(__name__)

NAMESPACE = "d2v"
Given = ParamSpec("Given")
Result = TypeVar("Result")


class TrackerService:
    """The tracker in its own process, or in this one: local mode, without Ray. A :class:`RunTracker`.

    Args:
        tracking_uri: MLflow.
        home: of the driver.
        in_actor: Ray starts a new process in the place of one that was killed. What was logged is on disk;
            the runs that were open are taken up again when they are next spoken of.
        job: the driver's.
    """

    def __init__(
        self,
        tracking_uri: str | None,
        home: str | None = None,
        in_actor: bool = False,
        job: JobTry | None = None,
    ) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        redact_logs()
        self.tracker = Tracker(tracking_uri, Path(home) if home else None, job=job)
        self._reborn = in_actor and _was_restarted()
        self._mistakes: dict[str, str] = {}
        self._in_updates: set[str] = set()  # attempts whose rank 0 has asked whether to stop
        self._to_stop: set[str] = set()
        self._groups: dict[str, int] = {}  # of workers that began, by attempt
        self._there: set[str] = set()
        self._failed: set[str] = set()  # whose group was lost, not resized
        self._begun_at: dict[str, tuple[int, int]] = {}  # update, failures in a row there

    def _of(self, run_id: str) -> Tracker:
        """The tracker, with the run open."""
        if self._reborn:
            self.tracker.adopt(run_id)
        return self.tracker

    def find_run(self, experiment: str, name: str) -> ExistingRun | None:
        return self.tracker.find_run(experiment, name)

    def open_run(self, run: NewRun) -> RunHandle:
        return self.tracker.open_run(run)

    def finish(self, run_id: str, status: FinalStatus, tags: Mapping[str, str] | None = None) -> None:
        self._of(run_id).finish(run_id, status, tags=tags)

    finish_soon = finish

    def close_orphans(self) -> list[str]:
        return self.tracker.close_orphans()

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        self._of(run_id).log(run_id, points)

    def wait_for_sent(self) -> None:
        """Nothing is ever pending."""

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._of(run_id).set_tags(run_id, tags)

    def log_input(self, run_id: str, data: Mapping[str, Any], context: str) -> None:
        self._of(run_id).log_input(run_id, data, context)

    def log_text(self, run_id: str, text: str, file: str) -> None:
        self._of(run_id).log_text(run_id, text, file)

    def log_dict(self, run_id: str, values: Mapping[str, Any], file: str) -> None:
        self._of(run_id).log_dict(run_id, values, file)

    def log_artifact(self, run_id: str, path: Path | str, folder: str = "") -> None:
        self._of(run_id).log_artifact(run_id, path, folder)

    def record_scores(
        self, scores: Sequence[Score], run_id: str | None, version: tuple[str, int] | None = None
    ) -> list[str]:
        return record_scores(self.tracker, scores, run_id, version)

    def unsent(self, run_id: str) -> dict[str, Any]:
        return self._of(run_id).queue.export_unsent(run_id)

    def take_over(self, run_id: str, unsent: Mapping[str, Any]) -> None:
        if unsent.get("run_id") == run_id:  # a checkpoint copied by hand tells of another run
            self.tracker.queue.import_points(unsent)

    def leave_mistake(self, attempt: str, message: str) -> None:
        self._mistakes.setdefault(attempt, message)

    def mistake_of(self, attempt: str) -> str | None:
        return self._mistakes.get(attempt)

    def ask_to_stop(self, attempt: str) -> bool:
        self._to_stop.add(attempt)
        return attempt in self._in_updates

    def stop_asked(self, attempt: str) -> bool:
        self._in_updates.add(attempt)
        return attempt in self._to_stop

    def workers_started(self, attempt: str) -> None:
        self._groups[attempt] = self._groups.get(attempt, 0) + 1
        self._there.add(attempt)

    def workers_lost(self, attempt: str) -> None:
        self._there.discard(attempt)
        self._failed.add(attempt)

    def workers_there(self, attempt: str) -> bool:
        return attempt in self._there

    def times_started(self, attempt: str) -> int:
        return self._groups.get(attempt, 0)

    def goes_on_from(self, attempt: str, update: int) -> int:
        at, failed = self._begun_at.get(attempt, (update, -1))
        if at != update:
            failed = 0
        elif failed < 0 or attempt in self._failed:
            failed += 1
        self._failed.discard(attempt)
        self._begun_at[attempt] = (update, failed)
        return failed

    def run(
        self, action: Callable[Concatenate[Tracker, Given], Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        return action(self.tracker, *args, **kwargs)

    def close(self) -> None:
        self.tracker.close()


def _was_restarted() -> bool:
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own property calls one that it calls deprecated
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)


class RemoteTracker:
    """The tracker as drivers, workers and trials see it: a named actor. A :class:`RunTracker`.

    Users' mistakes come back as they were raised.

    Args:
        name: the actor's name.
        create: start the actor (the driver does); otherwise find it.
        tracking_uri: MLflow, for a new actor.
    """

    def __init__(self, name: str, *, create: bool = False, tracking_uri: str | None = None) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.name = name
        self._actor: Any
        if create:
            context = ray.get_runtime_context()
            here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
            actor = ray.remote(TrackerService).options(
                name=name, namespace=NAMESPACE, num_cpus=0, scheduling_strategy=here, max_concurrency=8,
                # Everything that workers send may be repeated: points, tags and ends of runs.
                max_restarts=-1, max_task_retries=-1,
            )  # fmt: skip
            # The cluster may have been started with another home than the driver's.
            job = JobTry.own(context.get_session_name())
            self._actor = actor.remote(tracking_uri, str(d2v_home()), in_actor=True, job=job)
        else:
            self._actor = ray.get_actor(name, namespace=NAMESPACE)
        self._pending: list[Any] = []

    def find_run(self, experiment: str, name: str) -> ExistingRun | None:
        return _wait(self._actor.find_run.remote(experiment, name))

    def open_run(self, run: NewRun) -> RunHandle:
        return _wait(self._actor.open_run.remote(run))

    def finish(self, run_id: str, status: FinalStatus, tags: Mapping[str, str] | None = None) -> None:
        _wait(self._actor.finish.remote(run_id, status, tags))

    def finish_soon(self, run_id: str, status: FinalStatus, tags: Mapping[str, str] | None = None) -> None:
        self._pending.append(self._actor.finish.remote(run_id, status, tags))

    def close_orphans(self) -> list[str]:
        return _wait(self._actor.close_orphans.remote())

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        self._pending.append(self._actor.log.remote(run_id, list(points)))
        if len(self._pending) > 64:
            self.wait_for_sent()

    def wait_for_sent(self) -> None:
        pending, self._pending = self._pending, []
        for reference in pending:
            _wait(reference)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        _wait(self._actor.set_tags.remote(run_id, tags))

    def log_input(self, run_id: str, data: Mapping[str, Any], context: str) -> None:
        _wait(self._actor.log_input.remote(run_id, data, context))

    def log_text(self, run_id: str, text: str, file: str) -> None:
        _wait(self._actor.log_text.remote(run_id, text, file))

    def log_dict(self, run_id: str, values: Mapping[str, Any], file: str) -> None:
        _wait(self._actor.log_dict.remote(run_id, values, file))

    def log_artifact(self, run_id: str, path: Path | str, folder: str = "") -> None:
        _wait(self._actor.log_artifact.remote(run_id, path, folder))

    def record_scores(
        self, scores: Sequence[Score], run_id: str | None, version: tuple[str, int] | None = None
    ) -> list[str]:
        return _wait(self._actor.record_scores.remote(scores, run_id, version))

    def unsent(self, run_id: str) -> dict[str, Any]:
        return _wait(self._actor.unsent.remote(run_id))

    def take_over(self, run_id: str, unsent: Mapping[str, Any]) -> None:
        _wait(self._actor.take_over.remote(run_id, unsent))

    def leave_mistake(self, attempt: str, message: str) -> None:
        _wait(self._actor.leave_mistake.remote(attempt, message))

    def mistake_of(self, attempt: str) -> str | None:
        return _wait(self._actor.mistake_of.remote(attempt))

    def ask_to_stop(self, attempt: str) -> bool:
        return _wait(self._actor.ask_to_stop.remote(attempt))

    def stop_asked(self, attempt: str) -> bool:
        return self.question_of_stop(attempt).answer()

    def question_of_stop(self, attempt: str) -> Question[bool]:
        """:meth:`stop_asked`, not waited for."""
        return Question(self._actor.stop_asked.remote(attempt))

    def workers_started(self, attempt: str) -> None:
        _wait(self._actor.workers_started.remote(attempt))

    def workers_lost(self, attempt: str) -> None:
        _wait(self._actor.workers_lost.remote(attempt))

    def workers_there(self, attempt: str) -> bool:
        return _wait(self._actor.workers_there.remote(attempt))

    def times_started(self, attempt: str) -> int:
        return _wait(self._actor.times_started.remote(attempt))

    def goes_on_from(self, attempt: str, update: int) -> int:
        return _wait(self._actor.goes_on_from.remote(attempt, update))

    def run(
        self, action: Callable[Concatenate[Tracker, Given], Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        # Repeated by Ray, a registration would make a second version of the same model.
        return _wait(self._actor.run.options(max_task_retries=0).remote(action, *args, **kwargs))

    def close(self) -> None:
        import ray

        self.wait_for_sent()
        _wait(self._actor.close.remote())
        ray.kill(self._actor)


class Question(Generic[Result]):
    """What was asked of an actor and may not be answered yet."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def answered(self) -> bool:
        """Whether :meth:`answer` would not wait."""
        import ray

        return bool(ray.wait([self._reference], timeout=0)[0])

    def answer(self) -> Result:
        """The answer, waited for."""
        return _wait(self._reference)


def _wait(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Exception):
            raise cause from None
        raise


class TrackingReporter:
    """Rank 0's figures into the tracker.

    Args:
        tracker: where to.
        run_id: the MLflow run.
    """

    def __init__(self, tracker: RunTracker, run_id: str) -> None:
        self._tracker, self._run_id = tracker, run_id

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """One point for each metric."""
        now = now_ms()
        self._tracker.log(
            self._run_id, [MetricPoint(key, update, float(value), now) for key, value in metrics.items()]
        )

    def flush(self) -> None:
        """Return when everything is on disk."""
        self._tracker.wait_for_sent()

    def evaluated(self, update: int, metrics: Mapping[str, float]) -> bool:
        """Local mode has nobody to report to."""
        return False

    def unsent(self) -> Mapping[str, Any]:
        """Points on disk here that MLflow does not have yet."""
        return self._tracker.unsent(self._run_id)

    def take_over(self, unsent: Mapping[str, Any]) -> None:
        """Queue what an earlier machine could not deliver."""
        self._tracker.take_over(self._run_id, dict(unsent))
