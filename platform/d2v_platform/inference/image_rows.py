"""What an image model says of every image of a subset, and writing features to Parquet.

N images, C classes, T patches, D width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

import data2vec
from data2vec.data.image_sources import SUBSETS, ImageSource, open_images
from data2vec.data.images import ImageDataset, Oddities
from data2vec.errors import DataError
from data2vec.folders import printable
from data2vec.image_model import ImageModel, Pooling

from ..bars import Bars
from ..tasks.batches import make_loader
from .command_options import EmbedOptions

BATCH = 32
_MANY = 512  # images from which starting loader processes pays


@dataclass
class ImageRows:
    """Results of a subset in its order; unreadable images are left out and named."""

    names: list[str]  # N file names
    labels: np.ndarray  # (N,) class ids, -1 without
    values: np.ndarray  # (N, C) logits, (N, D) features, or (N, T, D) features without pooling
    classes: list[str]  # class names of the data, empty without
    odd: list[str]  # what was odd or unreadable, and what was wrong with the source, one line a kind
    unreadable: int = 0  # how many images were left out


def load_image_model(folder: Path, device: torch.device | str = "auto") -> ImageModel:
    """The model of a folder.

    Raises:
        DataError: it reads something else than images, or this machine has no such device.
    """

    model = data2vec.load(folder, device=device)
    if not isinstance(model, ImageModel):
        raise DataError(f"{folder} holds no image model")
    return model


def open_any(data: str | Path, subset: str | None, labelled: bool | None = None) -> ImageSource:
    """Images of a folder or of one subset of it.

    Args:
        data: local folder.
        subset: its name; ``None`` = the folder itself.
        labelled: whether folders (or ``.cls`` in shards) are classes; ``None`` goes by what is there.

    Raises:
        DataError: no such folder, no image in it, a damaged shard, or subsets of which none is named.
    """
    if subset is None and labelled is not False:
        subsets = [name for name in SUBSETS if (Path(data) / name).is_dir()]
        if subsets:
            raise DataError(
                f"{data} holds the subsets {', '.join(subsets)}: choose one, for example {subsets[-1]}"
            )
    return open_images(data, subset or ".", labelled=labelled)


def run_model(
    model: ImageModel,
    source: ImageSource,
    mode: Literal["scores", "features"],
    pooling: Pooling = "mean",
    layer: int = -1,
    *,
    batch_size: int = BATCH,
) -> ImageRows:
    """Logits ("scores") or features ("features") of every readable image of a source.

    Raises:
        DataError: no image can be read, or the model has no such layer or token.
    """
    oddities, names, labels, values = Oddities(), [], [], []
    for batch in _batches(model, source, batch_size):
        oddities.note(batch["notes"])
        if not len(batch["id"]):
            continue
        images = batch["source"].to(model.device)
        with torch.inference_mode():
            if mode == "scores":
                assert model.classifier is not None
                found = model.classifier(images)
            else:
                found = model.features(images, pooling, layer)
        values.append(found.float().cpu().numpy())
        labels += batch["target"].tolist()
        names += [source.name(int(i)) for i in batch["id"]]
    if not names:
        raise DataError(f"none of the {len(source)} images can be read: {'; '.join(oddities.lines())}")
    return ImageRows(
        names,
        np.array(labels),
        np.concatenate(values),
        list(source.classes),
        [*source.notes, *oddities.lines()],
        oddities.counts().get("unreadable", 0),
    )


def _batches(model: ImageModel, source: ImageSource, size: int) -> Iterator[dict[str, Any]]:
    """All images in order, decoded ahead; a bar shows how many are done where somebody looks."""
    dataset = ImageDataset(source, model.transform)
    parts = [list(range(i, min(i + size, len(dataset)))) for i in range(0, len(dataset), size)]
    ahead = min(os.cpu_count() or 1, 8) if len(dataset) >= _MANY else 0
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(markup=False, stderr=True), transient=True) as bars:
        bar = bars.add_task("images", total=len(dataset))
        loader = make_loader(dataset, parts, ahead, pinned=model.device.type == "cuda")
        for part, batch in zip(parts, loader, strict=True):
            yield batch
            bars.advance(bar, len(part))


def write_embeddings(rows: ImageRows, path: Path) -> None:
    """Parquet with ``file``, ``label`` (where known) and ``embedding``.

    An embedding is a list of D float32 values or, without pooling, a list of T such lists.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = [rows.classes[i] if i >= 0 and rows.classes else None for i in rows.labels]
    flat = pa.array(np.ascontiguousarray(rows.values, dtype=np.float32).ravel())
    nested = flat
    for length in reversed(rows.values.shape[1:]):
        nested = pa.FixedSizeListArray.from_arrays(nested, length)
    table = pa.table(
        {
            "file": [printable(name) for name in rows.names],  # of shards that others made
            "label": pa.array(labels, type=pa.string()),
            "embedding": nested,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def embed_images(model: ImageModel, place: Path, options: EmbedOptions) -> None:
    """``d2v embed`` of a folder of images."""
    if place.is_file():
        raise DataError(f"{place} is a file; d2v embed takes the images of a folder")
    labelled = False if options.unlabelled else None  # else what the folders say
    source = open_any(place, options.subset, labelled)
    rows = run_model(model, source, "features", options.pooling, options.layer, batch_size=options.batch_size)
    write_embeddings(rows, options.dest)
    console = Console(markup=False)
    for line in rows.odd:
        console.print(line, style="yellow", markup=False)
    shape = " x ".join(map(str, rows.values.shape[1:]))
    console.print(
        f"{options.dest}: {len(rows.names):,} embeddings of {shape} values", highlight=False, markup=False
    )
