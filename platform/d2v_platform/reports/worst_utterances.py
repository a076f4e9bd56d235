"""The utterances of a decoding with the most errors, aligned word by word, as one page without scripts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape
from rapidfuzz.distance import Levenshtein

from data2vec.speech_metrics import ErrorCount

from .page import Section, render

_CONFUSIONS = 20
Records = Sequence[Mapping[str, Any]]


def worst_utterances(
    records: Records, errors: ErrorCount, count: int, settings: Mapping[str, Any], subset: str
) -> str:
    """The page.

    Args:
        records: of every utterance of a subset, with reference and hypothesis.
        errors: their sum.
        count: utterances to show.
        settings: of the decoding.
        subset: its name.
    """
    ordered = sorted(records, key=lambda r: (-wrong_words(r), r["id"]))
    rows = [
        (
            str(r["id"]),
            f"{wrong_words(r)} / {r['reference_words']}",
            f"{r['seconds']:.1f}",
            *aligned(r["reference"], r["hypothesis"]),
            str(r["file"]),
        )
        for r in ordered[:count]
        if wrong_words(r)
    ]
    clean = sum(not wrong_words(r) for r in records)
    figures = [
        ("word error rate", f"{errors.rate:.2f} %"),
        ("errors", f"{errors.errors} in {errors.reference} words"),
        ("substitutions, deletions, insertions",
         f"{errors.substitutions}, {errors.deletions}, {errors.insertions}"),
        ("utterances without error", f"{clean} of {len(records)}"),
    ]  # fmt: skip
    sections = [
        Section("Figures", figures),
        Section(
            f"The {len(rows)} worst utterances (struck out: not heard; underlined: heard instead or besides)",
            rows,
            ("id", "errors", "seconds", "reference", "hypothesis", "file"),
        ),
        Section("Most frequent confusions", confusions(records), ("times", "reference", "heard")),
        Section("Decoding", [(key, str(value)) for key, value in settings.items()]),
    ]
    return render(
        title=f"{subset}: WER {errors.rate:.2f} %",
        subtitle="Words are compared as they are: no case folding, no punctuation, no numbers.",
        sections=[section for section in sections if section.rows],
        footer=f"Written by d2v infer on {time.strftime('%Y-%m-%d %H:%M')}; all utterances are in "
        "utterances.csv and utterances.parquet beside it.",
    )


def wrong_words(record: Mapping[str, Any]) -> int:
    """Errors of one utterance."""
    return record["substitutions"] + record["deletions"] + record["insertions"]


def aligned(reference: str, hypothesis: str) -> tuple[Markup, Markup]:
    """Both sides with what differs marked."""
    said, heard = reference.split(), hypothesis.split()
    left: list[Markup] = []
    right: list[Markup] = []
    for step in Levenshtein.opcodes(said, heard):
        before = escape(" ".join(said[step.src_start : step.src_end]))
        after = escape(" ".join(heard[step.dest_start : step.dest_end]))
        if step.tag == "equal":
            left.append(before)
            right.append(after)
            continue
        if before:
            left.append(Markup("<del>{}</del>").format(before))
        if after:
            right.append(Markup("<ins>{}</ins>").format(after))
    return Markup(" ").join(left), Markup(" ").join(right)


def confusions(records: Records) -> list[tuple[str, ...]]:
    """The most frequent single edits."""
    counts: Counter[tuple[str, str]] = Counter()
    for r in records:
        said, heard = r["reference"].split(), r["hypothesis"].split()
        for step in Levenshtein.editops(said, heard):
            was = said[step.src_pos] if step.tag != "insert" else "(nothing)"
            became = heard[step.dest_pos] if step.tag != "delete" else "(nothing)"
            counts[was, became] += 1
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(str(number), was, became) for (was, became), number in order[:_CONFUSIONS]]
