"""One process writes to MLflow: an actor beside the driver, which workers and trials send to.

Workers therefore need neither MLflow's libraries nor its credentials, and a SQLite backend has one writer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..home import d2v_home
from ..redaction import redact_logs
from .scores import Score, record_scores
from .tracker import MetricPoint, Tracker, now_ms

logger = logging.getLogger(__name__)

NAMESPACE = "d2v"
P, R = ParamSpec("P"), TypeVar("R")
_OF_AN_OPEN_RUN = ("log", "set_tags", "log_text", "log_dict", "log_artifact", "unsent", "flush", "finish")
# Methods of the service, not of the tracker.
_OWN = ("unsent", "take_over", "leave_mistake", "mistake_of", "record_scores", "ask_to_stop", "stop_asked")


class TrackerService:
    """The tracker inside its own process; every method takes and returns plain values.

    Args:
        tracking_uri: MLflow.
        home: of the driver.
        in_actor: Ray starts a new process in the place of one that was killed. What was logged is on disk;
            the runs that were open are taken up again when they are next spoken of.
    """

    def __init__(self, tracking_uri: str | None, home: str, in_actor: bool = False) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        redact_logs()
        self.tracker = Tracker(tracking_uri, Path(home))
        self._reborn = in_actor and _was_restarted()
        self._mistakes: dict[str, str] = {}
        self._in_updates: set[str] = set()  # attempts whose rank 0 has asked whether to stop
        self._to_stop: set[str] = set()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call one of the tracker's methods, or one of ours."""
        if self._reborn and method in _OF_AN_OPEN_RUN:
            self.tracker.adopt(args[0])
        owner = self if method in _OWN else self.tracker
        return getattr(owner, method)(*args, **kwargs)

    def run(self, function: Callable[Concatenate[Tracker, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``function(tracker, ...)``."""
        return function(self.tracker, *args, **kwargs)

    def record_scores(
        self, scores: Sequence[Score], run_id: str | None, version: tuple[str, int] | None = None
    ) -> list[str]:
        """Scores of test subsets: see :func:`d2v_platform.tracking.scores.record_scores`."""
        return record_scores(self.tracker, scores, run_id, version)

    def unsent(self, run_id: str) -> dict[str, Any]:
        """The run's metric points that MLflow does not have yet, for its checkpoint."""
        return self.tracker.queue.export_unsent(run_id)

    def take_over(self, run_id: str, unsent: Mapping[str, Any]) -> None:
        """Queue the points of a checkpoint that was written on a machine now lost."""
        if unsent.get("run_id") == run_id:  # a checkpoint copied by hand tells of another run
            self.tracker.queue.import_points(unsent)

    def leave_mistake(self, attempt: str, message: str) -> None:
        """One worker met a user's mistake: its group, when Ray has started it again, need not try."""
        self._mistakes.setdefault(attempt, message)

    def mistake_of(self, attempt: str) -> str | None:
        """What a worker of an earlier start of this attempt met."""
        return self._mistakes.get(attempt)

    def ask_to_stop(self, attempt: str) -> bool:
        """Leave the driver's wish for rank 0; returns whether its updates have begun."""
        self._to_stop.add(attempt)
        return attempt in self._in_updates

    def stop_asked(self, attempt: str) -> bool:
        """Rank 0's question in its updates: is it to stop?"""
        self._in_updates.add(attempt)
        return attempt in self._to_stop

    def close(self) -> None:
        """Send what is queued and stop."""
        self.tracker.close()


def _was_restarted() -> bool:
    import warnings

    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own property calls one that it calls deprecated
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)


class RemoteTracker:
    """The tracker as drivers, workers and trials see it: a named actor.

    Args:
        name: the actor's name.
        create_with: start the actor with this tracking URI (the driver does); otherwise find it.
    """

    def __init__(self, name: str, *, create: bool = False, tracking_uri: str | None = None) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.name = name
        self._actor: Any
        if create:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            actor = ray.remote(TrackerService).options(
                name=name, namespace=NAMESPACE, num_cpus=0, scheduling_strategy=here, max_concurrency=8,
                # Everything that workers send may be repeated: points, tags and ends of runs.
                max_restarts=-1, max_task_retries=-1,
            )  # fmt: skip
            # The cluster may have been started with another home than the driver's.
            self._actor = actor.remote(tracking_uri, str(d2v_home()), in_actor=True)
        else:
            self._actor = ray.get_actor(name, namespace=NAMESPACE)
        self._pending: list[Any] = []

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a tracker method and wait for its result; users' mistakes come back as they were raised."""
        return self._wait(self._actor.call.remote(method, *args, **kwargs))

    def run(self, function: Callable[Concatenate[Tracker, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``function(tracker, ...)`` in the tracker's process, never twice: it may make a version."""
        return self._wait(self._actor.run.options(max_task_retries=0).remote(function, *args, **kwargs))

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Send metric points without waiting; :meth:`settle` waits until they are on disk."""
        self._pending.append(self._actor.call.remote("log", run_id, list(points)))
        if len(self._pending) > 64:
            self.settle()

    def send(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a tracker method without waiting for it; :meth:`settle` waits and raises what it raised."""
        self._pending.append(self._actor.call.remote(method, *args, **kwargs))

    def ask(self, method: str, *args: Any) -> Any:
        """Call a tracker method; :meth:`has_answered` and :meth:`answer` take what this returns."""
        return self._actor.call.remote(method, *args)

    @staticmethod
    def has_answered(question: Any) -> bool:
        """Whether :meth:`answer` would not wait."""
        import ray

        return bool(ray.wait([question], timeout=0)[0])

    def answer(self, question: Any) -> Any:
        """What a method of :meth:`ask` returned."""
        return self._wait(question)

    def settle(self) -> None:
        """Return when everything sent so far is in the tracker's disk queue."""
        pending, self._pending = self._pending, []
        for reference in pending:
            self._wait(reference)

    def close(self) -> None:
        """Send what is queued and end the actor."""
        import ray

        self.settle()
        self._wait(self._actor.close.remote())
        ray.kill(self._actor)

    @staticmethod
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


class LocalTracker:
    """The same interface around a tracker in this process: local mode, without Ray."""

    def __init__(self, tracking_uri: str | None) -> None:
        self._service = TrackerService(tracking_uri, str(d2v_home()))

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a tracker method."""
        return self._service.call(method, *args, **kwargs)

    def run(self, function: Callable[Concatenate[Tracker, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``function(tracker, ...)``."""
        return self._service.run(function, *args, **kwargs)

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Points are on disk on return."""
        self._service.tracker.log(run_id, points)

    def settle(self) -> None:
        """Nothing is ever pending."""

    def close(self) -> None:
        """Send what is queued."""
        self._service.close()


AnyTracker = RemoteTracker | LocalTracker


class TrackingReporter:
    """Rank 0's figures into the tracker.

    Args:
        tracker: where to.
        run_id: the MLflow run.
    """

    def __init__(self, tracker: AnyTracker, run_id: str) -> None:
        self._tracker, self._run_id = tracker, run_id

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """One point for each metric."""
        now = now_ms()
        self._tracker.log(
            self._run_id, [MetricPoint(key, update, float(value), now) for key, value in metrics.items()]
        )

    def flush(self) -> None:
        """Return when everything is on disk."""
        self._tracker.settle()

    def evaluated(self, update: int, metrics: Mapping[str, float]) -> bool:
        """Local mode has nobody to report to."""
        return False

    def unsent(self) -> Mapping[str, Any]:
        """Points on disk here that MLflow does not have yet."""
        return self._tracker.call("unsent", self._run_id)

    def take_over(self, unsent: Mapping[str, Any]) -> None:
        """Queue what an earlier machine could not deliver."""
        self._tracker.call("take_over", self._run_id, dict(unsent))
