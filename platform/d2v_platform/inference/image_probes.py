"""kNN and linear probe of frozen features, of a model and of random weights beside it."""

from __future__ import annotations

import torch

from data2vec.errors import DataError
from data2vec.probes import knn_predict, linear_probe, top1

from .image_rows import ImageRows


def probe(bank: ImageRows, queries: ImageRows, neighbours: int, seed: int = 1) -> dict[str, float]:
    """kNN and linear probe in percent: taught on ``bank``, judged on ``queries``."""
    if bank.classes != queries.classes or not bank.classes:
        raise DataError("probes need class folders, the same in both subsets")
    train, labels = torch.from_numpy(bank.values), torch.from_numpy(bank.labels)
    test, wanted = torch.from_numpy(queries.values), torch.from_numpy(queries.labels)
    classes = len(bank.classes)
    return {
        "knn": top1(knn_predict(train, labels, test, neighbours, classes), wanted),
        "linear_probe": top1(linear_probe(train, labels, test, classes, seed=seed), wanted),
    }
