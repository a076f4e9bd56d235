"""kNN and linear probe of frozen features, of a model and of random weights beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from data2vec.errors import DataError
from data2vec.image_model import ImageModel
from data2vec.probes import knn_predict, linear_probe, top1

from .command_options import Probed, ProbeOptions
from .image_rows import ImageRows, open_any, run_model


def probe_images(models: Sequence[ImageModel], place: str, options: ProbeOptions) -> Probed:
    """``d2v probe`` of class folders."""
    sides = (options.bank, options.subset or "val")
    sources = [open_any(place, name, True) for name in sides]
    if sources[0].classes != sources[1].classes:
        differ = sorted(set(sources[0].classes) ^ set(sources[1].classes))
        raise DataError(f"{place}: {sides[1]} has other classes than {sides[0]}, such as {differ[0]!r}")
    rows = [
        tuple(run_model(model, source, "features", options.pooling, options.layer) for source in sources)
        for model in models
    ]
    scores = [probe(bank, queries, options.neighbours) for bank, queries in rows]
    odd = dict.fromkeys(line for both in rows for side in both for line in side.odd)
    return Probed(sides, (len(rows[0][0].names), len(rows[0][1].names)), scores, list(odd))


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
