"""``group.key=value`` on the command line, parsed by Hydra's grammar.

Three additions: a value that the grammar cannot read because of characters such as ``(``, ``=`` or ``~`` is
taken as plain text, so that paths need no quoting; fields that are lists of names separated by commas stay
text; and commas sweep under ``-m`` only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, OverrideType, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException

from data2vec.errors import Problem

COMMA_LISTS = frozenset(
    {"dataset.gen_subset", "dataset.valid_subset", "dataset.train_subset", "task.shorten_data_split_list",
     "model.adaptive_softmax_cutoff", "model.adaptive_input_cutoff"}
)  # fmt: skip
# Hydra's own settings, and the groups of the reference that only configure its launcher.
LAUNCHER_KEYS = re.compile(r"^(hydra[./].*|hydra|run_config)$")
_KEY = re.compile(r"^[A-Za-z_][\w/-]*(\.[\w-]+)*$")
_LARGEST_RANGE = 10_000


@dataclass(frozen=True, kw_only=True)
class Override:
    """One assignment to a field, or its removal."""

    key: str
    action: Literal["set", "delete"] = "set"
    value: Any = None
    text: str | None = None  # the value as it was typed, for fields that hold text
    choices: tuple[Any, ...] | None = None  # the values of a sweep; ``value`` is the first


def parse_overrides(texts: Sequence[str], multirun: bool, problems: list[Problem]) -> list[Override]:
    """Parse the overrides of one command line; what cannot be read goes into ``problems``."""
    parser = OverridesParser.create()
    found = (_parse(parser, text, multirun, problems) for text in texts)
    return [override for override in found if override is not None]


def apply(tree: dict[str, Any], override: Override, problems: list[Problem], *, text_field: bool) -> None:
    """Carry out one override on a nested plain mapping, in place.

    Args:
        tree: what the recipe file says.
        override: the assignment.
        problems: receives what is impossible.
        text_field: the field holds text: ``platform.run_name=007`` is "007", not 7.
    """
    *parents, last = override.key.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        if node.get(part) is None:
            if override.action == "delete":
                break
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            where = ".".join(parents[: depth + 1])
            problems.append(
                Problem(override.key, override.value, f"{where} is {node!r}, not a group of fields")
            )
            return
    if override.action == "delete":
        if last not in node:
            rule = "there is nothing to remove: the recipe file does not set it"
            problems.append(Problem(f"~{override.key}", override.value, rule))
        elif override.value is not None and node[last] != override.value:
            problems.append(
                Problem(f"~{override.key}", override.value, f"the recipe file has {node[last]!r}")
            )
        else:
            del node[last]
        return
    value = override.value
    if (
        text_field
        and override.text is not None
        and value is not None
        and not isinstance(value, str | list | dict)
    ):
        value = override.text
    old = node.get(last)
    node[last] = _lay_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value


def assignment_text(key: str, value: Any) -> str:
    """``key=value`` in a spelling that the grammar reads back as the same value."""
    return f"{key}={_spell(value)}"


def _lay_over(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {k: _lay_over(old[k], v) if isinstance(old.get(k), dict) and isinstance(v, dict) else v
            for k, v in new.items()}  # fmt: skip
    return {**old, **both}


def _parse(parser: OverridesParser, text: str, multirun: bool, problems: list[Problem]) -> Override | None:
    left, equals, right = text.partition("=")
    key = left.lstrip("+~").strip()
    if "@" in key:
        problems.append(Problem(text, right, "a package (@) has no meaning here; write group.key=value"))
        return None
    if not _KEY.match(key) or (not equals and not left.startswith("~")):
        problems.append(Problem(text, right or None, "is not an override; write group.key=value"))
        return None
    try:
        parsed = parser.parse_override(text)
    except HydraException as error:
        return _plain_text(key, right, multirun, str(error), problems)
    if parsed.type == OverrideType.DEL:
        value = parsed.value() if equals and right else None
        return Override(key=key, action="delete", value=_plain(value))
    if not parsed.is_sweep_override():
        return Override(key=key, value=_plain(parsed.value()), text=right.strip())
    if key in COMMA_LISTS:
        return Override(key=key, value=right.strip(), text=right.strip())
    return _sweep(key, right, parsed._value, multirun, problems)


def _plain_text(key: str, right: str, multirun: bool, error: str, problems: list[Problem]) -> Override | None:
    """A value that the grammar does not know, taken literally unless it was meant to be structured."""
    right = right.strip()
    if right[:1] in ("[", "{", "'", '"') or "\n" in right:
        reason = error.splitlines()[0]
        problems.append(
            Problem(key, right, f"cannot be read ({reason}); quote it, for example {key}=\"'text'\"")
        )
        return None
    outside = re.sub(r"\([^()]*\)", "", right)
    if multirun and "," in outside and key not in COMMA_LISTS:
        rule = "has characters that need quotes in a sweep: " + ",".join(
            f"'{part}'" for part in right.split(",")
        )
        problems.append(Problem(key, right, rule))
        return None
    return Override(key=key, value=right, text=right)


def _sweep(key: str, right: str, sweep: Any, multirun: bool, problems: list[Problem]) -> Override | None:
    if isinstance(sweep, ChoiceSweep) and not sweep.shuffle:
        choices = tuple(_plain(value) for value in sweep.list)
    elif isinstance(sweep, RangeSweep) and sweep.start is not None and sweep.stop is not None:
        values = sweep.range()
        numbers = itertools.islice(iter(values), _LARGEST_RANGE)
        choices = tuple(v if isinstance(v, int) else float(v) for v in numbers)
    else:
        problems.append(Problem(key, right, "this kind of sweep is not supported; list the values: a,b,c"))
        return None
    if not choices:
        problems.append(Problem(key, right, "is an empty sweep"))
        return None
    if not multirun:
        rule = f"lists several values: add -m to sweep over them, or quote one value: {key}=\"'{right}'\""
        problems.append(Problem(key, right, rule))
        return None
    return Override(key=key, value=choices[0], text=None, choices=choices)


def _plain(value: Any) -> Any:
    """The grammar's own classes as plain values."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _spell(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return QuotedString(text=value, quote=Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_spell(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_spell(v) for v in value) + "]"
    return repr(value)
