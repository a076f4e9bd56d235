"""Choosing: the value of a run, of a grid point over its seeds, and the winner of each task."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..recipe.sweep_definition import TRAIN_LOSS, Select
from .results import Record, TrialResult


@dataclass(frozen=True, kw_only=True)
class TrialScore:
    """One run's value, and everything that was measured at the same validation."""

    value: float  # of the metric that decides
    update: int  # of that validation
    others: dict[str, float]  # metric -> value at that validation, over all validation subsets


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """The repetitions of one setting: they differ in the seed only."""

    task: str  # which task
    group: dict[str, Any]  # the grid's values without the seed
    lr: float  # peak learning rate
    metric: str  # what decides
    maximize: bool  # larger is better
    records: tuple[Record, ...]  # one a seed, in the order of the seeds
    scores: tuple[TrialScore | None, ...]  # value of each record, ``None`` where there is none
    value: float | None  # over the seeds, by the rule; ``None`` if no run has a value

    @property
    def values(self) -> list[float]:
        """Values of the runs that have one."""
        return [score.value for score in self.scores if score is not None]

    @property
    def median(self) -> float | None:
        """Median over the seeds."""
        return statistics.median(self.values) if self.values else None

    @property
    def complete(self) -> bool:
        """Every run finished."""
        return all(r.result is not None and r.result.status == "finished" for r in self.records)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The winner of one task."""

    point: GridPoint  # the setting that won
    record: Record  # the run of it that is registered: the one nearest the point's value
    score: TrialScore  # that run's


def score(
    result: TrialResult, subset: str | None, metric: str, maximize: bool, within_run: str
) -> TrialScore | None:
    """The value of one run.

    Args:
        result: with all its validations.
        subset: the validation subset that decides, if there is one.
        metric: the metric that decides; the training loss is that of the end, of the weights that are kept.
        maximize: larger is better.
        within_run: ``best`` validation (ties: the later one, whose weights are kept) or the ``last`` one.
    """
    if metric == TRAIN_LOSS:
        return _final_loss(result)
    key = f"{subset}/{metric}"
    found = [(u, m) for u, m in result.evaluations.items() if key in m and not math.isnan(m[key])]
    if not found:
        return None
    update, metrics = found[-1]
    if within_run == "best":
        sign = 1.0 if maximize else -1.0
        update, metrics = max(found, key=lambda entry: (sign * entry[1][key], entry[0]))
    others = {name: value for name, value in metrics.items() if "/best_" not in name}
    return TrialScore(value=metrics[key], update=update, others=others)


def _final_loss(result: TrialResult) -> TrialScore | None:
    """With the variances of targets and predictions, which fall with the loss where a model collapses."""
    figures = result.summary.metrics if result.summary is not None else {}
    value = figures.get(TRAIN_LOSS, math.nan)
    if not math.isfinite(value):
        return None
    others = {n: v for n, v in figures.items() if n in ("train/target_var", "train/pred_var")}
    return TrialScore(value=value, update=result.update, others=others)


def grid_points(
    records: Sequence[Record], metrics: Mapping[str, tuple[str, bool]], select: Select
) -> list[GridPoint]:
    """Runs that have ended, grouped into repetitions.

    Args:
        records: runs; those without a result are left out.
        metrics: trial name -> metric that decides, and whether larger is better.
        select: the rules.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.result is not None:
            key = repr(
                (record.stored.task, sorted(record.stored.trial.group.items(), key=lambda item: item[0]))
            )
            groups.setdefault(key, []).append(record)
    points: list[GridPoint] = []
    for members in groups.values():
        members = sorted(members, key=lambda record: record.stored.seed)
        first = members[0].stored
        metric, maximize = metrics[first.name]
        scores = tuple(_score(record, metrics, select) for record in members)
        values = [found.value for found in scores if found is not None]
        value = None
        if values and select.over_seeds == "median":
            value = statistics.median(values)
        elif values:
            value = max(values) if maximize else min(values)
        points.append(
            GridPoint(
                task=first.task, group=first.trial.group, lr=first.lr, metric=metric, maximize=maximize,
                records=tuple(members), scores=scores, value=value,
            )
        )  # fmt: skip
    return points


def _score(record: Record, metrics: Mapping[str, tuple[str, bool]], select: Select) -> TrialScore | None:
    if record.result is None or record.result.status in ("failed", "diverged"):
        return None
    subset = next(iter(record.stored.trial.recipe.valid_subsets()), None)
    return score(record.result, subset, *metrics[record.stored.name], select.within_run)


def choose_winner(points: Sequence[GridPoint]) -> Choice | None:
    """The winner among the grid points of one task.

    The point with the best value wins; a tie goes to the one listed first. A point counts only if a run of it
    has finished: that run is registered which lies nearest the point's value (ties: the better one, then the
    first seed). Runs that the scheduler stopped take part with their value so far.
    """
    best: Choice | None = None
    for point in points:
        sign = 1.0 if point.maximize else -1.0
        candidates = [
            (abs(found.value - point.value), -sign * found.value, number)
            for number, (record, found) in enumerate(zip(point.records, point.scores, strict=True))
            if found is not None and point.value is not None
            and record.result is not None and record.result.status == "finished"
        ]  # fmt: skip
        if point.value is None or not candidates:
            continue
        if best is None or sign * point.value > sign * (best.point.value or 0.0):
            number = min(candidates)[2]
            chosen = point.scores[number]
            assert chosen is not None
            best = Choice(point=point, record=point.records[number], score=chosen)
    return best


def floors(points: Sequence[GridPoint]) -> dict[str, float]:
    """By task, what an answer that knows nothing scores in the metric that decides, as trainings found."""
    found: dict[str, float] = {}
    for point in points:
        for record in point.records:
            facts = record.result.summary.facts if record.result and record.result.summary else {}
            if facts.get("floor.metric") == point.metric:
                found.setdefault(point.task, float(facts["floor.value"]))
    return found


def by_task(points: Sequence[GridPoint]) -> dict[str, list[GridPoint]]:
    """Grid points of each task, in the order of the sweep."""
    found: dict[str, list[GridPoint]] = {}
    for point in points:
        found.setdefault(point.task, []).append(point)
    return found


def choose_all(points: Sequence[GridPoint]) -> dict[str, Choice]:
    """The winner of every task that has one."""
    found = {task: choose_winner(members) for task, members in by_task(points).items()}
    return {task: choice for task, choice in found.items() if choice is not None}
