"""What is due after an update: a validation, a checkpoint, both or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class Due:
    """What the loop stops for."""

    save: bool
    validate: bool

    def __bool__(self) -> bool:
        return self.save or self.validate


def due_after(recipe: Recipe, update: int, epoch: int, *, epoch_end: bool, skipped: bool = False) -> Due:
    """What the recipe asks for after an update. A run's end always validates and saves, and is not asked.

    As in the reference, ``checkpoint.save_interval_updates`` validates too, so that the best checkpoint is
    chosen among all that are saved, and does neither before ``dataset.validate_after_updates``. (The
    reference leaves this validation out where the update ends an epoch.)

    Args:
        recipe: its ``checkpoint`` and ``dataset`` decide.
        update: number of the update, from 1.
        epoch: number of the epoch that it belongs to, from 1.
        epoch_end: it was the epoch's last.
        skipped: its gradient was not finite: counted as no update, but it may end an epoch.
    """
    rules, data = recipe.checkpoint, recipe.dataset
    early = update < data.validate_after_updates
    save = not skipped and not early and _divides(rules.save_interval_updates, update)
    validate = save or (not skipped and _divides(data.validate_interval_updates, update))
    if epoch_end:
        save = save or _divides(rules.save_interval, epoch)
        validate = validate or _divides(data.validate_interval, epoch)
    return Due(save=save, validate=validate and not early and not data.disable_validation)


def _divides(interval: int, count: int) -> bool:
    return interval > 0 and count % interval == 0


class SaveClock:
    """Rank 0's clock: when what was computed since the last checkpoint is too much to lose.

    Args:
        minutes: between checkpoints; 0 is never.
        now: seconds of a clock that only goes forward.
    """

    LOOK_S = 10.0  # between two looks whether a node goes away: all workers wait for each other there

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._now = 60 * minutes, now
        self._saved = self._looked = now()

    def saved(self) -> None:
        """There is a checkpoint of this moment."""
        self._saved = self._now()

    def save_due(self) -> bool:
        """Whether the last checkpoint is too old."""
        return 0 < self._seconds <= self._now() - self._saved

    def look_due(self) -> bool:
        """Whether it is time to ask about the nodes again; the next question comes later."""
        if self._now() - self._looked < self.LOOK_S:
            return False
        self._looked = self._now()
        return True
