"""Says in one line which workers a Ray run has lost, in the place of Ray's traces."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ray.exceptions import ActorDiedError
from ray.train import UserCallback

from .ray_output import LOST_PEER

logger = logging.getLogger(__name__)


class LostWorkers(UserCallback):
    """Runs in Ray Train's controller, which starts all workers again if it may."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Some workers have failed."""
        logger.warning("%s", in_words(worker_exceptions))


def in_words(failures: Mapping[int, Exception]) -> str:
    """Which workers failed and why; those that only miss a lost one are not told."""
    told = {rank: _reason(error) for rank, error in sorted(failures.items())}
    own = [f"worker {rank} {reason}" for rank, reason in told.items() if reason is not None]
    return "; ".join(own) or "the workers lost the connection to one of them"


def last_line(error: Exception) -> str:
    """The last words of an exception that Ray has wrapped."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _reason(error: Exception) -> str | None:
    if isinstance(error, ActorDiedError):
        return "was lost: its process was killed, ran out of memory or crashed"
    if any(words in str(error) for words in LOST_PEER):
        return None
    return f"failed: {last_line(error)}"
