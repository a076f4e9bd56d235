"""Image models on folders: predictions with tables and a picture, embeddings, probes.

N images, C classes, D width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from data2vec.data.image_sources import ImageSource, open_images
from data2vec.data.vision import ImageDataset, Oddities
from data2vec.errors import DataError
from data2vec.image_model import ImageModel, Pooling
from data2vec.probes import accuracy, knn_predict, linear_probe

from ..storage.cache import local_data
from .options import InferOptions

logger = logging.getLogger(__name__)
BATCH = 32
TOP = 5


@dataclass
class ImageRows:
    """Results of a subset in its order; unreadable images are left out and named.

    Attributes:
        names: N file names.
        labels: (N,) class ids, -1 without.
        values: (N, C) logits or (N, D) features.
        classes: class names of the data, empty without.
        odd: what was odd or unreadable, one line a kind.
    """

    names: list[str]
    labels: np.ndarray
    values: np.ndarray
    classes: list[str]
    odd: list[str]


def open_any(data: str | Path, subset: str | None) -> ImageSource:
    """Images of a folder: with classes where there are class folders, else as they lie."""
    root = Path(data)
    split = subset or "."
    try:
        return open_images(root, split, labelled=True)
    except DataError:
        return open_images(root, split, labelled=False)


def run_model(model: ImageModel, source: ImageSource, mode: str, pooling: Pooling, layer: int) -> ImageRows:
    """Logits ("scores") or features ("features") of every readable image of a source."""
    oddities, names, labels, values = Oddities(), [], [], []
    for batch, batch_names in _batches(model, source, oddities):
        with torch.inference_mode():
            if mode == "scores":
                assert model.classifier is not None
                found = model.classifier(batch["source"])
            else:
                found = model.features(batch["source"], pooling, layer)
        values.append(found.float().numpy())
        labels += batch["target"].tolist()
        names += batch_names
    if not names:
        raise DataError(f"none of the {len(source)} images can be read: {'; '.join(oddities.lines())}")
    return ImageRows(names, np.array(labels), np.concatenate(values), list(source.classes), oddities.lines())


def _batches(
    model: ImageModel, source: ImageSource, oddities: Oddities
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    dataset = ImageDataset(source, model.transform)
    for start in range(0, len(dataset), BATCH):
        batch = dataset.collate([dataset[i] for i in range(start, min(start + BATCH, len(dataset)))])
        oddities.note(batch["notes"])
        if len(batch["id"]):
            yield batch, [source.name(int(i)) for i in batch["id"]]


def classify_folder(model: ImageModel, source: ImageSource, results: Path) -> dict[str, float]:
    """Class scores of every image, with tables and (where classes are known) accuracy.

    Writes ``predictions.parquet`` and ``.csv``, ``per_class.csv``, ``confusion.csv`` and ``confusion.png``,
    ``summary.json``.

    Raises:
        DataError: a pretrained model without a head; classes of the data that the model does not have.
    """
    import pandas as pd

    if model.classifier is None:
        raise DataError("this is a pretrained model without classes; fine-tune it, or use d2v embed")
    rows = run_model(model, source, "scores", "mean", -1)
    unknown = sorted(set(rows.classes) - set(model.classes))
    if unknown:
        raise DataError(
            f"{len(unknown)} classes of the data are unknown to the model, such as {unknown[0]!r}; it has "
            f"{', '.join(model.classes[:5])}{', ...' if len(model.classes) > 5 else ''}"
        )
    to_model = np.array([model.classes.index(name) for name in rows.classes] or [-1])
    labels = np.where(rows.labels >= 0, to_model[rows.labels], -1)
    scores = torch.from_numpy(rows.values).double().softmax(-1).numpy()
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    table = pd.DataFrame(
        {
            "file": rows.names,
            "label": [model.classes[i] if i >= 0 else None for i in labels],
            "predicted": [model.classes[i] for i in order[:, 0]],
            "score": scores.max(axis=1),
            "top5": [[model.classes[i] for i in row] for row in order],
        }
    )
    results.mkdir(parents=True, exist_ok=True)
    table.to_parquet(results / "predictions.parquet", index=False)
    table.assign(top5=[" ".join(x) for x in table["top5"]]).to_csv(results / "predictions.csv", index=False)
    summary: dict[str, float] = {"images": len(rows.names)}
    if (labels >= 0).all():
        summary |= {
            "top1": 100.0 * float((order[:, 0] == labels).mean()),
            "top5": 100.0 * float((order == labels[:, None]).any(axis=1).mean()),
        }
        _write_classes(model.classes, labels, order[:, 0], results)
    (results / "summary.json").write_text(json.dumps(summary | {"odd": rows.odd}, indent=2) + "\n")
    for line in rows.odd:
        logger.warning("%s", line)
    return summary


def _write_classes(classes: list[str], labels: np.ndarray, predicted: np.ndarray, results: Path) -> None:
    import pandas as pd

    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    right = confusion.diagonal()
    real, guessed = confusion.sum(1), confusion.sum(0)
    per_class = pd.DataFrame(
        {
            "class": classes,
            "images": real,
            "recall_pct": 100.0 * right / np.maximum(real, 1),
            "precision_pct": 100.0 * right / np.maximum(guessed, 1),
            "most_confused_with": [
                classes[int(np.argmax(row))] if row.any() else "" for row in confusion - np.diag(right)
            ],
        }
    )
    per_class.to_csv(results / "per_class.csv", index=False)
    pd.DataFrame(confusion, index=classes, columns=classes).to_csv(results / "confusion.csv")
    draw_confusion(classes, confusion, results / "confusion.png")


def draw_confusion(classes: list[str], confusion_CC: np.ndarray, path: Path) -> None:
    """A picture of the confusion matrix: rows are true classes, shades are shares of a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(classes)
    side = min(14.0, 3.0 + 0.35 * count)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    share = confusion_CC / np.maximum(confusion_CC.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set(xlabel="predicted", ylabel="true", title=f"{int(confusion_CC.sum())} images")
    if count <= 60:
        axes.set_xticks(range(count), classes, rotation=90)
        axes.set_yticks(range(count), classes)
    if count <= 20:
        for i in range(count):
            for j in range(count):
                if confusion_CC[i, j]:
                    colour = "white" if share[i, j] > 0.5 else "black"
                    axes.text(j, i, str(confusion_CC[i, j]), ha="center", va="center", color=colour)
    FigureCanvasAgg(figure).print_png(str(path))


def write_embeddings(rows: ImageRows, path: Path) -> None:
    """Parquet with ``file``, ``label`` (where known) and ``embedding`` (a list of float32)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dim = rows.values.shape[1]
    labels = [rows.classes[i] if i >= 0 and rows.classes else None for i in rows.labels]
    flat = pa.array(np.ascontiguousarray(rows.values, dtype=np.float32).ravel())
    table = pa.table(
        {
            "file": rows.names,
            "label": pa.array(labels, type=pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, dim),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def probe(bank: ImageRows, queries: ImageRows, neighbours: int, seed: int = 1) -> dict[str, float]:
    """kNN and linear probe in percent: taught on ``bank``, judged on ``queries``."""
    if bank.classes != queries.classes or not bank.classes:
        raise DataError("probes need class folders, the same in both subsets")
    train, labels = torch.from_numpy(bank.values), torch.from_numpy(bank.labels)
    test, wanted = torch.from_numpy(queries.values), torch.from_numpy(queries.labels)
    classes = len(bank.classes)
    return {
        "knn": accuracy(knn_predict(train, labels, test, neighbours, classes), wanted),
        "linear_probe": accuracy(linear_probe(train, labels, test, classes, seed=seed), wanted),
    }


def infer_images(
    options: InferOptions, folder: Path, results: Path, console: Console | None
) -> dict[str, float | None]:
    """Classify every subset of the options; returns top-1 accuracy by subset."""
    model = load_image_model(folder)
    data = local_data(options.task.data)
    subsets = options.subsets()
    table = Table("subset", "images", "top-1 %", "top-5 %")
    found: dict[str, float | None] = {}
    for subset in subsets:
        place = results / subset if len(subsets) > 1 else results
        name = subset if (Path(data) / subset).is_dir() or any(Path(data).glob(f"{subset}-*.tar")) else None
        if name is None and len(subsets) > 1:
            raise DataError(f"{data} has no subset {subset!r}")
        summary = classify_folder(model, open_any(data, name), place)
        found[subset] = summary.get("top1")
        shown = [f"{summary[key]:.2f}" if key in summary else "-" for key in ("top1", "top5")]
        table.add_row(name or str(data), str(int(summary["images"])), *shown)
    if console is not None:
        console.print(table)
        console.print(f"results: {results}", highlight=False)
    return found


def load_image_model(folder: Path) -> ImageModel:
    """The model of a folder.

    Raises:
        DataError: it reads something else than images.
    """
    import data2vec

    model = data2vec.load(folder)
    if not isinstance(model, ImageModel):
        raise DataError(f"{folder} holds no image model")
    return model
