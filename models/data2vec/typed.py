"""Plain dictionaries into dataclasses, with every problem collected instead of the first one raised.

Recipes, model configurations and the ``config.json`` of stored models all come in as plain dictionaries
(from YAML, JSON or a foreign checkpoint) and pass through here once. Supported annotations: ``bool``,
``int``, ``float``, ``str``, ``Any``, ``Literal``, ``list[T]``, ``tuple[T, ...]``, ``dict[str, T]``,
``T | None`` and nested dataclasses.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import ConfigError, Problem, nearest_names

T = TypeVar("T")
_MISSING = object()
_LARGEST: dict[Any, float] = {int: 2**63 - 1, float: sys.float_info.max}


def build(
    cls: type[T],
    values: Mapping[str, Any],
    path: str = "",
    problems: list[Problem] | None = None,
    unknown: list[str] | None = None,
) -> T:
    """Make a dataclass of type ``cls`` from ``values``.

    Args:
        cls: the dataclass.
        values: plain mapping; absent keys take the dataclass' defaults.
        path: dotted prefix for messages.
        problems: list that receives what is wrong; ``None`` raises :class:`ConfigError` instead.
        unknown: list that receives the dotted names of unknown keys, which are then dropped (for files
            written by other programs); ``None`` makes an unknown key a problem.

    Returns:
        The dataclass; where a value was wrong it holds the field's default.
    """
    own: list[Problem] = [] if problems is None else problems
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # pyright: ignore[reportArgumentType]
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key not in fields:
            if unknown is not None:
                unknown.append(dotted)
            else:
                own.append(Problem(dotted, value, f"unknown key{nearest_names(str(key), fields)}"))
            continue
        converted = _convert(hints[key], value, dotted, own, unknown)
        if converted is not _MISSING:
            kwargs[key] = converted
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in kwargs:
            dotted = f"{path}.{name}" if path else name
            if name not in values:
                own.append(Problem(dotted, None, "is required"))
            kwargs[name] = None
    result = cls(**kwargs)
    if problems is None and own:
        raise ConfigError(own)
    return result


def to_dict(value: Any) -> Any:
    """A dataclass (nested) as plain dicts, lists and scalars: what crosses into Ray or into JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(v) for v in value]
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to ``{"a.b.c": scalar or list}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, name))
        else:
            flat[name] = value
    return flat


def describe_type(hint: Any) -> str:
    """An annotation in words for messages and ``d2v config show``."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [describe_type(a) for a in typing.get_args(hint) if a is not type(None)]
        return " or ".join(inner) + (" or null" if type(None) in typing.get_args(hint) else "")
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) for a in typing.get_args(hint))
    if origin in (list, tuple):
        args = [a for a in typing.get_args(hint) if a is not Ellipsis]
        return f"list of {describe_type(args[0])}" if args else "list"
    if origin is dict:
        return "mapping"
    return getattr(hint, "__name__", str(hint))


def _convert(hint: Any, value: Any, dotted: str, problems: list[Problem], unknown: list[str] | None) -> Any:
    """``value`` as ``hint`` asks, or ``_MISSING`` after noting a problem."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        choices = [a for a in args if a is not type(None)]
        for choice in choices:
            attempt: list[Problem] = []
            converted = _convert(choice, value, dotted, attempt, unknown)
            if not attempt:
                return converted
            if len(choices) == 1:
                problems.extend(attempt)
                return _MISSING
        return _reject(hint, value, dotted, problems)
    if origin is typing.Literal:
        if value in args:
            return value
        near = nearest_names(str(value), [str(a) for a in args])
        problems.append(Problem(dotted, value, f"must be {describe_type(hint)}{near}"))
        return _MISSING
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            return _reject(hint, value, dotted, problems)
        return build(hint, value, dotted, problems, unknown)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return _reject(hint, value, dotted, problems)
        items = [_convert(args[0], v, f"{dotted}[{i}]", problems, unknown) for i, v in enumerate(value)]
        if any(item is _MISSING for item in items):
            return _MISSING
        return items if origin is list else tuple(items)
    if origin is dict:
        if not isinstance(value, Mapping):
            return _reject(hint, value, dotted, problems)
        out = {str(k): _convert(args[1], v, f"{dotted}.{k}", problems, unknown) for k, v in value.items()}
        return _MISSING if any(v is _MISSING for v in out.values()) else out
    return _scalar(hint, value, dotted, problems)


def _scalar(hint: Any, value: Any, dotted: str, problems: list[Problem]) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        endless = hint is float and abs(value) == math.inf  # a weight of a decoder may be -inf
        if not (endless or abs(value) <= _LARGEST[hint]):  # NaN is not <= anything
            rule = f"must be a finite number of at most {_LARGEST[hint]:g}"
            problems.append(Problem(dotted, value, rule))
            return _MISSING
        if hint is float:
            return float(value)
        if isinstance(value, int) or value.is_integer():
            return int(value)
    if hint is str and isinstance(value, str):
        return value
    return _reject(hint, value, dotted, problems)


def _reject(hint: Any, value: Any, dotted: str, problems: list[Problem]) -> Any:
    problems.append(Problem(dotted, value, f"must be {describe_type(hint)}, not {type(value).__name__}"))
    return _MISSING
