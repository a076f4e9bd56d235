"""A sweep as MLflow holds it: its trials and settings, from its tables or, before those, from its runs."""

from __future__ import annotations

import csv
import math
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from ..figures import by_size
from ..recipe.sweep_definition import TRAIN_LOSS
from ..tracking.scores import StoredScore, stored_scores
from .run_history import CPU_MINUTES, Curve, RunHistory, load_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_TRIALS, _SUMMARY = "trials.csv", "summary.csv"
_COUNTED = ("finished", "stopped")


@dataclass(frozen=True, kw_only=True)
class TrialFacts:
    """One trial: a setting with a seed."""

    task: str  # which task
    setting: tuple[tuple[str, str], ...]  # the grid's values without task and seed, as text; ``lr`` first
    seed: int  # its seed
    status: str  # finished, stopped, diverged, failed, or what MLflow says of one without a result
    metric: str  # what decides
    value: float | None  # of the run, so far if it goes on; ``None`` if it has none
    run_id: str  # its MLflow run, empty if it has none
    error: str = ""  # what went wrong
    curve: Curve | None = None  # validations of the deciding metric, ``None`` if there are none
    minutes: np.ndarray | None = None  # CPU-minutes of training at each of them, ``None`` if not logged

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return float(dict(self.setting)["lr"])

    @property
    def counted(self) -> float | None:
        """The value as the sweep's own table counts it: only of a run that finished or was stopped early."""
        return self.value if self.status in _COUNTED else None

    def number(self, name: str) -> float:
        """A value of the grid."""
        return float(dict(self.setting)[name])

    def beside(self, axis: str) -> str:
        """The grid's values but one, and but the rate, in words; empty if there are none."""
        return ", ".join(
            f"{name.rpartition('.')[2]} {value}" for name, value in self.setting if name not in ("lr", axis)
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The repetitions of one setting: they differ in the seed only.

    Attributes:
        task: which task.
        setting: as in :class:`TrialFacts`.
        trials: by ascending seed.
        floor: what an answer that knows nothing scores (the most frequent class, an empty transcript).
        chosen: it won its task.
    """

    task: str
    setting: tuple[tuple[str, str], ...]
    trials: tuple[TrialFacts, ...]
    floor: float | None = None
    chosen: bool = False

    @property
    def values(self) -> list[float]:
        """Of the trials that count."""
        return [trial.counted for trial in self.trials if trial.counted is not None]

    @property
    def median(self) -> float | None:
        """Over the seeds."""
        return statistics.median(self.values) if self.values else None


@dataclass(frozen=True, kw_only=True)
class SweepHistory:
    """A sweep."""

    run: RunHistory  # the parent run
    settings: tuple[Setting, ...]  # grouped by task, as the sweep lists them
    protocol: tuple[str, ...]  # how the figures came about, one sentence each
    complete: bool  # the sweep has written its tables; otherwise the figures are those of the runs so far
    tables: dict[str, str] = field(default_factory=dict)  # the sweep's own files by name, their text
    scores: tuple[tuple[str, list[StoredScore]], ...] = ()  # of test subsets, by the name of the trial

    @property
    def tasks(self) -> dict[str, list[Setting]]:
        """Settings by task."""
        found: dict[str, list[Setting]] = {}
        for setting in self.settings:
            found.setdefault(setting.task, []).append(setting)
        return found

    @property
    def trials(self) -> list[TrialFacts]:
        """All trials."""
        return [trial for setting in self.settings for trial in setting.trials]


def load_sweep_history(client: MlflowClient, parent: Run) -> SweepHistory:
    """Read a sweep: its tables if it has written them, else what its trials' runs tell so far."""
    children = {run.info.run_id: run for run in _children(client, parent)}
    tables = _tables(client, parent)
    complete = parent.info.status != "RUNNING" and _covers(tables, children)
    if complete:
        settings = _from_tables(client, tables, children)
    else:
        settings = _group([_from_run(client, parent, run) for run in children.values()], {})
    return SweepHistory(
        run=load_run(client, parent),
        settings=tuple(settings),
        protocol=tuple(parent.data.tags.get("protocol", "").splitlines()),
        complete=complete,
        tables=tables if complete else {},
        scores=tuple(
            (run.info.run_name or run.info.run_id, scores)
            for run in children.values()
            if (scores := stored_scores(run.data.tags))
        ),
    )


def _covers(tables: dict[str, str], children: dict[str, Run]) -> bool:
    """Whether the tables are those of all trials: a sweep that is extended has older ones for a while."""
    if _TRIALS not in tables or _SUMMARY not in tables:
        return False
    return children.keys() <= {row["run_id"] for row in csv.DictReader(tables[_TRIALS].splitlines())}


def _children(client: MlflowClient, parent: Run) -> list[Run]:
    found: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [parent.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'",
            order_by=["start_time ASC"],
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            return found


def _tables(client: MlflowClient, parent: Run) -> dict[str, str]:
    there = {item.path for item in client.list_artifacts(parent.info.run_id)}
    tables: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in sorted(there & {_TRIALS, _SUMMARY, "results.md"}):
            path = client.download_artifacts(parent.info.run_id, name, place)
            tables[name] = Path(path).read_text(encoding="utf-8")
    return tables


def _from_tables(client: MlflowClient, tables: dict[str, str], children: dict[str, Run]) -> list[Setting]:
    rows = list(csv.DictReader(tables[_TRIALS].splitlines()))
    names = _grid_names(list(rows[0]) if rows else [])
    trials = []
    for row in rows:
        run = children.get(row["run_id"])
        trials.append(
            TrialFacts(
                task=row["task"],
                setting=(("lr", row["lr"]), *((name, row[name]) for name in names)),
                seed=int(row["seed"]),
                status=row["status"],
                metric=row["metric"],
                value=_number(row["value"]),
                run_id=row["run_id"],
                error=row["error"],
                **_validations(client, run, row["metric"]),
            )
        )
    known: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[float | None, bool]] = {}
    for row in csv.DictReader(tables[_SUMMARY].splitlines()):
        setting = (("lr", row["lr"]), *((name, row[name]) for name in names))
        known[row["task"], setting] = (_number(row["floor"]), row["chosen"] == "True")
    return _group(trials, known)


def _grid_names(columns: list[str]) -> list[str]:
    """The sweep's own columns stand between ``seed`` and ``status``."""
    if "seed" not in columns:
        return []
    return columns[columns.index("seed") + 1 : columns.index("status")]


def _from_run(client: MlflowClient, parent: Run, run: Run) -> TrialFacts:
    """A trial of a sweep that has no table yet, by the rules of the sweep's definition."""
    tags, params = run.data.tags, run.data.params
    metric = parent.data.params.get("sweep.select.metric", "null")
    if metric == "null":
        metric = params.get("checkpoint.best_checkpoint_metric", "loss")
    maximize = params.get("checkpoint.maximize_best_checkpoint_metric", "false") == "true"
    validations = _validations(client, run, metric)
    curve = validations["curve"]
    value = None
    if curve is not None:
        values = [float(v) for v in curve.values if not math.isnan(v)]
        last = parent.data.params.get("sweep.select.within_run") == "last" or metric == TRAIN_LOSS
        if values and last:
            value = values[-1]
        elif values:
            value = max(values) if maximize else min(values)
    prefix = "grid."
    grid = {key.removeprefix(prefix): text for key, text in tags.items() if key.startswith(prefix)}
    more = sorted(name for name in grid if name not in ("task", "lr", "seed"))
    return TrialFacts(
        task=tags.get("task", ""),
        setting=(("lr", tags.get("lr", "nan")), *((name, grid[name]) for name in more)),
        seed=int(tags.get("seed", "0")),
        status=tags.get("status", run.info.status.lower()),
        metric=metric,
        value=value,
        run_id=run.info.run_id,
        **validations,
    )


class _Validations(TypedDict):
    curve: Curve | None
    minutes: np.ndarray | None


def _validations(client: MlflowClient, run: Run | None, metric: str) -> _Validations:
    """Those of a trial, on the first validation subset of its recipe, or its training loss."""
    if run is None or not metric:
        return {"curve": None, "minutes": None}
    subset = run.data.params.get("dataset.valid_subset", "valid").split(",")[0].strip()
    key = metric if metric == TRAIN_LOSS else f"{subset}/{metric}"
    history = load_run(client, run, [key, CPU_MINUTES])
    curve = history.curves.get(key)
    return {"curve": curve, "minutes": None if curve is None else history.cpu_minutes(curve.updates)}


def _group(
    trials: list[TrialFacts], known: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[float | None, bool]]
) -> list[Setting]:
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[TrialFacts]] = {}
    for trial in trials:
        groups.setdefault((trial.task, trial.setting), []).append(trial)
    order = list(dict.fromkeys(trial.task for trial in trials))
    keys = sorted(groups, key=lambda key: (order.index(key[0]), _sortable(key[1])))
    return [
        Setting(
            task=key[0],
            setting=key[1],
            trials=tuple(sorted(groups[key], key=lambda trial: trial.seed)),
            floor=known.get(key, (None, False))[0],
            chosen=known.get(key, (None, False))[1],
        )
        for key in keys
    ]


def _sortable(setting: tuple[tuple[str, str], ...]) -> tuple[Any, ...]:
    return (float(dict(setting)["lr"]), *(by_size(value) for name, value in setting if name != "lr"))


def _number(text: str | None) -> float | None:
    return float(text) if text else None
