"""Models of audio events on labelled or unlabelled clips: probabilities, and average precision by class.

N clips, C classes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import data2vec
from data2vec.audio_model import SAMPLE_RATE, AudioModel
from data2vec.data.audio import AudioDataset, AudioOptions
from data2vec.data.audio_events import EventDataset
from data2vec.data.batching import epoch_batches
from data2vec.data.event_labels import read_classes
from data2vec.errors import DataError
from data2vec.folders import file_sha256
from data2vec.metrics import event_metrics, event_scores_by_class

from ..bars import Bars
from ..figures import duration
from ..preparation.audio_events import DESCRIPTORS
from ..storage.cache import local_data
from ..tracking.scores import Score
from .decoding import refuse_longer
from .options import InferOptions, note_unused
from .recording import updates_seen

logger = logging.getLogger(__name__)
LABELS = "lbl"
TOP = 5
_USED = ("task.data", "task.max_sample_size", "task.min_sample_size", "dataset.gen_subset",
         "dataset.max_tokens", "dataset.batch_size", "platform.device")  # fmt: skip


def infer_events(
    options: InferOptions, folder: Path, results: Path, console: Console | None, model: str = ""
) -> list[Score]:
    """Classify every subset of the options.

    Raises:
        DataError: a manifest or label file that is missing or does not fit; class names of the data that are
            not the model's.
    """

    note_unused(options, _USED, "audio events")
    loaded = data2vec.load(folder, device=options.platform.chosen_device())
    assert isinstance(loaded, AudioModel) and loaded.classifier is not None
    data, subsets = Path(local_data(options.task.data)), options.subsets()
    opened = {subset: open_clips(loaded, data, subset, options) for subset in subsets}
    for dataset in opened.values():
        dataset.verify()  # all subsets before the first one is classified
        refuse_longer(dataset.manifest, options.task.max_sample_size)
    table = Table("subset", "clips", "length", "mAP %", "mAUC %", "top-1 %")
    found: list[Score] = []
    weights = file_sha256(folder / "model.safetensors")
    for subset, dataset in opened.items():
        place = results / subset if len(subsets) > 1 else results
        scores_NC = probabilities(loaded, dataset, options, console)
        summary = write_events(place, loaded.classes, dataset, scores_NC)
        found.append(
            Score(subset=subset, metrics={k: summary[k] for k in ("mAP", "mAUC", "top1") if k in summary},
                  data=dataset.fingerprint(), weights=weights, samples=len(dataset),
                  update=updates_seen(loaded.config))
        )  # fmt: skip
        shown = [f"{summary[key]:.2f}" if key in summary else "-" for key in ("mAP", "mAUC", "top1")]
        table.add_row(subset, f"{len(dataset):,}", duration(3600 * summary["hours"]), *shown)
    if console is not None:
        console.print(table)
        console.print(f"results: {results}", highlight=False)
    return found


def open_clips(
    model: AudioModel, data: Path, subset: str, options: InferOptions
) -> EventDataset | AudioDataset:
    """The clips of a subset, with events where it has a label file."""
    audio = AudioOptions(
        sample_rate=SAMPLE_RATE,
        normalize=model.normalize,
        pad=True,
        min_sample_size=options.task.min_sample_size,
        max_tokens=options.dataset.max_tokens,
    )
    if not (data / f"{subset}.{LABELS}").is_file():
        return AudioDataset(data, subset, audio)
    path = data / DESCRIPTORS
    if path.is_file() and (names := read_classes(path)) != model.classes:
        pairs = zip(names, model.classes, strict=False)
        different = next(((a, b) for a, b in pairs if a != b), None)
        what = f"{len(names)} classes, not {len(model.classes)}"
        if different is not None:
            what = f"{different[0]!r} where the model has {different[1]!r}"
        raise DataError(f"{path} has {what}; the label files belong to another model")
    return EventDataset(data, subset, audio, LABELS, model.classes)


def probabilities(
    model: AudioModel,
    dataset: EventDataset | AudioDataset,
    options: InferOptions,
    console: Console | None = None,
) -> np.ndarray:
    """(N, C) in the data set's order."""
    assert model.classifier is not None
    batches = epoch_batches(
        dataset.sizes,
        seed=1,
        epoch=1,
        max_tokens=options.dataset.max_tokens,
        batch_size=options.dataset.batch_size,
        required_batch_size_multiple=1,
        shuffle=False,
        order="longest",
    )
    scores_NC = np.zeros((len(dataset), len(model.classes)))
    with Bars(*Bars.get_default_columns(), console=console, transient=True, disable=console is None) as bars:
        for batch in bars.track(batches, description="classifying batches"):
            samples: list[Any] = [dataset[int(index)] for index in batch]
            collated = dataset.collate(samples)
            with torch.inference_mode():
                source, padding = (collated[key].to(model.device) for key in ("source", "padding_mask"))
                output = model.classifier(source, padding)
            scores_NC[batch] = output.probabilities().double().cpu().numpy()
    return scores_NC


def write_events(
    folder: Path, classes: Sequence[str], dataset: EventDataset | AudioDataset, scores_NC: np.ndarray
) -> dict[str, float]:
    """``predictions.parquet`` and ``.csv``, ``per_class.csv`` where labels are known, ``summary.json``."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    manifest = dataset.manifest
    order_NC = np.argsort(-scores_NC, axis=1, kind="stable")[:, :TOP]
    columns: dict[str, Any] = {
        "file": [manifest.name(i) for i in range(len(dataset))],
        "seconds": [int(frames) / SAMPLE_RATE for frames in manifest.frames],
        "predicted": [classes[int(row[0])] for row in order_NC],
        "score": scores_NC.max(axis=1),
        "top5": [[classes[int(c)] for c in row] for row in order_NC],
    }
    summary: dict[str, float] = {
        "clips": len(dataset), "hours": float(manifest.frames.sum()) / SAMPLE_RATE / 3600,
    }  # fmt: skip
    if isinstance(dataset, EventDataset):
        labels_NC = np.zeros(scores_NC.shape, dtype=np.int64)
        for row in range(len(dataset)):
            labels_NC[row, list(dataset.events(row))] = 1
        columns["labels"] = [[classes[int(c)] for c in np.flatnonzero(row)] for row in labels_NC]
        summary |= event_metrics(scores_NC, labels_NC)
        precision_C, area_C = event_scores_by_class(scores_NC, labels_NC)
        by_class = {"class": classes, "clips": labels_NC.sum(0), "ap_pct": precision_C, "auc_pct": area_C}
        pd.DataFrame(by_class).to_csv(folder / "per_class.csv", index=False)
    for index, name in enumerate(classes):
        columns[f"score_{name}"] = scores_NC[:, index]
    table = pd.DataFrame(columns)
    table.to_parquet(folder / "predictions.parquet", index=False)
    lists = [name for name in ("top5", "labels") if name in table]
    flat = table.assign(**{name: ["; ".join(row) for row in table[name]] for name in lists})
    flat.to_csv(folder / "predictions.csv", index=False)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary
