"""Two tasks made from held-out prose, written in GLUE's own raw layouts.

Acceptability, in CoLA's layout: is a sentence as it was written, or was one function word dropped, replaced,
or swapped with its neighbour? Same paragraph, in RTE's layout: did two sentences follow each other, or are
they from different documents? Every sentence occurs once, the classes are balanced, and training and
development examples come from different documents.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data2vec.errors import DataError

from .prose import FUNCTION_WORDS, Document

_Row = TypeVar("_Row")

ACCEPTABLE, UNACCEPTABLE = "1", "0"
SAME, OTHER = "entailment", "not_entailment"
_SHORTEST, _LONGEST = 6, 26  # words of a sentence that is judged by itself
_FEWEST = 20  # rows
_KIND_OF = {word: kind for kind, words in FUNCTION_WORDS.items() for word in words}


@dataclass(frozen=True)
class Judged:
    """A row of the acceptability task."""

    source: str  # document
    label: str
    sentence: str


@dataclass(frozen=True)
class Pair:
    """A row of the same-paragraph task."""

    label: str
    first: str
    second: str
    sources: tuple[str, str]  # documents


def acceptability(documents: Sequence[Document], count: int, seed: int) -> list[Judged]:
    """At most ``count`` sentences, every second one corrupted; no sentence in both forms.

    Args:
        documents: where sentences are taken from.
        count: rows, if the documents hold so many; an even number.
        seed: decides everything.

    Raises:
        DataError: the documents hold too few sentences for any task.
    """
    rng = random.Random(f"acceptability {seed}")
    usable = [
        (document.name, sentence)
        for document in documents
        for sentence in document.sentences
        if _fits(sentence) and _corruptible(sentence.split())
    ]
    chosen = _sample(usable, count, rng)
    rows = [
        Judged(source, ACCEPTABLE, sentence)
        if index % 2
        else Judged(source, UNACCEPTABLE, corrupt(sentence, rng))
        for index, (source, sentence) in enumerate(chosen)
    ]
    rng.shuffle(rows)
    return rows


def corrupt(sentence: str, rng: random.Random) -> str:
    """Break one sentence at one of its inner function words; the first and the last word stay as they are."""
    words = sentence.split()
    at = rng.choice(_corruptible(words))
    change: Callable[[list[str], int, random.Random], list[str]] = rng.choice((_drop, _replace, _swap))
    return " ".join(change(words, at, rng))


def same_paragraph(documents: Sequence[Document], count: int, seed: int) -> list[Pair]:
    """At most ``count`` pairs, half of them neighbours and half from different documents.

    The second sentences of the latter are second sentences of other pairs, so that neither sentence alone
    tells the class.

    Args:
        documents: where pairs are taken from.
        count: rows, if the documents hold so many; an even number.
        seed: decides everything.

    Raises:
        DataError: the documents hold too few neighbours for any task.
    """
    rng = random.Random(f"same paragraph {seed}")
    usable = [
        (document.name, first, second)
        for document in documents
        for paragraph in document.paragraphs
        for first, second in _neighbours(paragraph)
    ]
    chosen = _sample(usable, count, rng)
    half = len(chosen) // 2
    rows = [Pair(SAME, first, second, (source, source)) for source, first, second in chosen[:half]]
    # Sorted by document, a shift by half the list brings another document, unless one holds half of all.
    others = sorted(chosen[half:])
    for index, (source, first, _) in enumerate(others):
        other, _, second = others[(index + half // 2) % half]
        if other == source:
            raise DataError(f"the pairs cannot be mixed: {source} holds most of them")
        rows.append(Pair(OTHER, first, second, (source, other)))
    rng.shuffle(rows)
    return rows


def write_cola(folder: Path, train: Sequence[Judged], dev: Sequence[Judged]) -> None:
    """``<folder>/CoLA/{train,dev}.tsv``: source, label, the linguists' star, sentence; no header."""
    for name, rows in (("train", train), ("dev", dev)):
        lines = [
            f"{row.source}\t{row.label}\t{'*' if row.label == UNACCEPTABLE else ''}\t{row.sentence}\n"
            for row in rows
        ]
        _write(folder / "CoLA" / f"{name}.tsv", lines)


def write_rte(folder: Path, train: Sequence[Pair], dev: Sequence[Pair]) -> None:
    """``<folder>/RTE/{train,dev}.tsv``: index, sentence1, sentence2, label, under a header."""
    for name, rows in (("train", train), ("dev", dev)):
        lines = [f"{i}\t{row.first}\t{row.second}\t{row.label}\n" for i, row in enumerate(rows)]
        _write(folder / "RTE" / f"{name}.tsv", ["index\tsentence1\tsentence2\tlabel\n", *lines])


def _write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def _sample(usable: list[_Row], count: int, rng: random.Random) -> list[_Row]:
    """An even number of rows in random order."""
    if len(usable) < _FEWEST:
        raise DataError(
            f"the prose of this Python holds {len(usable)} examples of a task; {_FEWEST} are needed"
        )
    found = min(count, len(usable))
    return rng.sample(usable, found - found % 2)


def _fits(sentence: str) -> bool:
    return _SHORTEST <= len(sentence.split()) <= _LONGEST


def _neighbours(paragraph: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbouring sentences, each in one pair at most."""
    return list(zip(paragraph[::2], paragraph[1::2], strict=False))


def _corruptible(words: Sequence[str]) -> list[int]:
    """Places of function words whose right neighbour is no function word, so that a swap shows."""
    return [
        at
        for at in range(1, len(words) - 2)
        if words[at] in _KIND_OF and words[at + 1].isalpha() and words[at + 1] not in _KIND_OF
    ]


def _drop(words: list[str], at: int, _: random.Random) -> list[str]:
    return words[:at] + words[at + 1 :]


def _swap(words: list[str], at: int, _: random.Random) -> list[str]:
    return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


def _replace(words: list[str], at: int, rng: random.Random) -> list[str]:
    """By a function word of another kind."""
    kinds = sorted(kind for kind in FUNCTION_WORDS if kind != _KIND_OF[words[at]])
    return [*words[:at], rng.choice(sorted(FUNCTION_WORDS[rng.choice(kinds)])), *words[at + 1 :]]
