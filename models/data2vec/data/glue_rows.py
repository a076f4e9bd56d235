"""Rows of a raw GLUE tsv file: tab-separated, unquoted, with or without a header.

Rows that cannot be used are dropped and counted in train and dev files, as the reference does for QQP; in a
test file they are an error, because the test server expects a prediction for every row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, nearest_names
from .encoding import text_lines

MAX_DROPPED = 0.5  # more than this share means that the file is not what it should be


@dataclass(frozen=True, kw_only=True)
class GlueSplit:
    """Where one split's raw columns are."""

    file: str  # raw file name
    split: str  # prepared split name
    inputs: tuple[str, ...]  # header names, or column numbers from 1 where there is no header
    label: str | None  # the same for the label; None in test files
    header: bool = True

    @property
    def required(self) -> bool:
        """Test files may be missing."""
        return self.label is not None


@dataclass
class SplitRows:
    """The usable rows of one file."""

    path: Path
    inputs: list[list[str]]  # one list of sentences for each input column
    labels: list[str] | None
    rows: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)  # reason to line numbers


def read_rows(
    path: Path, split: GlueSplit, labels: Sequence[str], regression: bool, problems: list[str]
) -> SplitRows | None:
    """Read one file.

    Args:
        path: the tsv.
        split: its columns.
        labels: label strings that are allowed.
        regression: labels are numbers from 0 to 5.
        problems: receives everything that is wrong, with file, line and column.

    Returns:
        The rows; ``None`` if the file cannot be used or an optional file is missing.
    """
    if not path.is_file():
        if split.required:
            problems.append(f"{path} is missing")
        return None
    try:
        lines = _lines(path)
    except DataError as error:
        problems.append(str(error))
        return None
    body = lines[1:] if split.header else lines
    if not body:
        problems.append(f"{path} is empty" if not lines else f"{path} has a header but no rows")
        return None
    wanted = [*split.inputs, *([] if split.label is None else [split.label])]
    if split.header:
        names = lines[0].split("\t")
        columns, width = [names.index(w) if w in names else -1 for w in wanted], len(names)
        missing = [w for w, column in zip(wanted, columns, strict=True) if column < 0]
        for name in missing:
            problems.append(
                f"{path}, line 1: column {name!r} is missing{nearest_names(name, names)}; the header has "
                f"{', '.join(repr(n[:30]) for n in names[:16])}"
            )
        if missing:
            return None
    else:
        columns = [int(number) - 1 for number in wanted]
        width = len(body[0].split("\t")) if "\t" in body[0] else 0
        if width <= max(columns):
            problems.append(
                f"{path}, line 1: column {max(columns) + 1} is missing; this file has no header and "
                f"needs {max(columns) + 1} tab-separated fields, found {width or 1}"
            )
            return None
    found = SplitRows(path, [[] for _ in split.inputs], None if split.label is None else [], rows=len(body))
    _collect(found, body, columns, width, split, labels, regression)
    judge(found, split, problems)
    return found


def _collect(
    found: SplitRows,
    body: Sequence[str],
    columns: Sequence[int],
    width: int,
    split: GlueSplit,
    labels: Sequence[str],
    regression: bool,
) -> None:
    first_line = 2 if split.header else 1
    for number, line in enumerate(body, start=first_line):
        fields = line.split("\t")
        reason = None
        if len(fields) != width:
            reason = f"{len(fields)} fields instead of {width}"
        elif found.labels is not None:
            label = fields[columns[-1]].strip()
            reason = score_problem(label) if regression else label_problem(label, labels)
            if reason is None:
                found.labels.append(label)
        if reason is not None:
            found.dropped.setdefault(reason, []).append(number)
            continue
        for column, values in zip(columns, found.inputs, strict=False):
            values.append(fields[column])


def judge(found: SplitRows, split: GlueSplit, problems: list[str]) -> None:
    """Report a file of which too much was left out."""
    number = sum(len(lines) for lines in found.dropped.values())
    if not number:
        return
    details = "; ".join(
        f"{reason}: {len(at)} (line {at[0]} first)" for reason, at in list(found.dropped.items())[:6]
    )
    if not split.required:
        problems.append(
            f"{found.path}: {number} test rows cannot be used, but each needs a prediction: {details}"
        )
    elif number > MAX_DROPPED * found.rows:
        problems.append(f"{found.path}: {number} of {found.rows} rows cannot be used: {details}")


def label_problem(label: str, labels: Sequence[str]) -> str | None:
    """Why a label cannot be used."""
    return None if label in labels else f"label {label[:20]!r} is not one of {', '.join(labels)}"


def score_problem(score: str) -> str | None:
    """Why a score cannot be used."""
    try:
        value = float(score)
    except ValueError:
        return "the score is not a number"
    return None if math.isfinite(value) and 0.0 <= value <= 5.0 else "the score is not in 0 ... 5"


def _lines(path: Path) -> list[str]:
    """Lines of a tsv; only a line feed ends a row, a carriage return before it is dropped."""
    data = path.read_bytes()
    text_lines(data, True, path)  # reports file, line and byte of what is not UTF-8
    lines = data.decode("utf-8-sig").split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
