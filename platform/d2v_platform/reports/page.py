"""The report as one HTML page that needs nothing beside it: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..figures import shown
from ..redaction import redact_text
from ..tracking.scores import StoredScore, stored_scores
from .drawing import svg
from .panels import Panel
from .run_history import RunHistory
from .sweep_history import Setting, SweepHistory

_LINEAGE = ("d2v.code", "d2v.recipe", "d2v.recipe_digest", "d2v.plan", "d2v.ended", "d2v.workers")


@dataclass(frozen=True)
class _Cell:
    text: str
    look: str = ""


@dataclass(frozen=True)
class _Row:
    cells: list[_Cell]
    chosen: bool


@dataclass(frozen=True)
class _Table:
    header: list[str]
    rows: list[_Row]


@dataclass(frozen=True)
class Section:
    """A titled table; cells are escaped unless they are ``Markup``."""

    title: str
    rows: Sequence[tuple[str, ...]]
    header: tuple[str, ...] = ()


def run_page(
    histories: Sequence[RunHistory],
    panels: Sequence[Panel],
    tracking_uri: str,
    *,
    notes: Sequence[str] = (),
    judged: Sequence[Section] = (),
) -> str:
    """The page of one run, with others laid over its curves.

    Args:
        histories: the run first; curves from files have no run id.
        panels: what is drawn.
        tracking_uri: where it was read, shown without secrets.
        notes: further ones, at the top.
        judged: tables before all others.
    """
    main = histories[0]
    known = [history for history in histories if history.run_id]
    if len(known) < 2:
        sections = [Section("Figures", key_figures(main), ())]
    else:
        sections = [compared_recipes(known), compared_figures(known)]
    named = [("" if len(known) < 2 else h.name, stored_scores(h.tags)) for h in known]
    sections += [test_scores(named), *(_difference(h, len(known) > 1) for h in known)]
    sections += [_lineage(h, len(known) > 1) for h in known]
    return render(
        title=main.name,
        subtitle=_subtitle(main, tracking_uri),
        notes=[*_notes(main), *notes],
        drawings=drawings(panels),
        drawings_title="Curves",
        sections=[section for section in (*judged, *sections) if section.rows],
        footer=_footer(),
    )


def sweep_page(sweep: SweepHistory, panels: Sequence[Panel], tracking_uri: str) -> str:
    """The page of a sweep.

    Args:
        sweep: its trials and settings.
        panels: what is drawn.
        tracking_uri: where it was read, shown without secrets.
    """
    notes = _notes(sweep.run)
    if not sweep.complete:
        notes.append(
            f"The sweep has not ended: these are the figures of its {len(sweep.trials)} trials so far, "
            "without a winner and without the floor."
        )
    failed = [(f"{t.task} {_words(t.setting)} seed {t.seed}", f"{t.status}: {t.error}")
              for t in sweep.trials if t.error]  # fmt: skip
    return render(
        title=f"Sweep {sweep.run.name}",
        subtitle=_subtitle(sweep.run, tracking_uri),
        notes=notes,
        table=_result_table(sweep),
        winners=winner_lines(sweep),
        drawings=drawings(panels),
        drawings_title="Metric over what was swept, and validations",
        sections=[
            section
            for section in (
                test_scores(sweep.scores),
                Section("Without a result", failed),
                _lineage(sweep.run),
            )
            if section.rows
        ],
        protocol=sweep.protocol,
        footer=_footer(),
    )


def compared_recipes(histories: Sequence[RunHistory]) -> Section:
    """The parameters in which runs differ, their names aside."""
    keys = {key for history in histories for key in history.params} - {"platform.run_name"}
    rows = [
        (key, *values)
        for key in sorted(keys)
        if len(set(values := [history.params.get(key, "-") for history in histories])) > 1
    ]
    title = "Recipes: " + (f"{len(rows)} differences" if rows else "no difference")
    names = [f"{h.name} ({h.tags['d2v.recipe']})" if "d2v.recipe" in h.tags else h.name for h in histories]
    return Section(title, rows or [("no difference", *[""] * len(names))], ("key", *names))


def compared_figures(histories: Sequence[RunHistory]) -> Section:
    """The figures of runs beside each other."""
    found = [{row[0]: row[1] for row in key_figures(history)} for history in histories]
    labels = dict.fromkeys(label for figures in found for label in figures)
    rows = [(label, *(figures.get(label, "-") for figures in found)) for label in labels]
    return Section("Figures", rows, ("", *(history.name for history in histories)))


def key_figures(history: RunHistory) -> list[tuple[str, ...]]:
    """Label and text of a run's figures: length, last losses, best validation, speed."""
    rows: list[tuple[str, ...]] = []
    updates = max((int(curve.updates[-1]) for curve in history.curves.values()), default=0)
    limit = history.number("optimization.max_update")
    rows.append(("updates", f"{updates}" + (f" of {limit:g}" if limit else "")))
    for key, curve in history.curves.items():
        if key.rpartition("/")[2] == "loss":
            rows.append((f"{key}, first and last", f"{curve.values[0]:.4g} → {curve.values[-1]:.4g}"))
    for key in history.curves:
        subset, _, name = key.rpartition("/")
        if name.startswith("best_"):
            best = history.last(key)
            rows.append((f"best {name.removeprefix('best_')} on {subset}", f"{best:.4g}"))
    for key, unit in (("speed/s_per_update", " s"), ("speed/data_wait_pct", " %")):
        if key in history.curves:
            rows.append((f"median {key}", f"{statistics.median(history.curves[key].values):.3g}{unit}"))
    for key, curve in history.curves.items():
        if key.startswith("speed/") and key.endswith("_per_s"):
            rows.append((f"median {key}", f"{statistics.median(curve.values):,.0f}"))
    memory = history.curves.get("speed/memory_gb")
    if memory is not None:
        rows.append(("peak memory of worker 0", f"{memory.values.max():.2f} GB"))
    skipped = history.tags.get("d2v.bad_updates")
    if skipped is not None:
        rows.append(("skipped updates (loss or gradient not finite)", skipped))
    return rows


