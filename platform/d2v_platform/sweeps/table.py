"""The result table of a sweep: every setting and seed, the winner of each task, the protocol in words."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from .. import markdown
from ..figures import shown
from ..recipe.sweep_definition import TRAIN_LOSS, Select
from .results import Record
from .selection import Choice, GridPoint, by_task, choose_all


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One setting of one task over its seeds.

    Attributes:
        task: which task.
        lr: peak learning rate.
        group: the grid's values without the seed.
        metric: what decides, in percent where it is one.
        values: seed -> value of its run, ``None`` where it has none.
        statuses: seed -> how the run ended, with the update where the scheduler stopped it.
        median: over the seeds that have a value.
        low: smallest value.
        high: largest value.
        others: further metrics at the same validations, median over the seeds.
        floor: what an answer that knows nothing scores (the most frequent class, an empty transcript).
        chosen: this setting won its task.
    """

    task: str
    lr: float
    group: dict[str, Any]
    metric: str
    values: dict[int, float | None]
    statuses: dict[int, str]
    median: float | None
    low: float | None
    high: float | None
    others: dict[str, float]
    floor: float | None
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """Everything that is shown of a sweep."""

    rows: tuple[SweepRow, ...]  # one a setting
    choices: dict[str, Choice]  # winner by task
    protocol: tuple[str, ...]  # how the figures came about, one sentence a line
    missing: dict[str, str]  # trials that have no result, by name, with the reason

    @property
    def undecided(self) -> list[str]:
        """Tasks without a winner."""
        return [task for task in dict.fromkeys(row.task for row in self.rows) if task not in self.choices]

    def averages(self) -> dict[str, tuple[float, int]]:
        """Mean over the tasks of the winners' values, and the number of tasks; with and without RTE."""
        values = {
            task: choice.point.value
            for task, choice in self.choices.items()
            if choice.point.value is not None
        }
        found: dict[str, tuple[float, int]] = {}
        if len(values) > 1:
            found["average"] = (statistics.fmean(values.values()), len(values))
        rest = [value for task, value in values.items() if task != "rte"]
        if "rte" in values and rest:
            found["average without RTE"] = (statistics.fmean(rest), len(rest))
        return found

    def summary_lines(self) -> list[str]:
        """Winners and averages in words."""
        lines: list[str] = []
        for task, choice in self.choices.items():
            point = choice.point
            least, most, median, value = (
                shown(point.metric, figure)
                for figure in (min(point.values), max(point.values), point.median, choice.score.value)
            )
            lines.append(
                f"{task}: {_group_text(point.group)} wins, {point.metric} median {median} "
                f"({least} .. {most}, {len(point.values)} {_plural('seed', len(point.values))}); "
                f"seed {choice.record.stored.seed} is nearest: {value}"
            )
        for name, (value, count) in self.averages().items():
            lines.append(f"{name} over {count} {_plural('task', count)}: {value:.2f}")
        return lines

    def markdown(self, title: str) -> str:
        """The whole table as Markdown."""
        header, body = self._cells()
        literal = markdown.literal
        rows = [[literal(cell) for cell in row] for row in body]
        lines = [f"# {literal(title)}", "", markdown.table([*map(literal, header)], rows)]
        lines += ["", *(f"- {literal(line)}" for line in self.summary_lines()), "", "## Protocol", ""]
        lines += [f"- {literal(line)}" for line in self.protocol]
        if self.missing:
            missing = (f"- {literal(name)}: {literal(why)}" for name, why in self.missing.items())
            lines += ["", "## Without a result", "", *missing]
        return "\n".join(lines) + "\n"

    def rich(self, title: str, width: int = 140) -> Table:
        """The same for the screen: the winner of each task is bold; a narrow one gets fewer columns."""
        header, body = self._cells()
        left = {"task", "setting", "metric", "also", ""}
        dropped = {"also"} if width < 100 else set()
        if width < 64 + 9 * sum(name.startswith("seed ") for name in header):
            dropped |= {name for name in header if name.startswith("seed ")}
        table = Table(title=title, title_justify="left")
        for name in header:
            if name not in dropped:
                table.add_column(name, justify="left" if name in left else "right", no_wrap=name != "also")
        for row, cells in zip(self.rows, body, strict=True):
            shown = [cell for name, cell in zip(header, cells, strict=True) if name not in dropped]
            table.add_row(*shown, style="bold" if row.chosen else None)
        return table

    def summary_csv(self) -> str:
        """One line a setting."""
        others = list(dict.fromkeys(name for row in self.rows for name in row.others))
        names = list(
            dict.fromkeys(name for row in self.rows for name in row.group if name not in ("task", "lr"))
        )
        header = ["task", "lr", *names, "metric", "floor", "median", "min", "max", "seeds", "statuses"]
        rows = [
            [
                row.task, row.lr, *(row.group.get(name, "") for name in names), row.metric, row.floor,
                row.median, row.low, row.high, len(row.values),
                " ".join(f"{seed}:{status}" for seed, status in row.statuses.items()),
                *(row.others.get(name) for name in others), row.chosen,
            ]
            for row in self.rows
        ]  # fmt: skip
        return _csv([*header, *others, "chosen"], rows)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        seeds = sorted({seed for row in self.rows for seed in row.values})
        header = ["task", "setting", "metric", "floor", *(f"seed {seed}" for seed in seeds)]
        header += ["median", "min..max", "also", ""]
        body: list[list[str]] = []
        for row in self.rows:
            spread = (
                "-" if row.low is None else f"{shown(row.metric, row.low)}..{shown(row.metric, row.high)}"
            )
            also = ", ".join(f"{name} {shown(name, value)}" for name, value in row.others.items())
            cells = [row.task, _group_text(row.group), row.metric, shown(row.metric, row.floor)]
            cells += [_cell(row, seed) for seed in seeds]
            body.append([*cells, shown(row.metric, row.median), spread, also, "best" if row.chosen else ""])
        return header, body


