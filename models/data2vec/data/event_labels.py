"""Labels of audio events: class names, and the classes of each clip.

``label_descriptors.csv`` has ``index,label[,display name]`` a line; ``<split>.lbl`` has, line by line as the
manifest, ``start<TAB>end<TAB>index[,index...]`` (the first two are not read: clips are files of their own).
"""

from __future__ import annotations

import csv
from pathlib import Path

from ..errors import DataError

_SHOWN = 10


def read_classes(path: Path) -> list[str]:
    """Class names by index: the display name where there is one, else the label.

    A first line whose index is no number is a header. Indices must be 0, 1, 2, ... in any order.

    Raises:
        DataError: the file is missing or malformed; every bad line is named.
    """
    if not path.is_file():
        raise DataError(
            f"class names {path} do not exist; make them with d2v prepare audio-events, or name another file "
            "with task.label_descriptors"
        )
    rows = _rows(path)
    wrong: list[str] = []
    names: dict[int, str] = {}
    for number, fields in enumerate(rows, start=1):
        if not fields:
            continue
        index = fields[0].strip()
        if number == 1 and not _is_number(index):
            continue
        if len(fields) < 2 or not _is_number(index):
            wrong.append(f"line {number}: {','.join(fields)[:60]!r} is not '<index>,<label>'")
        elif int(index) in names:
            wrong.append(f"line {number}: index {index} is listed twice")
        else:
            names[int(index)] = (fields[2] if len(fields) > 2 and fields[2].strip() else fields[1]).strip()
    missing = sorted(set(range(len(names))) - names.keys())
    if names and missing:
        wrong.append(f"{len(names)} classes, but the index {missing[0]} is missing: they must count from 0")
    if len(set(names.values())) < len(names):
        twice = sorted(name for name in set(names.values()) if list(names.values()).count(name) > 1)
        wrong.append(f"the label {twice[0]!r} is listed twice")
    if wrong or not names:
        raise DataError(_report(f"class names {path} are malformed", wrong or ["there are none"]))
    return [names[index] for index in range(len(names))]


def read_event_labels(path: Path, wanted: int, num_classes: int) -> list[tuple[int, ...]]:
    """The classes of each clip.

    Args:
        path: the label file.
        wanted: entries of the manifest.
        num_classes: C.

    Raises:
        DataError: the file is missing, has another number of lines, or malformed ones; all are named.
    """
    if not path.is_file():
        raise DataError(f"labels {path} do not exist; make them with d2v prepare audio-events")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"labels {path}: byte {error.start} is not UTF-8") from None
    if len(lines) != wanted:
        raise DataError(
            f"labels {path} have {len(lines)} lines, but the manifest lists {wanted} files; they must be "
            "line by line the same: make both again"
        )
    labels: list[tuple[int, ...]] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, start=1):
        fields = line.rstrip().split("\t")
        parts = fields[2].split(",") if len(fields) == 3 else []
        if not parts or not all(_is_number(part.strip()) for part in parts):
            wrong.append(f"line {number}: {line[:60]!r} is not '<start><TAB><end><TAB><index>[,<index>...]'")
            continue
        classes = tuple(sorted({int(part) for part in parts}))
        if classes[-1] >= num_classes:
            wrong.append(f"line {number}: class {classes[-1]}, but there are {num_classes} class names")
        labels.append(classes)
    if wrong:
        raise DataError(_report(f"labels {path} are malformed", wrong))
    return labels


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.reader(file, skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8: {error}") from None


def _report(head: str, lines: list[str]) -> str:
    more = f"\n  ... and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"{head}:\n  " + "\n  ".join(lines[:_SHOWN]) + more


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 9  # Python refuses to convert thousands of digits
