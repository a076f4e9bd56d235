"""How long a sweep should take: the ideal schedule of its trials' own seconds."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def ideal_seconds(seconds: Sequence[float], slots: int) -> float:
    """Length of the schedule in which each slot takes the next trial the moment it is free.

    Args:
        seconds: own seconds of each trial, in the order in which they start.
        slots: trials at a time.
    """
    free = [0.0] * max(slots, 1)
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