def result_table(
    points: Sequence[GridPoint],
    records: Iterable[Record],
    floor: Mapping[str, float],
    protocol: Sequence[str],
) -> ResultTable:
    """Tabulate a sweep.

    Args:
        points: its settings.
        records: all of its trials, for those without a result.
        floor: what an answer that knows nothing scores, by task.
        protocol: how the figures came about.
    """
    choices = choose_all(points)
    rows = [
        _row(point, floor.get(task), chosen=task in choices and choices[task].point is point)
        for task, members in by_task(points).items()
        for point in members
    ]
    missing: dict[str, str] = {}
    for record in records:
        if record.result is None:
            missing[record.stored.name] = "not run to its end"
        elif record.result.error is not None:
            missing[record.stored.name] = f"{record.result.status}: {record.result.error}"
    return ResultTable(rows=tuple(rows), choices=choices, protocol=tuple(protocol), missing=missing)


def trials_csv(records: Sequence[Record], points: Sequence[GridPoint]) -> str:
    """One line a trial."""
    scores = {
        record.stored.name: (point.metric, found)
        for point in points
        for record, found in zip(point.records, point.scores, strict=True)
    }
    names = list(
        dict.fromkeys(n for r in records for n in r.stored.trial.values if n not in ("task", "lr", "seed"))
    )
    others = list(dict.fromkeys(n for _, found in scores.values() if found for n in found.others))
    header = [
        "trial",
        "task",
        "lr",
        "seed",
        *names,
        "status",
        "metric",
        "value",
        "at_update",
        "updates",
        "seconds",
    ]
    rows: list[list[Any]] = []
    for record in records:
        stored, result = record.stored, record.result
        metric, found = scores.get(stored.name, ("", None))
        rows.append(
            [
                stored.name, stored.task, stored.lr, stored.seed,
                *(stored.trial.values.get(name, "") for name in names),
                result.status if result else "unfinished", metric, found.value if found else None,
                found.update if found else None, result.update if result else None,
                round(result.seconds, 3) if result else None,
                *(found.others.get(name) if found else None for name in others),
                result.run_id if result else None, result.error if result else None,
            ]
        )  # fmt: skip
    return _csv([*header, *others, "run_id", "error"], rows)


