"""How far long work is: bars on a terminal, a line now and then where nobody sees bars (jobs, log files)."""

from __future__ import annotations

import logging
import time
from typing import Any

from rich.progress import Progress, TaskID

from .figures import clock

logger = logging.getLogger(__name__)

_TELL_EVERY_S = 30.0


class Bars(Progress):
    """Rich's bars; without a terminal each task logs every half minute how far it is."""

    def __init__(self, *columns: Any, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._told: dict[TaskID, float] = {}

    def add_task(self, description: str, *arguments: Any, **options: Any) -> TaskID:
        """As Rich's."""
        number = super().add_task(description, *arguments, **options)
        self._told[number] = time.monotonic()
        return number

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As Rich's."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As Rich's."""
        super().update(task_id, **changes)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        now = time.monotonic()
        if self.console.is_terminal or now - self._told[task_id] < _TELL_EVERY_S:
            return
        self._told[task_id] = now
        task = self._tasks[task_id]
        done, left = f"{task.completed:,.0f}", task.time_remaining
        of = "" if task.total is None else f" of {task.total:,.0f}"
        eta = "" if left is None else f", eta {clock(left)}"
        logger.info("%s: %s%s%s", task.description, done, of, eta)
