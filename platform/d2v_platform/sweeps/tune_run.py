"""Running trials on Ray Tune: concurrency, early stopping, lost processes, one line an event."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback

from ..figures import clock, duration, shown
from ..recipe.sweep_definition import Sweep
from ..tracking.tracker_actor import RemoteTracker
from ..training.run_description import log_datasets, summary_tags
from .asha import PerTaskASHA, Race
from .capacity import Capacity
from .results import ChildRun, Record, StoredTrial, TrialResult, evaluation_log
from .schedule import SweepProgress, known_length
from .selection import score
from .sweep_folder import SweepFolder, delete_weights
from .trial import run_trial

logger = logging.getLogger(__name__)

_STATUS_S = 60.0  # after so long a silence it is said how far the trials are
_TOLD_S = 1.0  # between two answers to who asked how far they are


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One run of the driver."""

    name: str  # of this launch, unique
    sweep: Sweep  # definition and metrics
    sweep_name: str  # the sweep's identity
    folder: SweepFolder  # its state
    tracker: RemoteTracker  # the one process that writes to MLflow
    parent: str  # MLflow run of the sweep
    capacity: Capacity  # trials at a time
    quiet: bool = False  # say nothing about single trials
    reached: Callable[[float], object] | None = None  # told the share of the updates that is done


def run_trials(
    launch: Launch,
    todo: Sequence[StoredTrial],
    earlier: Mapping[str, Record],
    on_ended: Callable[[str], None],
) -> SweepProgress:
    """Run trials to their ends; results are in their folders afterwards.

    Args:
        launch: where.
        todo: the trials; what they left when they were interrupted is used.
        earlier: the sweep's other trials, for early stopping.
        on_ended: told the name of each trial that has ended.
    """
    names = [stored.name for stored in todo]
    for stored in todo:
        folder = launch.folder.of(stored.name)
        stored.write(folder)
        (folder / "result.json").unlink(missing_ok=True)
    watch = _Watch(launch, {stored.name: stored for stored in todo}, on_ended)
    scheduler = _scheduler(launch, todo, earlier)
    place = launch.folder.root / "tune"
    capacity = launch.capacity
    tuner = tune.Tuner(
        tune.with_resources(run_trial, capacity.resources),
        param_space={
            "trial": tune.grid_search(names),
            "root": str(launch.folder.trials),
            "tracker": launch.tracker.name,
            "sweep": launch.sweep_name,
            "parent": launch.parent,
            "launch": launch.name,
            "workers": capacity.workers,
            "threads": capacity.threads,
            "loaders": capacity.loaders,
            "gpu": capacity.gpus > 0,
        },
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            max_concurrent_trials=capacity.slots,
            reuse_actors=capacity.workers == 1,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=tune.RunConfig(
            name=launch.name,
            storage_path=str(place),
            verbose=0,
            callbacks=[watch],
            failure_config=tune.FailureConfig(
                max_failures=max(stored.trial.recipe.platform.max_failures for stored in todo)
            ),
        ),
    )
    watch.progress.begin = time.perf_counter()
    try:
        tuner.fit()
    finally:
        watch.progress.end = time.perf_counter()
        watch.close_interrupted()
        launch.tracker.wait_for_sent()
        watch.mark_closed()
        shutil.rmtree(place, ignore_errors=True)  # our own folder is the only truth
    return watch.progress


