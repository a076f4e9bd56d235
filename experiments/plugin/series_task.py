"""Pretraining on series: their data, the objective of data2vec 2.0, kNN of frozen features at validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from d2v_platform.recipe.entries import TaskEntry, register_task
from d2v_platform.recipe.groups import MISSING
from d2v_platform.recipe.schema import Recipe
from d2v_platform.registry.array_models import serve_arrays
from d2v_platform.tasks.floor import Floor
from d2v_platform.tasks.pretraining import PretrainingTask
from data2vec.data.arrays import ArrayDataset
from data2vec.probes import knn_predict, top1

from . import series_model


@dataclass(kw_only=True)
class SeriesOptions:
    """Series to pretrain on, with classes that only the probe reads."""

    data: str = MISSING  # folder with SUBSET.npz: x (series, channels, steps), y (series,) classes
    neighbours: int = 10  # of the kNN probe, taught on the training subset


class SeriesPretraining(PretrainingTask):
    """``series_pretraining`` with ``data2vec_series``."""

    @staticmethod
    def open_subset(recipe: Recipe, subset: str) -> ArrayDataset:
        """The series of one subset."""
        model: Any = recipe.model
        return ArrayDataset(recipe.task.data, subset, model.series.sample_shape)

    def score(self, subset: str, results: list[dict[str, Any]]) -> dict[str, float]:
        """Loss, and kNN accuracy in percent of frozen features, taught on the training subset."""
        bank, asked = (self.dataset(name) for name in (self.recipe.dataset.train_subset, subset))
        features, queries = self._features(bank), self._features(asked)
        votes = knn_predict(features, bank.y, queries, self.task.neighbours, int(bank.y.max()) + 1)
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
        room=SeriesPretraining,
        data="a folder with train.npz and valid.npz; python experiments/plugin/digits.py FOLDER makes one",
        modality="series",
        metrics=lambda recipe: {"knn": True},
    ),
    models={"data2vec_series": series_model.Data2VecSeriesConfig},
)
serve_arrays("SERIES", series_model.__file__)
