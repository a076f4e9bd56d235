"""How long a sweep takes: how far its trials are, what is left, the ideal schedule of their own seconds."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..recipe.groups import Optimization


@dataclass
class SweepProgress:
    """What a launch has done so far.

    Attributes:
        lengths: trial to run -> its updates, 0 if their number is not known.
        slots: trials at a time.
        begin: seconds when Ray Tune was started.
        first_start: seconds when the first trial began, on the same clock.
        end: seconds when the last one ended.
        started: when each trial was taken up.
        before: updates that it had then, of earlier launches.
        seconds: own seconds of each ended trial, in the order in which they started.
        interrupted: trials were left when Ray Tune returned.
    """

    lengths: Mapping[str, int]
    slots: int = 1
    begin: float = 0.0
    first_start: float | None = None
    end: float = 0.0
    started: dict[str, float] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def running(self) -> list[str]:
        """Trials that were taken up and have not ended."""
        return [name for name in self.started if name not in self.seconds]

    def share(self, newest: Mapping[str, int]) -> float:
        """The share of all updates that is done; trials count alike where a length is not known.

        Args:
            newest: trial that runs -> the update it has reached.
        """
        known = all(self.lengths.values())
        sizes = {name: length if known else 1 for name, length in self.lengths.items()}
        done = sum(sizes[name] for name in self.seconds)
        done += sum(min(newest.get(name, 0), sizes[name]) for name in self.running) if known else 0
        return done / max(sum(sizes.values()), 1)

    def left_s(self, newest: Mapping[str, int], now: float) -> float | None:
        """Seconds to the end of the last trial; ``None`` as long as no trial shows a speed.

        A trial that runs goes on at its own speed; one that waits takes as long as the others on average.

        Args:
            newest: trial that runs -> the update it has reached.
            now: on the clock of ``started``.
        """
        durations, running = list(self.seconds.values()), dict.fromkeys(self.running, 0.0)
        unknown: list[str] = []
        for name in running:
            done = newest.get(name, 0) - self.before.get(name, 0)
            if self.lengths[name] > 0 and done > 0:
                each = (now - self.started[name]) / done
                durations.append(self.lengths[name] * each)
                running[name] = max(self.lengths[name] - newest[name], 0) * each
            else:
                unknown.append(name)
        if not durations:
            return None
        typical = statistics.fmean(durations)
        running |= {name: max(typical - (now - self.started[name]), 0.0) for name in unknown}
        waiting = (len(self.lengths) - len(self.started)) * typical
        return max([(sum(running.values()) + waiting) / self.slots, *running.values()])


def known_length(limits: Optimization) -> int:
    """Updates of a trial; 0 where there is no limit to them, or a clock may end it sooner."""
    return 0 if limits.stop_time_hours or limits.stop_cpu_minutes else limits.max_update


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
