"""Fine-tuning an audio model for events: which classes a clip holds, judged by mean average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data2vec.artifact import load_strictly, read_artifact, save_artifact
from data2vec.audio_events import AudioEventConfig, AudioEventModel, AudioEventOptions
from data2vec.audio_mixup import mix_clips
from data2vec.data.audio_events import EventDataset
from data2vec.data.event_labels import read_classes
from data2vec.errors import ConfigError, Problem
from data2vec.metrics import event_metrics
from data2vec.v1.config import Data2VecAudioConfig

from ..recipe.audio_components import AudioClassificationModel as AudioClassificationRecipe
from ..recipe.audio_components import AudioClassificationTask
from ..recipe.components import ModelCriterion
from ..recipe.schema import Recipe
from .audio_data import OnAudio, audio_options, audio_samples
from .audio_parent import block_lr_scales, check_parent
from .floor import Floor, event_floor
from .statistics import Layout, Sums
from .task import MicroBatch, OneModelTask


class AudioClassification(OnAudio, OneModelTask[AudioEventModel]):
    """The ``audio_classification`` task with the model of the same name."""

    def __init__(self, recipe: Recipe, model_folder: Path | None) -> None:
        assert isinstance(recipe.model, AudioClassificationRecipe)
        assert isinstance(recipe.task, AudioClassificationTask)
        self.recipe, self.task, self.settings = recipe, recipe.task, recipe.model
        if model_folder is None:
            raise ConfigError([Problem("model.model_path", None, "is required: a pretrained audio model")])
        parent = read_artifact(model_folder)
        self.parent = parent.config.get("origin", {})
        self.pretrained = check_parent(recipe, parent)
        self.classes = load_classes(self.task)
        self.dataset(recipe.dataset.train_subset)
        given = {name: getattr(recipe.model, name) for name in AudioEventOptions.__dataclass_fields__}
        head = AudioEventConfig(**given, num_classes=len(self.classes))
        self.model = AudioEventModel(self.pretrained, head, seed=recipe.common.seed)
        if not recipe.model.no_pretrained_weights:
            load_strictly(self.model.trunk, parent.trunk_state, parent.folder)
        self.layout = Layout(("loss", "sample_size", "nsentences", "ntokens", "micro_batches"))

    @property
    def lr_scales(self) -> Mapping[str, float] | None:
        """Layer decay of a v2 trunk, by parameter name."""
        decay = self.model.options.layer_decay
        if decay == 1.0 or isinstance(self.pretrained, Data2VecAudioConfig):
            return None
        return block_lr_scales(self.model, "d2v_model.", decay)

    @staticmethod
    def open_subset(recipe: Recipe, subset: str) -> EventDataset:
        """The data set of one subset; nothing is built."""
        assert isinstance(recipe.task, AudioClassificationTask)
        return open_labelled_clips(recipe, subset, load_classes(recipe.task))

    @classmethod
    def check_data(cls, recipe: Recipe, model_folder: Path | None) -> None:
        """Open every subset that training will use, and compare data and model."""
        assert isinstance(recipe.task, AudioClassificationTask)
        if model_folder is not None:
            check_parent(recipe, read_artifact(model_folder))
        classes = load_classes(recipe.task)
        for subset in (recipe.dataset.train_subset, *recipe.valid_subsets()):
            open_labelled_clips(recipe, subset, classes).verify()

    def forward(self, batch: Mapping[str, torch.Tensor], update: int) -> MicroBatch:
        """Summed loss of one micro-batch, its clips mixed by a key of its own."""
        seed, count = self.recipe.common.seed, len(batch["id"])
        source, labels, padding = batch["source"], batch["label"], batch["padding_mask"]
        if self.settings.mixes:
            key = (seed, update, int(batch["id"][0]))
            source, labels = mix_clips(source, labels, padding, self.settings, key)
        output = self.model(source, padding, batch["id"], update=update, seed=seed)
        loss = self._weight() * output.loss(labels)
        size = labels.sum()
        scalars = {
            "loss": loss.detach(),
            "sample_size": size,
            "nsentences": count,
            "ntokens": audio_samples(batch),
            "micro_batches": 1,
        }
        return MicroBatch(loss, size, scalars)

    def _weight(self) -> float:
        criterion = self.recipe.criterion
        return criterion.loss_weights.get("main", 1.0) if isinstance(criterion, ModelCriterion) else 1.0

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Loss per positive label, which is what gradients are divided by."""
        return {"loss": sums["loss"] / max(sums["sample_size"], 1e-9)}

    def predict(self, batch: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
        """Probabilities, classes and loss of each clip."""
        output = self.model(batch["source"], batch["padding_mask"], batch["id"])
        probabilities = output.probabilities().cpu()
        rows: list[dict[str, Any]] = []
        for row, identity in enumerate(batch["id"].tolist()):
            label = batch["label"][row : row + 1]
            one = type(output)(output.scores_BC[row : row + 1], output.are_logits)
            rows.append(
                {
                    "id": int(identity),
                    "loss": float(one.loss(label)),
                    "probabilities": probabilities[row].tolist(),
                    "classes": label[0].nonzero()[:, 0].tolist(),
                }
            )
        return rows

    def score(self, subset: str, results: list[dict[str, Any]]) -> dict[str, float]:
        """Loss, mean average precision, area under the ROC curve and top-1 over the whole subset."""
        labels_NC = np.zeros((len(results), len(self.classes)), dtype=np.int64)
        for row, result in enumerate(results):
            labels_NC[row, result["classes"]] = 1
        scores_NC = np.array([result["probabilities"] for result in results])
        scores_NC = scores_NC.reshape(len(results), len(self.classes))
        loss = sum(result["loss"] for result in results) / max(int(labels_NC.sum()), 1)
        return {"loss": loss, **event_metrics(scores_NC, labels_NC)}

    def export(self, folder: Path, origin: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Path:
        """Trunk, projection and class names: needs no pretrained file to be used."""
        return save_artifact(
            folder,
            kind="audio_classifier",
            model_config=self.pretrained,
            head_config=self.model.options,
            state=weights,
            task={
                "sample_rate": self.task.sample_rate,
                "normalize": self.task.normalize,
                "labels": self.classes,
                "metric": self.recipe.checkpoint.best_checkpoint_metric,
            },
            origin=origin,
        )

    def floor(self, subset: str, metric: str) -> Floor | None:
        """The share of each class."""
        data = self.dataset(subset)
        labels_NC = np.zeros((len(data.sizes), len(self.classes)), dtype=np.int64)
        for row in range(len(labels_NC)):
            labels_NC[row, list(data.events(row))] = 1
        return event_floor(labels_NC, metric)


def load_classes(task: AudioClassificationTask) -> list[str]:
    """Class names of ``task.label_descriptors``, a file in the data folder or a path of its own."""
    return read_classes(Path(task.data) / task.label_descriptors)


def open_labelled_clips(recipe: Recipe, subset: str, classes: Sequence[str]) -> EventDataset:
    """The clips of one subset; training leaves out what is longer than a batch, and says how many."""
    task = recipe.task
    assert isinstance(task, AudioClassificationTask)
    options = audio_options(recipe, subset, pad=True, drop_longer=task.max_sample_size is None)
    return EventDataset(task.data, subset, options, task.labels, classes, seed=recipe.common.seed)
