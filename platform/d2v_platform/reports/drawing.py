"""Panels as inline SVG for the page, and all of them together as one PNG; matplotlib without a screen."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, MaxNLocator, NullLocator

from .panels import Line, Panel

# Okabe and Ito's palette: told apart by colour-blind readers and in grey print.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_SIZE = (6.2, 3.4)  # inches
_DPI = 110
_LEGEND_INSIDE = 4  # a longer legend would hide the curves, and stands beside them
_LEGEND_LINES = 14  # a longer one is in small print
_PLAIN: dict[Any, Any] = {"text.parse_math": False, "text.usetex": False}
_STYLE: dict[Any, Any] = {
    **_PLAIN,
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's font
}
_IDS = re.compile(r'(\bid="|xlink:href="#|\bhref="#|url\(#)')


def plain_text() -> AbstractContextManager[None]:
    """Texts made and drawn in this block are no formulas: a class may be called ``$1_$5``."""
    return matplotlib.rc_context(_PLAIN)


def svg(panel: Panel) -> str:
    """One panel as an ``<svg>`` element whose ids are its own.

    Lines are groups with the id ``PANEL:KEY`` (:func:`element_id`), so that a reader of the page can find
    them.
    """
    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": panel.name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=_SIZE, layout="constrained")
        _draw(figure.add_subplot(), panel)
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    found = text.getvalue()
    found = found[found.index("<svg") :]
    found = _IDS.sub(rf"\g<1>{_slug(panel.name)}:", found)
    return found.replace("<svg ", f'<svg role="img" aria-label="{_slug(panel.title)}" ', 1)


def element_id(panel: Panel, line: Line) -> str:
    """The id of a line's group in the SVG of its panel."""
    return f"{_slug(panel.name)}:{_slug(line.key)}"


def png(panels: Sequence[Panel], title: str, path: Path, *, columns: int = 2) -> None:
    """All panels in one picture, so many in a row."""
    columns = min(columns, max(len(panels), 1))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_SIZE[0] * columns, _SIZE[1] * rows + 0.4), layout="constrained", dpi=_DPI)
        figure.suptitle(title)
        # Each panel in a part of its own: a legend beside one curve takes nothing from the others.
        parts = figure.subfigures(max(rows, 1), columns, squeeze=False).flatten()
        for part, panel in zip(parts, panels, strict=False):
            _draw(part.add_subplot(), panel)
        FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.x_label)
    if panel.log_x:
        axes.set_xscale("log")
        for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            set_formatter(LogFormatter(labelOnlyBase=False))
    else:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=panel.x_label == "update"))
    if panel.log_y:
        axes.set_yscale("log")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(LogFormatter(labelOnlyBase=False))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    if panel.x_ticks:
        axes.xaxis.set_major_locator(FixedLocator(panel.x_ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for line in panel.lines:
        colour = _PALETTE[line.colour % len(_PALETTE)]
        # The palette repeats after eight: dashes tell the second round from the first.
        dashes = ("-", "--", ":", "-.")[line.colour // len(_PALETTE) % 4]
        looks: dict[str, dict[str, Any]] = {
            "line": {
                "linestyle": dashes, "linewidth": 1.4, "marker": "o" if line.markers else "", "markersize": 3,
            },
            "dots": {"linestyle": "", "marker": "o", "markersize": 4.5, "alpha": 0.75},
            "star": {"linestyle": "", "marker": "*", "markersize": 13, "color": "#D4A000", "zorder": 1.5},
        }  # fmt: skip
        shared: dict[str, Any] = {"color": colour, "label": line.label or "_", "gid": _slug(line.key)}
        axes.plot(line.x, line.y, **(shared | looks[line.style]))
    for number, (label, height) in enumerate(panel.limits):
        axes.axhline(height, color="#888888", linestyle=(":", "--")[number % 2], linewidth=1, label=label)
    named = sum(1 for line in panel.lines if line.label) + len(panel.limits)
    if named <= _LEGEND_INSIDE:
        axes.legend(loc="best")
    else:
        small = {"fontsize": 5.5} if named > _LEGEND_LINES else {}
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), **small)


def _slug(text: str) -> str:
    """Letters, digits and a few signs only: safe inside an attribute, stable as an anchor."""
    return re.sub(r"[^\w./=+\-]+", "_", text)