def set_environment() -> None:
    """Switches that Ray Tune reads when it is started: no tables, no loggers of its own."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _name_of(trial: Any) -> str:
    return trial.config["trial"]


def _scheduler(
    launch: Launch, todo: Sequence[StoredTrial], earlier: Mapping[str, Record]
) -> PerTaskASHA | None:
    """ASHA if the definition asks for it; runs of earlier launches stand in its rungs."""
    definition = launch.sweep.definition
    if definition.scheduler.name != "asha":
        return None
    best = definition.select.within_run == "best"
    known = [record for record in earlier.values() if record.over]
    races: dict[str, Race] = {}
    for stored in [*todo, *(record.stored for record in known)]:
        recipe = stored.trial.recipe
        metric, maximize = launch.sweep.metric(stored.trial)
        key = f"{recipe.valid_subsets()[0]}/{'best_' if best else ''}{metric}"
        races[stored.name] = Race(
            task=stored.task, metric=key, maximize=maximize, updates=recipe.optimization.max_update
        )
    scheduler = PerTaskASHA(races, definition.scheduler)
    for record in known:
        assert record.result is not None
        key = races[record.stored.name].metric
        found = record.result.evaluations.items()
        scheduler.remember(record.stored.name, {update: m[key] for update, m in found if key in m})
    return scheduler


class _Watch(Callback):
    """Follows the trials: keeps the results of those that could not, ends their runs, says one line each."""

    def __init__(
        self, launch: Launch, todo: Mapping[str, StoredTrial], on_ended: Callable[[str], None]
    ) -> None:
        self.launch, self.todo, self.on_ended = launch, todo, on_ended
        lengths = {name: known_length(stored.trial.recipe.optimization) for name, stored in todo.items()}
        self.progress = SweepProgress(lengths, launch.capacity.slots)
        self._said = self._told = time.perf_counter()
        self._best: dict[str, float] = {}
        self._closed: list[Path] = []

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune stores its callbacks for its own resuming, which is not used: our folder is the truth."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process takes it up, for the first time or again."""
        name = trial.config["trial"]
        now = time.perf_counter()
        if self.progress.first_start is None:
            self.progress.first_start = now
        if name not in self.progress.started:
            self.progress.started[name] = now
            self.progress.before[name] = self._newest(name)
            self._say("%s started (%s)", name, self._count())

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray Tune has looked at its trials, as it does several times a second."""
        now = time.perf_counter()
        if self.launch.reached is not None and now - self._told > _TOLD_S:
            self._told = now
            self.launch.reached(self.progress.share({n: self._newest(n) for n in self.progress.running}))
        if time.perf_counter() - self._said < _STATUS_S or not self.progress.running:
            return
        running = self.progress.running
        shown = [f"{name} {self._newest(name)}/{self.progress.lengths[name] or '-'}" for name in running[:4]]
        more = f" and {len(running) - 4} more" if len(running) > 4 else ""
        self._say("running: %s%s; %s", ", ".join(shown), more, self._count())

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process was lost, and it goes on from its newest checkpoint."""
        logger.warning(
            "%s lost its process; it goes on from its newest checkpoint (%d of %d times)",
            trial.config["trial"],
            trial.num_failures,
            self.todo[trial.config["trial"]].trial.recipe.platform.max_failures,
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ended by itself, or the scheduler stopped it: then nobody has kept its result yet."""
        name = trial.config["trial"]
        folder = self.launch.folder.of(name)
        if TrialResult.read(folder) is None:
            evaluations = evaluation_log(folder).read()
            self._keep(name, "stopped", evaluations, None)
        self._ended(name)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It failed for good."""
        name = trial.config["trial"]
        folder = self.launch.folder.of(name)
        if TrialResult.read(folder) is None:
            error = str(trial.get_error() or "its process was lost").strip().splitlines()[-1]
            told = f"{error} (after {trial.num_failures} attempts; see {folder / 'train.log'})"
            self._keep(name, "failed", evaluation_log(folder).read(), told)
        self._ended(name)

    def close_interrupted(self) -> None:
        """Runs of trials that did not end are KILLED; the sweep's name resumes them."""
        for name in self.todo:
            folder = self.launch.folder.of(name)
            child = ChildRun.read(folder)
            if TrialResult.read(folder) is None:
                self.progress.interrupted = True
                if child is not None:
                    self.launch.tracker.finish_soon(child.run_id, "KILLED", tags={"status": "interrupted"})

    def mark_closed(self) -> None:
        """The tracker has the end of these runs on disk."""
        for folder in self._closed:
            child = ChildRun.read(folder)
            if child is not None:
                ChildRun(child.run_id, closed=True).write(folder)

    def _keep(
        self, name: str, status: Any, evaluations: dict[int, dict[str, float]], error: str | None
    ) -> None:
        folder = self.launch.folder.of(name)
        child = ChildRun.read(folder)
        begin = self.progress.started.get(name, time.perf_counter())
        TrialResult(
            status=status,
            run_id=child.run_id if child else None,
            update=max(evaluations, default=0),
            evaluations=evaluations,
            seconds=time.perf_counter() - begin,
            error=error,
        ).write(folder)

    def _ended(self, name: str) -> None:
        folder = self.launch.folder.of(name)
        result = TrialResult.read(folder)
        assert result is not None
        self.progress.seconds[name] = result.seconds
        end_child(self.launch.tracker, folder, result)
        self._closed.append(folder)
        if result.status == "finished":
            delete_weights(folder, model=False)
        self._say("%s %s", name, self._outcome(name, result))
        self.on_ended(name)

    def _outcome(self, name: str, result: TrialResult) -> str:
        stored = self.todo[name]
        where = f"update {result.update}, {duration(result.seconds)}"
        if result.error is not None:
            logger.warning("%s %s: %s", name, result.status, result.error)
            return f"{result.status} ({where}); {self._count()}"
        metric, maximize = self.launch.sweep.metric(stored.trial)
        subset = next(iter(stored.trial.recipe.valid_subsets()), None)
        found = score(result, subset, metric, maximize, self.launch.sweep.definition.select.within_run)
        if found is None:
            return f"{result.status} ({where}); {self._count()}"
        pick = max if maximize else min
        best = self._best[stored.task] = pick(self._best.get(stored.task, found.value), found.value)
        return (
            f"{result.status}: {metric} {shown(metric, found.value)} ({where}); "
            f"best of {stored.task} {shown(metric, best)}; {self._count()}"
        )

    def _count(self) -> str:
        done, total = len(self.progress.seconds), len(self.progress.lengths)
        left = None
        if done < total:
            newest = {name: self._newest(name) for name in self.progress.running}
            left = self.progress.left_s(newest, time.perf_counter())
        return f"{done}/{total} done" + ("" if left is None else f", eta {clock(left)}")

    def _newest(self, name: str) -> int:
        return evaluation_log(self.launch.folder.of(name)).newest()

    def _say(self, text: str, *values: object) -> None:
        self._said = time.perf_counter()
        if not self.launch.quiet:
            logger.info(text, *values)


def end_child(tracker: RemoteTracker, folder: Path, result: TrialResult) -> None:
    """Final tags and status of a trial's run, handed over without waiting for MLflow."""

    child = ChildRun.read(folder)
    if child is None:
        return
    tags = {"status": result.status, "updates": str(result.update)}
    if result.summary is not None:
        tags |= summary_tags(result.summary)
        log_datasets(tracker, child.run_id, StoredTrial.read(folder).trial.recipe, result.summary.facts)
    if result.error is not None:
        tags["error"] = result.error
    ended = "FINISHED" if result.status in ("finished", "stopped") else "FAILED"
    tracker.finish_soon(child.run_id, ended, tags=tags)
