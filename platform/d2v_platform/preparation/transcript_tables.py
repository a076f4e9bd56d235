"""Transcripts in one table of a user's own: a CSV or TSV file with a column of paths and one of texts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data2vec.data.manifest import Manifest
from data2vec.errors import DataError, nearest_names

# Names that are understood without being given, the most telling first.
PATH_NAMES = (
    "path",
    "file",
    "file_name",
    "filename",
    "audio_filepath",
    "audio_path",
    "audio",
    "wav",
    "clip",
    "id",
)
TEXT_NAMES = ("text", "sentence", "transcript", "transcription", "words", "normalized_text")
_LOOKED_AT = 20  # lines that decide what separates columns


@dataclass(frozen=True, kw_only=True)
class TranscriptTable:
    """Where transcripts stand.

    Attributes:
        file: CSV or TSV; what separates its columns is found out.
        path_column: name of the column of paths, or its number where there is no header; ``None``: guess.
        text_column: the same of the texts.
    """

    file: Path
    path_column: str | None = None
    text_column: str | None = None


def table_transcripts(manifest: Manifest, table: TranscriptTable, wrong: list[str]) -> list[str]:
    """The text of each file of a manifest.

    A path of the table may have other leading folders than the manifest's, and another ending or none.

    Args:
        manifest: the files.
        table: their texts; rows of other files are passed over.
        wrong: gets every problem, with its line.

    Raises:
        DataError: the file or its columns cannot be understood.
    """
    lines = _read(table.file)
    rows = list(_rows(lines, table.file, wrong))
    if not rows:
        raise DataError(f"{table.file} has no rows")
    header = rows[0][1]
    path, text, named = _columns(header, table)
    exact: dict[str, dict[str, int]] = {}  # path -> text -> line
    bare: dict[str, dict[str, int]] = {}  # the same without the ending
    for number, row in rows[1:] if named else rows:
        if len(row) != len(header):
            wrong.append(f"{table.file}, line {number}: {len(row)} columns, the first line has {len(header)}")
            continue
        name = str(PurePosixPath(row[path].strip().replace("\\", "/")))
        for names, key in (
            (exact, name),
            (bare, str(PurePosixPath(name).with_suffix("")) if name != "." else name),
        ):
            names.setdefault(key, {}).setdefault(" ".join(row[text].split()), number)
    found: list[str] = []
    users: dict[int, int] = {}  # line of the table -> entry of the manifest
    for entry in range(len(manifest)):
        where = f"{manifest.path}, line {int(manifest.lines[entry]) + 2}: {manifest.name(entry)}"
        texts = _texts_of(manifest.file(entry), exact, bare)
        if not texts:
            wrong.append(f"{where} is not in {table.file}")
        elif len(texts) > 1:
            wrong.append(
                f"{table.file}, lines {' and '.join(map(str, texts.values()))}: two texts of {where}"
            )
        else:
            ((words, number),) = texts.items()
            if not words:
                wrong.append(f"{table.file}, line {number}: no text")
            elif users.setdefault(number, entry) != entry:
                other = manifest.name(users[number])
                wrong.append(
                    f"{table.file}, line {number} would be {where} and {other}; give its folders too"
                )
            found.append(words)
    return found


def _texts_of(file: str, exact: dict[str, dict[str, int]], bare: dict[str, dict[str, int]]) -> dict[str, int]:
    """Those of the longest part of a path, from its end, that the table has."""
    parts = PurePosixPath(file).parts
    for start in range(len(parts)):
        tail = PurePosixPath(*parts[start:])
        short = str(tail.with_suffix(""))
        if texts := exact.get(str(tail)) or exact.get(short) or bare.get(short):
            return texts
    return {}


def _read(file: Path) -> list[str]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
        return list(io.StringIO(text, newline="\n"))  # texts may hold every other kind of line end
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: byte {error.start} is not UTF-8") from None


def _rows(lines: list[str], file: Path, wrong: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Number of the line and cells of each row that is not empty."""
    separator = _separator([line for line in lines[:_LOOKED_AT] if line.strip()])
    # Quotes bind columns where commas do; between tabs and bars they are usually part of the text.
    if separator in "\t|":
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, [_unquoted(cell) for cell in line.rstrip("\r\n").split(separator)]
        return
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    number = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield number, row
            number = reader.line_num + 1
    except csv.Error as error:
        wrong.append(f"{file}, line {number}: {error}")


def _separator(lines: Sequence[str]) -> str:
    for separator in "\t|;":
        counts = {line.count(separator) for line in lines}
        if len(counts) == 1 and counts != {0}:
            return separator
    return "\t" if lines and "\t" in lines[0] else ","


def _unquoted(cell: str) -> str:
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        return cell[1:-1].replace('""', '"')
    return cell


def _columns(header: Sequence[str], table: TranscriptTable) -> tuple[int, int, bool]:
    """Positions of paths and of texts, and whether the first row names them."""
    names = [name.strip() for name in header]
    low = [name.lower() for name in names]
    found: list[int | None] = []
    problems: list[str] = []
    asked = ((table.path_column, PATH_NAMES, "path"), (table.text_column, TEXT_NAMES, "text"))
    for given, known, what in asked:
        if given is None:
            found.append(next((low.index(name) for name in known if name in low), None))
        elif given in names:
            found.append(names.index(given))
        elif given.isdecimal() and 1 <= int(given) <= len(names):
            found.append(int(given) - 1)
        else:
            problems.append(f"--{what}-column {given!r} is not there{nearest_names(given, names)}")
            found.append(None)
    named = any(given in names for given, _, _ in asked) or (
        None not in found and table.path_column is None and table.text_column is None
    )
    if found == [None, None] and not problems and len(names) == 2:
        return 0, 1, False  # no header
    for position, (given, known, what) in zip(found, asked, strict=True):
        if position is None and given is None:
            problems.append(
                f"no column is called {', '.join(known[:-1])} or {known[-1]}; give --{what}-column"
            )
    if None not in found and found[0] == found[1]:
        problems.append("paths and texts cannot be one column")
    if problems:
        columns = "".join(f"\n  {number}  {name}" for number, name in enumerate(names, start=1))
        rule = "a column is given by its name, or by its number where there is no header"
        raise DataError(f"{table.file}: {'; '.join(problems)} ({rule}); its first line has{columns}")
    assert found[0] is not None and found[1] is not None
    return found[0], found[1], named
