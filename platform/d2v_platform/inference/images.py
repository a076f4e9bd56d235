"""``d2v infer`` on images: predictions, accuracy, a table by class and a picture of the confusions.

N images, C classes.
"""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from data2vec.data.image_sources import SUBSETS, ImageSource
from data2vec.errors import DataError, nearest_names
from data2vec.folders import file_sha256
from data2vec.image_model import ImageModel

from ..storage.cache import local_data
from ..tracking.scores import Score
from .image_rows import BATCH, load_image_model, open_any, run_model
from .options import InferOptions, note_unused
from .recording import updates_seen

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
TOP = 5
_USED = ("task.data", "task.labels", "dataset.gen_subset", "dataset.batch_size", "platform.device")
_SHOWN_CLASSES = 30  # rows of the table by class on the screen; all of them are in per_class.csv


def classify_folder(
    model: ImageModel, source: ImageSource, results: Path, batch_size: int = BATCH
) -> dict[str, float]:
    """Class scores of every image, with tables and (where classes are known) accuracy.

    Writes ``predictions.parquet`` and ``.csv``, ``per_class.csv``, ``confusion.csv`` and ``confusion.png``,
    ``summary.json``.

    Raises:
        DataError: a pretrained model without a head; classes of the data that the model does not have.
    """
    import pandas as pd

    if model.classifier is None:
        raise DataError("this is a pretrained model without classes; fine-tune it, or use d2v embed")
    classes = class_names(model.classes, source.classes)
    rows = run_model(model, source, "scores", batch_size=batch_size)
    to_model = np.array([classes.index(name) for name in rows.classes] or [-1])
    labels = np.where(rows.labels >= 0, to_model[rows.labels], -1)
    scores = torch.from_numpy(rows.values).double().softmax(-1).numpy()
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    table = pd.DataFrame(
        {
            "file": rows.names,
            "label": [classes[i] if i >= 0 else None for i in labels],
            "predicted": [classes[i] for i in order[:, 0]],
            "score": scores.max(axis=1),
            "top5": [[classes[i] for i in row] for row in order],
        }
    )
    results.mkdir(parents=True, exist_ok=True)
    table.to_parquet(results / "predictions.parquet", index=False)
    table.assign(top5=[" ".join(x) for x in table["top5"]]).to_csv(results / "predictions.csv", index=False)
    summary: dict[str, float] = {"images": len(rows.names), "unreadable": rows.unreadable}
    if (labels >= 0).all():
        summary |= {
            "top1": 100.0 * float((order[:, 0] == labels).mean()),
            "top5": 100.0 * float((order == labels[:, None]).any(axis=1).mean()),
        }
        confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
        np.add.at(confusion, (labels, order[:, 0]), 1)
        class_table(classes, confusion).to_csv(results / "per_class.csv", index=False)
        pd.DataFrame(confusion, index=classes, columns=classes).to_csv(results / "confusion.csv")
        _draw_confusion(classes, confusion, results / "confusion.png")
    (results / "summary.json").write_text(json.dumps(summary | {"odd": rows.odd}, indent=2) + "\n")
    for line in rows.odd:
        logger.warning("%s", line)
    return summary


def class_names(of_model: list[str], of_data: list[str]) -> list[str]:
    """Names of the model's classes, as the data calls them.

    A model that came without names, from a fairseq file, has numbers: those are the ranks of the sorted
    folder names that it was trained on, so folders of as many classes name them.

    Raises:
        DataError: the data has classes that the model does not have.
    """
    unknown = sorted(set(of_data) - set(of_model))
    if not unknown:
        return of_model
    unnamed = of_model == [str(number) for number in range(len(of_model))]
    if unnamed and len(of_data) == len(of_model):
        logger.info(
            "note: the model's classes have no names; they are taken to be the %d folders in sorted order",
            len(of_data),
        )
        return of_data
    told = (
        f"{len(unknown)} of {len(of_data)} classes of the data are unknown to the model, such as "
        f"{unknown[0]!r}; it has {', '.join(of_model[:5])}{', ...' if len(of_model) > 5 else ''}. "
    )
    if unnamed:
        told += f"Its classes have no names: give all {len(of_model)} class folders (empty ones count). "
    raise DataError(f"{told}If these folders are no classes, say task.labels=null")