def protocol(select: Select, records: Sequence[Record], scheduler: str, cap: int | None) -> list[str]:
    """How the figures came about, in words.

    Args:
        select: the rules.
        records: the trials.
        scheduler: grid or asha.
        cap: the definition's cap of updates.
    """
    stored = [record.stored for record in records]
    seeds = sorted({s.seed for s in stored})
    metrics = sorted(
        {(s.task, select.metric or s.trial.recipe.checkpoint.best_checkpoint_metric) for s in stored}
    )
    subsets = sorted({s.trial.recipe.valid_subsets()[0] for s in stored if s.trial.recipe.valid_subsets()})
    within = {
        "best": "its best validation, whose weights are kept (optimistic: chosen on the measured set)",
        "last": "its last validation; a registered model holds the weights of its best one",
    }[select.within_run]
    measured = f"measured on the validation (dev) set ({', '.join(subsets)}), not on a test set"
    unit = " (percent; not rounded in the files)"
    if select.metric == TRAIN_LOSS:
        within, unit = "the mean of its last logging interval; the weights of its last update are kept", ""
        measured = (
            "measured on the training data while training: a lower loss alone is no proof of better "
            "features, as targets come from the model's own teacher"
        )
    over = {"median": "the median over its seeds", "max": "its best seed"}[select.over_seeds]
    lines = [
        "metric: " + ", ".join(f"{task} {metric}" for task, metric in metrics) + unit,
        f"value of a run: {within}",
        f"value of a setting: {over}; the setting with the best value wins its task, and the seed nearest "
        "that value is the registered run",
        measured,
    ]
    number = (
        "one seed is noise: differences of a point or two mean nothing"
        if len(seeds) == 1
        else (f"{len(seeds)} seeds; min..max shows their spread")
    )
    lines.append(f"seeds {', '.join(map(str, seeds))}: {number}")
    lengths = sorted({s.trial.recipe.optimization.max_update for s in stored})
    length = f"updates: at most {', '.join(map(str, lengths))}"
    if cap is not None:
        length += f" (the recipes' own lengths capped at {cap}, warm-up in proportion)"
    for limit in ("stop_cpu_minutes", "stop_time_hours"):
        if limits := sorted({getattr(s.trial.recipe.optimization, limit) for s in stored} - {0}):
            length += f"; {limit} {', '.join(f'{value:g}' for value in limits)}"
    lines.append(length)
    if scheduler == "asha":
        stopped = sum(r.result is not None and r.result.status == "stopped" for r in records)
        lines.append(
            f"ASHA within each task stopped {stopped} of {len(stored)} runs early; they count with their "
            "value so far and cannot be registered"
        )
    for model in sorted({s.model_uri for s in stored if s.model_uri}):
        random = any(getattr(s.trial.recipe.model, "no_pretrained_weights", False) for s in stored)
        sha = next(s.model_sha256 for s in stored if s.model_uri == model)
        lines.append(
            f"{'architecture of ' if random else 'pretrained model '}{model} (weights sha256 {str(sha)[:12]})"
        )
        if random:
            lines.append("random weights where model.no_pretrained_weights is true")
    data = sorted(
        {(s.task, s.trial.recipe.task.data, *(f"{k} {v[:12]}" for k, v in s.data.items())) for s in stored}
    )
    lines.append("data: " + "; ".join(f"{task} {path} ({', '.join(prints)})" for task, path, *prints in data))
    summaries = [r.result.summary for r in records if r.result is not None and r.result.summary is not None]
    hashes = sorted({s.facts["dictionary.hash"][:12] for s in summaries if "dictionary.hash" in s.facts})
    if hashes:
        lines.append(f"dictionary sha256 {', '.join(hashes)}")
    return lines


def _row(point: GridPoint, floor: float | None, chosen: bool) -> SweepRow:
    others: dict[str, list[float]] = {}
    for found in point.scores:
        for name, value in (found.others if found else {}).items():
            subset, _, metric = name.partition("/")
            first = next(iter(point.records[0].stored.trial.recipe.valid_subsets()), None)
            if metric != "loss" and not (subset == first and metric == point.metric):
                others.setdefault(metric if subset == first else name, []).append(value)
    seeds = [record.stored.seed for record in point.records]
    return SweepRow(
        task=point.task,
        lr=point.lr,
        group=point.group,
        metric=point.metric,
        values={s: found.value if found else None for s, found in zip(seeds, point.scores, strict=True)},
        statuses={record.stored.seed: _status(record) for record in point.records},
        median=point.median,
        low=min(point.values, default=None),
        high=max(point.values, default=None),
        others={name: statistics.median(values) for name, values in others.items()},
        floor=floor,
        chosen=chosen,
    )


def _status(record: Record) -> str:
    assert record.result is not None
    status = record.result.status
    return f"stopped@{record.result.update}" if status == "stopped" else status


def _cell(row: SweepRow, seed: int) -> str:
    if seed not in row.values:
        return ""
    status, value = row.statuses[seed], row.values[seed]
    if value is None:
        return status
    text = shown(row.metric, value)
    return text if status == "finished" else f"{text} ({status})"


def _group_text(group: Mapping[str, Any]) -> str:
    parts = [f"{name.rpartition('.')[2]} {_short(value)}" for name, value in group.items() if name != "task"]
    return ", ".join(parts) or "-"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
