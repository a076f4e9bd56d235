"""Fine-tuning an image model of either generation for classification."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data2vec.artifact import Artifact, load_strictly, read_artifact, save_artifact
from data2vec.config import ImageHeadConfig
from data2vec.data.images import Oddities
from data2vec.errors import CheckpointError, ConfigError, DataError, Problem
from data2vec.families import shape_of
from data2vec.image_heads import (
    ImageClassifier,
    ImageConfig,
    TrunkRegularisation,
    finetuning_config,
    finetuning_lr_scales,
    fit_positions,
)
from data2vec.mae_config import MaeConfig
from data2vec.randomness import seeded
from data2vec.v1.image_config import Data2VecVisionConfig

from ..recipe.image_components import (
    Data2VecImageClassification,
    ImageClassificationData,
    ImageClassifierModel,
    MaeImageClassification,
)
from ..recipe.schema import Recipe
from .floor import Floor, image_floor
from .image_data import OnImages, check_subsets, never_empty, normalisation
from .reduction import rank_and_size
from .statistics import Layout, Sums
from .task import MicroBatch, OneModelTask

logger = logging.getLogger(__name__)


class ImageClassification(OnImages, OneModelTask[ImageClassifier]):
    """``mae_image_classification`` and ``image_classification`` with the model of each generation."""

    def __init__(self, recipe: Recipe, model_folder: Path | None) -> None:
        assert isinstance(recipe.task, ImageClassificationData)
        assert isinstance(recipe.model, ImageClassifierModel)
        self.recipe, self.task, self.settings = recipe, recipe.task, recipe.model
        if model_folder is None:
            raise ConfigError([Problem("model.model_path", None, "is required: a pretrained image model")])
        parent = read_artifact(model_folder)
        self.parent = parent.config.get("origin", {})
        _check_fit(recipe, parent)
        self.parent_is_mae = isinstance(parent.model_config, MaeConfig)
        self.oddities = Oddities(speaks=rank_and_size()[0] == 0)
        self.classes = self.dataset(recipe.dataset.train_subset).source.classes
        trunk = image_trunk(recipe, parent)
        self.model = ImageClassifier(trunk, _head(recipe.model), seed=recipe.common.seed)
        if not recipe.model.no_pretrained_weights:
            load_strictly(self.model.model, fit_positions(parent.trunk_state, trunk), parent.folder)
        self.layout = Layout(
            (
                "loss",
                "sample_size",
                "nsentences",
                "ntokens",
                "micro_batches",
                "correct",
                "unmixed",
                "unreadable",
            )
        )
        self._mixup = _make_mixup(recipe.model)

    @property
    def lr_scales(self) -> Mapping[str, float] | None:
        """Layer decay."""
        return finetuning_lr_scales(self.model, self.settings.layer_decay, front_end=self.parent_is_mae)

    @staticmethod
    def network(recipe: Recipe, parent: Artifact | None) -> object:
        """The pretrained network for images of the task's size."""
        if parent is None or parent.modality != "IMAGE":
            return OneModelTask.network(recipe, parent)
        return image_trunk(recipe, parent)

    @classmethod
    def check_data(cls, recipe: Recipe, model_folder: Path | None) -> None:
        """Open every subset that training will use, and compare classes and model."""
        assert isinstance(recipe.model, ImageClassifierModel)
        train = recipe.dataset.train_subset
        sources = check_subsets(recipe, list(dict.fromkeys([train, *recipe.valid_subsets()])))
        found = len(sources[train].classes)
        if found != recipe.model.num_classes:
            raise DataError(
                f"task.data = {recipe.task.data!r} has {found} classes, model.num_classes is "
                f"{recipe.model.num_classes}; set model.num_classes={found}"
            )
        if model_folder is not None:
            _check_fit(recipe, read_artifact(model_folder))

    def forward(self, batch: Mapping[str, Any], update: int) -> MicroBatch:
        """Summed loss of one micro-batch, mixed by a key of its own."""
        key = (self.recipe.common.seed, update, int(batch["id"][0]))
        images, target = batch["source"], batch["target"]
        if self._mixup is not None:
            images, target = self._mix(images, target, key)
        logits = self.model(images, *key)
        output = self.model.loss(logits, target)
        size = len(batch["id"])
        # Accuracy of a mixed batch means nothing: counted where labels are whole.
        whole = not target.is_floating_point()
        scalars = {
            "loss": output.loss.detach(),
            "sample_size": size,
            "nsentences": size,
            "ntokens": size,
            "micro_batches": 1,
            "correct": (logits.argmax(-1) == batch["target"]).sum() if whole else 0,
            "unmixed": size if whole else 0,
            "unreadable": self.oddities.note(batch["notes"]),
        }
        return MicroBatch(output.loss, size, scalars)

    def _mix(
        self, images: torch.Tensor, target: torch.Tensor, key: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """timm's mixup or cutmix with the batch reversed; of an odd batch the last image stays whole."""
        even = len(images) - len(images) % 2
        mixed, targets = [], []
        if even:
            with seeded("mixup", *key):
                part, soft = self._mixup(images[:even].clone(), target[:even])  # pyright: ignore[reportOptionalCall]
            mixed.append(part)
            targets.append(soft)
        if even < len(images):
            smoothing, classes = self.settings.label_smoothing, self.settings.num_classes
            soft = nn.functional.one_hot(target[even:], classes).to(images.dtype)
            mixed.append(images[even:])
            targets.append(soft * (1.0 - smoothing) + smoothing / classes)
        return torch.cat(mixed), torch.cat(targets)

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Loss per image; accuracy in percent where no batch was mixed."""
        figures = {"loss": sums["loss"] / max(sums["sample_size"], 1.0)}
        if sums["unmixed"] == sums["sample_size"]:
            figures["accuracy"] = 100.0 * sums["correct"] / max(sums["sample_size"], 1.0)
        if sums["unreadable"]:
            figures["unreadable_images"] = sums["unreadable"]
        return figures

    def predict(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Class, rank of the label and loss of each image."""
        self.oddities.note(batch["notes"])
        batch, empty = never_empty(batch, self.task.input_size)
        logits, target = self.model(batch["source"]), batch["target"]
        losses = self.model.loss(logits, target).elementwise.tolist()
        own = logits.gather(1, target[:, None])
        ranks = (logits > own).sum(1).tolist()
        rows = zip(
            batch["id"].tolist(), logits.argmax(-1).tolist(), target.tolist(), ranks, losses, strict=True
        )
        return (
            []
            if empty
            else [
                {"id": i, "prediction": prediction, "target": label, "rank": rank, "loss": loss}
                for i, prediction, label, rank, loss in rows
            ]
        )

    def score(self, subset: str, results: list[dict[str, Any]]) -> dict[str, float]:
        """Loss, top-1 and top-5 accuracy in percent over the whole subset."""
        count = max(len(results), 1)
        return {
            "loss": sum(result["loss"] for result in results) / count,
            "accuracy": 100.0 * sum(result["prediction"] == result["target"] for result in results) / count,
            "top5": 100.0 * sum(result["rank"] < 5 for result in results) / count,
        }

    def export(self, folder: Path, origin: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Path:
        """Network, head and class names: needs no pretrained file to be used."""
        return save_artifact(
            folder,
            kind="image_classifier",
            model_config=self.model.model.config,
            head_config=self.model.head_config,
            state=weights,
            task={
                "labels": self.classes,
                "input_size": self.task.input_size,
                "metric": self.recipe.checkpoint.best_checkpoint_metric,
                **normalisation(self.recipe),
            },
            origin=origin,
        )

    def floor(self, subset: str, metric: str) -> Floor | None:
        """The most frequent classes."""
        return image_floor(self.dataset(subset).source.labels, self.classes, metric)

    @staticmethod
    def pictures(recipe: Recipe, model_folder: Path, folder: Path) -> list[Path]:
        """Verdicts on validation images."""
        from .image_pictures import draw_verdicts

        return [draw_verdicts(recipe, model_folder, folder / "verdicts.png")]


def image_trunk(recipe: Recipe, parent: Artifact) -> ImageConfig:
    """The pretrained architecture for images of the task's size, under the recipe's regularisation."""
    model, task, config = recipe.model, recipe.task, parent.model_config
    assert isinstance(model, ImageClassifierModel) and isinstance(task, ImageClassificationData)
    assert isinstance(config, ImageConfig | MaeConfig), "_check_fit refuses other models"
    return finetuning_config(config, _regularisation(model), task.input_size)


def _regularisation(model: ImageClassifierModel) -> TrunkRegularisation:
    names = ["drop_path_rate", "attention_dropout"]
    if isinstance(model, MaeImageClassification):
        names += ["encoder_dropout", "post_mlp_drop", "activation_dropout", "dropout_input", "layerdrop",
                  "prenet_layerdrop", "prenet_dropout", "norm_eps"]  # fmt: skip
    return TrunkRegularisation(**{name: getattr(model, name) for name in names})


def _head(model: ImageClassifierModel) -> ImageHeadConfig:
    common = {"num_classes": model.num_classes, "label_smoothing": model.label_smoothing}
    if isinstance(model, Data2VecImageClassification):
        return ImageHeadConfig(
            **common,
            fc_norm_eps=model.fc_norm_eps,
            drop_first_patch=model.drop_first_patch,
            init_scale=model.head_init_scale,
        )
    return ImageHeadConfig(
        **common,
        prediction_mode=model.prediction_mode,
        use_fc_norm=model.use_fc_norm,
        linear_classifier=model.linear_classifier,
    )


def _make_mixup(model: ImageClassifierModel) -> Any:
    """timm's mixup, or ``None`` where neither mixup nor cutmix is on."""
    if model.mixup == 0 and model.cutmix == 0:
        return None
    from timm.data import Mixup

    return Mixup(
        mixup_alpha=model.mixup,
        cutmix_alpha=model.cutmix,
        prob=model.mixup_prob,
        switch_prob=model.mixup_switch_prob,
        mode=model.mixup_mode if isinstance(model, MaeImageClassification) else "batch",
        label_smoothing=model.label_smoothing,
        num_classes=model.num_classes,
    )


def _check_fit(recipe: Recipe, parent: Artifact) -> None:
    """The model must read images and be of the generation that the recipe's task is for."""
    config = parent.model_config
    if parent.modality != "IMAGE":
        raise CheckpointError(f"{parent.folder} holds a model of {parent.modality.lower()}, not of images")
    first = isinstance(config, Data2VecVisionConfig)
    if first != isinstance(recipe.model, Data2VecImageClassification):
        wanted = "data2vec_image_classification" if first else "mae_image_classification"
        generation = "data2vec 1" if first else "data2vec 2.0"
        task_name = wanted.removeprefix("data2vec_")
        rule = f"the model at model_path is {generation}; use model._name={wanted}, task._name={task_name}"
        raise ConfigError([Problem("model._name", type(recipe.model).__name__, rule)])
    patch = shape_of(config)[3] or 1
    task = recipe.task
    assert isinstance(task, ImageClassificationData)
    if task.input_size < patch:
        rule = f"must be at least one patch of {patch} pixels"
        raise ConfigError([Problem("task.input_size", task.input_size, rule)])
