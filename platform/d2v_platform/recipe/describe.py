"""The resolved recipe with types, defaults and documentation: ``d2v config show``."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from data2vec.typed import describe_type, to_dict

from ..redaction import redact
from .coercion import field_hints
from .components import INHERITED, NAMES, OptimizerGroup, component_name
from .schema import Recipe

_VALUE_WIDTH = 44  # where the documentation starts


@dataclass(frozen=True, kw_only=True)
class FieldRow:
    """One line of the description."""

    field: str  # dotted name
    type: str  # in words
    value: Any
    default: Any
    is_default: bool
    doc: str
    inherited: str | None  # the field whose value this one takes unless it is set
    is_group: bool  # a heading: its fields follow


def field_docs(cls: type[Any]) -> dict[str, str]:
    """The documentation of each field of a dataclass: the comment at the end of its lines in the source."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if dataclasses.is_dataclass(owner):
            docs |= _comments(owner)
    return docs


def describe_fields(recipe: Recipe) -> list[FieldRow]:
    """Every field of the recipe, group by group, in the order of the schema."""
    rows: list[FieldRow] = []
    for group in dataclasses.fields(recipe):
        node = getattr(recipe, group.name)
        rows.append(_heading(group.name, node))
        rows += _rows(node, group.name)
    values = {row.field: row.value for row in rows}
    for i, row in enumerate(rows):
        if row.inherited is not None:
            rows[i] = dataclasses.replace(row, is_default=row.value == values[row.inherited])
    return rows


def recipe_as_yaml(recipe: Recipe, *, changed_only: bool = False) -> Text:
    """The recipe as styled text; ``.plain`` is the same without colours.

    Args:
        recipe: the recipe.
        changed_only: leave out the fields that have their defaults.
    """
    rows = describe_fields(recipe)
    if changed_only:
        keep = {row.field for row in rows if not row.is_group and not row.is_default}
        rows = [
            r
            for r in rows
            if r.field in keep or (r.is_group and any(k.startswith(r.field + ".") for k in keep))
        ]
    text = Text()
    for row in rows:
        depth = row.field.count(".")
        name = row.field.rsplit(".", 1)[-1]
        if row.is_group:
            text.append(f"{'  ' * depth}{name}:", style="bold cyan")
            text.append(f"  {row.value}" if row.value else "", style="bold")
            text.append(f"  # {row.doc}\n" if row.doc else "\n", style="dim")
            continue
        left = f"{'  ' * depth}{name}: {_spell(redact(row.value, name))}"
        text.append(left, style="" if row.is_default else "bold green")
        text.append(" " * max(1, _VALUE_WIDTH - len(left)))
        text.append(f"# {_remark(row)}\n", style="dim")
    return text


def _remark(row: FieldRow) -> str:
    if row.inherited:
        standard = f"default: {row.inherited}"
    elif row.is_default:
        standard = "default"
    else:
        standard = f"default {_spell(row.default)}"
    return f"{row.type}, {standard}" + (f"; {row.doc}" if row.doc else "")


def _heading(path: str, node: Any) -> FieldRow:
    name = component_name(node) if type(node) in NAMES else ""
    doc = (inspect.getdoc(type(node)) or "").partition("\n")[0].rstrip(".").replace("``", "")
    return FieldRow(field=path, type="group", value=name, default=None, is_default=False, doc=doc,
                    inherited=None, is_group=True)  # fmt: skip


def _rows(node: Any, path: str) -> Iterator[FieldRow]:
    cls = type(node)
    docs, hints = field_docs(cls), field_hints(cls)
    inherited = INHERITED.get(NAMES.get(cls, path), {})
    for f in dataclasses.fields(cls):
        value, dotted = getattr(node, f.name), f"{path}.{f.name}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield _heading(dotted, value)
            yield from _rows(value, dotted)
        elif isinstance(value, Mapping) and any(isinstance(v, OptimizerGroup) for v in value.values()):
            for name, group in value.items():
                yield _heading(f"{dotted}.{name}", group)
                yield from _rows(group, f"{dotted}.{name}")
        else:
            default = _default(f)
            yield FieldRow(
                field=dotted,
                type=describe_type(hints[f.name]),
                value=to_dict(value),
                default=default,
                is_default=to_dict(value) == default,
                doc=docs.get(f.name, ""),
                inherited=inherited.get(f.name),
                is_group=False,
            )


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return to_dict(f.default_factory())
    return None if f.default is dataclasses.MISSING else to_dict(f.default)


def _spell(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_spell(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_spell(v)}" for k, v in value.items()) + "}"
    return repr(value) if value == "" else str(value)


@functools.cache
def _comments(cls: type[Any]) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    comments = {
        token.start[0]: token.string.lstrip("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement in body.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
            found = [comments[line] for line in lines if line in comments]
            if found:
                docs[statement.target.id] = " ".join(found)
    return docs
