"""``d2v report``: what is asked for, read from MLflow, drawn and written."""

from __future__ import annotations

import csv
import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data2vec.errors import Data2VecError

from ..home import chosen_tracking_uri, home_folder
from ..tracking.mlflow_access import open_client
from ..tracking.tracker import RESUME_TAG
from .drawing import png
from .page import Section, run_page, sweep_page
from .panels import Over, choose, over_cpu, run_panels
from .reference import HEADER, Verdict, find_reference, judge, write_reference
from .run_history import SWEEP_TAG, RunHistory, find_run, load_run, read_curves, write_curves
from .sweep_history import SweepHistory, load_sweep_history
from .sweep_panels import sweep_panels


@dataclass(frozen=True)
class Report:
    """What was written."""

    html: Path  # the page
    png: Path | None  # all curves in one picture; ``None`` if there was nothing to draw
    tables: tuple[Path, ...]  # CSV files
    run_id: str  # the run or sweep that it is about
    verdict: tuple[str, ...] = ()  # whether the run is near its reference, in words


def write_report(
    names: Sequence[str],
    *,
    out: Path | None = None,
    curves: Sequence[Path] = (),
    experiment: str | None = None,
    tracking_uri: str | None = None,
    only: Sequence[str] = (),
    over: Over = "updates",
    reference: bool | Path = False,
    as_reference: Path | None = None,
) -> Report:
    """Write the report of a run or of a sweep.

    Args:
        names: the run or sweep, by name or id; further runs are laid over the curves of the first.
        out: folder to write to; default ``<D2V_HOME>/reports/NAME``.
        curves: files of earlier reports (``curves.csv``), laid over too.
        experiment: look in this MLflow experiment only.
        tracking_uri: default ``MLFLOW_TRACKING_URI``, else SQLite under the home.
        only: names of the panels to draw, such as "loss" or "val-knn"; by default all.
        over: what the curves are drawn over: updates, or the CPU-minutes of training.
        reference: lay the reference curves of the run's recipe, or those of a file, over it and judge it.
        as_reference: a file to keep the run's curves in as a reference.

    Raises:
        Data2VecError: no such run; no such panel; a sweep among several runs; a file that is no report's; no
            reference.
        TrackingUnavailableError: MLflow does not answer.
    """
    uri = chosen_tracking_uri(tracking_uri)
    beside = [history for path in curves for history in read_curves(path)]
    client = open_client(uri)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # fonts of this machine are no news
    runs = [find_run(client, name, experiment) for name in names]
    sweeps = [run.info.run_name or "" for run in runs if SWEEP_TAG in run.data.tags]
    if sweeps and (len(runs) > 1 or beside):
        raise Data2VecError(
            f"{sweeps[0]!r} is a sweep, which cannot be laid over others: give it alone, or name its trials "
            f"({sweeps[0]}/TRIAL)"
        )
    if sweeps and (reference or as_reference):
        raise Data2VecError(f"{sweeps[0]!r} is a sweep; reference curves are of runs: name one of its trials")
    folder = _folder(runs[0].info.run_name or runs[0].info.run_id, out)
    if sweeps:
        return _write_sweep(load_sweep_history(client, runs[0]), folder, uri, only, over)
    histories = _told_apart([*(load_run(client, run) for run in runs), *beside])
    if as_reference is not None:
        write_reference(histories[0], as_reference)
    verdict = None
    if reference:
        found = find_reference(histories[0], reference if isinstance(reference, Path) else None)
        verdict = judge(histories[0], found)
        histories.append(found.history())
    return _write_run(histories, folder, uri, only, over, verdict)


def _write_run(
    histories: Sequence[RunHistory],
    folder: Path,
    uri: str,
    only: Sequence[str],
    over: Over,
    verdict: Verdict | None,
) -> Report:
    panels = over_cpu(histories) if over == "cpu" else run_panels(histories)
    panels = choose(panels, only)
    page = folder / "report.html"
    judged, lines = [], tuple(verdict.lines()) if verdict else ()
    if verdict:
        judged.append(Section(f"Against the reference of {verdict.reference.recipe}", verdict.rows(), HEADER))
    page.write_text(run_page(histories, panels, uri, notes=lines, judged=judged), encoding="utf-8")
    table = folder / "curves.csv"
    write_curves(table, histories)
    picture = folder / "report.png" if panels else None
    if picture:
        png(panels, " and ".join(history.name for history in histories), picture)
    return Report(page, picture, (table,), histories[0].run_id, lines)


def _write_sweep(sweep: SweepHistory, folder: Path, uri: str, only: Sequence[str], over: Over) -> Report:
    panels = choose(sweep_panels(sweep, over), only)
    page = folder / "report.html"
    page.write_text(sweep_page(sweep, panels, uri), encoding="utf-8")
    tables = [folder / name for name in sweep.tables]
    for path in tables:
        path.write_text(sweep.tables[path.name], encoding="utf-8")
    if not sweep.complete:
        tables.append(folder / "trials_so_far.csv")
        _write_trials(sweep, tables[-1])
    curves = folder / "validations.csv"
    write_curves(curves, _validation_histories(sweep))
    picture = folder / "report.png" if panels else None
    if picture:
        png(panels, f"Sweep {sweep.run.name}", picture)
    return Report(page, picture, (*tables, curves), sweep.run.run_id)


def _write_trials(sweep: SweepHistory, path: Path) -> None:
    names = list(dict.fromkeys(name for trial in sweep.trials for name, _ in trial.setting))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", *names, "seed", "status", "metric", "value", "run_id"])
        for trial in sweep.trials:
            chosen = dict(trial.setting)
            row = [trial.task, *(chosen.get(name, "") for name in names), trial.seed, trial.status]
            writer.writerow([*row, trial.metric, "" if trial.value is None else trial.value, trial.run_id])


def _validation_histories(sweep: SweepHistory) -> list[RunHistory]:
    """The trials' validation curves in the form in which curves are written."""
    return [
        RunHistory(
            name=f"{trial.task} {' '.join(f'{n}={v}' for n, v in trial.setting)} seed={trial.seed}",
            curves={trial.metric: trial.curve},
        )
        for trial in sweep.trials
        if trial.curve is not None
    ]


def _told_apart(histories: Sequence[RunHistory]) -> list[RunHistory]:
    """Runs of one name get their sweeps too, and numbers where those are the same."""
    names = [history.name for history in histories]
    longer = [
        history.tags.get(RESUME_TAG, history.name) if names.count(history.name) > 1 else history.name
        for history in histories
    ]
    return [
        dataclasses.replace(
            history, name=f"{name} ({longer[:index].count(name) + 1})" if longer.count(name) > 1 else name
        )
        for index, (history, name) in enumerate(zip(histories, longer, strict=True))
    ]


def _folder(name: str, out: Path | None) -> Path:
    folder = out or home_folder("reports") / re.sub(r"[^\w.\-+=]+", "_", name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Data2VecError(f"--out {folder} cannot be made: {error.strerror}") from error
    return folder
