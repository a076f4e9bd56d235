"""Our recipes beside the reference's files: every value, what differs with its reason, and the page about it.

``reference_recipes.json`` holds the values of the reference's YAML files, keys as they stand there, defaults
not filled in (``vox_1h_aws`` as it is meant: its file has an indentation slip). ``deviations.yaml`` lists
what is otherwise here. ``python tests/recipes/recipe_comparison.py`` writes it into ``configs/README.md``.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from d2v_platform.recipe import compat
from d2v_platform.recipe.compose import compose_loaded, load_file
from d2v_platform.recipe.locate import config_root, find_recipe, recipe_names
from d2v_platform.recipe.reading import field_type, fill_defaults
from d2v_platform.recipe.schema import Recipe
from d2v_platform.recipe.translation import take_foreign_keys
from d2v_platform.recipe.without_effect import WITHOUT_EFFECT
from data2vec.errors import Problem
from data2vec.typed import flatten

HERE = Path(__file__).resolve().parent
PAGE = config_root() / "README.md"
_NUMBERS = re.compile(r"[(\[][\d.,e\s-]*[)\]]")
ANY = "*"  # in a deviation: whatever the value is
ABSENT = "-"  # the file does not have the key
REFERENCE: dict[str, dict[str, Any]] = json.loads((HERE / "reference_recipes.json").read_text("utf-8"))


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One key that is otherwise here, in all recipes that match."""

    recipes: str  # pattern, as of a shell; several with spaces
    key: str
    reference: Any  # its value there; * = any, - = not given
    ours: Any
    reason: str

    def covers(self, recipe: str, found: Difference) -> bool:
        """Whether this is the difference that was found."""
        return (
            self.key == found.key
            and any(fnmatch.fnmatch(recipe, pattern) for pattern in self.recipes.split())
            and all(
                listed == ANY or plain(listed) == value
                for listed, value in ((self.reference, found.reference), (self.ours, found.ours))
            )
        )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One key whose value, or default, is not the reference's."""

    key: str
    reference: Any
    ours: Any


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One recipe against the reference's file."""

    keys: int  # compared
    differences: tuple[Difference, ...]
    without_effect: dict[str, str]  # keys that the reference's file has and we have no field for -> why


def deviations() -> list[Deviation]:
    """The list."""
    return [Deviation(**row) for row in yaml.safe_load((HERE / "deviations.yaml").read_text("utf-8"))]


def plain(value: Any) -> Any:
    """A value as it is compared: "(0.9,0.98)" is a list, [5] is 5, 1 is 1.0; true is not 1."""
    if isinstance(value, str) and _NUMBERS.fullmatch(value):
        value = ast.literal_eval(value)
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return items[0] if len(items) == 1 else items
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def compare(name: str) -> Comparison:
    """Every key that the reference's file gives, and every field beside it at its default."""
    given = {key if key not in ("criterion", "lr_scheduler") else f"{key}._name": value
             for key, value in REFERENCE[name].items()}  # fmt: skip
    ours = _values(compose_loaded(load_file(find_recipe(name)), check=False).recipe)
    theirs = _values(_as_a_recipe(given))
    found: list[Difference] = []
    without_effect: dict[str, str] = {}
    for key, value in given.items():
        if key not in ours:
            without_effect[key] = _reason(key, value, str(given["model._name"]))
        elif plain(value) != ours[key]:
            found.append(Difference(key=key, reference=plain(value), ours=ours[key]))
    for key in sorted({*ours, *theirs} - set(given)):  # beside it: ours must be the default
        if ours.get(key, ABSENT) != theirs.get(key, ABSENT):
            found.append(Difference(key=key, reference=ABSENT, ours=ours.get(key, ABSENT)))
    return Comparison(
        keys=len({*given, *ours, *theirs}), differences=tuple(found), without_effect=without_effect
    )


def _values(recipe: Recipe) -> dict[str, Any]:
    tree = recipe.to_dict()
    del tree["platform"]  # where it runs
    return {key: plain(value) for key, value in flatten(tree).items()}


def _as_a_recipe(given: Mapping[str, Any]) -> Recipe:
    """The reference's values with our defaults for what its file leaves out, and nothing corrected."""
    tree: dict[str, Any] = {}
    for key, value in given.items():
        *groups, last = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value

    def is_field(key: str) -> bool:
        return "." in key and field_type(tree, key) is not None

    problems: list[Problem] = []
    take_foreign_keys(tree, fill_defaults(tree), is_field, problems)
    assert not problems, problems
    return Recipe.from_dict(tree)


