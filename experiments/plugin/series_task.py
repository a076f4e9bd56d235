"""Pretraining on series: their data, the objective of data2vec 2.0, kNN of frozen features at validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2v_platform.recipe.components import ModelCriterion
from d2v_platform.recipe.entries import TaskEntry, register_task
from d2v_platform.recipe.groups import MISSING
from d2v_platform.recipe.pretraining_checks import pretraining_problems
from d2v_platform.recipe.schema import Recipe
from d2v_platform.registry.array_models import serve_arrays
from d2v_platform.tasks.floor import Floor
from d2v_platform.tasks.pretraining import PretrainingTask
from d2v_platform.tasks.task import batches_of
from data2vec.data.arrays import ArrayDataset
from data2vec.errors import DataError
from data2vec.pretraining import Data2VecPretraining
from data2vec.probes import knn_predict, top1

from . import series_model


@dataclass(kw_only=True)
class SeriesOptions:
    """Series to pretrain on, with classes that only the probe reads."""

    data: str = MISSING  # folder with SUBSET.npz: x (series, channels, steps), y (series,) classes
    neighbours: int = 10  # of the kNN probe, taught on the training subset


class SeriesPretraining(PretrainingTask):
    """``series_pretraining`` with ``data2vec_series``."""

    def __init__(self, recipe: Recipe, model_folder: Path | None = None) -> None:
        self.recipe, self.config, self.task = recipe, recipe.model, recipe.task
        self._datasets: dict[str, ArrayDataset] = {}
        self.model = Data2VecPretraining(self.config, seed=recipe.common.seed)
        self.prepare(self.config.embed_dim)

    @staticmethod
    def open_subset(recipe: Recipe, subset: str) -> ArrayDataset:
        """The series of one subset."""
        return ArrayDataset(recipe.task.data, subset)

    @staticmethod
    def check_data(recipe: Recipe, model_folder: Path | None) -> None:
        """Open every subset; their series must be what the model takes."""
        series: Any = recipe.model.front_end()  # type: ignore[union-attr]
        for subset in (recipe.dataset.train_subset, *recipe.valid_subsets()):
            found, wanted = (
                ArrayDataset(recipe.task.data, subset).x.shape[1:],
                (series.channels, series.steps),
            )
            if found != wanted:
                raise DataError(f"series of {subset} have the shape {tuple(found)}; the model takes {wanted}")

    def dataset(self, subset: str, epoch: int = 1) -> ArrayDataset:
        """The same in every epoch."""
        if subset not in self._datasets:
            self._datasets[subset] = self.open_subset(self.recipe, subset)
        return self._datasets[subset]

    def batches(self, subset: str, epoch: int, training: bool) -> Sequence[np.ndarray]:
        """Batches filled anew every epoch."""
        return batches_of(self.dataset(subset), self.recipe, epoch, training, rebuild=True)

    def score(self, subset: str, results: list[dict[str, Any]]) -> dict[str, float]:
        """Loss, and kNN accuracy in percent of frozen features, taught on the training subset."""
        bank, asked = (self.dataset(name) for name in (self.recipe.dataset.train_subset, subset))
        features, queries = self._features(bank), self._features(asked)
        options: Any = self.task
        votes = knn_predict(features, bank.y, queries, options.neighbours, int(bank.y.max()) + 1)
        return super().score(subset, results) | {"knn": top1(votes, asked.y)}

    def floor(self, subset: str, metric: str) -> Floor:
        """kNN of the network before training."""
        value = type(self)(self.recipe).score(subset, [])["knn"]
        return Floor("knn", value, "the network before training", self.dataset(subset).fingerprint())

    @torch.no_grad()
    def _features(self, data: ArrayDataset) -> torch.Tensor:
        training, device = self.model.training, next(self.model.parameters()).device
        x_BTD = self.model.eval().student_features(data.x.to(device)).x_BTD
        self.model.train(training)
        return x_BTD.mean(dim=1).float().cpu()


register_task(
    "series_pretraining",
    SeriesOptions,
    TaskEntry(
        models=(series_model.Data2VecSeriesConfig,),
        criteria=(ModelCriterion,),
        room=SeriesPretraining,
        data="a folder with train.npz and valid.npz; python experiments/plugin/digits.py FOLDER makes one",
        modality="series",
        problems=pretraining_problems,
        metrics=lambda recipe: {"knn": True},
    ),
    models={"data2vec_series": series_model.Data2VecSeriesConfig},
)
serve_arrays(
    "SERIES",
    lambda m: (m.network.encoder.series.channels, m.network.encoder.series.steps),
    series_model.__file__,
)
