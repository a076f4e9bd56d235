"""Errors that are the user's to mend: they name the field, the value, the rule and the fix.

The command line shows their text without a stack trace and exits with code 2. Everything else that is
raised is a bug of ours and keeps its trace.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class Data2VecError(ValueError):
    """A mistake in what the user gave us: a value, a file, a name."""


class DataError(Data2VecError):
    """A data file is missing, broken or does not fit the model; the message names the file."""


class CheckpointError(Data2VecError):
    """A checkpoint or model folder is incomplete, damaged or of another kind; the message names it."""


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 4, 300, 300, 60
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 20


def short(value: object) -> str:
    """A value in a message: it may come from a hostile file, and be long, wide or deep."""
    return _SHORT.repr(value)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a configuration."""

    field: str  # dotted name, e.g. "optimization.lr"
    value: object
    rule: str  # what must hold, and the fix


class ConfigError(Data2VecError):
    """All problems of one configuration, shown together as an aligned table."""

    def __init__(self, problems: Sequence[Problem], subject: str = "the recipe") -> None:
        self.problems = tuple(problems)
        self.subject = subject
        super().__init__(self._render())

    def _render(self) -> str:
        left = [f"{p.field} = {short(p.value)}" for p in self.problems]
        width = min(60, max((len(text) for text in left), default=0))
        count = f"{len(left)} problem" + ("s" if len(left) != 1 else "")
        rows = [
            f"  {text:<{width}}   {problem.rule}" for text, problem in zip(left, self.problems, strict=True)
        ]
        return "\n".join([f"{self.subject} has {count}", *rows])

    def __reduce__(self) -> tuple[type[ConfigError], tuple[object, ...]]:
        return type(self), (self.problems, self.subject)


def nearest_names(name: str, choices: Iterable[str], count: int = 3) -> str:
    """``"; did you mean 'x' or 'y'?"`` for a misspelt name, or an empty string."""
    known = list(choices)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.6)
    if not close:
        return ""
    return "; did you mean " + " or ".join(repr(match) for match in close) + "?"
