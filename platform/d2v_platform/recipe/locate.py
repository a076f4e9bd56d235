"""Which YAML file a name on the command line means."""

from __future__ import annotations

import difflib
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

    Raises:
        Data2VecError: unknown or ambiguous; the message lists the nearest names or the candidates.
    """
    name = config_name.removesuffix(".yaml").strip("/")
    root = config_root()
    if config_dir is None:
        return _find_by_name(name, root)
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


def _find_by_name(name: str, root: Path) -> RecipeFile:
    names = recipe_names(root)
    wanted = name.removeprefix("configs/")
    found = [n for n in names if n == wanted] or [n for n in names if n.endswith("/" + wanted)]
    if len(found) == 1:
        return _recipe_file((root / f"{found[0]}.yaml").resolve(), root)
    if found:
        lines = [f"  d2v train {n}   (or --config-dir configs/{n.rpartition('/')[0]} --config-name {wanted})"
                 for n in found]  # fmt: skip
        raise Data2VecError(f"the recipe name {name!r} is ambiguous; choose one:\n" + "\n".join(lines))
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
    return nearest_names(config_dir, folders) or f"; ours are {', '.join(folders)}"


def _unknown(name: str, names: list[str], what: str) -> Data2VecError:
    short = {n.rpartition("/")[2]: n for n in names}
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    close += [short[n] for n in difflib.get_close_matches(name.rpartition("/")[2], short, n=3, cutoff=0.6)]
    if close:
        return Data2VecError(f"{what}; did you mean {' or '.join(repr(n) for n in dict.fromkeys(close))}?")
    return Data2VecError(f"{what}; there are: {', '.join(names) if names else 'none'}")
