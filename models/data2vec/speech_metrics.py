"""Word and letter error rates: sums of edit distances over a whole set, never means of rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein


@dataclass(frozen=True)
class ErrorCount:
    """Edits between hypotheses and references, and the size of the references."""

    substitutions: int = 0  # symbols replaced
    deletions: int = 0  # reference symbols that are missing
    insertions: int = 0  # hypothesis symbols that are too many
    reference: int = 0  # symbols of the references

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors in percent of the reference; without any reference 0 if nothing was said, else infinite."""
        if not self.reference:
            return 0.0 if not self.errors else float("inf")
        return 100.0 * self.errors / self.reference

    def __add__(self, other: ErrorCount) -> ErrorCount:
        return ErrorCount(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference + other.reference,
        )


def count_errors(reference: Sequence[object], hypothesis: Sequence[object]) -> ErrorCount:
    """The fewest edits from the hypothesis to the reference, by kind."""
    counts = {"replace": 0, "delete": 0, "insert": 0}
    for operation in Levenshtein.editops(list(reference), list(hypothesis)):  # pyright: ignore
        counts[operation.tag] += 1
    return ErrorCount(counts["replace"], counts["delete"], counts["insert"], len(reference))


def word_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Errors over the words between white space; nothing else is normalised."""
    return count_errors(reference.split(), hypothesis.split())


def total(counts: Iterable[ErrorCount]) -> ErrorCount:
    """The sum over utterances."""
    result = ErrorCount()
    for count in counts:
        result += count
    return result
