"""Takes keys of the reference that are no fields here out of a recipe, as the tables of ``compat`` say."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data2vec.errors import Problem

from .compat import ALIASES, DDP, IGNORED, IGNORED_OF, ONLY, ONLY_OF, SAME_AS, UNSET, Alias


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What one command treats otherwise than the reference."""

    ignored: Mapping[str, str]
    only: Mapping[str, tuple[tuple[Any, ...], str]] = field(default_factory=dict)
    same_as: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)

    def is_ignored(self, dotted: str) -> bool:
        """Whether the key has no meaning here, so that its value does not matter."""
        return _match(self.only, dotted) is None and _match(self.ignored, dotted) is not None


TRAINING = Tables(ignored=IGNORED, only=ONLY, same_as=SAME_AS, aliases=ALIASES)


def take_foreign_keys(
    values: dict[str, Any],
    full: Mapping[str, Any],
    is_field: Callable[[str], bool],
    problems: list[Problem],
    tables: Tables = TRAINING,
) -> list[str]:
    """Take the keys of the tables out of ``values`` (in place).

    Args:
        values: nested plain mapping of what was given, references resolved.
        full: the same, laid over the defaults.
        is_field: whether a dotted name is a field of the chosen components: those are never taken out.
        problems: receives what is not supported.
        tables: of the command.

    Returns:
        Notes: which keys were accepted and have no effect under their own names, by reason.
    """
    by_reason: dict[str, list[str]] = {}
    notes: list[str] = []
    model = str(_find(full, "model._name"))
    for dotted, value in _walk(values, tables):
        if (reason := IGNORED_OF.get(model, {}).get(dotted)) is not None:
            remove(values, dotted)
            by_reason.setdefault(reason, []).append(dotted)
            continue
        if (rule := ONLY_OF.get(model, {}).get(dotted)) is not None:
            remove(values, dotted)
            if value not in rule[0]:
                problems.append(Problem(dotted, value, rule[1]))
            continue
        if is_field(dotted):
            continue
        if (alias := tables.aliases.get(dotted)) is not None and value != "slowmo":
            remove(values, dotted)
            if alias.otherwise is not None and value != alias.when:
                by_reason.setdefault(alias.otherwise, []).append(dotted)
            elif value != alias.unless and (alias.when is None or value == alias.when):
                notes += _apply_alias(values, dotted, value, alias, problems)
        elif (rule := _match(tables.only, dotted)) is not None:
            remove(values, dotted)
            if value not in rule[0]:
                problems.append(Problem(dotted, value, rule[1]))
        elif (other := _match(tables.same_as, dotted)) is not None:
            remove(values, dotted)
            if value is not None and value != _find(full, other, UNSET.get(other)):
                problems.append(Problem(dotted, value, f"must equal {other}; set that one"))
        elif dotted == "distributed_training.ddp_backend" and value == "slowmo":
            remove(values, dotted)
            problems.append(Problem(dotted, value, "is not supported: " + DDP))
        elif (reason := _match(tables.ignored, dotted)) is not None:
            remove(values, dotted)
            by_reason.setdefault(reason, []).append(dotted)
    notes += [f"{', '.join(keys)}: no effect here; {reason}" for reason, keys in by_reason.items()]
    return notes


def _apply_alias(
    values: dict[str, Any], dotted: str, value: Any, alias: Alias, problems: list[Problem]
) -> list[str]:
    new = value if alias.value is None else alias.value
    if dotted == "checkpoint.save_dir" and not (str(value).startswith("/") or "://" in str(value)):
        return [f"{dotted}: no effect here; checkpoints live under D2V_HOME (platform.storage changes that)"]
    already = _find(values, alias.field)
    if already not in (None, False, "auto", new):
        problems.append(Problem(dotted, value, f"contradicts {alias.field} = {already!r}; give one of them"))
        return []
    group, name = alias.field.split(".")
    values[group] = {**(values.get(group) or {}), name: new}
    return [f"{dotted}: read as {alias.field} = {new!r}"]


def _match(table: Mapping[str, Any], dotted: str) -> Any:
    if dotted in table:
        return table[dotted]
    return next(
        (v for pattern, v in table.items() if "*" in pattern and fnmatch.fnmatchcase(dotted, pattern)), None
    )


def _walk(values: Mapping[str, Any], tables: Tables, prefix: str = "") -> list[tuple[str, Any]]:
    """Every key of the mapping with its dotted name; a whole group that is ignored counts as one key."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and dotted not in tables.ignored:
            found += _walk(value, tables, dotted + ".")
        else:
            found.append((dotted, value))
    return found


def _find(values: Any, dotted: str, default: Any = None) -> Any:
    for part in dotted.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return default
        values = values[part]
    return values


def remove(values: dict[str, Any], dotted: str) -> bool:
    """Take a key out of a nested mapping; whether it was there."""
    *parents, last = dotted.split(".")
    node: Any = values
    for part in parents:
        node = node.get(part) if isinstance(node, Mapping) else None
    if not isinstance(node, dict) or last not in node:
        return False
    del node[last]
    return True
