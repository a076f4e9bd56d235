"""Clips with the events they hold: audio from a manifest, padded, with a multi-hot row of classes.

B clips, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .audio import AudioBatch, AudioDataset, AudioOptions, AudioSample, hash_lines
from .event_labels import read_event_labels
from .manifest import Manifest


class EventSample(AudioSample):
    """One clip, complete."""

    classes: tuple[int, ...]


class EventBatch(AudioBatch):
    """Clips of one length."""

    label: torch.Tensor  # (B, C) float32, 1 where the clip holds the class


class EventDataset:
    """The clips of one split.

    Args:
        folder: has ``<split>.tsv`` and ``<split>.<labels>``.
        split: name of the manifest without ``.tsv``.
        options: how audio is read; clips are padded to the longest, and ``labels`` must be ``None``.
        labels: extension of the label files.
        classes: class names by index.
        seed: key of crops and of the subsample.

    Raises:
        DataError: files are missing or malformed, or nothing is left after filtering.
    """

    order = AudioDataset.order

    def __init__(
        self,
        folder: Path | str,
        split: str,
        options: AudioOptions,
        labels: str,
        classes: Sequence[str],
        *,
        seed: int = 1,
    ) -> None:
        assert options.pad and options.labels is None
        self.audio = AudioDataset(folder, split, options, seed=seed)
        self.classes = list(classes)
        path = Path(folder) / f"{split}.{labels}"
        self._labels = read_event_labels(path, self.audio.listed, len(self.classes))

    def __len__(self) -> int:
        return len(self.audio)

    @property
    def sizes(self) -> np.ndarray:
        """Samples that each clip takes in a batch."""
        return self.audio.sizes

    @property
    def manifest(self) -> Manifest:
        """The clips that are used."""
        return self.audio.manifest

    @property
    def epoch(self) -> int:
        """Key of the crops."""
        return self.audio.epoch

    def __getitem__(self, index: int) -> EventSample:
        sample = self.audio[index]
        return {**sample, "classes": self._labels[sample["id"]]}

    def collate(self, samples: Sequence[EventSample]) -> EventBatch:
        """Pad to the longest; classes become a row of zeros and ones."""
        label_BC = torch.zeros(len(samples), len(self.classes))
        for row, sample in enumerate(samples):
            label_BC[row, list(sample["classes"])] = 1.0
        return {**self.audio.collate(samples), "label": label_BC}

    def events(self, index: int) -> tuple[int, ...]:
        """Class indices of a clip that is used."""
        return self._labels[int(self.manifest.lines[index])]

    def for_epoch(self, epoch: int) -> EventDataset:
        """The data of another epoch: the same clips, cropped elsewhere."""
        if epoch == self.epoch:
            return self
        other = copy.copy(self)
        other.audio = self.audio.for_epoch(epoch)
        return other

    def verify(self) -> None:
        """Read the headers of (up to 2000) files and compare them with the manifest."""
        self.audio.verify()

    def fingerprint(self) -> str:
        """Hash of paths, lengths, labels and class names, wherever the files lie."""
        lines = [",".join(map(str, classes)) for classes in self._labels]
        return f"{self.audio.fingerprint()}-{hash_lines([*lines, *self.classes])}"