def _reason(key: str, value: Any, model: str) -> str:
    """Why a key has no field here, from the tables that the reader itself uses."""
    if (reason := compat.IGNORED_OF.get(model, {}).get(key)) is not None:
        return reason
    rule = compat.ONLY_OF.get(model, {}).get(key) or _match(compat.ONLY, key)
    if rule is not None:
        assert value in rule[0], (key, value)
        return f"the only value here: {rule[1]}"
    if (alias := compat.ALIASES.get(key)) is not None:
        return alias.otherwise or f"is {alias.field} here"
    if (other := _match(compat.SAME_AS, key)) is not None:
        return f"must equal {other}, as the reference's own cross-reference makes it"
    reason = _match(compat.IGNORED, key)
    assert reason is not None, f"{key} is in no table of compat.py"
    return reason


def _match(table: Mapping[str, Any], key: str) -> Any:
    return next((entry for pattern, entry in table.items() if fnmatch.fnmatch(key, pattern)), None)


def page(text: str, compared: Callable[[str], Comparison] = compare) -> str:
    """The page with its generated parts made anew; the rest as it stands in ``text``."""
    comparisons = [compared(name) for name in sorted(REFERENCE)]
    parts = {
        "recipes": _recipe_table(),
        "figures": _figures(comparisons),
        "deviations": _deviation_table(),
        "no effect": _no_effect_table(comparisons),
        "fields": _fields_table(),
    }
    for name, lines in parts.items():
        begin, end = (
            f"<!-- {name}: written by tests/recipes/recipe_comparison.py -->\n",
            f"<!-- end of {name} -->",
        )
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        made = begin + "\n" + "\n".join(lines) + "\n\n" + end
        text, count = re.subn(pattern, lambda _, made=made: made, text, flags=re.DOTALL)
        assert count == 1, f"{PAGE} has no part {name!r}"
    return text


def _recipe_table() -> Iterator[str]:
    folders: dict[str, list[str]] = {}
    for name in recipe_names():
        folders.setdefault(name.rpartition("/")[0], []).append(name.rpartition("/")[2])
    yield "| folder | recipes; *ours*: the reference has no such file |"
    yield "|---|---|"
    for folder, names in folders.items():
        ours = all(f"{folder}/{name}" not in REFERENCE for name in names)
        shown = [f"*{n}*" if not ours and f"{folder}/{n}" not in REFERENCE else n for n in names]
        yield f"| `{folder}`{' *ours*' if ours else ''} | {', '.join(shown)} |"


def _figures(comparisons: Sequence[Comparison]) -> Iterator[str]:
    given, keys = sum(len(values) for values in REFERENCE.values()), sum(c.keys for c in comparisons)
    yield f"{len(comparisons)} recipes, {given} values that the files give, {keys} with the defaults."


def _deviation_table() -> Iterator[str]:
    yield "| recipes | key | reference | ours | reason |"
    yield "|---|---|---|---|---|"
    for d in deviations():
        cells = (_code(d.recipes), f"`{d.key}`", _shown(d.reference), _shown(d.ours), d.reason)
        yield "| " + " | ".join(cells) + " |"


def _no_effect_table(comparisons: Sequence[Comparison]) -> Iterator[str]:
    by_reason: dict[str, set[str]] = {}
    for comparison in comparisons:
        for key, reason in comparison.without_effect.items():
            by_reason.setdefault(reason, set()).add(key)
    yield "| keys | why |"
    yield "|---|---|"
    for reason, keys in sorted(by_reason.items(), key=lambda item: min(item[1])):
        yield f"| {', '.join(f'`{key}`' for key in sorted(keys))} | {reason.replace('<', '&lt;')} |"


def _fields_table() -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for cls, reasons in WITHOUT_EFFECT.items():
        for field, reason in reasons.items():
            by_reason.setdefault(reason, []).append(f"`{cls.__name__}.{field}`")
    yield "| fields | why |"
    yield "|---|---|"
    for reason, fields in by_reason.items():
        yield f"| {', '.join(fields)} | {reason} |"


def _code(patterns: str) -> str:
    return "all" if patterns == ANY else ", ".join(f"`{pattern}`" for pattern in patterns.split())


def _shown(value: Any) -> str:
    if value in (ANY, ABSENT):
        return "any" if value == ANY else "not given"
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), encoding="utf-8")
