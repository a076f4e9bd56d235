"""A task made from held-out prose, in CoLA's raw layout: does a sentence stand as it was written?

In every second one all words but the first and the last were put into another order, so that no word tells
the class. Every sentence occurs once; training and development examples come from different documents.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data2vec.errors import DataError

from .prose import Document

ACCEPTABLE, UNACCEPTABLE = "1", "0"
_SHORTEST, _LONGEST = 6, 26  # words of a sentence
_FEWEST = 20  # rows


@dataclass(frozen=True)
class Judged:
    """A row of the task."""

    source: str  # document
    label: str
    sentence: str


def word_order(documents: Sequence[Document], count: int, seed: int) -> list[Judged]:
    """At most ``count`` sentences, every second one shuffled; no sentence in both forms.

    Args:
        documents: where sentences are taken from.
        count: rows, if the documents hold so many; an even number.
        seed: decides everything.

    Raises:
        DataError: the documents hold too few sentences for any task.
    """
    rng = random.Random(f"word order {seed}")
    usable = [
        (document.name, sentence)
        for document in documents
        for sentence in document.sentences
        if _SHORTEST <= len(words := sentence.split()) <= _LONGEST and len(set(words[1:-1])) > 1
    ]
    if len(usable) < _FEWEST:
        raise DataError(
            f"the prose of this Python holds {len(usable)} examples of a task; {_FEWEST} are needed"
        )
    found = min(count, len(usable))
    rows = [
        Judged(source, ACCEPTABLE, sentence)
        if index % 2
        else Judged(source, UNACCEPTABLE, shuffled(sentence, rng))
        for index, (source, sentence) in enumerate(rng.sample(usable, found - found % 2))
    ]
    rng.shuffle(rows)
    return rows


def shuffled(sentence: str, rng: random.Random) -> str:
    """Another order of all words but the first and the last, which capital and full stop give away."""
    first, *written, last = sentence.split()
    inner = list(written)
    while inner == written:
        rng.shuffle(inner)
    return " ".join([first, *inner, last])


def write_cola(folder: Path, train: Sequence[Judged], dev: Sequence[Judged]) -> None:
    """``<folder>/CoLA/{train,dev}.tsv``: source, label, the linguists' star, sentence; no header."""
    (folder / "CoLA").mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("dev", dev)):
        lines = [
            f"{row.source}\t{row.label}\t{'*' if row.label == UNACCEPTABLE else ''}\t{row.sentence}\n"
            for row in rows
        ]
        (folder / "CoLA" / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
