"""Durations, sizes and scores as people read them."""

from __future__ import annotations

import math

_TIMES = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))
_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def duration(seconds: float) -> str:
    """Three figures and the unit that suits: ``1.96 ms``, ``14.5 s``, ``12.5 min``, ``4.02 h``."""
    for size, unit in _TIMES:
        if seconds >= (2 if unit == "days" else 1) * size or unit == "ms":
            return f"{_three(seconds / size)} {unit}"
    raise AssertionError


def data_size(count: float) -> str:
    """Bytes in powers of 1000: ``512 B``, ``610 kB``, ``1.32 MB``, ``12.6 GB``."""
    for size, unit in _SIZES:
        if count >= size:
            return f"{_three(count / size)} {unit}"
    return f"{count:.0f} B"


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def by_size(value: object) -> tuple[float, str]:
    """What to sort values of a grid by: numbers by their size, before words."""
    try:
        return float(str(value)), ""
    except ValueError:
        return math.inf, str(value)


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def shown(metric: str, value: float | None) -> str:
    """A figure in words: two digits of a percentage, four of a loss or another training figure."""
    if value is None:
        return "-"
    return f"{value:.4f}" if metric == "loss" or metric.startswith("train/") else f"{value:.2f}"
