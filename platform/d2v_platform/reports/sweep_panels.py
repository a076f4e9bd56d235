"""What a report draws of a sweep: the metric over what was swept with all seeds, and the validations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..figures import shown
from .panels import OVER_CPU, Line, Over, Panel, logged_minutes
from .sweep_history import Setting, SweepHistory


def sweep_panels(sweep: SweepHistory, over: Over = "updates") -> list[Panel]:
    """For each task the metric over what was swept, then the validations of its trials.

    Raises:
        Data2VecError: ``over`` is cpu and a trial did not log its CPU-minutes.
    """
    panels: list[Panel] = []
    for task, settings in sweep.tasks.items():
        over_axis = _over_axis(task, settings)
        if over_axis is not None:
            panels.append(over_axis)
        validations = _validations(task, settings, over)
        if validations is not None:
            panels.append(validations)
    return panels


def _axis(settings: Sequence[Setting]) -> str:
    """The learning rate, or the one number that was swept in its place."""
    values: dict[str, set[str]] = {}
    for setting in settings:
        for name, value in setting.setting:
            values.setdefault(name, set()).add(value)
    several = [name for name, found in values.items() if len(found) > 1]
    return several[0] if len(several) == 1 and all(map(_is_number, values[several[0]])) else "lr"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _over_axis(task: str, settings: Sequence[Setting]) -> Panel | None:
    """A dot for each seed, a line through the medians, a star at the winner; ``None`` without any value."""
    measured = [setting for setting in settings if setting.values]
    if not measured:
        return None
    metric, axis = measured[0].trials[0].metric, _axis(measured)
    groups = list(dict.fromkeys(setting.trials[0].beside(axis) for setting in measured))
    lines: list[Line] = []
    for colour, group in enumerate(groups):
        members = [setting for setting in measured if setting.trials[0].beside(axis) == group]
        suffix = f", {group}" if group else ""
        lines.append(
            Line(
                key=f"{task} median{suffix}",
                label=f"median over seeds{suffix}",
                x=np.array([setting.trials[0].number(axis) for setting in members]),
                y=np.array([setting.median for setting in members], dtype=np.float64),
                colour=colour,
            )
        )
        seeds = sorted({trial.seed for setting in members for trial in setting.trials})
        for seed in seeds:
            drawn = [
                trial
                for setting in members
                for trial in setting.trials
                if trial.seed == seed and trial.counted is not None
            ]
            if drawn:
                lines.append(
                    Line(
                        key=f"{task} seed {seed}{suffix}",
                        label=f"seed {seed}{suffix}",
                        x=np.array([trial.number(axis) for trial in drawn]),
                        y=np.array([trial.counted for trial in drawn], dtype=np.float64),
                        style="dots",
                        colour=len(groups) + seeds.index(seed),
                    )
                )
    for setting in measured:
        if setting.chosen:
            lines.append(
                Line(
                    key=f"{task} winner",
                    label="winner",
                    x=np.array([setting.trials[0].number(axis)]),
                    y=np.array([setting.median], dtype=np.float64),
                    style="star",
                )
            )
    places = sorted({trial.number(axis) for setting in measured for trial in setting.trials})
    told = "the peak learning rate" if axis == "lr" else axis
    floors = {setting.floor for setting in measured if setting.floor is not None}
    return Panel(
        name=f"{task}-{axis.rpartition('.')[2]}",
        title=f"{task}: {metric} over {told}",
        x_label="learning rate" if axis == "lr" else axis,
        lines=tuple(lines),
        limits=tuple((f"floor {shown(metric, floor)}", floor) for floor in sorted(floors)),
        log_x=places[0] > 0 and places[-1] > places[0],
        x_ticks=tuple(places),
    )


def _validations(task: str, settings: Sequence[Setting], over: Over) -> Panel | None:
    """Each trial's validations over its updates or CPU-minutes; one colour for each setting."""
    lines: list[Line] = []
    drawn = [setting for setting in settings if any(t.curve is not None for t in setting.trials)]
    for colour, setting in enumerate(drawn):
        words = ", ".join(f"{name.rpartition('.')[2]} {_short(value)}" for name, value in setting.setting)
        first = True
        for trial in setting.trials:
            if trial.curve is None:
                continue
            place = trial.curve.updates
            if over == "cpu":
                place = logged_minutes(f"{words} seed {trial.seed}", trial.minutes)
            lines.append(
                Line(
                    key=f"{task} {words} seed {trial.seed}",
                    label=words if first else "",
                    x=place,
                    y=trial.curve.values,
                    colour=colour,
                )
            )
            first = False
    if not lines:
        return None
    return Panel(
        name=f"{task}-validations",
        title=f"{task}: {drawn[0].trials[0].metric} at each validation, all seeds",
        x_label=OVER_CPU if over == "cpu" else "update",
        lines=tuple(lines),
    )


def _short(value: str) -> str:
    try:
        return f"{float(value):g}"
    except ValueError:
        return value
