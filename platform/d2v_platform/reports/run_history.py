"""A run as MLflow holds it: found by name or id, with every point of every metric."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data2vec.errors import Data2VecError, nearest_names

from ..tracking.tracker import RESUME_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

CPU_MINUTES = "speed/cpu_minutes"
SWEEP_TAG = "d2v.sweep_name"
CSV_COLUMNS = ("run", "metric", "update", "value", "seconds")
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_QUOTABLE = re.compile(r"[\w.\-+=,@:/ ]{1,200}")  # what a run's name may be; keeps quotes out of the filter


@dataclass(frozen=True)
class Curve:
    """One metric of a run."""

    updates: np.ndarray  # step of each point, ascending
    values: np.ndarray  # the values; may hold NaN
    seconds: np.ndarray  # since the run's start


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """Everything that a report says of a run."""

    name: str  # of the run
    run_id: str = ""  # empty for curves that come from a file
    experiment: str = ""  # name of the MLflow experiment
    status: str = ""  # MLflow's: ``FINISHED``, ``RUNNING``, ..
    start_ms: int = 0  # milliseconds since 1970
    end_ms: int | None = None  # the same; ``None`` while it runs
    params: dict[str, str] = field(default_factory=dict)  # the flat recipe
    tags: dict[str, str] = field(default_factory=dict)  # of the run
    curves: dict[str, Curve] = field(default_factory=dict)  # by metric name

    def number(self, param: str) -> float | None:
        """A numeric parameter of the recipe; ``None`` if it is absent or no number."""
        try:
            return float(self.params[param])
        except (KeyError, ValueError):
            return None

    def last(self, metric: str) -> float | None:
        """The newest value of a metric."""
        curve = self.curves.get(metric)
        return None if curve is None else float(curve.values[-1])

    def cpu_minutes(self, updates: np.ndarray) -> np.ndarray | None:
        """CPU-minutes of training used up to those updates; ``None`` if the run did not log them."""
        clock = self.curves.get(CPU_MINUTES)
        if clock is None:
            return None
        return np.interp(updates, np.append(0, clock.updates), np.append(0.0, clock.values))


def find_run(client: MlflowClient, asked: str, experiment: str | None = None) -> Run:
    """The run that a user means.

    Args:
        client: of the tracking server or file.
        asked: a run id, a run's or a sweep's name, or ``SWEEP/TRIAL``; of several the newest is taken and
            the choice is logged.
        experiment: look in this one only.

    Raises:
        Data2VecError: nothing of that name; with the nearest and the newest names.
    """
    from mlflow.exceptions import MlflowException

    if _RUN_ID.fullmatch(asked):
        try:
            return client.get_run(asked)
        except MlflowException:
            pass
    places = _experiments(client, experiment)
    found: dict[str, Run] = {}
    if _QUOTABLE.fullmatch(asked):
        for key in (f"tags.`{RESUME_TAG}`", "attributes.run_name"):
            for run in client.search_runs(places, f"{key} = '{asked}'", order_by=["start_time DESC"]):
                found.setdefault(run.info.run_id, run)
    if not found:
        raise Data2VecError(_not_found(client, asked, places))
    runs = sorted(found.values(), key=lambda run: run.info.start_time, reverse=True)
    if len(runs) > 1:
        others = ", ".join(run.info.run_id for run in runs[1:4])
        more = f" and {len(runs) - 4} more" if len(runs) > 4 else ""
        logger.info(
            "note: %d runs are called %r; this is the newest, %s (others by id: %s%s)",
            len(runs), asked, runs[0].info.run_id, others, more,
        )  # fmt: skip
    return runs[0]


def _experiments(client: MlflowClient, name: str | None) -> list[str]:
    experiments = {e.name: e.experiment_id for e in client.search_experiments()}
    if name is None:
        return list(experiments.values())
    if name not in experiments:
        raise Data2VecError(
            f"--experiment {name!r} does not exist{nearest_names(name, experiments)}; "
            f"there are {', '.join(sorted(experiments)) or 'none'}"
        )
    return [experiments[name]]


def _not_found(client: MlflowClient, asked: str, places: Sequence[str]) -> str:
    runs = client.search_runs(list(places), order_by=["start_time DESC"], max_results=200) if places else []
    names = list(
        dict.fromkeys(
            run.info.run_name or run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags
        )
    )
    if not names:
        return f"no run or sweep is called {asked!r}: MLflow holds none at all"
    return (
        f"no run or sweep is called {asked!r}, nor has one this id{nearest_names(asked, names)}; "
        f"the newest are {', '.join(names[:5])}"
    )


def load_run(client: MlflowClient, run: Run, metrics: Iterable[str] | None = None) -> RunHistory:
    """Read a run with its metrics' histories.

    Args:
        client: where it is.
        run: as MLflow gave it.
        metrics: only these; default all.
    """
    wanted = sorted(run.data.metrics) if metrics is None else [m for m in metrics if m in run.data.metrics]
    curves = {key: _curve(client, run, key) for key in wanted}
    return RunHistory(
        name=run.info.run_name or run.info.run_id,
        run_id=run.info.run_id,
        experiment=client.get_experiment(run.info.experiment_id).name,
        status=run.info.status,
        start_ms=run.info.start_time,
        end_ms=run.info.end_time,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        curves=curves,
    )


def _curve(client: MlflowClient, run: Run, key: str) -> Curve:
    points = sorted(client.get_metric_history(run.info.run_id, key), key=lambda p: (p.step, p.timestamp))
    return Curve(
        updates=np.array([point.step for point in points], dtype=np.int64),
        values=np.array([point.value for point in points], dtype=np.float64),
        seconds=np.array([(point.timestamp - run.info.start_time) / 1000 for point in points]),
    )


def write_curves(path: Path, histories: Sequence[RunHistory]) -> None:
    """All points of all runs, one a line: columns :data:`CSV_COLUMNS`, values unrounded."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for history in histories:
            for metric, curve in sorted(history.curves.items()):
                for update, value, seconds in zip(curve.updates, curve.values, curve.seconds, strict=True):
                    writer.writerow((history.name, metric, update, repr(float(value)), f"{seconds:.3f}"))


def read_curves(path: Path) -> list[RunHistory]:
    """Runs of a file that :func:`write_curves` wrote, to be drawn beside others.

    Raises:
        Data2VecError: naming the file and the line.
    """
    found: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            if tuple(next(rows, ())) != CSV_COLUMNS:
                raise Data2VecError(
                    f"{path}: line 1 must be {','.join(CSV_COLUMNS)}, as d2v report writes it"
                )
            for number, row in enumerate(rows, start=2):
                try:
                    run, metric, update, value, seconds = row
                    point = (int(update), float(value), float(seconds))
                except ValueError:
                    text = ",".join(row)[:80]
                    raise Data2VecError(f"{path}: line {number} is not a point of a curve: {text}") from None
                found.setdefault(run, {}).setdefault(metric, []).append(point)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Data2VecError(f"--with {path} cannot be read as curves of d2v report: {error}") from error
    return [
        RunHistory(name=run, curves={metric: _from_points(points) for metric, points in curves.items()})
        for run, curves in found.items()
    ]


def _from_points(points: list[tuple[int, float, float]]) -> Curve:
    updates, values, seconds = zip(*sorted(points), strict=True)
    return Curve(np.array(updates, dtype=np.int64), np.array(values), np.array(seconds))
