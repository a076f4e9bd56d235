"""Pretraining data2vec 2.0 and data2vec 1 on images, with probes of the features at validation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data2vec.config import Data2VecMultiConfig
from data2vec.data.images import Oddities
from data2vec.image_model import pooled_features
from data2vec.pretraining import Data2VecPretraining
from data2vec.probes import knn_predict, linear_probe, top1
from data2vec.v1.image import Data2VecVisionPretraining
from data2vec.v1.image_config import Data2VecVisionConfig

from ..recipe.image_components import ImagePretraining as ImagePretrainingRecipe
from ..recipe.pretraining_checks import PROBE_METRICS
from ..recipe.schema import Recipe
from .batches import Share, to_device
from .floor import Floor
from .image_data import (
    OnImages,
    check_subsets,
    evaluating_transform,
    never_empty,
    normalisation,
    open_task_images,
)
from .pretraining import PretrainingTask
from .reduction import gather_objects, rank_and_size
from .statistics import Layout, Sums
from .task import MicroBatch

logger = logging.getLogger(__name__)


class ImagePretraining(OnImages, PretrainingTask):
    """``mae_image_pretraining`` and ``image_pretraining`` with the data2vec model of each generation."""

    def __init__(self, recipe: Recipe, model_folder: Path | None = None) -> None:
        assert isinstance(recipe.task, ImagePretrainingRecipe)
        self.recipe, self.config, self.task = recipe, recipe.model, recipe.task
        self.oddities = Oddities(speaks=rank_and_size()[0] == 0)
        self.build(recipe.common.seed)
        self.layout = Layout((*self.layout.scalars, "unreadable", *self._loss_names()), self.layout.moments)

    def build(self, seed: int) -> None:
        """The model, and the sums of vectors of its targets' width."""
        config = self.config
        assert isinstance(config, Data2VecMultiConfig | Data2VecVisionConfig)
        first = isinstance(config, Data2VecVisionConfig)
        self.model = (
            Data2VecVisionPretraining(config, seed=seed) if first else Data2VecPretraining(config, seed=seed)
        )
        self.prepare(config.embed_dim)

    @classmethod
    def check_data(cls, recipe: Recipe, model_folder: Path | None) -> None:
        """Open every subset that training will use."""
        assert isinstance(recipe.task, ImagePretrainingRecipe)
        bank = [recipe.task.probe_bank] if recipe.task.probe_bank else []
        check_subsets(
            recipe, list(dict.fromkeys([recipe.dataset.train_subset, *recipe.valid_subsets(), *bank]))
        )

    def forward(self, batch: Mapping[str, Any], update: int) -> MicroBatch:
        """Weighted losses of one micro-batch, and each loss by itself where there are several."""
        result = super().forward(batch, update)
        scalars = dict(result.scalars)
        if self.chunk is None or self.chunk.first:
            scalars["unreadable"] = self.oddities.note(batch["notes"])
        scalars |= {f"loss_{name}": value for name, value in self.last_losses.items()}
        return MicroBatch(result.loss, result.sample_size, scalars, result.moments, result.stages)

    def compute(self, batch: Mapping[str, Any], update: int) -> Any:
        """Losses of one micro-batch; masks are functions of (seed, update, image, clone)."""
        output = self.model(
            batch["source"],
            None,
            batch["id"],
            update=update,
            seed=self.recipe.common.seed,
            watch=self.watching,
            **self.chunked,
        )
        self.last_losses = {name: value.detach() for name, value in output.losses.items()}
        return output

    def ntokens(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Images: each counts as one."""
        return len(batch["id"])

    def metrics(self, sums: Sums) -> dict[str, float]:
        """The common figures, each loss per masked patch, and images that were replaced."""
        figures, size = super().metrics(sums), max(sums["sample_size"], 1.0)
        figures |= {name: sums[name] / size for name in self._loss_names()}
        if sums["unreadable"]:
            figures["unreadable_images"] = sums["unreadable"]
        return figures

    def predict(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Loss of one validation batch, and the features of its images where the recipe probes them."""
        self.oddities.note(batch["notes"])
        batch, empty = never_empty(batch, self.task.input_size)
        results = super().predict(batch)
        if self.task.probe_bank is None:
            return [] if empty else results
        features = self._features(batch["source"])
        images = [
            {"id": int(i), "loss": 0.0, "sample_size": 0, "label": int(label), "feature": row}
            for i, label, row in zip(batch["id"], batch["target"], features.numpy(), strict=True)
        ]
        images[0] |= {"loss": results[0]["loss"], "sample_size": results[0]["sample_size"]}
        return [] if empty else images

    def score(self, subset: str, results: list[dict[str, Any]]) -> dict[str, float]:
        """Loss per masked patch; kNN and linear probe in percent, taught on ``task.probe_bank``."""
        scores = super().score(subset, results)
        if self.task.probe_bank is None or not results:
            return scores
        bank = self._bank_features(self.task.probe_bank)
        queries = torch.from_numpy(np.stack([result["feature"] for result in results]))
        labels = torch.tensor([result["label"] for result in results])
        train, train_labels = bank
        classes = int(max(int(train_labels.max()), int(labels.max()))) + 1
        votes = knn_predict(train, train_labels, queries, self.task.probe_neighbours, classes)
        logits = linear_probe(train, train_labels, queries, classes, seed=self.recipe.common.seed)
        return scores | {"knn": top1(votes, labels), "linear_probe": top1(logits, labels)}

    def kept(self) -> dict[str, Any]:
        """How images are read."""
        return {"task": {"input_size": self.task.input_size, **normalisation(self.recipe)}}

    @staticmethod
    def pictures(recipe: Recipe, model_folder: Path, folder: Path) -> list[Path]:
        """Masks on training images."""
        from .image_pictures import draw_masks

        return [draw_masks(recipe, folder / "masks.png")]

    def floor(self, subset: str, metric: str) -> Floor | None:
        """Where the recipe probes features: those of the network before training."""
        if self.task.probe_bank is None:
            return None
        metric = metric if metric in PROBE_METRICS else PROBE_METRICS[0]
        start = type(self)(self.recipe)
        device = next(self.model.parameters()).device
        start.model.to(device).eval()
        data = start.dataset(subset)
        with torch.no_grad():
            rows = [
                row
                for batch in start.batches(subset, 1, training=False)
                for read in [to_device(data.collate([data[i] for i in batch]), device)]
                for row in start.predict(data.finish(read))
            ]
        value = start.score(subset, sorted(rows, key=lambda row: row["id"]))[metric]
        return Floor(metric, value, "the network before training", data.source.fingerprint())

    def _loss_names(self) -> tuple[str, ...]:
        """Sums of the single losses, where there are several."""
        config = self.config
        if not isinstance(config, Data2VecMultiConfig):
            return ()
        names = ["cls"] if config.cls_loss > 0 else []
        names += ["recon"] if config.recon_loss > 0 else []
        return tuple(f"loss_{name}" for name in [*names, "IMAGE_regression"]) if names else ()

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        layer, run = self.task.probe_layer, self.model.student_features
        with torch.no_grad():
            return pooled_features(self.model.student, images, "mean", layer, run=run).float().cpu()

    def _bank_features(self, subset: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and classes of the bank; the workers share its images."""
        dataset = open_task_images(self.recipe, subset, False, evaluating_transform(self.recipe))
        device = next(self.model.parameters()).device
        rank, size = rank_and_size()
        self.model.eval()
        mine: list[tuple[int, np.ndarray, int]] = []
        batch_size = self.recipe.dataset.batch_size_valid or 16
        batches = [
            np.arange(len(dataset))[start : start + batch_size]
            for start in range(0, len(dataset), batch_size)
        ]
        share = Share(batches, 0, len(batches), rank, size, padded=True)
        for turn, chosen in zip(share.own_indices(len(batches)), share, strict=True):
            batch = dataset.collate([dataset[i] for i in chosen])
            self.oddities.note(batch["notes"])
            batch, empty = never_empty(batch, self.task.input_size)
            rows = self._features(batch["source"].to(device)).numpy()
            if turn < len(batches) and not empty:
                mine += list(zip(batch["id"].tolist(), rows, batch["target"].tolist(), strict=True))
        self.model.train()
        everyone = sorted((row for part in gather_objects(mine) for row in part), key=lambda row: row[0])
        features = torch.from_numpy(np.stack([row[1] for row in everyone]))
        return features, torch.tensor([row[2] for row in everyone])
