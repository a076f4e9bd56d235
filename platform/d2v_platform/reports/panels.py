"""What a report draws of runs: which metrics belong into one panel, with what scale and which limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data2vec.errors import Data2VecError

from ..tracking.scores import stored_scores
from .run_history import CPU_MINUTES, RunHistory

Over = Literal["updates", "cpu"]  # what curves are drawn over
OVER_CPU = "CPU-minutes of training"
# Never drawn: counters of the x axis, and best-so-far values that repeat the validation curve.
_NOT_DRAWN = ("train/epoch", CPU_MINUTES)
_BEST = "best_"
_UNLIKE = 20.0  # times as large: too much for one set of axes
_FEW_POINTS = 40  # up to here each point gets a marker


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line (or row of dots) of a panel."""

    key: str  # identifies it in the drawing: the metric and, with several runs, the run
    label: str  # for the legend
    x: np.ndarray  # ascending
    y: np.ndarray  # as many values
    style: Literal["line", "dots", "star"] = "line"  # a line, dots without a line, or a star
    colour: int = 0  # index into the palette; equal for what belongs together

    @property
    def markers(self) -> bool:
        """Few points are marked, so that one alone is seen."""
        return self.style == "line" and len(self.x) <= _FEW_POINTS


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes.

    Attributes:
        name: unique in a report, for anchors.
        title: what it shows.
        x_label: of the horizontal axis.
        lines: what is drawn.
        limits: label -> height of a dotted horizontal line.
        log_x: logarithmic horizontal axis.
        log_y: logarithmic vertical axis.
        x_ticks: where the horizontal axis is marked; ``None`` lets the drawing choose.
    """

    name: str
    title: str
    x_label: str
    lines: tuple[Line, ...]
    limits: tuple[tuple[str, float], ...] = ()
    log_x: bool = False
    log_y: bool = False
    x_ticks: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A kind of panel: which metrics it takes (by group and name), and what it adds."""

    name: str
    title: str
    takes: Callable[[str, str], bool]
    limits: tuple[tuple[str, str], ...] = ()  # label, parameter of the recipe
    log_y: bool = False


_KINDS = (
    _Kind(name="loss", title="Loss", takes=lambda group, name: name == "loss" and group != "speed"),
    _Kind(
        name="variance",
        title="Variance: mean deviation of the channels (0 = collapse)",
        takes=lambda group, name: group == "train" and name.endswith("_var"),
        limits=(("least of targets", "model.min_target_var"), ("least of predictions", "model.min_pred_var")),
    ),
    _Kind(
        name="rank",
        title="Effective rank (1 = collapse)",
        takes=lambda group, name: group == "train" and name.endswith("_rank"),
    ),
    _Kind(
        name="lr",
        title="Learning rate",
        takes=lambda group, name: group == "train" and (name == "lr" or name.startswith("lr_")),
    ),
    _Kind(
        name="ema",
        title="EMA decay of the teacher",
        takes=lambda group, name: group == "train" and name == "ema_decay",
    ),
    _Kind(
        name="throughput",
        title="Throughput (per second)",
        takes=lambda group, name: group == "speed" and name.endswith("_per_s"),
    ),
    _Kind(
        name="seconds",
        title="Seconds per update",
        takes=lambda group, name: group == "speed" and name == "s_per_update",
    ),
    _Kind(
        name="wait",
        title="Waiting for data (percent of the time)",
        takes=lambda group, name: group == "speed" and name == "data_wait_pct",
    ),
    _Kind(
        name="memory",
        title="Peak memory of worker 0 (GB)",
        takes=lambda group, name: group == "speed" and name == "memory_gb",
    ),
    _Kind(
        name="gnorm",
        title="Gradient norm (mean of the updates)",
        takes=lambda group, name: group == "train" and name == "gnorm",
        limits=(("clip_norm", "optimization.clip_norm"),),
        log_y=True,
    ),
)


