"""The demo while it runs: one line a stage, with a bar and the time left on a terminal, plain lines in a log.

What workers and libraries say goes to a file; warnings of ours stay on the screen, above the bars.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from d2v_platform.bars import Bars
from d2v_platform.figures import clock
from d2v_platform.redaction import RedactingFormatter
from d2v_platform.training import ray_output

logger = logging.getLogger(__name__)

_UPDATE = re.compile(r"update (\d+)/(\d+) ")  # how a training's own line begins


class Live:
    """The stages.

    Args:
        titles: one a stage, in their order.
        log: file for everything that is said.
        console: where bars go; default: standard error.
    """

    def __init__(self, titles: Sequence[str], log: Path, console: Console | None = None) -> None:
        self.console = console or Console(markup=False, stderr=True, highlight=False)
        self.bars = Bars(
            TextColumn("{task.description}"), BarColumn(bar_width=24), _Share(), TimeElapsedColumn(), _Left(),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.titles = titles
        self.kept = logging.FileHandler(log, mode="w", encoding="utf-8")
        self.kept.setFormatter(RedactingFormatter("%(asctime)s %(message)s"))
        self._tasks: list[TaskID] = []
        self._current: TaskID | None = None
        self._percent = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[Live]:
        """Inside, the stages are shown and what is logged goes where it belongs."""
        root, self._tasks = logging.getLogger(), []
        before = root.handlers[:]
        shown = [_Above(self.console)] if self.console.is_terminal else before
        root.handlers[:] = [*shown, self.kept]
        try:
            with self.bars, ray_output.taken(self.said):
                width = max(len(title) for title in self.titles)
                for number, title in enumerate(self.titles, start=1):
                    told = f"[{number}/{len(self.titles)}] "
                    told += f"{title:{width}}" if self.console.is_terminal else f"{title}, percent"
                    self._tasks.append(self.bars.add_task(told, total=100.0, start=False))
                yield self
        finally:
            root.handlers[:] = before
            self.kept.close()

    @contextlib.contextmanager
    def stage(self, number: int) -> Iterator[None]:
        """Stage ``number``, from 1, begins, and ends with the block."""
        self._current, self._percent, begin = self._tasks[number - 1], 0.0, time.monotonic()
        self.bars.start_task(self._current)
        if not self.console.is_terminal:
            logger.info("[%d/%d] %s", number, len(self.titles), self.titles[number - 1])
        yield
        if self.console.is_terminal:
            self.bars.update(self._current, completed=100.0)
        else:
            logger.info("      done in %.0f s", time.monotonic() - begin)

    def reached(self, share: float) -> None:
        """How much of this stage is done, from 0 to 1; never goes back, and the end is the block's."""
        if self._current is None:
            return
        self._percent = max(self._percent, min(100.0 * share, 99.0))
        self.bars.update(self._current, completed=self._percent)

    def said(self, line: str) -> None:
        """A line of a worker."""
        self.kept.handle(logging.makeLogRecord({"msg": line}))
        if found := _UPDATE.match(line):
            self.reached(int(found[1]) / int(found[2]))


class _Share(ProgressColumn):
    """Percent, once it is under way."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.percentage:3.0f}%" if task.started else "    ")


class _Left(ProgressColumn):
    """Time left, by the stage's own speed so far."""

    def render(self, task: Task) -> Text:
        if not task.started or task.finished or not task.completed or task.elapsed is None:
            return Text("")
        return Text(f"eta {clock(task.elapsed * (100.0 - task.completed) / task.completed)}")


class _Above(logging.Handler):
    """Warnings above the bars."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console
        self.setFormatter(RedactingFormatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line."""
        self.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)
