"""Lost workers of a Ray run: told in one line in the place of Ray's traces, and how many are too many."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.train import FailureConfig, UserCallback

from data2vec.errors import Data2VecError

from ..tracking.tracker_actor import RemoteTracker
from .ray_output import LOST_PEER, last_line

logger = logging.getLogger(__name__)


class LostWorkers(UserCallback):
    """Runs in Ray Train's controller, which starts all workers again if it may.

    Args:
        tracker: name of the tracker's actor.
        attempt: of the run.
    """

    def __init__(self, tracker: str, attempt: str) -> None:
        self._tracker, self._attempt = tracker, attempt

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Some workers have failed."""
        if not any(isinstance(error, Data2VecError) for error in worker_exceptions.values()):
            # A user's mistake is the driver's to tell.
            logger.warning("%s", in_words(worker_exceptions))
        RemoteTracker(self._tracker).workers_lost(self._attempt)


class StartsAllowed(FailureConfig):
    """Ray counts failures over a run's whole life; here a group that got as far as its checkpoint costs none.

    The workers themselves refuse to begin too often at the same update (:meth:`RayTrainReporter.resumed`).
    What is left to Ray are groups that end before they begin: so many more than have begun.

    Args:
        allowed: ``platform.max_failures``.
        tracker: name of the tracker's actor, which knows how many groups began.
        attempt: of the run.
    """

    def __init__(self, allowed: int, tracker: str, attempt: str) -> None:
        self._allowed, self._tracker, self._attempt = allowed, tracker, attempt
        super().__init__()

    @property
    def max_failures(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What Ray compares its count with, at the moment when it asks."""
        if not ray.is_initialized():  # asking would start one
            return self._allowed
        try:
            return self._allowed + RemoteTracker(self._tracker).times_started(self._attempt)
        except (ValueError, RayError):  # the actor has ended
            return self._allowed

    @max_failures.setter
    def max_failures(self, value: int) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The default of the class."""


def in_words(failures: Mapping[int, Exception]) -> str:
    """Which workers failed and why; those that only miss a lost one are not told."""
    told = {rank: _reason(error) for rank, error in sorted(failures.items())}
    own = [f"worker {rank} {reason}" for rank, reason in told.items() if reason is not None]
    return "; ".join(own) or "the workers lost the connection to one of them"


def _reason(error: Exception) -> str | None:
    if isinstance(error, ActorDiedError):
        return "was lost: its process was killed, ran out of memory or crashed"
    if any(words in str(error) for words in LOST_PEER):
        return None
    return f"failed: {last_line(error)}"
