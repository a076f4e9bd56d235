"""A recipe file and the command line become one typed recipe; what is wrong is said all at once."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data2vec.errors import ConfigError, Problem
from data2vec.typed import flatten

from . import checks, compat, user_code, without_effect
from .coercion import coerce
from .components import CHOICES, Composite
from .entries import entry_of
from .groups import GROUPS, Optimization
from .locate import RecipeFile, find_recipe
from .overrides import Override, apply
from .reading import expand_names, field_type, fill_defaults, resolve_inherited
from .schema import Recipe
from .translation import TRAINING, remove, take_foreign_keys
from .tree import make_absolute, read_overrides, read_tree, resolve_references, unique

_REFERRED = re.compile(r"\$\{([\w.]+)")


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A recipe with where it came from."""

    recipe: Recipe
    notes: tuple[str, ...]  # what was accepted without effect, and why; to be shown once
    named_recipe: str  # the recipe's name, such as v2/base_text_only_task
    source: Path  # its file
    base: dict[str, Any]  # the named recipe without the command line, as Recipe.to_dict
    overrides: tuple[str, ...]  # the command line's overrides
    sweep: (
        dict[str, list[Any]] | None
    )  # under -m: the values of each swept field; the recipe holds the first ones


@dataclass(frozen=True, kw_only=True)
class LoadedFile:
    """A recipe file before the command line."""

    file: RecipeFile
    tree: dict[str, Any]  # plain, references unresolved
    base: dict[str, Any] | None  # as Recipe.to_dict; None if the file alone cannot be read as a recipe


def compose(
    config_name: str,
    overrides: Sequence[str | Override] = (),
    config_dir: str | None = None,
    multirun: bool = False,
    *,
    check: bool = True,
) -> Composed:
    """Compose a recipe.

    Args:
        config_name: name of a recipe, with or without its folder.
        overrides: ``group.key=value`` in Hydra's grammar.
        config_dir: folder to look in; a path of the reference stands for our folder if it does not exist.
        multirun: ``-m``: commas make a sweep.
        check: also check that values fit together and that mandatory ones are given; ``False`` is for showing
            a recipe that is not complete.

    Raises:
        ConfigError: everything that is wrong, together.
        Data2VecError: the recipe was not found, or its file cannot be read.
    """
    return compose_loaded(load_file(find_recipe(config_name, config_dir)), overrides, multirun, check=check)


def compose_loaded(
    loaded: LoadedFile,
    overrides: Sequence[str | Override] = (),
    multirun: bool = False,
    *,
    check: bool = True,
) -> Composed:
    """As :func:`compose`, for a file that was loaded before: a sweep composes many recipes from one file."""
    problems: list[Problem] = []
    notes: list[str] = []
    texts = [o for o in overrides if isinstance(o, str)]
    parsed = read_overrides(texts, multirun, problems, notes)
    parsed += [o for o in overrides if isinstance(o, Override)]
    _load_user_code(_with_overrides(loaded.tree, [o for o in parsed if o.key == user_code.FIELD], [], []))

    tree = _with_overrides(loaded.tree, parsed, problems, notes)
    recipe = _recipe(tree, problems, notes)
    if check:
        problems += _check(loaded.tree, parsed, recipe, problems)
    if recipe is not None:
        problems += _rates_without_effect(recipe, parsed, notes)
        problems += entry_of(recipe.task).unused(recipe, parsed, notes)
        notes += without_effect.notes_of(recipe, loaded.base if loaded.file.ours else None)
    if problems or recipe is None:
        raise ConfigError(unique(problems), f"the recipe {loaded.file.name}")
    sweep = {o.key: list(o.choices) for o in parsed if o.choices is not None}
    return Composed(
        recipe=recipe,
        notes=tuple(dict.fromkeys(notes)),
        named_recipe=loaded.file.name,
        source=loaded.file.path,
        base=loaded.base if loaded.base is not None else recipe.to_dict(),
        overrides=tuple(texts),
        sweep=sweep or None,
    )


