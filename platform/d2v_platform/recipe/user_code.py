"""Tasks and models of users: a package in ``common.user_dir``, or an installed one with an entry point.

Importing the package is all: it calls ``register_task`` (``recipe/entries.py``) and its like in the library.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import traceback
from importlib import metadata
from pathlib import Path

from data2vec.errors import ConfigError, Problem

FIELD = "common.user_dir"
ENTRY_POINTS = "d2v_platform.tasks"
VARIABLE = "D2V_USER_DIR"  # folders that a driver loaded, for the processes that it starts
BUILT_IN = "data2vec"  # what the reference's own folder, examples/data2vec, is called
_loaded: dict[str, Path] = {}


def is_package(folder: str) -> bool:
    """Whether there is a package of a user's in this folder: not the reference's own, which is built in."""
    path = _absolute(folder)
    return path.name != BUILT_IN and (path / "__init__.py").is_file()


def load_package(folder: str) -> str:
    """Import the package in a folder, once; on another machine the copy of it that Ray brought.

    Returns:
        The folder's absolute path.

    Raises:
        ConfigError: another module has its name, or its code fails; the message has the line.
    """
    path = _absolute(folder)
    name = path.name
    if _loaded.get(name) == path:
        return str(path)
    if name in sys.modules:
        _refuse_another(name, folder)
    if path.is_dir() and str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    _import(name, folder)
    if path.is_dir() and folder not in _inherited():  # Ray's copy of it is no other module
        _refuse_another(name, folder)
    _loaded[name] = path
    return str(path)


def load_where_it_lay(folder: str) -> None:
    """Import the package of a stored recipe, unless this process has it from another place.

    Then the project has moved, or its job was submitted again: Ray unpacks each submission into a new folder
    and leaves the old one there.

    Raises:
        ConfigError: as :func:`load_package`.
    """
    if _absolute(folder).name not in _loaded and is_package(folder):
        load_package(folder)


@functools.cache
def load_installed() -> None:
    """Import the installed packages that offer tasks, and what this process's parent had loaded.

    Raises:
        ConfigError: the code of one fails.
    """
    for folder in _inherited():
        load_package(folder)
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        _import(entry.value, f"entry point {entry.name}")


def folders() -> list[str]:
    """The packages that this process loaded from folders: Ray takes them to its workers, on any node."""
    return [str(path) for path in _loaded.values()]


def _inherited() -> list[str]:
    return [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]


def _refuse_another(name: str, folder: str) -> None:
    """A module of the package's name that does not lie in its folder."""
    found = _folder_of(name)
    if found is None or found.resolve() != _absolute(folder).resolve():
        rule = f"{name} is the name of another module ({found}); rename the folder"
        raise ConfigError([Problem(FIELD, folder, rule)])


def _import(name: str, asked: str) -> None:
    try:
        importlib.import_module(name)
    except ConfigError:
        raise
    except Exception as error:  # whatever a user's module does while it is imported
        last = traceback.extract_tb(error.__traceback__)[-1]
        rule = f"cannot be imported: {type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        raise ConfigError([Problem(FIELD, asked, rule)]) from error


def _absolute(folder: str) -> Path:
    return Path(folder).expanduser().absolute()


def _folder_of(name: str) -> Path | None:
    file = getattr(sys.modules.get(name), "__file__", None)
    return None if file is None else Path(file).parent
