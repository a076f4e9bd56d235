"""Checks of configurations: every problem is collected, and said with its field, its value and the rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

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


class ModelConfig(ABC):
    """What the configurations of all model families can do."""

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

    def check(self) -> None:
        """Raise :class:`ConfigError` with all problems."""
        if found := self.problems():
            raise ConfigError(found, "the model configuration")
