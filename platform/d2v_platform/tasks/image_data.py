"""The images of a recipe's subsets, opened as its task says."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch

from data2vec.data.image_sources import ImageSource, open_images
from data2vec.data.image_transforms import (
    Transform,
    evaluation_transform,
    finetuning_transform,
    pretraining_transform,
)
from data2vec.data.images import ImageDataset, Oddities
from data2vec.errors import DataError

from ..recipe.image_components import (
    ImageClassificationData,
    ImageClassificationTask,
    ImagePretraining,
    ImagePretrainingTask,
)
from ..recipe.schema import Recipe
from .reduction import gather_objects
from .task import TrainingTask

logger = logging.getLogger(__name__)
V1_CROPS, JITTER = (0.08, 1.0), 0.4  # of data2vec 1 and of the BEiT option


class OnImages(TrainingTask):
    """What all tasks on images have."""

    speed_unit = ("images", "images", 1)
    sizes_change = False
    oddities: Oddities

    @staticmethod
    def size_in_words(recipe: Recipe, dataset: Any) -> str:
        """Images."""
        return f"{len(dataset):,} images"

    @staticmethod
    def longest(recipe: Recipe) -> int:
        """All images are one long."""
        return 1

    @staticmethod
    def open_subset(recipe: Recipe, subset: str) -> ImageDataset:
        """The data set of one subset; its transform, which needs torchvision, is built at the first image."""
        training = subset == recipe.dataset.train_subset
        made = functools.cache(functools.partial(evaluating_transform, recipe))
        return open_task_images(recipe, subset, training, lambda image: made()(image))

    def opened(self, subset: str) -> ImageDataset:
        """Images of one subset, augmented in training."""
        training = subset == self.recipe.dataset.train_subset
        transform = training_transform(self.recipe) if training else evaluating_transform(self.recipe)
        return open_task_images(self.recipe, subset, training, transform)

    def close(self) -> None:
        """Say what was odd about images, whichever worker met them."""
        report_oddities(self.oddities)


def generation(recipe: Recipe) -> int:
    """Of data2vec: their transforms differ in small things."""
    return 1 if isinstance(recipe.task, ImagePretrainingTask | ImageClassificationTask) else 2


def normalisation(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments ``mean`` and ``std`` of transforms: the task's, or ImageNet's."""
    task = recipe.task
    if isinstance(task, ImagePretrainingTask | ImageClassificationTask):
        return {"mean": tuple(task.normalization_mean), "std": tuple(task.normalization_std)}
    return {}


def training_transform(recipe: Recipe) -> Transform:
    """The augmentations of training."""
    task, constants = recipe.task, normalisation(recipe)
    if isinstance(task, ImageClassificationData):
        return finetuning_transform(
            task.input_size, auto_augment=task.auto_augment, erasing=task.erasing_prob,
            generation=generation(recipe), **constants,
        )  # fmt: skip
    assert isinstance(task, ImagePretraining)
    if isinstance(task, ImagePretrainingTask) or task.beit_transforms:
        return pretraining_transform(task.input_size, scale=V1_CROPS, jitter=JITTER, **constants)
    return pretraining_transform(task.input_size, resize_only=task.no_transform)


def evaluating_transform(recipe: Recipe) -> Transform:
    """Nothing random."""
    assert isinstance(recipe.task, ImagePretraining | ImageClassificationData)
    return evaluation_transform(
        recipe.task.input_size, generation=generation(recipe), **normalisation(recipe)
    )


def open_task_images(recipe: Recipe, subset: str, training: bool, transform: Transform) -> ImageDataset:
    """The images of one subset; with classes where they matter: in classification, and for probes.

    Pretraining itself takes images at any depth and of any classes, so ``train`` may hold more than the
    labelled subsets that a probe compares.

    Args:
        recipe: an image recipe.
        subset: its name.
        training: unreadable images are replaced, not left out.
        transform: image to tensor.
    """
    task = recipe.task
    assert isinstance(task, ImagePretraining | ImageClassificationData)
    labelled = isinstance(task, ImageClassificationData) or (task_has_probe(recipe) and not training)
    source = _open(recipe, subset, labelled)
    late = training and recipe.platform.augment_on_device
    return ImageDataset(
        source, transform, seed=recipe.common.seed, replace=training, strict=task.strict_images, late=late
    )


def never_empty(batch: Mapping[str, Any], side: int) -> tuple[Mapping[str, Any], bool]:
    """A batch of which no image could be read becomes a black one, so that workers which share a model stay
    in step.

    Returns:
        The batch, and whether it was empty: its results are worth nothing then.
    """
    if len(batch["id"]):
        return batch, False
    zero, device = torch.zeros(1, dtype=torch.int64), batch["source"].device
    image = torch.zeros(1, 3, side, side, device=device)
    return {**batch, "id": zero, "target": zero.to(device), "source": image}, True


def task_has_probe(recipe: Recipe) -> bool:
    """Whether the recipe's pretraining is probed, which needs classes."""
    return isinstance(recipe.task, ImagePretraining) and recipe.task.probe_bank is not None


def check_subsets(recipe: Recipe, subsets: list[str]) -> dict[str, ImageSource]:
    """Open every subset; those whose classes are used need the same ones.

    Args:
        recipe: an image recipe.
        subsets: all that training will use; the bank of a probe may be the training subset.

    Raises:
        DataError: a subset is missing or empty, or the classes differ.
    """
    task, train = recipe.task, recipe.dataset.train_subset
    classification = isinstance(task, ImageClassificationData)
    probed = task_has_probe(recipe)
    bank = task.probe_bank if isinstance(task, ImagePretraining) else None
    sources = {
        subset: _open(recipe, subset, classification or (probed and (subset != train or bank == train)))
        for subset in subsets
    }
    for source in sources.values():
        for note in source.notes:
            logger.warning("%s", note)
    compared = {name: source for name, source in sources.items() if source.classes}
    if compared:
        first = train if train in compared else str(bank)
        for subset, source in compared.items():
            if source.classes != compared[first].classes:
                only = sorted(set(source.classes) ^ set(compared[first].classes))
                advice = "; a probe needs a bank of the same classes" if not classification else ""
                raise DataError(
                    f"task.data = {recipe.task.data!r}: {subset} has other classes than {first}: "
                    f"{len(only)} differ, such as {', '.join(only[:3])}{advice}"
                )
    return sources


def report_oddities(oddities: Oddities) -> None:
    """Bring the workers' notes together and say each kind once, with its count; every worker calls it."""
    oddities.merge(gather_objects(oddities.files()))
    if oddities.speaks:
        for line in oddities.lines():
            logger.warning("images of this run: %s", line)


def _open(recipe: Recipe, subset: str, labelled: bool) -> ImageSource:
    return open_images(recipe.task.data, subset, labelled=labelled)
