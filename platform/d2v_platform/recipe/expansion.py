"""What a small YAML file or a reference would become, told before: aliases and ``${...}`` multiply."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from data2vec.errors import Data2VecError, Problem, short

MAX_BYTES = 2**16  # of a file; the longest recipe has 5 kB
MAX_VALUES = 5_000  # in a file, its aliases written out
MAX_TEXT = 100_000  # characters in a value, its references replaced
_NAMES = re.compile(r"[^\s${}\[\]:,'\"()]+")
# A reference whose name, or a part of a name, is another reference: what it refers to cannot be foretold.
_NESTED_NAME = re.compile(r"\$\{[^{}:$]*(?<![.\[])\$\{")


def check_yaml(path: Path) -> None:
    """Refuse a file that would fill the memory when it is read, and those that build on each other.

    Args:
        path: a YAML file; those beside it that its ``defaults`` name are looked into as well.

    Raises:
        Data2VecError: it is too large, nested too deeply, or its aliases (``*name``) multiply.
        yaml.YAMLError: it is no YAML.
    """
    seen, todo = set[Path](), [path]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        text = file.read_text(encoding="utf-8-sig")
        if len(text) > MAX_BYTES:
            raise Data2VecError(f"{file} has {len(text)} characters; settings have {MAX_BYTES} at most")
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            values = _values(node, {})
        except RecursionError:
            raise Data2VecError(f"{file} is nested too deeply, or holds itself (an alias, *name)") from None
        if values > MAX_VALUES:
            more = "more than 10^12" if values > 10**12 else str(values)
            raise Data2VecError(
                f"{file} has {more} values when its aliases (*name) are written out; {MAX_VALUES} at most"
            )
        for name in _defaults(node):
            beside = file.parent / name.lstrip("/")
            todo += [found for found in (beside, Path(f"{beside}.yaml")) if found.is_file()]


def _values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Values in a document with each alias counted as often as it stands there."""
    if id(node) in known:
        return known[id(node)]
    total = 1
    if isinstance(node, yaml.MappingNode):
        total += sum(_values(part, known) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_values(part, known) for part in node.value)
    known[id(node)] = total
    return total


def _defaults(node: yaml.Node | None) -> Iterator[str]:
    """The files that a ``defaults`` list names: ``name``, or ``group: name``."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if getattr(key, "value", None) != "defaults" or not isinstance(value, yaml.SequenceNode):
            continue
        for entry in value.value:
            if isinstance(entry, yaml.ScalarNode):
                yield entry.value
            elif isinstance(entry, yaml.MappingNode):
                for group, name in entry.value:
                    if isinstance(group, yaml.ScalarNode) and isinstance(name, yaml.ScalarNode):
                        words = group.value.split()  # "override /group"
                        yield f"{words[-1] if words else ''}/{name.value}"


def reference_problems(tree: Mapping[str, Any]) -> list[Problem]:
    """References (``${...}``) that would become too long, or whose own name is a reference."""
    lengths: dict[tuple[str, ...], int] = {}
    found: list[Problem] = []

    def length(value: Any, path: tuple[str, ...]) -> int:
        if path in lengths:
            return lengths[path]
        lengths[path] = 0  # where a reference comes back to itself, which is told when it is resolved
        if isinstance(value, Mapping | list):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            total = 1 + sum(length(part, (*path, str(key))) for key, part in items)
        else:
            text = str(value)
            total = 1 + len(text)
            if "${" in text:
                for name in _NAMES.findall(text):
                    target = _target(tree, path, name)
                    total += 0 if target is None else length(_at(tree, target), target)
                if _NESTED_NAME.search(text):
                    rule = "the name of a reference cannot be a reference; write the name"
                    found.append(Problem(".".join(path), value, rule))
                elif total > MAX_TEXT:
                    rule = f"has more than {MAX_TEXT} characters when its references are replaced"
                    found.append(Problem(".".join(path), value, rule))
        lengths[path] = total
        return total

    try:
        length(tree, ())
    except RecursionError:
        found = [Problem("${...}", None, f"is nested too deeply: {short(tree)}")]
    return found[:20]


def _target(tree: Mapping[str, Any], path: tuple[str, ...], name: str) -> tuple[str, ...] | None:
    """Where a name (``a.b``, or relative to the group, ``.b``, ``..b``) leads, if to anything."""
    parts = name.lstrip(".")
    dots = len(name) - len(parts)
    start = path[: max(len(path) - dots, 0)] if dots else ()
    target = (*start, *(part for part in parts.split(".") if part))
    return target if target and _at(tree, target) is not None else None


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        if isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, Mapping):
            tree = tree.get(part)
        else:
            return None
    return tree