def test_scores(by_run: Sequence[tuple[str, Sequence[StoredScore]]]) -> Section:
    """Scores of test subsets with what they were measured with, in the order in which they were recorded."""
    rows = [
        (*([name] if name else []), key, f"{value:.4g}", score.decoded, f"{score.samples:,}",
         score.data[:12], str(score.update), score.recorded)
        for name, scores in by_run
        for score in scores
        for key, value in score.metrics.items()
    ]  # fmt: skip
    header = ("metric", "value", "decoding", "samples", "data", "update", "recorded")
    named = any(name for name, _ in by_run)
    return Section("Test scores", rows, ("run", *header) if named else header)


def winner_lines(sweep: SweepHistory) -> list[str]:
    """The winner of each task in words, and the averages over tasks that the sweep logged."""
    lines = []
    for setting in sweep.settings:
        if setting.chosen:
            metric, values = setting.trials[0].metric, setting.values
            seeds = "seed" if len(values) == 1 else "seeds"
            lines.append(
                f"{setting.task}: {_words(setting.setting)} wins, {metric} median "
                f"{shown(metric, setting.median)} ({shown(metric, min(values))} .. "
                f"{shown(metric, max(values))}, {len(values)} {seeds})"
            )
    if sweep.complete:
        for metric, words in (("average", "average"), ("average_without_RTE", "average without RTE")):
            value = sweep.run.last(metric)
            if value is not None:
                lines.append(f"{words} of the tasks' winners: {value:.2f}")
    return lines


def _result_table(sweep: SweepHistory) -> _Table:
    seeds = sorted({trial.seed for trial in sweep.trials})
    header = ["task", "setting", "metric", "floor", *(f"seed {seed}" for seed in seeds)]
    header += ["median", "min", "max", ""]
    rows = []
    for setting in sweep.settings:
        values = setting.values
        cells = [
            _Cell(setting.task),
            _Cell(_words(setting.setting)),
            _Cell(metric := setting.trials[0].metric),
            _figure(metric, setting.floor),
            *(_of_seed(setting, seed) for seed in seeds),
            _figure(metric, setting.median),
            _figure(metric, min(values, default=None)),
            _figure(metric, max(values, default=None)),
            _Cell("best" if setting.chosen else ""),
        ]
        rows.append(_Row(cells, setting.chosen))
    return _Table(header, rows)


