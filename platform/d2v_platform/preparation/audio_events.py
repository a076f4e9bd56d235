"""Classes of clips to label files of audio events: ``<name>.lbl`` and ``label_descriptors.csv``.

The classes come from the folders that clips lie in, or from AudioSet's tables.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from data2vec.data.event_labels import read_classes
from data2vec.data.manifest import Manifest, read_manifest
from data2vec.errors import DataError
from data2vec.folders import write_text

DESCRIPTORS = "label_descriptors.csv"
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class EventReport:
    """What :func:`prepare_events` wrote."""

    folder: Path
    name: str
    clips: int
    labels: int  # class labels of all clips together
    classes: int


def prepare_events(
    tsv: Path,
    output_dir: Path,
    output_name: str,
    *,
    segments: Path | None = None,
    classes: Path | None = None,
    level: int = 1,
    sample_rate: int = 16_000,
) -> EventReport:
    """Write ``<name>.lbl`` line by line as the manifest lists clips, and ``label_descriptors.csv``.

    Args:
        tsv: the manifest.
        output_dir: folder to write; class names that it has already stay, so that splits agree.
        output_name: name of the label file without extension.
        segments: AudioSet's table, ``id, start, end, "label,label"`` a line; clips are files whose name is
            the id, or begins with it and ``_``. Without it, each clip's class is a folder of its path.
        classes: AudioSet's ``class_labels_indices.csv``, needed with ``segments`` unless the folder has class
            names.
        level: which folder above the file is the class; 1 = the one it lies in.
        sample_rate: of the files, for the end of each clip.

    Raises:
        DataError: a clip has no class, or one that the class names do not have; all of them in one report.
    """
    if level < 1:
        raise DataError(f"--level {level} must be at least 1, the folder that a clip lies in")
    manifest = read_manifest(tsv)
    wrong: list[str] = []
    if segments is not None:
        found = _of_table(manifest, segments, wrong)
    else:
        found = _of_folders(manifest, level, wrong)
    path = output_dir / DESCRIPTORS
    if classes is not None:
        text = _checked(classes)
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise DataError(
                f"{path} has other classes than {classes}; remove it, or choose another --output-dir"
            )
    elif path.is_file():
        text = path.read_text(encoding="utf-8-sig")
    elif segments is not None:
        raise DataError("--segments needs --classes (AudioSet's class_labels_indices.csv)")
    else:
        names = sorted({name for row in found for name in row})
        text = _descriptors(names)
    index = _indices(text)
    for number, row in enumerate(found, start=2):
        wrong += [f"line {number}: class {name!r} is not in {path}" for name in row if name not in index]
    if wrong:
        more = f"\n  ... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise DataError(f"classes of {tsv}:\n  " + "\n  ".join(wrong[:_SHOWN]) + more)
    output_dir.mkdir(parents=True, exist_ok=True)
    lines = []
    for position, row in enumerate(found):
        end = int(manifest.frames[position]) / sample_rate
        lines.append(f"0.0\t{end:.3f}\t{','.join(str(i) for i in sorted(index[name] for name in row))}\n")
    write_text(path, text)
    write_text(output_dir / f"{output_name}.lbl", "".join(lines))
    return EventReport(
        folder=output_dir,
        name=output_name,
        clips=len(found),
        labels=sum(len(row) for row in found),
        classes=len(read_classes(path)),
    )


def _of_folders(manifest: Manifest, level: int, wrong: list[str]) -> list[list[str]]:
    found: list[list[str]] = []
    for position in range(len(manifest)):
        parts = Path(manifest.file(position)).parts
        if len(parts) < level + 2:
            wrong.append(
                f"line {position + 2}: {manifest.name(position)} has no folder {level} levels above it"
            )
        found.append([parts[-1 - level]] if len(parts) >= level + 2 else [])
    return found


def _of_table(manifest: Manifest, segments: Path, wrong: list[str]) -> list[list[str]]:
    table: dict[str, list[str]] = {}
    try:
        with segments.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file, skipinitialspace=True), start=1):
                if not row or row[0].startswith("#"):
                    continue
                if len(row) != 4:
                    wrong.append(f"{segments}, line {number}: {len(row)} fields, not id, start, end, labels")
                    continue
                table[row[0]] = [label.strip() for label in row[3].split(",") if label.strip()]
    except FileNotFoundError:
        raise DataError(f"{segments}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{segments} is no CSV in UTF-8: {error}") from None
    found: list[list[str]] = []
    for position in range(len(manifest)):
        stem = Path(manifest.name(position)).stem
        candidates = (stem, *(stem[:at] for at in range(len(stem) - 1, 0, -1) if stem[at] == "_"))
        labels = next((table[name] for name in candidates if table.get(name)), None)
        if labels is None:
            wrong.append(f"line {position + 2}: {stem} has no labels in {segments}")
        found.append(labels or [])
    return found


def _checked(path: Path) -> str:
    read_classes(path)
    return path.read_text(encoding="utf-8-sig")


def _indices(text: str) -> dict[str, int]:
    """Class index by every name that a row gives it: AudioSet's id and the display name."""
    rows = [row for row in csv.reader(io.StringIO(text), skipinitialspace=True) if row and row[0].isdecimal()]
    return {name.strip(): int(row[0]) for row in rows for name in row[1:] if name.strip()}


def _descriptors(names: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(enumerate(names))
    return out.getvalue()
