"""A sweep from its definition to its table: run what is missing, choose, register, tidy up."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import secrets
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..figures import by_size, clock, data_size
from ..launch import open_tracker, refuse_node_local
from ..markdown import code, literal
from ..recipe.sweep_definition import Sweep
from ..storage.locations import is_uri
from ..tracking.tracker import FinalStatus, MetricPoint, NewRun, now_ms
from ..tracking.tracker_actor import RemoteTracker
from ..training import ray_session
from ..training.run_description import NOTE_TAG, code_version, source_tags
from .capacity import Capacity, capacity
from .preparation import prepare_trials
from .results import ChildRun, Record, StoredTrial, task_name
from .schedule import ideal_seconds
from .selection import GridPoint, by_task, choose_winner, floors, grid_points
from .sweep_folder import SweepFolder, folder_bytes, identity, refuse_changes, sweep_root
from .table import ResultTable, SweepRow, protocol, result_table, trials_csv
from .winners import Winner, delete_losers, record_winner_scores, register_winner, use_winners

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long the launch's trials took."""

    trials: int  # trials that ran
    slots: int  # trials at a time
    start_s: float  # until the first trial began
    wall_s: float  # from there to the end of the last one
    own_s: float  # the trials' own seconds, added up
    ideal_s: float  # the ideal schedule of the trials' own seconds

    @property
    def ratio(self) -> float:
        """Wall time over the ideal schedule; 1 is perfect."""
        return self.wall_s / self.ideal_s if self.ideal_s else 1.0

    def line(self) -> str:
        """In words."""
        return (
            f"{self.trials} trials in {clock(self.wall_s)} (start-up {self.start_s:.0f} s before that); "
            f"their own seconds {self.own_s:.0f}, ideal on {self.slots} at a time {self.ideal_s:.0f} s: "
            f"ratio {self.ratio:.2f}"
        )


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        name: its identity; the same name goes on with it.
        folder: tables and trials.
        rows: one for each setting.
        winners: one for each task.
        averages: mean of the winners' values over the tasks, and how many tasks.
        protocol: how the figures came about, in words.
        tables: paths by name: ``trials.csv``, ``summary.csv``, ``results.md`` and, if written, the zip.
        parent_run_id: MLflow run of the sweep.
        failed: trials without a result -> why.
        timing: of this launch; ``None`` if nothing was left to run.
        table: everything that is shown.
    """

    name: str
    folder: Path
    rows: tuple[SweepRow, ...]
    winners: tuple[Winner, ...]
    averages: dict[str, tuple[float, int]]
    protocol: tuple[str, ...]
    tables: dict[str, Path]
    parent_run_id: str
    failed: dict[str, str]
    timing: Timing | None
    table: ResultTable


def run_sweep(
    sweep: Sweep,
    *,
    name: str | None = None,
    quiet: bool = False,
    reached: Callable[[float], object] | None = None,
) -> SweepResult:
    """Run a sweep, or go on with the one of this name.

    Args:
        sweep: definition and trials.
        name: its identity, the same as ``platform.run_name`` on its command line; a fresh one by default.
        quiet: print neither single trials nor the table; warnings come through.
        reached: told now and then which share of the trials' updates is done.

    Raises:
        Data2VecError: anything that is the user's to mend before a trial starts. A trial that fails does not
            stop the others: see ``SweepResult.failed``.
    """
    chosen, trials, fresh = identity(sweep, name)
    say = logger.debug if quiet else logger.info
    for note in sweep.notes:
        say("note: %s", note)
    if is_uri(trials[0].recipe.platform.storage or ""):
        say("note: platform.storage: a sweep keeps its trials in %s", sweep_root(chosen, trials))
    ready = prepare_trials(sweep, trials)
    folder = SweepFolder(sweep_root(chosen, trials))
    with contextlib.ExitStack() as stack:
        folder.acquire()
        stack.callback(folder.release)
        known = folder.records()
        refuse_changes(known, ready)
        todo = [stored for stored in ready if not (stored.name in known and known[stored.name].over)]
        say(
            "sweep %s: %d trials, %d of them done before; state in %s",
            chosen,
            len(ready),
            len(ready) - len(todo),
            folder.root,
        )
        if fresh:
            say("to go on with it: the same command with platform.run_name=%s", chosen)
        stop = stack.enter_context(_stoppable())
        # Ray Tune reads its switches when it is imported, Ray's are set by the connection.
        cluster = stack.enter_context(ray_session.connected())
        refuse_node_local(trials[0].recipe, cluster, uri_serves=False)
        room = capacity(sweep.definition, [s.trial.recipe for s in todo or ready], cluster)
        for note in room.notes:
            say("note: %s", note)
        tracker = open_tracker(trials[0].recipe.platform.tracking_uri, local=False)
        assert isinstance(tracker, RemoteTracker)
        stack.callback(tracker.close)
        parent = _open_parent(tracker, sweep, chosen, ready)
        driver = _Driver(sweep, chosen, folder, tracker, parent, room, quiet, stop, reached)
        with driver.finishing():
            return driver.run(ready, todo)


class _Driver:
    """One launch of a sweep, connected to everything."""

    def __init__(
        self,
        sweep: Sweep,
        name: str,
        folder: SweepFolder,
        tracker: RemoteTracker,
        parent: str,
        room: Capacity,
        quiet: bool,
        stop: _Stop,
        reached: Callable[[float], object] | None = None,
    ) -> None:
        self.sweep, self.name, self.folder, self.tracker = sweep, name, folder, tracker
        self.parent, self.room, self.quiet, self.stop = parent, room, quiet, stop
        self.reached = reached
        self.say = logger.debug if quiet else logger.info
        self.failed = False
        self.freed = 0

    def run(self, ready: Sequence[StoredTrial], todo: Sequence[StoredTrial]) -> SweepResult:
        """Run what is missing, then everything that follows from the results."""
        self._close_left_open()
        timing = self._execute(todo) if todo else None
        if not todo:
            self.say("nothing is left to run")
        again = self._winners_without_weights()
        if again:
            names = ", ".join(stored.name for stored in again)
            self.say("the results so far make %s a winner, whose weights were deleted: trained again", names)
            self._execute(again)
        records = self._records(ready)
        points = self._points(records)
        lines = protocol(
            self.sweep.definition.select, records, self.sweep.definition.scheduler.name,
            self.sweep.definition.max_updates,
        )  # fmt: skip
        floor = floors(points)
        table = result_table(points, records, floor, lines)
        paths = self._write_tables(table, records, points)
        winners = self._winners(table, floor, paths["summary.csv"])
        record = functools.partial(record_winner_scores, self.tracker, winners)
        paths |= use_winners(self.sweep.definition, table.choices, self.folder.root, self.room, record)
        self._tidy(records, table)
        self._log_parent(table, paths, timing)
        self.failed = bool(table.missing or table.undecided)
        if not self.quiet:
            show_table(table, f"sweep {self.name}")
        if timing is not None:
            self.say("%s", timing.line())
        return SweepResult(
            name=self.name,
            folder=self.folder.root,
            rows=table.rows,
            winners=tuple(winners),
            averages=table.averages(),
            protocol=table.protocol,
            tables=paths,
            parent_run_id=self.parent,
            failed=dict(table.missing),
            timing=timing,
            table=table,
        )

    # ---- trials ---------------------------------------------------------------------------------------

    def _execute(self, todo: Sequence[StoredTrial]) -> Timing:
        """Run trials on Ray Tune."""
        from .tune_run import Launch, run_trials, set_environment

        set_environment()
        launch = Launch(
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}",
            sweep=self.sweep,
            sweep_name=self.name,
            folder=self.folder,
            tracker=self.tracker,
            parent=self.parent,
            capacity=self.room,
            quiet=self.quiet,
            reached=self.reached,
        )
        self.say("%d trials to run, %s", len(todo), self.room.line())
        running = {stored.name for stored in todo}
        left = {task: {s.name for s in todo if s.task == task} for task in {s.task for s in todo}}

        def ended(name: str) -> None:
            """When a task has no trial left its losers' weights can go: the disk never holds them all."""
            task = next(stored.task for stored in todo if stored.name == name)
            left[task].discard(name)
            if not left[task]:
                mine = {n: r for n, r in self.folder.records().items() if r.stored.task == task}
                choice = choose_winner(self._points(list(mine.values())))
                if choice is not None:
                    self.freed += delete_losers(mine, {task: choice})

        earlier = {n: r for n, r in self.folder.records().items() if n not in running}
        with self.stop.during_tune():
            progress = run_trials(launch, todo, earlier, ended)
        self.stop.check(progress.interrupted)
        own = [progress.seconds[name] for name in progress.started if name in progress.seconds]
        first = progress.first_start if progress.first_start is not None else progress.begin
        return Timing(
            trials=len(own),
            slots=self.room.slots,
            start_s=first - progress.begin,
            wall_s=progress.end - first,
            own_s=sum(own),
            ideal_s=ideal_seconds(own, self.room.slots),
        )

    def _close_left_open(self) -> None:
        """A driver that was killed may have left trials that are over with a run that is not."""
        from .tune_run import end_child

        for record in self.folder.records().values():
            child = ChildRun.read(record.folder)
            if record.over and record.result is not None and child is not None and not child.closed:
                end_child(self.tracker, record.folder, record.result)
                self.tracker.wait_for_sent()
                ChildRun(child.run_id, closed=True).write(record.folder)

    def _winners_without_weights(self) -> list[StoredTrial]:
        """Winners that are needed, but lost when they were among the losers of an earlier launch."""
        definition = self.sweep.definition
        if definition.register.name is None and not definition.test_files:
            return []
        chosen = [
            choose_winner(m) for m in by_task(self._points(list(self.folder.records().values()))).values()
        ]
        return [c.record.stored for c in chosen if c is not None and not c.record.has_weights]

    def _records(self, ready: Sequence[StoredTrial]) -> list[Record]:
        """This launch's trials in the grid's order, and those of earlier launches under the same name."""
        found = self.folder.records()
        order = {stored.name: number for number, stored in enumerate(ready)}
        tasks = list(dict.fromkeys(stored.task for stored in ready))
        absent = [Record(stored=s, folder=self.folder.of(s.name)) for s in ready if s.name not in found]
        records = [r for r in found.values() if r.over or r.stored.name in order] + absent

        def key(record: Record) -> tuple[int, float, tuple[tuple[float, str], ...], int]:
            stored = record.stored
            place = tasks.index(stored.task) if stored.task in tasks else len(tasks)
            return place, stored.lr, tuple(map(by_size, stored.trial.group.values())), stored.seed

        return sorted(records, key=key)

    def _points(self, records: Sequence[Record]) -> list[GridPoint]:
        metrics = {record.stored.name: self.sweep.metric(record.stored.trial) for record in records}
        return grid_points(records, metrics, self.sweep.definition.select)

    # ---- what follows ---------------------------------------------------------------------------------

    def _write_tables(
        self, table: ResultTable, records: Sequence[Record], points: Sequence[GridPoint]
    ) -> dict[str, Path]:
        texts = {
            "trials.csv": trials_csv(records, points),
            "summary.csv": table.summary_csv(),
            "results.md": table.markdown(f"Sweep {self.name}"),
        }
        paths: dict[str, Path] = {}
        for file, text in texts.items():
            paths[file] = self.folder.root / file
            paths[file].write_text(text, encoding="utf-8")
        return paths

    def _winners(self, table: ResultTable, floor: Mapping[str, float], summary: Path) -> list[Winner]:
        return [
            register_winner(
                self.tracker, self.sweep.definition, choice, floor.get(task), table.protocol, summary
            )
            for task, choice in table.choices.items()
        ]

    def _tidy(self, records: Sequence[Record], table: ResultTable) -> None:
        self.freed += delete_losers({record.stored.name: record for record in records}, table.choices)
        size = folder_bytes(self.folder.root)
        self.say(
            "disk: %s kept in %s, %s of losers' weights deleted",
            data_size(size),
            self.folder.root,
            data_size(self.freed),
        )

    # ---- the parent run -------------------------------------------------------------------------------

    def _log_parent(self, table: ResultTable, paths: Mapping[str, Path], timing: Timing | None) -> None:
        """Tables as artifacts; winners as tags and metrics, whose step is the number of trials so far."""

        step, now = sum(len(row.values) for row in table.rows), now_ms()
        figures: dict[str, float] = {"trials": float(step)}
        tags: dict[str, str] = {}
        for task, choice in table.choices.items():
            stored = choice.record.stored
            figures[f"best/{task}/{choice.point.metric}"] = float(choice.point.value or 0.0)
            run_id = choice.record.result.run_id if choice.record.result else ""
            tags[f"best.{task}"] = f"lr {stored.lr:g}, seed {stored.seed}, run {run_id}"
        for title, (value, _) in table.averages().items():
            figures[title.replace(" ", "_")] = value
        if timing is not None:
            figures["schedule_ratio"] = timing.ratio
            tags["timing"] = timing.line()
        self.tracker.log(self.parent, [MetricPoint(key, step, value, now) for key, value in figures.items()])
        self.tracker.set_tags(self.parent, tags | {"protocol": "\n".join(table.protocol)})
        for path in paths.values():
            self.tracker.log_artifact(self.parent, path)

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Whatever happens, the parent gets its final status."""
        status: FinalStatus = "FAILED"
        try:
            yield
            status = "FAILED" if self.failed else "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            logger.warning(
                "interrupted; to go on with it: the same command with platform.run_name=%s", self.name
            )
            raise
        finally:
            try:
                self.tracker.wait_for_sent()
            finally:
                self.tracker.finish(self.parent, status)


def _open_parent(tracker: RemoteTracker, sweep: Sweep, name: str, ready: Sequence[StoredTrial]) -> str:
    platform = ready[0].trial.recipe.platform
    definition = dataclasses.asdict(sweep.definition)
    handle = tracker.open_run(
        NewRun(
            experiment=ready[0].trial.recipe.experiment(),
            name=name,
            params={"sweep": {k: v for k, v in definition.items() if k not in ("grid", "fixed")}},
            tags={
                "d2v.sweep": sweep.name,
                "d2v.sweep_name": name,
                "d2v.code": code_version(),
                **source_tags(f"d2v sweep {sweep.name}", code_version()),
                NOTE_TAG: _description(sweep, ready),
                "grid": json.dumps(definition["grid"]),
                "tasks": ", ".join(dict.fromkeys(task_name(stored.trial) for stored in ready)),
            }
            | dict(platform.extra_tags),
            resume_key=name,
            reopen_finished=True,
        )
    )
    tracker.log_dict(handle.run_id, definition, "sweep/definition.json")
    tracker.log_text(
        handle.run_id,
        "\n".join(f"{s.name}: {shlex.join(s.trial.overrides)}" for s in ready) + "\n",
        "sweep/trials.txt",
    )
    return handle.run_id


def _description(sweep: Sweep, ready: Sequence[StoredTrial]) -> str:
    trial = ready[0].trial
    grid = "\n".join(
        f"- {code(key)}: {literal(', '.join(map(str, v)))}" for key, v in sweep.definition.grid.items()
    )
    return f"{len(ready)} trials of {code(trial.named_recipe)} on {code(trial.recipe.task.data)}:\n\n{grid}"


def show_table(table: ResultTable, title: str) -> None:
    """The table on the screen, with winners, averages and protocol."""

    width = None if os.isatty(2) else 140
    console = Console(markup=False, stderr=True, highlight=False, width=width)
    console.print(table.rich(title, console.width))
    for line in table.summary_lines():
        console.print(line, markup=False)
    console.print("protocol:", *(f"  {line}" for line in table.protocol), sep="\n", markup=False, style="dim")
    for name, why in table.missing.items():
        console.print(f"{name}: {why}", markup=False, style="red")


class _Stop:
    """SIGTERM and Ctrl-C: Ray Tune ends its trials first, then the driver ends as it was asked to."""

    def __init__(self) -> None:
        self.terminated = False
        self._in_tune = False

    def on_sigterm(self, *_: Any) -> None:
        """The first one lets Ray Tune stop its trials, a second one does not wait."""
        if self._in_tune and not self.terminated:
            self.terminated = True
            os.kill(os.getpid(), signal.SIGUSR1)  # Ray Tune's own signal for an orderly stop
            return
        raise SystemExit(143)

    @contextlib.contextmanager
    def during_tune(self) -> Iterator[None]:
        """Inside, Ray Tune handles SIGINT and SIGUSR1."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGUSR1, self.on_sigterm), signal.getsignal(signal.SIGINT)
        self._in_tune = True
        try:
            yield
        finally:
            self._in_tune = False
            signal.signal(signal.SIGUSR1, before[0])
            signal.signal(signal.SIGINT, before[1])

    def check(self, interrupted: bool) -> None:
        """End as asked, after Ray Tune has stopped."""
        if self.terminated:
            raise SystemExit(143)
        if interrupted:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _stoppable() -> Iterator[_Stop]:
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, stop.on_sigterm)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