def _of_seed(setting: Setting, seed: int) -> _Cell:
    for trial in setting.trials:
        if trial.seed == seed:
            if trial.value is None:
                return _Cell(trial.status, "bad" if trial.status in ("failed", "diverged") else "")
            ended = "" if trial.status == "finished" else f" ({trial.status})"
            return _Cell(f"{shown(trial.metric, trial.value)}{ended}", "number")
    return _Cell("")


def _figure(metric: str, value: float | None) -> _Cell:
    return _Cell(shown(metric, value), "number")


def _words(setting: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {_short(value)}" for name, value in setting)


def _short(value: str) -> str:
    try:
        return f"{float(value):g}"
    except ValueError:
        return value


def _subtitle(run: RunHistory, tracking_uri: str) -> str:
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.start_ms / 1000))
    length = ""
    if run.end_ms:
        hours, rest = divmod((run.end_ms - run.start_ms) // 1000, 3600)
        length = f", {hours}:{rest // 60:02d}:{rest % 60:02d} h"
    return (
        f"{run.status} · experiment {run.experiment} · run {run.run_id} · begun {began}{length} · "
        f"read from {redact_text(tracking_uri)}"
    )


def _notes(run: RunHistory) -> list[str]:
    notes = []
    if run.status == "RUNNING":
        notes.append("The run has not ended: the curves reach as far as its metrics had come to MLflow.")
    if run.status == "KILLED":
        notes.append("The run was killed; the same platform.run_name resumes it.")
    if run.status == "FAILED":
        notes.append("The run failed.")
    for tag, text in (
        ("d2v.metrics_dropped", "metric points could not be delivered to MLflow and are missing"),
        ("d2v.params_changed_on_resume", "parameters were changed when the run was resumed"),
    ):
        if tag in run.tags:
            notes.append(f"{text}: {run.tags[tag]}")
    return notes


def _difference(run: RunHistory, several: bool = False) -> Section:
    """What was changed in the named recipe, from the run's tag."""
    title = f"Recipe {run.tags.get('d2v.recipe', '')}" + (f" of {run.name}" if several else "")
    try:
        changed: dict[str, Any] = json.loads(run.tags.get("d2v.recipe_difference", "{}"))
    except json.JSONDecodeError:  # too long for a tag: the tag says where it is
        return Section(title, [("difference", run.tags["d2v.recipe_difference"])])
    rows = [(key, json.dumps(old), json.dumps(new)) for key, (old, new) in sorted(changed.items())]
    if not rows:
        return Section(title, [("unchanged",)] if "d2v.recipe" in run.tags else [])
    return Section(f"{title}, changed", list(rows), ("key", "recipe", "here"))


def _lineage(run: RunHistory, several: bool = False) -> Section:
    keys = [key for key in _LINEAGE if key in run.tags]
    keys += sorted(
        k for k in run.tags if k.startswith(("d2v.data", "d2v.dictionary", "d2v.parent", "registered"))
    )
    keys += [key for key in ("grid", "timing") if key in run.tags]
    return Section(f"Lineage of {run.name}" if several else "Lineage", [(key, run.tags[key]) for key in keys])


def drawings(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Panels as the template takes them; their names must differ."""
    # Markup: matplotlib escapes the text that it draws, so this is the one thing not to be escaped again.
    return [{"name": panel.name, "svg": Markup(svg(panel))} for panel in panels]


def _footer() -> str:
    now = time.strftime("%Y-%m-%d %H:%M")
    return f"Written by d2v report on {now}; all points are in the CSV files beside it."


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=False)
    return environment.from_string((Path(__file__).parent / "page.html.j2").read_text(encoding="utf-8"))


def render(**values: Any) -> str:
    """The page from its parts: title, subtitle, sections, footer and whatever else the template knows."""
    defaults = {"notes": (), "table": None, "winners": (), "drawings": (), "sections": (), "protocol": ()}
    return _template().render(**(defaults | values))
