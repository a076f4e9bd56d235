"""A recipe whose data is on this machine."""

from __future__ import annotations

import dataclasses

from ..storage.cache import local_data, on_this_node
from .schema import Recipe


def with_local_data(recipe: Recipe) -> Recipe:
    """A recipe whose ``task.data`` is on this machine; the same recipe if it was already."""
    if "://" not in recipe.task.data:
        return recipe
    return dataclasses.replace(
        recipe, task=dataclasses.replace(recipe.task, data=local_data(recipe.task.data))
    )


def see_data(recipe: Recipe) -> None:
    """In a worker: the driver has checked the data; is it on this node too?

    Raises:
        Data2VecError: it is on the driver's node alone.
    """
    data = recipe.task.data
    if "://" not in data:
        on_this_node("task.data", data, data)
