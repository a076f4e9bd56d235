"""A training whose workers do not fit yet says so, and what it waits for, until they have started."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from data2vec.errors import Data2VecError

from ..tracking.interface import RunTracker
from .job import Job
from .plan import Plan, size_in_words

logger = logging.getLogger(__name__)

SAID_EVERY_S = 30.0
_ASKED_EVERY_S = 2.0
_ANSWER_S = 5
_COUNTED = ("CPU", "GPU")
STATE_TAG = "d2v.state"


class Waiting:
    """Called by the driver again and again while Ray Train works.

    Args:
        job: the training; its run is shown as waiting.
        plan: the workers that it wants.
        tracker: knows whether they have begun.
        attempt: of the run.
        now: seconds of a clock that only goes forward.
        look: what the cluster has and who holds it, in words.
    """

    def __init__(
        self,
        job: Job,
        plan: Plan,
        tracker: RunTracker,
        attempt: str,
        now: Callable[[], float] = time.monotonic,
        look: Callable[[], str] | None = None,
    ) -> None:
        self._job, self._plan, self._tracker, self._attempt = job, plan, tracker, attempt
        self._now, self._look = now, look or cluster_in_words
        self._limit_s = 60 * job.recipe.platform.wait_for_resources
        self._since, self._next, self._said = now(), now(), 0.0

    def __call__(self) -> None:
        """Say it, if it is time to.

        Raises:
            Data2VecError: the workers have not come in ``platform.wait_for_resources`` minutes.
        """
        now = self._now()
        if now < self._next:
            return
        self._next = now + _ASKED_EVERY_S
        if self._tracker.workers_there(self._attempt):
            if self._said:
                self._tracker.set_tags(self._job.run_id, {STATE_TAG: "training"})
            self._since, self._said = now, 0.0
            return
        waited = now - self._since
        if self._limit_s and waited > self._limit_s:
            raise Data2VecError(
                f"{self._wanted()} did not fit within platform.wait_for_resources = "
                f"{self._limit_s / 60:g} minutes; {self._look()}"
            )
        if waited >= self._said + SAID_EVERY_S:
            if not self._said:
                self._tracker.set_tags(self._job.run_id, {STATE_TAG: f"waiting for {self._wanted()}"})
            self._said = waited
            logger.info("waiting for %s since %.0f s; %s", self._wanted(), waited, self._look())

    def _wanted(self) -> str:
        plan = self._plan
        count = " to ".join(map(str, plan.elastic)) if plan.elastic else plan.num_workers
        return f"{count} workers of {size_in_words(plan.cpus_per_worker, plan.gpus_per_worker)}"


def cluster_in_words() -> str:
    """What is free in the cluster, and which jobs hold the rest; or that the workers have their places."""
    import ray

    own, held = ray.get_runtime_context().get_job_id(), _held()
    if held.pop(own, None):
        return "they have their places and are starting"
    total, free = ray.cluster_resources(), ray.available_resources()
    told = [f"{free.get(name, 0):g} of {total[name]:g} {name}s" for name in _COUNTED if total.get(name)]
    holders = [
        f"{_job_name(job)} " + " and ".join(f"{has[name]:g} {name}s" for name in _COUNTED if has[name])
        for job, has in held.items()
    ]
    said = f"free are {' and '.join(told) or 'none'}"
    return f"{said}; held by {', '.join(holders)}" if holders else said


def _held() -> dict[str, Counter[str]]:
    """CPUs and GPUs of the placement groups of every job; nothing where Ray's dashboard is away."""
    from ray.util.state import list_placement_groups

    try:
        groups: list[Any] = list_placement_groups(
            filters=[("state", "=", "CREATED")], detail=True, timeout=_ANSWER_S
        )
    except Exception as error:
        logger.debug("who holds the cluster is not known: %s", error)
        return {}
    held: dict[str, Counter[str]] = {}
    for group in groups:
        for bundle in group.bundles or ():
            held.setdefault(group.creator_job_id, Counter()).update(bundle["unit_resources"])
    return held


def _job_name(job: str) -> str:
    """As it was submitted, or Ray's number."""
    from ray.util.state import list_jobs

    try:
        names = {found.job_id: found.submission_id for found in list_jobs(timeout=_ANSWER_S)}
    except Exception as error:
        logger.debug("submitted jobs are not known: %s", error)
        names = {}
    return names.get(job) or f"job {job}"
