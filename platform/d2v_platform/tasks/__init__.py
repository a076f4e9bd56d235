"""The tasks that recipes can train: ``recipe/entries.py`` says which class is whose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..recipe.entries import entry_of, imported
from ..recipe.schema import Recipe

if TYPE_CHECKING:
    from .task import TrainingTask


def task_class(recipe: Recipe) -> type[TrainingTask]:
    """The class that trains a recipe."""
    entry = entry_of(recipe.task)
    room = entry.rooms.get(type(recipe.model), entry.room)
    return room if isinstance(room, type) else imported(room)


def make_task(recipe: Recipe, model_folder: Path | None) -> TrainingTask:
    """The task of a recipe.

    Args:
        recipe: a checked recipe.
        model_folder: the pretrained model's folder or file, resolved from the recipe's field for it.
    """
    return task_class(recipe)(recipe, model_folder)  # pyright: ignore[reportCallIssue]


def open_subset(recipe: Recipe, subset: str) -> Any:
    """The data set of one subset as a recipe asks for it, with its ``fingerprint()``; nothing is built."""
    return task_class(recipe).open_subset(recipe, subset)


def check_data(recipe: Recipe, model_folder: Path | None) -> None:
    """Open a recipe's data sets and compare them with the pretrained model, without building a model.

    Raises:
        Data2VecError: naming the file or field that does not fit.
    """
    task_class(recipe).check_data(recipe, model_folder)
