"""The image input of a training: JPEG files read, decoded, cropped and collated as the loop gets them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from d2v_platform.tasks.image_data import open_task_images, training_transform

from .input_passes import passes
from .measure import Case
from .pretraining import load

_IMAGES = 96  # of one measured pass
_SIZE = (500, 375)  # ImageNet's most frequent one
_CELL = 12  # pixels over which made-up colours change


def case(recipe_name: str, samples: int, late: bool = False) -> Case:
    """Reading batches of B images, with a recipe's settings, in the process that trains.

    Args:
        recipe_name: an image pretraining recipe.
        samples: B.
        late: a GPU would crop them (``platform.augment_on_device``): they are only decoded here.
    """
    decoded = ", decoded only" if late else ""
    return Case(
        name=f"input pipeline, {_SIZE[0]} x {_SIZE[1]} JPEG{decoded}",
        build=build_epoch,
        options={"recipe_name": recipe_name, "samples": samples, "late": late},
        matrix_flops=0.0,
        units=_IMAGES,
        unit="images",
    )


def build_epoch(recipe_name: str, samples: int, late: bool = False) -> Callable[[int], None]:
    """One pass over made-up images; the argument is the number of passes made."""
    folder = tempfile.TemporaryDirectory(prefix="d2v_input_")
    write_images(Path(folder.name) / "train", _IMAGES)
    overrides = [f"dataset.batch_size={samples}", f"platform.augment_on_device={str(late).lower()}"]
    recipe = load(recipe_name, overrides, folder.name)
    dataset = open_task_images(recipe, recipe.dataset.train_subset, True, training_transform(recipe))
    return passes(dataset, recipe, _IMAGES, folder)


def write_images(folder: Path, count: int) -> None:
    """JPEG files of smooth colours with grain, about as large as photographs, in one class."""
    place, random = folder / "all", np.random.default_rng(0)
    place.mkdir(parents=True)
    width, height = _SIZE
    for index in range(count):
        coarse = random.integers(0, 256, (height // _CELL, width // _CELL, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(_SIZE, Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.integers(-12, 13, (height, width, 1), dtype=np.int16)
        picture = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(place / f"{index:04}.jpg", quality=90)
