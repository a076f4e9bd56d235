"""Checks of configurations: every problem is collected, and said with its field, its value and the rule."""

from __future__ import annotations

import dataclasses
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from .errors import ConfigError, Problem
from .typed import build, to_dict


class Rules:
    """Collects what is wrong with the fields of a configuration.

    Args:
        values: the configuration; names may be dotted.
        path: its own dotted name in messages.
    """

    def __init__(self, values: Any, path: str) -> None:
        self.found: list[Problem] = []
        self._values, self._path = values, path

    def __call__(self, name: str, holds: bool, text: str) -> None:
        """Note the field unless ``holds``; ``text`` is the rule."""
        if not holds:
            self.found.append(Problem(f"{self._path}.{name}", self._value(name), text))

    def at_least(self, low: int, *names: str) -> None:
        """Numbers with a lower bound."""
        for name in names:
            self(name, self._value(name) >= low, f"must be >= {low}")

    def probability(self, *names: str) -> None:
        """Probabilities of dropping something: one would leave nothing."""
        for name in names:
            self(name, 0.0 <= self._value(name) < 1.0, "must lie in 0 <= p < 1")

    def share(self, *names: str) -> None:
        """Shares, both ends included."""
        for name in names:
            self(name, 0.0 <= self._value(name) <= 1.0, "must lie in 0 ... 1")

    def only(self, text: str, *wanted: tuple[str, Any]) -> None:
        """Fields with one supported value; ``text`` may hold ``{}`` for it."""
        for name, value in wanted:
            self(name, self._value(name) == value, text.format(repr(value)))

    def _value(self, name: str) -> Any:
        value = self._values
        for part in name.split("."):
            value = getattr(value, part)
        return value


# What holds for fields of any configuration, by their names.
_NAMED: tuple[tuple[re.Pattern[str], Callable[[Any], bool], str], ...] = (
    (re.compile(r"(.*_)?(dropout|layerdrop|drop|drop_path|drop_path_rate|label_smoothing)"),
     lambda value: 0.0 <= value < 1.0, "must lie in 0 <= p < 1"),
    (re.compile(r"(.*_)?eps"), lambda value: value > 0.0, "must be > 0"),
    (re.compile(r"(.*_)?(depth|layers)"), lambda value: value >= 0, "must be >= 0"),
    (re.compile(r"(.*_)?positions"), lambda value: value >= 2, "must be >= 2"),
    (re.compile(r"(.*_)?ratio"), lambda value: 0.0 < value <= 1e6, "must lie in 0 < r <= 1e6"),
)  # fmt: skip
_PARTS = re.compile(r"(?!average_)(.*_)?(depth|layers)")  # they count parts, each with tensors of its own


def bounds(config: Any, path: str, most: int | None = None) -> list[Problem]:
    """Numbers in a configuration and its sections that no model can have.

    Args:
        config: the configuration, a dataclass.
        path: its own dotted name in messages.
        most: tensors in the file of weights, which no number of layers can exceed.
    """
    found: list[Problem] = []
    for name in (f.name for f in dataclasses.fields(config)):
        value, dotted = getattr(config, name), f"{path}.{name}"
        if dataclasses.is_dataclass(value):
            found += bounds(value, dotted, most)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not -math.inf < value < math.inf:
            found.append(Problem(dotted, value, "must be a finite number"))
        found += [Problem(dotted, value, text) for pattern, holds, text in _NAMED
                  if pattern.fullmatch(name) and not holds(value)]  # fmt: skip
        if most is not None and _PARTS.fullmatch(name) and value > most:
            found.append(Problem(dotted, value, f"is impossible: the weights are {most} tensors in all"))
    return found


def impossible(part: Any, path: str, most: int) -> list[Problem]:
    """All problems of a configuration that somebody else may have written, each field once.

    Args:
        part: the configuration; its own rules are in ``problems``, if it has any.
        path: its dotted name in messages.
        most: as of :func:`bounds`.
    """
    found = bounds(part, path, most)
    try:
        own = part.problems(path) if hasattr(part, "problems") else []
    except (ArithmeticError, ConfigError) as error:  # a rule met what another one refuses
        own = [] if found else [Problem(path, type(part).__name__, f"is impossible: {error}")]
    named = {problem.field for problem in found}
    return found + [problem for problem in own if problem.field not in named]


class ModelConfig(ABC):
    """What the configurations of all model families can do.

    Attributes:
        has_teacher: it is trained against a moving average of itself.
        decay_groups: the optimizer groups are "with_decay" and "no_decay".
    """

    has_teacher: ClassVar[bool] = True
    decay_groups: ClassVar[bool] = False

    def loss_names(self) -> tuple[str, ...]:
        """The losses that it reports while it is pretrained."""
        return ("regression",)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], unknown: list[str] | None = None) -> Self:
        """Read a plain mapping; see :func:`data2vec.typed.build` for ``unknown``."""
        return build(cls, {k: v for k, v in values.items() if k != "_name"}, unknown=unknown)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary."""
        return to_dict(self)

    @abstractmethod
    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible about this configuration, all of it."""

    def check(self, most: int | None = None) -> None:
        """Raise :class:`ConfigError` with all problems.

        Args:
            most: tensors in the file that the configuration came with, whose fields are then bounded too.
        """
        if found := self.problems() if most is None else impossible(self, "model", most):
            raise ConfigError(found, "the model configuration")
