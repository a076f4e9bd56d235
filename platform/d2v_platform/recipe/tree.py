"""A recipe file and a command line as one plain mapping, before any schema: for training and for ``infer``.

Files of our tree, and users' files with a Hydra ``defaults`` list, go through Hydra's compose API. A file of
the reference is read by OmegaConf alone: Hydra 1.3 would put one with the header ``# @package _group_`` under
a key ``_group_``. Both end as a plain mapping; overrides and references are the same for both.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data2vec.errors import Data2VecError, Problem

from . import compat
from .components import CHOICES
from .expansion import check_yaml, reference_problems
from .groups import MISSING, CheckpointOptions
from .locate import RecipeFile, config_root
from .overrides import LAUNCHER_KEYS, Override, assignment_text, parse_overrides
from .reading import expand_names
from .yaml_numbers import refuse_odd_numbers

_HYDRA_LOCK = threading.Lock()  # Hydra's state is one global object
_OLD_ENV = re.compile(r"\$\{env:")
_GROUP_HEADER = re.compile(r"^#\s*@package\s+_group_\s*$", re.MULTILINE)
_HAS_DEFAULTS = re.compile(r"^defaults\s*:", re.MULTILINE)
# Text fields that name places. A submitted job's working directory is thrown away, so they become absolute.
_PATHS = ("task.data", "model.model_path", "model.w2v_path", "checkpoint.restore_file",
          "checkpoint.finetune_from_model", "common_eval.path", "common_eval.results_path",
          "platform.storage")  # fmt: skip


def read_tree(file: RecipeFile) -> dict[str, Any]:
    """Read a recipe file into a plain mapping, references unresolved.

    Raises:
        Data2VecError: it cannot be read, or is not a mapping; the message names the file and the line.
    """
    try:
        text = file.path.read_text(encoding="utf-8")
        if not file.ours:
            check_yaml(file.path)
        foreign = _GROUP_HEADER.search(text) is not None
        plain: Any
        if not foreign and (file.ours or _HAS_DEFAULTS.search(text)):
            plain = _hydra_load(file)
        else:
            plain = OmegaConf.to_container(OmegaConf.load(file.path), resolve=False)
        if not file.ours:
            refuse_odd_numbers(text)
    except UnicodeDecodeError as error:
        rule = "is not UTF-8; convert the file, for example with: iconv -f latin1 -t utf-8"
        where = f"the recipe file {file.path} cannot be read: byte {error.start}"
        raise Data2VecError(f"{where} {rule}") from error
    except Data2VecError:
        raise
    except (YAMLError, OmegaConfBaseException, HydraException, OSError, ValueError, RecursionError) as error:
        raise Data2VecError(f"the recipe file {file.path} cannot be read: {error}") from error
    if isinstance(plain, dict) and set(plain) == {"_group_"}:
        plain = plain["_group_"]
    if not isinstance(plain, dict):
        raise Data2VecError(f"the recipe file {file.path} must hold a mapping of groups")
    if dotted := _dotted_keys(plain):
        rule = f"has names with dots as keys ({', '.join(dotted)}); write them nested, group: {{key: value}}"
        raise Data2VecError(f"the recipe file {file.path} {rule}")
    return expand_names(_translate_env(_without_defaults(plain, file.path)))


def _without_defaults(plain: dict[str, Any], path: Path) -> dict[str, Any]:
    """The ``defaults`` of a file of the reference: a component's name, or ``null`` where none is chosen."""
    entries, out = plain.get("defaults", []), {k: v for k, v in plain.items() if k != "defaults"}
    for entry in entries if isinstance(entries, list) else [entries]:
        if entry == "_self_":
            continue
        group, name = next(iter(entry.items())) if isinstance(entry, dict) and entry else (None, None)
        if group not in CHOICES or not isinstance(name, str | None):
            rule = f"has {entry!r} in its defaults, beside the header '# @package _group_'"
            fix = "write '# @package _global_' in a recipe that builds on another one"
            raise Data2VecError(f"the recipe file {path} {rule}; {fix}")
        if name is not None:
            out[group] = {"_name": name, **(expand_names(out).get(group) or {})}
    return out


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


@functools.lru_cache(maxsize=256)  # more than there are recipes
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


def read_overrides(
    texts: Sequence[str], multirun: bool, problems: list[Problem], notes: list[str]
) -> list[Override]:
    """The overrides of a command line; what is for the reference's launcher only is noted and left out."""
    parsed = parse_overrides(_translate_env(list(texts)), multirun, problems)
    launcher = [o.key for o in parsed if LAUNCHER_KEYS.match(o.key)]
    if launcher:
        notes.append(f"{', '.join(launcher)}: no effect here; {compat.IGNORED['hydra']}")
    return [o for o in parsed if not LAUNCHER_KEYS.match(o.key)]


def resolve_references(
    tree: Mapping[str, Any], full: Mapping[str, Any], skip: Callable[[str], bool], problems: list[Problem]
) -> dict[str, Any]:
    """``tree`` with every ``${...}`` replaced.

    Args:
        tree: what was given.
        full: the same, laid over the defaults: what is not given is looked up there.
        skip: whether a dotted name has no meaning here, so that its references do not matter.
        problems: receives references to nothing.
    """
    if "${" not in str(tree):
        return copy.deepcopy(dict(tree))
    if found := reference_problems(full):
        problems += found
        return dict(tree)
    try:
        config = OmegaConf.create(dict(full))
    except (OmegaConfBaseException, RecursionError) as error:
        problems.append(Problem("${...}", None, f"cannot be read: {str(error).splitlines()[0]}"))
        return dict(tree)

    def visit(plain: Mapping[str, Any], node: Any, path: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in plain.items():
            where = f"{path}{key}"
            if skip(where):
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
            except (OmegaConfBaseException, RecursionError) as error:
                problems.append(Problem(where, value, f"cannot be resolved: {str(error).splitlines()[0]}"))
                del out[key]  # reported once, here
        return out

    return visit(tree, config, "")


def _translate_env(node: Any) -> Any:
    """The environment as Hydra 1.0 wrote it, ``${env:HOME}``, in today's spelling."""
    if isinstance(node, Mapping):
        return {str(key): _translate_env(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_translate_env(value) for value in node]
    return _OLD_ENV.sub("${oc.env:", node) if isinstance(node, str) else node


def make_absolute(full: dict[str, Any]) -> None:
    """Turn relative paths of the fields that name places into absolute ones, in place."""
    for dotted in _PATHS:
        _make_absolute(full, dotted)


def _make_absolute(full: dict[str, Any], dotted: str) -> None:
    group, name = dotted.split(".")
    node = full.get(group)
    if not isinstance(node, dict):
        return
    value = node.get(name)
    if not isinstance(value, str) or value in ("", MISSING, CheckpointOptions.restore_file) or _is_uri(value):
        return
    parts = value.split(":") if dotted == "task.data" else [value]
    node[name] = ":".join(os.path.abspath(os.path.expanduser(part)) for part in parts)


def _is_uri(value: str) -> bool:
    return "://" in value or value.startswith(("models:/", "runs:/"))


def unique(problems: Sequence[Problem]) -> list[Problem]:
    """Each problem once, in order."""
    seen: dict[tuple[str, str, str], Problem] = {}
    for problem in problems:
        seen.setdefault((problem.field, repr(problem.value), problem.rule), problem)
    return list(seen.values())