def class_table(classes: list[str], confusion_CC: np.ndarray) -> pd.DataFrame:
    """Images, recall, precision and the most frequent confusion of every class."""
    import pandas as pd

    right = confusion_CC.diagonal()
    real, guessed = confusion_CC.sum(1), confusion_CC.sum(0)
    return pd.DataFrame(
        {
            "class": classes,
            "images": real,
            "recall_pct": 100.0 * right / np.maximum(real, 1),
            "precision_pct": 100.0 * right / np.maximum(guessed, 1),
            "most_confused_with": [
                classes[int(np.argmax(row))] if row.any() else "" for row in confusion_CC - np.diag(right)
            ],
        }
    )


def _draw_confusion(classes: list[str], confusion_CC: np.ndarray, path: Path) -> None:
    """The picture beside the table; results do not depend on it."""
    from ..reports.drawing import plain_text

    try:
        with plain_text():
            draw_confusion(classes, confusion_CC, path)
    except Exception as error:
        logger.warning("no picture of the confusion matrix: %s: %s", type(error).__name__, error)


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


def infer_images(
    options: InferOptions, folder: Path, results: Path, console: Console | None, model: str = ""
) -> list[Score]:
    """Classify every subset of the options.

    Raises:
        DataError: a subset is missing, or its classes are not the model's.
    """
    note_unused(options, _USED, "images")
    data = Path(local_data(options.task.data))
    # The default of task.labels names the label files of speech; null says that there are none.
    labelled = False if options.task.labels is None else None
    sources = {
        subset: open_any(data, _subset_of(data, subset, options.task.data), labelled)
        for subset in options.subsets()
    }
    loaded = load_image_model(folder, options.platform.chosen_device())
    table = Table("subset", "images", "unreadable", "top-1 %", "top-5 %")
    found: list[Score] = []
    weights = file_sha256(folder / "model.safetensors")
    for subset, source in sources.items():
        place = results / subset if len(sources) > 1 else results
        summary = classify_folder(loaded, source, place, options.dataset.batch_size or BATCH)
        count = int(summary["images"])
        found.append(
            Score(subset=subset, metrics={k: summary[k] for k in ("top1", "top5") if k in summary},
                  data=source.fingerprint(), weights=weights, samples=count,
                  update=updates_seen(loaded.config))
        )  # fmt: skip
        shown = [f"{summary[key]:.2f}" if key in summary else "-" for key in ("top1", "top5")]
        counts = [f"{int(summary[key]):,}" for key in ("images", "unreadable")]
        table.add_row(_subset_of(data, subset, options.task.data) or options.task.data, *counts, *shown)
    if console is not None:
        for subset in sources:
            _show_classes(results / subset if len(sources) > 1 else results, subset, console)
        console.print(table)
        console.print(f"results: {results}", highlight=False, soft_wrap=True)
    return found


def _subset_of(data: Path, subset: str, given: str) -> str | None:
    """The subset's name, or ``None`` where the data is one folder of images and no subset was asked for.

    Raises:
        DataError: there is no such subset.
    """

    def there(name: str) -> bool:
        return (data / name).is_dir() or any(data.glob(f"{name}-*.tar"))

    if there(subset):
        return subset
    if not data.is_dir():
        raise DataError(f"task.data = {given!r}: no such folder")
    if subset == InferOptions().dataset.gen_subset and not any(there(name) for name in SUBSETS):
        return None
    have = sorted({p.name for p in data.iterdir() if p.is_dir()} | {name for name in SUBSETS if there(name)})
    raise DataError(
        f"task.data = {given!r} has no subset {subset!r} (it has {', '.join(have[:8]) or 'none'}"
        f"{nearest_names(subset, have)}); choose with dataset.gen_subset"
    )


def _show_classes(results: Path, subset: str, console: Console) -> None:
    """The table by class on the screen, the classes with the most images first."""
    file = results / "per_class.csv"
    if not file.is_file():
        return
    with file.open(encoding="utf-8", newline="") as opened:
        rows = sorted(csv.DictReader(opened), key=lambda row: -int(row["images"]))
    table = Table("class", "images", "recall %", "precision %", "most confused with", title=subset)
    for row in rows[:_SHOWN_CLASSES]:
        figures = [f"{float(row[name]):.1f}" for name in ("recall_pct", "precision_pct")]
        table.add_row(row["class"], row["images"], *figures, row["most_confused_with"])
    console.print(table)
    if len(rows) > _SHOWN_CLASSES:
        console.print(f"{len(rows) - _SHOWN_CLASSES} more classes are in {file}")