def load_file(file: RecipeFile) -> LoadedFile:
    """Read a recipe file into a plain mapping.

    Raises:
        Data2VecError: it cannot be read, or is not a mapping; the message names the file and the line.
    """
    tree = read_tree(file)
    _load_user_code(tree)
    base = _recipe(tree, [], [])
    return LoadedFile(file=file, tree=tree, base=base.to_dict() if base is not None else None)


def _load_user_code(tree: Mapping[str, Any]) -> None:
    """Before anything else is read: it may bring the components that the recipe names."""
    user_code.load_installed()
    folder = _user_dir(tree)
    if folder is not None and user_code.is_package(folder):
        user_code.load_package(folder)


def _user_dir(tree: Mapping[str, Any]) -> str | None:
    common = tree.get("common")
    folder = common.get("user_dir") if isinstance(common, Mapping) else None
    if folder is None:
        return None
    # An empty path where it refers to something that is not set: no package is there.
    return str(resolve_references({"at": folder}, {"at": folder}, lambda _: False, []).get("at", ""))


def _apply_user_dir(full: dict[str, Any], notes: list[str]) -> None:
    """An absolute path; none where no package of a user's lies there, as in the reference's commands."""
    folder = _user_dir(full)
    if folder is None:
        return
    there = user_code.is_package(folder)
    full["common"]["user_dir"] = os.path.abspath(os.path.expanduser(folder)) if there else None
    if not there:
        why = "there is no Python package of yours (with __init__.py); data2vec's own models are built in"
        notes.append(f"{user_code.FIELD}: no effect here; {why}")


def _with_overrides(
    tree: Mapping[str, Any], overrides: Sequence[Override], problems: list[Problem], notes: list[str]
) -> dict[str, Any]:
    changed = copy.deepcopy(dict(tree))
    for override in overrides:
        _apply(changed, override, problems, notes)
    return changed


def _check(
    tree: Mapping[str, Any], overrides: Sequence[Override], recipe: Recipe | None, known: Sequence[Problem]
) -> list[Problem]:
    """What does not fit together, also beside values that could not be read: those are left out here."""
    wrong = {problem.field.lstrip("~") for problem in known}
    good = [o for o in overrides if not any(f"{field}.".startswith(f"{o.key}.") for field in wrong)]
    if len(good) < len(overrides) or recipe is None:
        recipe = _recipe(_with_overrides(tree, good, [], []), [], [])
    if recipe is None:
        return []
    found = checks.problems(recipe)
    for override in good:
        for value in (override.choices or ())[1:]:
            trial = [dataclasses.replace(o, value=value) if o is override else o for o in good]
            problems: list[Problem] = []
            other = _recipe(_with_overrides(tree, trial, problems, []), problems, [])
            problems += checks.problems(other) if other is not None else []
            found += [problem for problem in problems if problem not in known]
    return found


def _apply(tree: dict[str, Any], override: Override, problems: list[Problem], notes: list[str]) -> None:
    others = [name for name in compat.TOGETHER.get(override.key, ()) if remove(tree, name)]
    if others:
        notes.append(f"{override.key}: takes the place of {', '.join(others)}")
        if override.action == "delete":
            remove(tree, override.key)
            return
    group, _, rest = override.key.partition(".")
    if override.key in CHOICES and override.action == "set" and isinstance(override.value, str):
        _choose(tree, override.key, override.value, notes)
    elif group in CHOICES and rest == "_name" and override.action == "set":
        _choose(tree, group, str(override.value), notes)
    else:
        hint = field_type(tree, override.key)
        apply(tree, override, problems, text_field=coerce(hint, 1) == "1" if hint else False)
        tree.update(expand_names(tree))


