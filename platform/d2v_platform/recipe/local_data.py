"""A recipe whose data is on this machine."""

from __future__ import annotations

import dataclasses

from ..storage.cache import local_data
from .schema import Recipe


def with_local_data(recipe: Recipe) -> Recipe:
    """A recipe whose ``task.data`` is on this machine; the same recipe if it was already."""
    if "://" not in recipe.task.data:
        return recipe
    return dataclasses.replace(
        recipe, task=dataclasses.replace(recipe.task, data=local_data(recipe.task.data))
    )
