"""A plain nested mapping into the dataclasses of a recipe, with every problem collected."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data2vec.errors import Problem, nearest_names
from data2vec.typed import build, flatten, to_dict

from . import compat
from .coercion import coerce, field_hints
from .components import CHOICES, GROUP_CHOICES, INHERITED, Composite, OptimizerGroup
from .groups import GROUPS

DEFAULT_NAMES = {"lr_scheduler": "fixed"}  # the reference's; the other groups have no default that we build
_REFERENCE = re.compile(r"^\$\{([a-z_.]+)\}$")


def expand_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """A bare name for a component (``lr_scheduler: pass_through``) becomes ``{_name: ...}``."""
    out = dict(values)
    for group in CHOICES:
        if isinstance(out.get(group), str):
            out[group] = {"_name": out[group]}
    optimizer = out.get("optimizer")
    if isinstance(optimizer, Mapping) and isinstance(optimizer.get("groups"), Mapping):
        groups = {
            name: {k: {"_name": v} if k in GROUP_CHOICES and isinstance(v, str) else v for k, v in g.items()}
            if isinstance(g, Mapping)
            else g
            for name, g in optimizer["groups"].items()
        }
        out["optimizer"] = {**optimizer, "groups": groups}
    return out


def fill_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` laid over the defaults of the groups and of the chosen components.

    A field that is not given and inherits from another one holds ``${other.field}``.
    """
    given = expand_names(values)
    out: dict[str, Any] = {
        key: value for key, value in given.items() if key not in GROUPS and key not in CHOICES
    }
    for group, cls in GROUPS.items():
        out[group] = lay_over(to_dict(cls()) | _inherited(group), given.get(group, {}))
    for group in CHOICES:
        node = given.get(group)
        if node is None and group in DEFAULT_NAMES:
            node = {"_name": DEFAULT_NAMES[group]}
        if node is not None:
            out[group] = _fill_component(group, node)
    return out