def _choose(tree: dict[str, Any], group: str, name: str, notes: list[str]) -> None:
    """``group=name``: another component. What the file says for the old one stays if the new one knows it."""
    node = tree.get(group) if isinstance(tree.get(group), dict) else {}
    old = {key: value for key, value in (node or {}).items() if key != "_name"}
    cls = CHOICES[group].get(name)
    known = {f.name for f in dataclasses.fields(cls)} if cls else set()
    if node and node.get("_name") != name:
        dropped = [key for key in old if key not in known]
        if dropped:
            notes.append(f"{group}={name}: the recipe file's {', '.join(dropped)} belong to "
                         f"{group} {node.get('_name')} and are left out")  # fmt: skip
        old = {key: value for key, value in old.items() if key in known}
    tree[group] = {"_name": name, **old}


def _recipe(tree: dict[str, Any], problems: list[Problem], notes: list[str]) -> Recipe | None:
    """Resolve references, take out what the tables of ``compat`` name, and read the rest strictly."""
    for key in [key for key, value in tree.items() if key in GROUPS and not isinstance(value, Mapping)]:
        problems.append(Problem(key, tree[key], "must be a mapping of fields"))
        tree = {k: v for k, v in tree.items() if k != key}
    unresolved: list[Problem] = []
    given = resolve_references(
        tree,
        fill_defaults(tree),
        lambda name: name == user_code.FIELD or (TRAINING.is_ignored(name) and not _is_field(tree, name)),
        unresolved,
    )
    notes += take_foreign_keys(given, fill_defaults(given), lambda name: _is_field(tree, name), problems)
    given = {key: value for key, value in given.items() if value != {} or key in GROUPS or key in CHOICES}
    filled = fill_defaults(given)
    full = resolve_inherited(filled)
    make_absolute(full)
    _apply_user_dir(full, notes)
    found: list[Problem] = []
    recipe = Recipe.read(full, found)
    if recipe is not None:
        notes += _set_direction(recipe)
    wrong = {problem.field for problem in found}
    sources = flatten(filled) | {problem.field: problem.value for problem in unresolved}
    for problem in found + unresolved:  # a field that takes another one's wrong value is not wrong itself
        if not wrong & set(_REFERRED.findall(str(sources.get(problem.field)))):
            problems.append(problem)
    return recipe


def _set_direction(recipe: Recipe) -> list[str]:
    """The metric decides which direction is better, whatever the file says; files of the reference err."""
    rules = recipe.checkpoint
    larger = checks.metrics(recipe).get(rules.best_checkpoint_metric, rules.maximize_best_checkpoint_metric)
    if larger == rules.maximize_best_checkpoint_metric:
        return []
    rules.maximize_best_checkpoint_metric = larger
    better = f"{'larger' if larger else 'smaller'} {rules.best_checkpoint_metric} is better"
    return [f"checkpoint.maximize_best_checkpoint_metric: read as {str(larger).lower()}; {better}"]


def _is_field(tree: Mapping[str, Any], dotted: str) -> bool:
    return "." in dotted and field_type(tree, dotted) is not None


def _rates_without_effect(recipe: Recipe, given: Sequence[Override], notes: list[str]) -> list[Problem]:
    """``optimization.lr`` beside a composite optimizer whose groups all have their own rate."""
    if (
        not isinstance(recipe.optimizer, Composite)
        or not recipe.optimizer.groups
        or not recipe.optimization.lr
    ):
        return []
    lr = recipe.optimization.lr
    if any(group.peaks[0] == lr[0] for group in recipe.parameter_groups().values()):
        return []
    if not any(o.key == "optimization.lr" for o in given):
        if lr != Optimization().lr:
            notes.append(
                f"optimization.lr = {lr}: no effect here; every optimizer group has its own lr_float"
            )
        return []
    names = " ".join(f"optimizer.groups.{name}.lr_float={lr[0]}" for name in recipe.optimizer.groups)
    return [
        Problem(
            "optimization.lr", lr, f"has no effect: every optimizer group has its own lr_float; give {names}"
        )
    ]
