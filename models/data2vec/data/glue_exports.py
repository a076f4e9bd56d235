"""GLUE as Hugging Face's ``datasets`` exports it: other columns, numbers for labels, CSV, JSON, Parquet.

``load_dataset("glue", "rte")`` has ``sentence1``, ``sentence2``, ``label`` (0 = entailment; -1 in test) and
``idx``; ``to_csv`` quotes texts, whatever separates the columns.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .encoding import text_lines
from .glue_rows import GlueSplit, SplitRows, judge, label_problem, score_problem

logger = logging.getLogger(__name__)

_ENDINGS = (".tsv", ".csv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Export:
    """One task there: its name, its texts, and our label of each number."""

    name: str
    inputs: tuple[str, ...]
    labels: tuple[str, ...]  # empty for scores


_ENTAILMENT = ("entailment", "not_entailment")
_BINARY = ("0", "1")
EXPORTS = {
    "cola": Export("cola", ("sentence",), _BINARY),
    "qnli": Export("qnli", ("question", "sentence"), _ENTAILMENT),
    "mrpc": Export("mrpc", ("sentence1", "sentence2"), _BINARY),
    "rte": Export("rte", ("sentence1", "sentence2"), _ENTAILMENT),
    "sst_2": Export("sst2", ("sentence",), _BINARY),
    "mnli": Export("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qqp": Export("qqp", ("question1", "question2"), _BINARY),
    "sts_b": Export("stsb", ("sentence1", "sentence2"), ()),
}


def export_file(folder: Path, task: str, split: GlueSplit) -> Path | None:
    """The file of a split if it is such an export; ``None`` where it is GLUE's own or there is none.

    Raises:
        DataError: several files hold the split, or the one that does cannot be read.
    """
    if task not in EXPORTS:
        return None
    own = folder / split.file
    if own.is_file():
        return own if _is_export(own, EXPORTS[task]) else None
    stem = own.stem
    names = (stem, stem.replace("dev", "validation"))
    found = sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.suffix in _ENDINGS and (path.stem in names or path.stem.partition("-")[0] in names)
    )
    if len(found) > 1:
        raise DataError(
            f"{folder} has {', '.join(p.name for p in found[:5])} for {stem}; leave one file of it"
        )
    return found[0] if found else None


def read_export(path: Path, task: str, split: GlueSplit, problems: list[str]) -> SplitRows | None:
    """The usable rows of an export; what is wrong goes into ``problems``, ``None`` if it cannot be used."""
    export = EXPORTS[task]
    logger.info("%s: columns as Hugging Face exports GLUE (%s)", path, ", ".join(export.inputs))
    found = SplitRows(path, [[] for _ in export.inputs], [] if split.required else None)
    last = -1
    try:
        for line, row in _rows(path):
            wanted = [*export.inputs, *(["label"] if split.required else [])]
            if missing := [name for name in wanted if name not in row]:
                problems.append(
                    f"{path}, line {line}: {', '.join(map(repr, missing))} is missing; Hugging Face's export "
                    f"of this task has {', '.join((*export.inputs, 'label', 'idx'))}"
                )
                return None
            found.rows += 1
            reason = _keep(found, row, export)
            if reason is not None:
                found.dropped.setdefault(reason, []).append(line)
            if not split.required and "idx" in row:
                if not str(row["idx"]).isdecimal() or int(row["idx"]) <= last:
                    problems.append(f"{path}, line {line}: test rows must be in the order of their idx")
                    return None
                last = int(row["idx"])
    except (DataError, csv.Error, ValueError, OSError) as error:
        problems.append(f"{path} cannot be read: {error}")
        return None
    if not found.rows:
        problems.append(f"{path} has no rows")
        return None
    judge(found, split, problems)
    return found


def _keep(found: SplitRows, row: Mapping[str, Any], export: Export) -> str | None:
    """Take a row in, or say why not."""
    texts = [row[name] for name in export.inputs]
    if not all(isinstance(text, str) for text in texts):
        return "a text is missing"
    if found.labels is not None:
        label = str(row["label"]).strip()
        if export.labels and label.isdecimal() and int(label) < len(export.labels):
            label = export.labels[int(label)]
        reason = label_problem(label, export.labels) if export.labels else score_problem(label)
        if reason is not None:
            return reason
        found.labels.append(label)
    for text, column in zip(texts, found.inputs, strict=True):
        column.append(" ".join(text.splitlines()))
    return None


def _is_export(path: Path, export: Export) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        names = next(csv.reader([file.readline(100_000)], delimiter="\t"), [])
    return {*export.inputs, "label", "idx"} <= {*names}


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and columns of every row."""
    if path.suffix == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise DataError("Parquet needs pyarrow: pip install 'data2vec-platform[platform]'") from None
        yield from enumerate(parquet.read_table(path).to_pylist(), start=1)
        return
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        for number, line in enumerate(text_lines(data, True, path), start=1):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise DataError(f"line {number} is no JSON object")
            yield number, row
        return
    text_lines(data, True, path)  # reports file, line and byte of what is not UTF-8
    text = data.decode("utf-8-sig")
    tabs = "\t" in text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",", strict=True)
    names = next(reader, [])
    for fields in reader:
        if len(fields) != len(names):
            raise DataError(f"line {reader.line_num}: {len(fields)} fields instead of {len(names)}")
        yield reader.line_num, dict(zip(names, fields, strict=True))