def run_panels(histories: Sequence[RunHistory]) -> list[Panel]:
    """The panels of one run, or of several laid over each other.

    Loss, variance, learning rate and the like share panels by the table above; every other metric that was
    logged gets one of its own, validation metrics first, so nothing logged is missing. Scores of test subsets
    are no curves: they stand in a table.
    """
    left_out = {key for h in histories for score in stored_scores(h.tags) for key in score.metrics}
    left_out |= set(_NOT_DRAWN)
    keys = list(dict.fromkeys(key for h in histories for key in sorted(h.curves)))
    keys = [key for key in keys if key not in left_out and not key.rpartition("/")[2].startswith(_BEST)]
    panels: list[Panel] = []
    left = dict.fromkeys(keys)
    for kind in _KINDS:
        taken = [key for key in left if kind.takes(*_parts(key))]
        for key in taken:
            del left[key]
        for number, keys in enumerate(_alike(taken, histories), start=1):
            part = kind if number == 1 else dataclasses.replace(kind, name=f"{kind.name}-{number}")
            panels.append(_panel(part, keys, histories))
    rest = sorted(left, key=lambda key: (_parts(key)[0] in ("train", "speed"), key))
    for key in rest:
        group, name = _parts(key)
        where = "Training" if group == "train" else "Speed" if group == "speed" else f"Validation on {group}"
        kind = _Kind(name=key.replace("/", "-"), title=f"{where}: {name}", takes=lambda *_: False)
        panels.append(_panel(kind, [key], histories))
    return panels


def over_cpu(histories: Sequence[RunHistory]) -> list[Panel]:
    """The same panels over the CPU-minutes of training that each run had used at an update.

    Raises:
        Data2VecError: a run did not log them.
    """
    placed = []
    for history in histories:
        curves = {
            key: dataclasses.replace(
                curve, updates=logged_minutes(history.name, history.cpu_minutes(curve.updates))
            )
            for key, curve in history.curves.items()
        }
        placed.append(dataclasses.replace(history, curves=curves))
    return [dataclasses.replace(panel, x_label=OVER_CPU) for panel in run_panels(placed)]


def logged_minutes(name: str, minutes: np.ndarray | None) -> np.ndarray:
    """The CPU-minutes of a run.

    Raises:
        Data2VecError: it did not log them.
    """
    if minutes is None:
        raise Data2VecError(
            f"--over cpu: {name} has no {CPU_MINUTES}; older runs are drawn over updates only"
        )
    return minutes


def choose(panels: Sequence[Panel], names: Sequence[str]) -> list[Panel]:
    """The panels of those names, in that order; all of them if no name is given.

    Raises:
        Data2VecError: there is no such panel.
    """
    by_name = {panel.name: panel for panel in panels}
    wrong = [name for name in names if name not in by_name]
    if wrong:
        raise Data2VecError(
            f"--only = {', '.join(wrong)}: no such curves; there are {', '.join(by_name) or 'none'}"
        )
    return [by_name[name] for name in names] or list(panels)


def _alike(keys: Sequence[str], histories: Sequence[RunHistory]) -> list[list[str]]:
    """Metrics that share axes: those whose middle values are not more than a factor of 20 apart.

    On axes of much larger values a curve would be a straight line at their foot.
    """
    groups: list[list[str]] = []
    heights: list[float] = []
    for key in keys:
        height = _height(key, histories)
        for group, other in zip(groups, heights, strict=True):
            if not height or not other or max(height, other) <= _UNLIKE * min(height, other):
                group.append(key)
                break
        else:
            groups.append([key])
            heights.append(height)
    return groups


def _height(key: str, histories: Sequence[RunHistory]) -> float:
    """The median of a metric's absolute values over all runs; 0 where there is none."""
    found = [np.abs(h.curves[key].values) for h in histories if key in h.curves]
    values = np.concatenate([np.zeros(0), *found])
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else 0.0


def _panel(kind: _Kind, keys: Sequence[str], histories: Sequence[RunHistory]) -> Panel:
    several = len(histories) > 1
    lines = []
    for key in keys:
        for history in histories:
            curve = history.curves.get(key)
            if curve is not None:
                lines.append(
                    Line(
                        key=f"{key} {history.name}" if several else key,
                        label=f"{key}, {history.name}" if several else key,
                        x=curve.updates,
                        y=curve.values,
                        colour=len(lines),
                    )
                )
    return Panel(
        name=kind.name,
        title=kind.title,
        x_label="update",
        lines=tuple(lines),
        limits=_limits(kind, histories),
        log_y=kind.log_y and all((line.y > 0).all() for line in lines),
    )


def _limits(kind: _Kind, histories: Sequence[RunHistory]) -> tuple[tuple[str, float], ...]:
    found: dict[tuple[str, float], None] = {}
    for label, param in kind.limits:
        for history in histories:
            value = history.number(param)
            if value is not None and value > 0:
                found[f"{label}: {param} {value:g}", value] = None
    return tuple(found)


def _parts(key: str) -> tuple[str, str]:
    group, _, name = key.rpartition("/")
    return group, name
