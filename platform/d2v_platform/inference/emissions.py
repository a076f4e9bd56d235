"""Emissions of a subset, computed once for a model and kept on disk: what tuning a decoder searches over.

::

    <D2V_HOME>/cache/emissions/KEY/
      emissions.npy      log-probabilities of all utterances end to end, (frames, symbols) float32
      utterances.json    id, file, seconds, frames and reference of each
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from data2vec.data.letters import words_of_ids
from data2vec.errors import DataError
from data2vec.folders import file_sha256, written_folder

from ..bars import Bars
from ..home import home_folder
from .decoding import DecodingJob, batches, compute_emissions, load_acoustic, open_dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Utterance:
    """One utterance of the store."""

    id: int  # position in the data set
    file: str  # its recording
    seconds: float  # its length
    start: int  # first frame in the array
    frames: int  # number of frames
    reference: str  # its words


class StoredEmissions:
    """Emissions on disk, memory-mapped.

    Args:
        folder: see the module.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = json.loads((folder / "utterances.json").read_text(encoding="utf-8"))
        self.utterances = [Utterance(**entry) for entry in content["utterances"]]
        self._array = np.load(folder / "emissions.npy", mmap_mode="r", allow_pickle=False)

    def __getitem__(self, utterance: Utterance) -> np.ndarray:
        """(T, V) of one utterance."""
        return np.asarray(self._array[utterance.start : utterance.start + utterance.frames])


def stored_emissions(job: DecodingJob, console: Console | None = None) -> tuple[StoredEmissions, bool]:
    """The emissions of a subset, computed now unless they are there.

    Returns:
        The store, and whether it was there.

    Raises:
        DataError: the subset has no labels.
    """
    folder = emission_folder(job)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):  # trials on a node without them come all at once
        there = (folder / "utterances.json").is_file()
        if not there:
            _compute(job, folder, console or Console(quiet=True))
    return StoredEmissions(folder), there


def emission_folder(job: DecodingJob) -> Path:
    """Where the emissions of this model and this data belong; nothing is computed."""
    if job.labels is None:
        raise DataError(
            f"subset {job.subset} in {job.data} has no labels; tuning needs a subset with transcripts"
        )
    weights = file_sha256(Path(job.model) / "model.safetensors")
    limits = [job.min_sample_size, job.max_sample_size]
    parts = [weights, open_dataset(job).fingerprint(), job.subset, limits]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
    return home_folder("cache") / "emissions" / key


def _compute(job: DecodingJob, folder: Path, console: Console) -> None:
    letters = load_acoustic(job.model).letters
    assert letters is not None
    found: dict[int, tuple[dict[str, Any], np.ndarray]] = {}
    dataset = open_dataset(job)
    bar = Bars(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("utterances"),
        TimeRemainingColumn(), console=console, transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(f"emissions of {job.subset}", total=len(dataset))
        for index, emissions in _all(job, dataset):
            entry = {
                "id": index,
                "file": dataset.manifest.name(index),
                "seconds": round(int(dataset.manifest.frames[index]) / 16_000, 3),
                "frames": len(emissions),
                "reference": words_of_ids(dataset.target(index).tolist(), letters),
            }
            found[index] = (entry, emissions)
            bar.update(task, advance=1)
    start, entries = 0, list[dict[str, Any]]()
    for index in sorted(found):
        entry, emissions = found[index]
        entries.append({**entry, "start": start})
        start += len(emissions)
    content = {"subset": job.subset, "model": job.model, "utterances": entries}
    with written_folder(folder) as beside:
        np.save(beside / "emissions.npy", np.concatenate([found[index][1] for index in sorted(found)]))
        (beside / "utterances.json").write_text(json.dumps(content), encoding="utf-8")


def _all(job: DecodingJob, dataset: Any) -> Iterator[tuple[int, np.ndarray]]:
    for indices in batches(dataset, job):
        emissions, frames, _ = compute_emissions(job, dataset, indices)
        for row, index in enumerate(indices):
            yield index, np.ascontiguousarray(emissions[row, : frames[row]], dtype=np.float32)
