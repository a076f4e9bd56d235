"""A recipe file and the command line become one typed recipe.

Files of our tree, and users' files with a Hydra ``defaults`` list, go through Hydra's compose API. A file of
the reference is read by OmegaConf alone: Hydra 1.3 would put one with the header ``# @package _group_`` under
a key ``_group_``. Both end as a plain mapping; overrides, references and checks are the same for both, so
that everything that is wrong is said at once.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data2vec.errors import ConfigError, Data2VecError, Problem
from data2vec.typed import flatten

from . import checks, compat, without_effect
from .coercion import coerce
from .components import CHOICES, Composite
from .groups import GROUPS, MISSING, Checkpoint, Optimization
from .locate import RecipeFile, config_root, find_recipe
from .overrides import LAUNCHER_KEYS, Override, apply, assignment_text, parse_overrides
from .reading import expand_names, field_type, fill_defaults, resolve_inherited
from .schema import Recipe

_HYDRA_LOCK = threading.Lock()  # Hydra's state is one global object
_OLD_ENV = re.compile(r"\$\{env:")
_REFERRED = re.compile(r"\$\{([\w.]+)")
_GROUP_HEADER = re.compile(r"^#\s*@package\s+_group_\s*$", re.MULTILINE)
_HAS_DEFAULTS = re.compile(r"^defaults\s*:", re.MULTILINE)
# Text fields that name places. A submitted job's working directory is thrown away, so they become absolute.
_PATHS = ("task.data", "model.model_path", "model.w2v_path", "checkpoint.restore_file",
          "checkpoint.finetune_from_model", "common_eval.path", "common_eval.results_path",
          "platform.storage")  # fmt: skip


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
    parsed = parse_overrides(_translate_env(texts), multirun, problems) + [
        o for o in overrides if isinstance(o, Override)
    ]
    launcher = [o.key for o in parsed if LAUNCHER_KEYS.match(o.key)]
    if launcher:
        notes.append(f"{', '.join(launcher)}: no effect here; {compat.IGNORED['hydra']}")
    parsed = [o for o in parsed if not LAUNCHER_KEYS.match(o.key)]

    tree = _with_overrides(loaded.tree, parsed, problems, notes)
    recipe = _recipe(tree, problems, notes)
    if check:
        problems += _check(loaded.tree, parsed, recipe, problems)
    if recipe is not None:
        problems += _rates_without_effect(recipe, parsed, notes)
        notes += without_effect.notes_of(recipe)
    if problems or recipe is None:
        raise ConfigError(_unique(problems), f"the recipe {loaded.file.name}")
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
    try:
        text = file.path.read_text(encoding="utf-8")
        foreign = _GROUP_HEADER.search(text) is not None
        plain: Any
        if not foreign and (file.ours or _HAS_DEFAULTS.search(text)):
            plain = _hydra_load(file)
        else:
            plain = OmegaConf.to_container(OmegaConf.load(file.path), resolve=False)
    except UnicodeDecodeError as error:
        rule = "is not UTF-8; convert the file, for example with: iconv -f latin1 -t utf-8"
        where = f"the recipe file {file.path} cannot be read: byte {error.start}"
        raise Data2VecError(f"{where} {rule}") from error
    except (YAMLError, OmegaConfBaseException, HydraException, OSError, ValueError, RecursionError) as error:
        raise Data2VecError(f"the recipe file {file.path} cannot be read: {error}") from error
    if not isinstance(plain, dict):
        raise Data2VecError(f"the recipe file {file.path} must hold a mapping of groups")
    if set(plain) == {"_group_"}:
        plain = plain["_group_"]
        if not isinstance(plain, dict):
            raise Data2VecError(f"the recipe file {file.path} must hold a mapping of groups")
    if dotted := _dotted_keys(plain):
        rule = f"has names with dots as keys ({', '.join(dotted)}); write them nested, group: {{key: value}}"
        raise Data2VecError(f"the recipe file {file.path} {rule}")
    tree = expand_names(_translate_env(plain))
    base = _recipe(tree, [], [])
    return LoadedFile(file=file, tree=tree, base=base.to_dict() if base is not None else None)


def _dotted_keys(values: Any) -> list[str]:
    if not isinstance(values, dict):
        return []
    return [repr(k) for k in values if "." in str(k)] + [k for v in values.values() for k in _dotted_keys(v)]


def _hydra_load(file: RecipeFile) -> dict[str, Any]:
    """Compose a file through Hydra; a user's file may build on ours by ``defaults: [/v2/..., _self_]``."""
    root = config_root().resolve()
    with _HYDRA_LOCK:
        if file.ours:
            return copy.deepcopy(_compose_ours(root, file.name, _stamp(root)))
        search = assignment_text("hydra.searchpath", [f"file://{root}"])
        return _hydra_compose(file.path.parent, file.path.stem, [search])


