"""What can be found wrong before any worker starts: data that is not there, or does not fit."""

from __future__ import annotations

from pathlib import Path

from data2vec.errors import ConfigError, Problem

from ..recipe.entries import entry_of
from ..recipe.schema import Recipe
from ..tasks import check_data


def preflight(recipe: Recipe, pretrained: Path | None) -> None:
    """Open the data and compare it with the model, without building anything.

    Raises:
        DataError: a folder or file is missing, damaged or of another dictionary.
        ConfigError: the recipe does not fit the data or the model.
    """

    problems: list[Problem] = []
    for folder in recipe.task.data.split(":"):
        if not Path(folder).is_dir():
            problems.append(Problem("task.data", folder, _missing_folder(recipe, Path(folder))))
    if problems:
        raise ConfigError(problems)
    check_data(recipe, pretrained)


def _missing_folder(recipe: Recipe, folder: Path) -> str:
    wanted = entry_of(recipe.task).data
    parent = folder.parent
    while not parent.exists():
        parent = parent.parent
    if folder.exists():
        return f"is a file; give {wanted}"
    return f"does not exist ({parent} does); give {wanted}"