def read_nodes(values: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """The dataclass of each group from a complete mapping; ``None`` for a missing or unknown component."""
    unknown: list[str] = []
    nodes: dict[str, Any] = {}
    for group, cls in GROUPS.items():
        nodes[group] = _build(cls, values.get(group), group, problems, unknown)
    for group in CHOICES:
        nodes[group] = _read_component(
            group, group, values.get(group), tuple(CHOICES[group]), problems, unknown
        )
    unknown += [key for key in values if key not in GROUPS and key not in CHOICES]
    problems += [_unknown_problem(name, values) for name in unknown]
    return nodes


def known_fields() -> list[str]:
    """The dotted name of every field of every component: what a misspelt name is compared with."""
    names = [f"{group}.{f.name}" for group, cls in GROUPS.items() for f in dataclasses.fields(cls)]
    for group, choices in CHOICES.items():
        for cls in choices.values():
            names += [f"{group}.{key}" for key in flatten(to_dict(cls()))]
    names += [f"optimizer.groups.default.{f.name}" for f in dataclasses.fields(OptimizerGroup)]
    return list(dict.fromkeys([*names, *GROUPS, *CHOICES]))


def field_type(values: Mapping[str, Any], dotted: str) -> Any:
    """The annotation of a field in a recipe of these components, or ``None`` if there is no such field."""
    parts = dotted.split(".")
    node = expand_names(values).get(parts[0])
    hint: Any = GROUPS.get(parts[0]) or _component_class(parts[0], node)
    for depth, part in enumerate(parts[1:], 1):
        hint = _not_none(hint)
        if typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
            inner = _at(values, parts[: depth + 1])
            hint = (
                _component_class(part, inner, OptimizerGroup)
                if hint is OptimizerGroup and part in GROUP_CHOICES
                else field_hints(hint).get(part)
            )
        else:
            return None
    return hint


def _component_class(group: str, node: Any, owner: type[Any] | None = None) -> Any:
    name = node.get("_name") if isinstance(node, Mapping) else None
    choices = CHOICES.get(group, {})
    return choices.get(str(name)) if owner is None or name in GROUP_CHOICES.get(group, ()) else None


def _not_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        choices = [a for a in typing.get_args(hint) if a is not type(None)]
        return choices[0] if len(choices) == 1 else hint
    return hint


def _at(values: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if not isinstance(values, Mapping):
            return None
        values = values.get(part)
    return values


def _inherited(name: str) -> dict[str, str]:
    return {key: "${" + source + "}" for key, source in INHERITED.get(name, {}).items()}


def lay_over(under: Any, over: Any) -> Any:
    """``over`` merged into ``under``, nested mapping by nested mapping."""
    if isinstance(under, Mapping) and isinstance(over, Mapping):
        merged = {key: lay_over(value, over[key]) if key in over else value for key, value in under.items()}
        return merged | {key: value for key, value in over.items() if key not in under}
    return over


def _fill_component(group: str, node: Any) -> Any:
    name = node.get("_name") if isinstance(node, Mapping) else None
    cls = CHOICES[group].get(str(name))
    if cls is None:
        return node
    filled = lay_over({"_name": name} | to_dict(cls()) | _inherited(str(name)), node)
    if cls is Composite and isinstance(filled["groups"], Mapping):
        filled["groups"] = {key: _fill_group(value) for key, value in filled["groups"].items()}
    return filled


def _fill_group(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    filled = {"lr": None, "lr_float": None, **node}
    for part, default in (("optimizer", "adam"), ("lr_scheduler", "fixed")):
        filled[part] = _fill_component(part, node[part] if node.get(part) is not None else {"_name": default})
    return filled


def resolve_inherited(full: dict[str, Any]) -> dict[str, Any]:
    """Replace the ``${other.field}`` that :func:`fill_defaults` put in."""

    def visit(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: visit(value) for key, value in node.items()}
        match = _REFERENCE.match(node) if isinstance(node, str) else None
        return coerce(int, _at(full, match[1].split("."))) if match else node

    return visit(full)


def _read_component(
    group: str, path: str, node: Any, names: Iterable[str], problems: list[Problem], unknown: list[str]
) -> Any:
    names = tuple(names)
    if not isinstance(node, Mapping) or node.get("_name") is None:
        value = None if isinstance(node, Mapping) else node
        problems.append(Problem(f"{path}._name", value, f"is required; choose {', '.join(names)}"))
        return None
    name = str(node["_name"])
    if name not in names:
        problems.append(Problem(f"{path}._name", name, _unknown_name(group, name, names)))
        return None
    values = {key: value for key, value in node.items() if key != "_name"}
    cls = CHOICES[group][name]
    if cls is Composite:
        return _read_composite(values, path, problems, unknown)
    return _build(cls, values, path, problems, unknown)


def _read_composite(
    values: dict[str, Any], path: str, problems: list[Problem], unknown: list[str]
) -> Composite | None:
    groups: dict[str, OptimizerGroup] = {}
    given = values.pop("groups", {})
    if not isinstance(given, Mapping):
        problems.append(Problem(f"{path}.groups", given, "must be a mapping from group name to optimizer"))
        given = {}
    for name, node in given.items():
        where = f"{path}.groups.{name}"
        if not isinstance(node, Mapping):
            problems.append(Problem(where, node, "must be a mapping with optimizer and lr_scheduler"))
            continue
        parts = {
            part: _read_component(part, f"{where}.{part}", node.get(part), names, problems, unknown)
            for part, names in GROUP_CHOICES.items()
        }
        rest = {key: value for key, value in node.items() if key not in GROUP_CHOICES}
        group = _build(OptimizerGroup, rest, where, problems, unknown)
        if all(part is not None for part in parts.values()):
            group.optimizer, group.lr_scheduler = parts["optimizer"], parts["lr_scheduler"]
            groups[str(name)] = group
    composite = _build(Composite, values, path, problems, unknown)
    composite.groups = groups
    return composite


def _build(cls: type[Any], values: Any, path: str, problems: list[Problem], unknown: list[str]) -> Any:
    if not isinstance(values, Mapping):
        problems.append(Problem(path, values, "must be a mapping of fields"))
        values = {}
    return build(cls, coerce(cls, values), path, problems, unknown)


def _unknown_name(group: str, name: str, names: Sequence[str]) -> str:
    built = f"choose {', '.join(names)}"
    if later := compat.NOT_BUILT.get(group, {}).get(name):
        return f"exists in the reference ({later}) and is not built here yet; {built}"
    return f"unknown; {built}{nearest_names(name, names)}"


def _unknown_problem(dotted: str, values: Mapping[str, Any]) -> Problem:
    value = _at(values, dotted.split("."))
    value = "{...}" if isinstance(value, Mapping) else value
    if reason := compat.key_of_another_command(dotted):
        return Problem(dotted, value, reason)
    if "." not in dotted:
        return Problem(dotted, value, f"unknown group{nearest_names(dotted, (*GROUPS, *CHOICES))}")
    known = known_fields()
    group, last = dotted.rsplit(".", 1)
    if dotted in known:
        chosen = _at(values, [*group.split("."), "_name"])
        return Problem(dotted, value, f"is a field of another {group} than the chosen one ({chosen})")
    elsewhere = [name for name in known if name.rsplit(".", 1)[-1] == last and name != dotted]
    if elsewhere:
        names = " or ".join(repr(name) for name in elsewhere[:3])
        return Problem(dotted, value, f"unknown key; there is {names}")
    siblings = [name for name in known if name.rsplit(".", 1)[0] == dotted.rsplit(".", 1)[0]]
    hint = nearest_names(dotted, siblings) or nearest_names(dotted, known)
    hint = hint or nearest_names(last, {name.rsplit(".", 1)[-1] for name in known})
    return Problem(dotted, value, f"unknown key{hint}")
