"""One pass over a data set as the training loop reads it, for the measured inputs of every modality."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks.batches import Share, make_loader
from d2v_platform.tasks.task import batches_of


def passes(
    dataset: Any, recipe: Recipe, samples: int, folder: tempfile.TemporaryDirectory[str]
) -> Callable[[int], None]:
    """Reading all batches of an epoch in this process; the argument is the number of passes made.

    Args:
        dataset: of a task.
        recipe: its batches.
        samples: what one pass must find.
        folder: of the data set; goes with the function, which holds it.
    """

    def read(made: int) -> None:
        assert folder
        epoch = dataset.for_epoch(made + 1)
        batches = batches_of(epoch, recipe, made + 1, True, rebuild=True)
        found = sum(len(batch["id"]) for batch in make_loader(epoch, Share(batches, 0, 1, 0, 1)))
        assert found == samples, found

    return read
