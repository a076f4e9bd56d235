"""What must hold between the values of an image recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from data2vec.config import Data2VecMultiConfig
from data2vec.data.image_transforms import finetuning_transform
from data2vec.errors import Problem
from data2vec.mae_config import MaeConfig
from data2vec.v1.image_config import Data2VecVisionConfig

from .groups import split_names
from .image_components import (
    ImageClassificationData,
    ImageClassificationTask,
    ImageClassifierModel,
    ImagePretraining,
    ImagePretrainingTask,
    MaeImageClassification,
    MaeImageClassificationTask,
    MaeImagePretrainingTask,
)
from .pretraining_checks import pretraining_problems

if TYPE_CHECKING:
    from .schema import Recipe

CLASSIFICATION_METRICS = ("accuracy", "top5")


def image_problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything that is impossible about an image recipe."""
    task = recipe.task
    if isinstance(task, ImagePretraining):
        yield from pretraining_problems(recipe)
        yield from _pretraining(recipe, task)
    if isinstance(task, ImageClassificationData):
        yield from _classification(recipe, task)
    if isinstance(task, ImagePretrainingTask | ImageClassificationTask):
        yield from _normalisation(task)


def _pretraining(recipe: Recipe, task: ImagePretraining) -> Iterator[Problem]:
    model = recipe.model
    if isinstance(task, MaeImagePretrainingTask):
        if task.precompute_mask_config:
            rule = "masks follow model.modalities.image (mask_prob, mask_length, ...); leave it empty"
            yield Problem("task.precompute_mask_config", task.precompute_mask_config, rule)
        if task.beit_transforms and task.no_transform:
            yield Problem("task.no_transform", True, "contradicts task.beit_transforms; give one of them")
    size: int | None = None
    if isinstance(model, Data2VecMultiConfig):
        image = model.modalities.image
        if model.modality_name != "IMAGE" or image is None:
            rule = "images need IMAGE and model.modalities.image"
            yield Problem("model.supported_modality", model.supported_modality, rule)
            return
        size = image.input_size
    elif isinstance(model, Data2VecVisionConfig):
        size = model.image_size
    elif isinstance(model, MaeConfig):
        size = model.input_size
    if size is not None and task.input_size != size:
        yield Problem("task.input_size", task.input_size, f"must equal the model's input of {size} pixels")
    if task.probe_bank is not None:
        if recipe.dataset.disable_validation:
            rule = "probes run at validations; set dataset.disable_validation=false"
            yield Problem("task.probe_bank", task.probe_bank, rule)
        if task.probe_bank in split_names(recipe.dataset.valid_subset):
            yield Problem("task.probe_bank", task.probe_bank, "must not be validated itself: it is the bank")
    if task.probe_neighbours < 1:
        yield Problem("task.probe_neighbours", task.probe_neighbours, "must be >= 1")
    depth = getattr(model, "depth", None)
    if depth is not None and not -depth <= task.probe_layer < depth:
        yield Problem("task.probe_layer", task.probe_layer, f"must lie in {-depth} ... {depth - 1}")


def _classification(recipe: Recipe, task: ImageClassificationData) -> Iterator[Problem]:
    model = recipe.model
    if not isinstance(model, ImageClassifierModel):
        return
    if task.input_size < 1:
        yield Problem("task.input_size", task.input_size, "must be >= 1")
    yield from _augmentation(task.auto_augment)
    if not 0.0 <= task.erasing_prob <= 1.0:
        yield Problem("task.erasing_prob", task.erasing_prob, "must lie in 0 ... 1")
    if model.num_classes < 2:
        yield Problem("model.num_classes", model.num_classes, "must be >= 2")
    if not 0.0 < model.layer_decay <= 1.0:
        yield Problem("model.layer_decay", model.layer_decay, "must lie in 0 < decay <= 1")
    for name in ("mixup", "cutmix"):
        if getattr(model, name) < 0:
            yield Problem(f"model.{name}", getattr(model, name), "must be >= 0")
    for name in ("mixup_prob", "mixup_switch_prob"):
        if not 0.0 <= getattr(model, name) <= 1.0:
            yield Problem(f"model.{name}", getattr(model, name), "must lie in 0 ... 1")
    names = ["label_smoothing", "drop_path_rate", "attention_dropout"]
    if isinstance(model, MaeImageClassification):
        names += ["encoder_dropout", "post_mlp_drop", "activation_dropout", "dropout_input", "layerdrop",
                  "prenet_layerdrop", "prenet_dropout"]  # fmt: skip
    for name in names:
        value = getattr(model, name)
        if value is not None and not 0.0 <= value < 1.0:  # null: as pretrained
            yield Problem(f"model.{name}", getattr(model, name), "must lie in 0 <= p < 1")


def _augmentation(policy: str | None) -> Iterator[Problem]:
    """Whether timm knows the policy; it is imported only for another one than the recipes'."""
    if policy is None or policy == MaeImageClassificationTask.auto_augment:
        return

    try:
        finetuning_transform(224, auto_augment=policy)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        rule = f"timm does not know this policy ({error}); give such as rand-m9-mstd0.5-inc1, original, null"
        yield Problem("task.auto_augment", policy, rule)


def _normalisation(task: ImagePretrainingTask | ImageClassificationTask) -> Iterator[Problem]:
    for name in ("normalization_mean", "normalization_std"):
        values = getattr(task, name)
        if len(values) != 3 or (name.endswith("std") and min(values) <= 0):
            yield Problem(f"task.{name}", values, "needs three numbers, deviations > 0")
