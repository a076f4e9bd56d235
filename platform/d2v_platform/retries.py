"""The one way to try again what fails for a moment: growing pauses, until it works or patience ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long to try again."""

    seconds: float = 60.0  # in all; no attempt begins later
    first_s: float = 0.5  # the first pause; each further one is twice as long
    longest_s: float = 15.0  # no pause is longer
    attempts: int | None = None  # no more than so many, the first one included


def try_again(
    action: Callable[[], Result],
    patience: Patience,
    worth_it: Callable[[Exception], bool],
    waiting: Callable[[Exception, float], None] | None = None,
) -> Result:
    """Run ``action`` until it succeeds; its last error is raised as it was.

    Args:
        action: may run several times.
        patience: how long.
        worth_it: whether waiting may mend an error; others are raised at once.
        waiting: told each error that is waited for, and how many seconds.
    """
    growing = wait_exponential(multiplier=patience.first_s, max=patience.longest_s)

    def pause(state: RetryCallState) -> float:
        # Many workers that lost the same server must not come back in step; nothing computed depends on it.
        return growing(state) * random.uniform(0.7, 1.0)

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if waiting is not None and isinstance(error, Exception):
            waiting(error, state.upcoming_sleep)

    def mends(error: BaseException) -> bool:
        return isinstance(error, Exception) and worth_it(error)  # Ctrl-C is not waited for

    stop = stop_before_delay(patience.seconds)
    if patience.attempts is not None:
        stop = stop | stop_after_attempt(patience.attempts)
    again = Retrying(retry=retry_if_exception(mends), stop=stop, wait=pause, before_sleep=tell, reraise=True)
    return again(action)
