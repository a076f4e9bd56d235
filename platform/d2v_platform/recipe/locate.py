"""Which YAML file a name on the command line means."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data2vec.errors import ConfigError, Data2VecError, Problem, nearest_names

from . import compat

NOT_RECIPES = ("sweep", "platform", "infer")  # folders of the tree that hold other things than recipes


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """One recipe file and the name under which users know it."""

    path: Path  # absolute
    name: str  # relative to our tree ("v2/base_text_only_task"), or the file's stem
    ours: bool  # lies in our tree


def config_root() -> Path:
    """Our tree of recipes: the checkout's ``configs/`` if there is one, else the copy inside the wheel.

    The checkout comes first: an editable install leaves a copy in site-packages, stale after the next edit.

    Raises:
        Data2VecError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parents[1] / "configs", package / "_configs"):
        if folder.is_dir():
            return folder
    raise Data2VecError(
        f"no recipes found: neither {package.parents[1] / 'configs'} nor {package / '_configs'} exists; "
        "reinstall the package, or give --config-dir"
    )


def recipe_names(root: Path | None = None) -> list[str]:
    """All recipes of our tree by their relative names, sorted."""
    root = root or config_root()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(
        n for n in names if n.split("/")[0] not in NOT_RECIPES and not n.split("/")[-1].startswith("_")
    )


def find_recipe(config_name: str, config_dir: str | None = None) -> RecipeFile:
    """The file for ``--config-name`` and, if given, ``--config-dir``.

    Args:
        config_name: a recipe's name; without ``config_dir`` also the path of a YAML file, ours or the user's.
        config_dir: folder of the file; a path of the reference stands for our folder if it does not exist.

    Raises:
        Data2VecError: unknown or ambiguous; the message lists the nearest names or the candidates.
    """
    name = config_name.removesuffix(".yaml").strip("/")
    root = config_root()
    if config_dir is None:
        own = Path(config_name).expanduser()
        if own.suffix == ".yaml" and own.is_file():  # a file that exists wins over ours
            return _recipe_file(own.resolve(), root)
        return _find_by_name(name, root, own)
    folder = Path(config_dir).expanduser()
    if folder.is_dir():
        path = (folder / f"{name}.yaml").resolve()
        if path.is_file():
            return _recipe_file(path, root)
        files = [*folder.glob("*.yaml"), *folder.glob("*/*.yaml")]  # not deeper: the folder may be a home
        names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)
        raise _unknown(name, names, f"{folder} has no {name}.yaml")
    inner = _our_folder(config_dir, root)
    if inner is None:
        rule = "no such folder; leave it out to search our own recipes" + _dir_hint(config_dir, root)
        raise ConfigError([Problem("--config-dir", config_dir, rule)], "the command line")
    path = root / inner / f"{name}.yaml"
    if path.is_file():
        return _recipe_file(path.resolve(), root)
    inside = [n for n in recipe_names(root) if n.rpartition("/")[0] == inner]
    names = [n.rpartition("/")[2] for n in inside] or recipe_names(root)
    raise _unknown(name, names, f"{config_dir} (here: configs/{inner}) has no {name}.yaml")


def _recipe_file(path: Path, root: Path) -> RecipeFile:
    real_root = root.resolve()
    ours = path.is_relative_to(real_root)
    name = path.relative_to(real_root).with_suffix("").as_posix() if ours else path.stem
    return RecipeFile(path=path, name=name, ours=ours)


def _find_by_name(name: str, root: Path, own: Path) -> RecipeFile:
    names = recipe_names(root)
    wanted = name.removeprefix("configs/")
    found = [n for n in names if n == wanted] or [n for n in names if n.endswith("/" + wanted)]
    if len(found) == 1:
        return _recipe_file((root / f"{found[0]}.yaml").resolve(), root)
    if found:
        lines = [f"  d2v train {n}   (or --config-dir configs/{n.rpartition('/')[0]} --config-name {wanted})"
                 for n in found]  # fmt: skip
        raise Data2VecError(f"the recipe name {name!r} is ambiguous; choose one:\n" + "\n".join(lines))
    beside = own if own.suffix == ".yaml" else Path(f"{own}.yaml")
    if beside.is_file():  # a path without its ending
        return _recipe_file(beside.resolve(), root)
    if own.is_file():
        raise Data2VecError(f"{own} is no recipe: a recipe's file ends in .yaml")
    if own.is_dir():
        raise _unknown(name, sorted(map(str, own.glob("*.yaml"))), f"{own} is a folder; give a recipe's file")
    if own.is_absolute() or own.suffix == ".yaml":
        files = sorted(map(str, own.parent.glob("*.yaml")))
        raise _unknown(str(beside), files or names, f"there is no recipe and no file {str(beside)!r}")
    raise _unknown(name, names, f"there is no recipe {name!r}")


def _our_folder(config_dir: str, root: Path) -> str | None:
    """Our folder that a ``--config-dir`` which does not exist stands for."""
    inner = compat.reference_folder(config_dir)
    if inner is not None and (root / inner).is_dir():
        return inner
    parts = config_dir.replace("\\", "/").strip("/").split("/")
    if "configs" in parts:  # configs/v2 of an installed wheel, or of a checkout elsewhere
        inner = "/".join(parts[len(parts) - parts[::-1].index("configs") :])
        return inner if (root / inner).is_dir() else None
    return None


def _dir_hint(config_dir: str, root: Path) -> str:
    folders = sorted({f"configs/{n.rpartition('/')[0]}".rstrip("/") for n in recipe_names(root)})
    return nearest_names(config_dir, folders) or f"; ours are{_listed(folders)}"


def _unknown(name: str, names: list[str], what: str) -> Data2VecError:
    """Names the three nearest, of the modality that was asked for or else of the nearest one; or all.

    Who asks for speech is not offered a text recipe.
    """
    from .entries import modality_of_name as _modality  # with PyTorch: only where there is something to say

    likeness = {
        n: max(_likeness(name, n), _likeness(*(x.rpartition("/")[2] for x in (name, n)))) for n in names
    }
    close = sorted((n for n in names if likeness[n] >= 0.6), key=lambda n: -likeness[n])
    wanted = _modality(name) or (_modality(close[0]) if close else None)
    close = [n for n in close if None in (wanted, _modality(n)) or _modality(n) == wanted][:3]
    if close:
        return Data2VecError(f"{what}; did you mean {' or '.join(repr(n) for n in close)}?")
    return Data2VecError(f"{what}; there {'are' if names else 'is none'}{_listed(names)}")


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _listed(names: Sequence[str]) -> str:
    return "".join(f"\n  {name}" for name in names)


def sweep_names() -> list[str]:
    """The sweeps of our tree."""
    return sorted(path.stem for path in (config_root() / "sweep").glob("*.yaml"))


def find_sweep(name: str, config_dir: str | None) -> Path:
    """The file of a sweep's definition, by its name or its path.

    Raises:
        Data2VecError: there is none, with the nearest names.
    """
    folder = Path(config_dir).expanduser() if config_dir is not None else config_root() / "sweep"
    candidates = (folder / f"{name.removesuffix('.yaml')}.yaml", Path(name).expanduser())
    for path in candidates:
        if path.is_file():
            return path.resolve()
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    hint = nearest_names(name, names) or f"; there {'are' if names else 'is none'}{_listed(names)}"
    raise Data2VecError(f"there is no sweep {name!r} in {folder}{hint}")
