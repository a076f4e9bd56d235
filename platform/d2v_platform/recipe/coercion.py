"""The spellings of a value that the reference's YAML files and command lines use, made plain.

``(0.9,0.98)`` as a string for a pair, one number where a list is meant, a number for a name: each is
unambiguous once the field's type is known. Whatever is not is left as it is, and the typed reader rejects it
by name.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any


@functools.cache
def field_hints(cls: type[Any]) -> dict[str, Any]:
    """The annotations of a dataclass, evaluated once."""
    return typing.get_type_hints(cls)


def coerce(hint: Any, value: Any) -> Any:
    """``value`` in the form that the annotation ``hint`` asks for, where that is unambiguous."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        choices = [a for a in args if a is not type(None)]
        return coerce(choices[0], value) if len(choices) == 1 and value is not None else value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        hints = field_hints(hint)
        return {k: coerce(hints[k], v) if k in hints else v for k, v in value.items()}
    if origin is dict and isinstance(value, Mapping):
        return {k: coerce(args[1], v) for k, v in value.items()}
    if origin in (list, tuple):
        return _coerce_sequence(args[0], value)
    if hint in (int, float) and isinstance(value, str):
        if hint is float and value in ("inf", "-inf"):  # as the command line's grammar reads them
            return float(value)
        number = _literal(value)
        return number if isinstance(number, int | float) and not isinstance(number, bool) else value
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def _coerce_sequence(item: Any, value: Any) -> Any:
    if isinstance(value, str):
        if item is str:
            return [value]
        literal = _literal(value)
        if isinstance(literal, list | tuple):
            value = list(literal)
        elif isinstance(literal, int | float) and not isinstance(literal, bool):
            value = [literal]
        else:
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    return [coerce(item, v) for v in value] if isinstance(value, list | tuple) else value


def _literal(text: str) -> Any:
    """A Python literal, or ``None``: nothing is ever executed."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