@functools.lru_cache(maxsize=64)
def _compose_ours(root: Path, name: str, _files: object) -> dict[str, Any]:
    """Composing takes a quarter of a second: sweeps and notebooks compose many times."""
    return _hydra_compose(root, name, [])


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when any YAML file below the folder does."""
    files = [(str(path), path.stat()) for path in sorted(folder.rglob("*.yaml"))]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in files)


def _hydra_compose(folder: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    instance = GlobalHydra.instance()
    outer, instance.hydra = instance.hydra, None  # a program around us may use Hydra itself
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(folder), job_name="d2v"):
            plain: Any = OmegaConf.to_container(hydra_compose(name, overrides=overrides), resolve=False)
            return plain
    finally:
        GlobalHydra.instance().hydra = outer


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
    given = _resolve(tree, unresolved)
    notes += compat.translate(given, fill_defaults(given), lambda name: _is_field(tree, name), problems)
    given = {key: value for key, value in given.items() if value != {} or key in GROUPS or key in CHOICES}
    filled = fill_defaults(given)
    full = resolve_inherited(filled)
    for dotted in _PATHS:
        _make_absolute(full, dotted)
    found: list[Problem] = []
    recipe = Recipe.read(full, found)
    wrong = {problem.field for problem in found}
    sources = flatten(filled) | {problem.field: problem.value for problem in unresolved}
    for problem in found + unresolved:  # a field that takes another one's wrong value is not wrong itself
        if not wrong & set(_REFERRED.findall(str(sources.get(problem.field)))):
            problems.append(problem)
    return recipe


def _is_field(tree: Mapping[str, Any], dotted: str) -> bool:
    return "." in dotted and field_type(tree, dotted) is not None


def _resolve(tree: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """``tree`` with every ``${...}`` replaced; what is not given is looked up among the defaults."""
    if "${" not in str(tree):
        return copy.deepcopy(dict(tree))
    try:
        config = OmegaConf.create(fill_defaults(tree))
    except OmegaConfBaseException as error:
        problems.append(Problem("${...}", None, f"cannot be read: {str(error).splitlines()[0]}"))
        return dict(tree)

    def visit(plain: Mapping[str, Any], node: Any, path: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in plain.items():
            where = f"{path}{key}"
            if compat.is_ignored(where) and not _is_field(tree, where):
                out[key] = value
                continue
            if isinstance(value, Mapping):
                out[key] = visit(value, node[key], where + ".")
                continue
            out[key] = value
            if "${" not in str(value):
                continue
            try:
                found = node[key]
                is_node = isinstance(found, DictConfig | ListConfig)
                out[key] = OmegaConf.to_container(found, resolve=True) if is_node else found
            except OmegaConfBaseException as error:
                problems.append(Problem(where, value, f"cannot be resolved: {str(error).splitlines()[0]}"))
                del out[key]  # reported once, here
        return out

    return visit(tree, config, "")


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


def _translate_env(node: Any) -> Any:
    """The environment as Hydra 1.0 wrote it, ``${env:HOME}``, in today's spelling."""
    if isinstance(node, Mapping):
        return {str(key): _translate_env(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_translate_env(value) for value in node]
    return _OLD_ENV.sub("${oc.env:", node) if isinstance(node, str) else node


def _make_absolute(full: dict[str, Any], dotted: str) -> None:
    group, name = dotted.split(".")
    node = full.get(group)
    if not isinstance(node, dict):
        return
    value = node.get(name)
    if not isinstance(value, str) or value in ("", MISSING, Checkpoint.restore_file) or _is_uri(value):
        return
    parts = value.split(":") if dotted == "task.data" else [value]
    node[name] = ":".join(os.path.abspath(os.path.expanduser(part)) for part in parts)


def _is_uri(value: str) -> bool:
    return "://" in value or value.startswith(("models:/", "runs:/"))


def _unique(problems: Sequence[Problem]) -> list[Problem]:
    seen: dict[tuple[str, str, str], Problem] = {}
    for problem in problems:
        seen.setdefault((problem.field, repr(problem.value), problem.rule), problem)
    return list(seen.values())
