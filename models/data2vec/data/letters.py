"""Letters as CTC targets: the released dictionary, transcripts to letters, and letters back to words.

``A MAN`` is the letter line ``A | M A N |``; ``|`` ends every word, the last one too.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from .dictionary import Dictionary

WORD_END = "|"
_RELEASED = (
    ("|", 94802), ("E", 51860), ("T", 38431), ("A", 33152), ("O", 31495), ("N", 28855), ("I", 28794),
    ("H", 27187), ("S", 26071), ("R", 23546), ("D", 18289), ("L", 16308), ("U", 12400), ("M", 10685),
    ("W", 10317), ("C", 9844), ("F", 9062), ("G", 8924), ("Y", 8226), ("P", 6890), ("B", 6339),
    ("V", 3936), ("K", 3456), ("'", 1023), ("X", 636), ("J", 598), ("Q", 437), ("Z", 213),
)  # fmt: skip


def released_letters() -> Dictionary:
    """The letter dictionary of the published speech models: 28 symbols, 32 classes with the specials."""
    return Dictionary([symbol for symbol, _ in _RELEASED], [count for _, count in _RELEASED])


def letter_line(transcript: str) -> str:
    """A transcript as letters separated by spaces; nothing but white space is changed."""
    words = WORD_END.join(transcript.split())
    return " ".join(words) + f" {WORD_END}"


def letter_dictionary(transcripts: Iterable[str]) -> Dictionary:
    """The letters of some transcripts, most frequent first, equal counts in string order."""
    counts: Counter[str] = Counter()
    for transcript in transcripts:
        counts.update(letter_line(transcript).split(" "))
    return Dictionary.from_counts(counts, padding_factor=1)


def encode_letters(line: str, dictionary: Dictionary) -> np.ndarray:
    """Ids of one label line, int64; unknown symbols become ``<unk>``, and no end symbol is added."""
    return np.asarray([dictionary.index(symbol) for symbol in line.split()], dtype=np.int64)


def words_of(symbols: Iterable[str]) -> str:
    """Symbols as words: spaces are dropped and ``|`` becomes one (the reference's ``letter`` processing)."""
    text = "".join(symbol for symbol in symbols if symbol != " ")
    return " ".join(text.replace(WORD_END, " ").split())


def words_of_ids(ids: Sequence[int], dictionary: Dictionary) -> str:
    """Ids of letters as words; special symbols are left out."""
    return words_of(dictionary.symbol(i) for i in ids if i > Dictionary.eos)


def greedy_ids(best_T: Sequence[int], blank: int = 0) -> list[int]:
    """The labels of the best class of each frame: repeats collapsed, then blanks removed."""
    return [int(i) for i, _ in itertools.groupby(best_T) if i != blank]


def read_label_lines(path: Path, wanted: int) -> list[str]:
    """The lines of a label file, one for each manifest entry.

    Raises:
        DataError: the file is missing, not UTF-8, has empty lines or another number of lines.
    """
    if not path.is_file():
        raise DataError(f"labels {path} do not exist; make them with d2v prepare audio-labels")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"labels {path}: byte {error.start} is not UTF-8") from None
    if lines and not lines[-1]:
        lines.pop()
    if len(lines) != wanted:
        raise DataError(
            f"labels {path} have {len(lines)} lines, but the manifest lists {wanted} files; they must be "
            "line by line the same: make both again"
        )
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        shown = ", ".join(map(str, empty[:10]))
        raise DataError(
            f"labels {path}: {len(empty)} empty lines ({shown}{', ...' if len(empty) > 10 else ''})"
        )
    return lines
