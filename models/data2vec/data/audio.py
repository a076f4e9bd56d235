"""Utterances for pretraining and for CTC: manifests, letters, random crops, padding.

Two ways to make a batch: *crop* (pretraining) cuts every clip to the shortest one at a place that is a
function of (seed, epoch, clip); *pad* (labels, or on request) fills shorter clips up with zeros.

B batch, S samples, U labels.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch

from ..conv_spec import ConvLayer, frame_count
from ..errors import ConfigError, DataError, Problem
from ..randomness import row_keys, stable_key
from .audio_files import normalized, read_audio, read_header
from .dictionary import Dictionary
from .letters import encode_letters, read_label_lines
from .manifest import Manifest, read_manifest

logger = logging.getLogger(__name__)
_VERIFIED = 2000  # files whose header is read before training; larger sets are sampled evenly
_NEIGHBOURS = 20  # unreadable files in a row that skipping gets over


class AudioSample(TypedDict):
    """One utterance, complete."""

    id: int  # number of its line in the manifest, before any is left out
    source: torch.Tensor  # (S,) float32, normalised if the task says so
    target: NotRequired[torch.Tensor]  # (U,) int64


class AudioBatch(TypedDict):
    """Utterances of one length."""

    id: torch.Tensor  # (B,) int64
    source: torch.Tensor  # (B, S) float32
    padding_mask: torch.Tensor  # (B, S) bool, True on padding
    frames: torch.Tensor  # (B,) int64, samples of each utterance before cropping
    target: NotRequired[torch.Tensor]  # (B, U) int64, padded with 1
    target_lengths: NotRequired[torch.Tensor]  # (B,) int64


@dataclass(frozen=True, kw_only=True)
class AudioOptions:
    """How utterances are read and put together."""

    sample_rate: int = 16_000  # samples a second that files must have
    normalize: bool = False  # zero mean and unit variance over each utterance
    pad: bool = False  # pad to the longest instead of cropping to the shortest
    max_sample_size: int | None = None  # longest piece of an utterance
    min_sample_size: int | None = None  # shorter utterances are left out
    labels: str | None = None  # extension of the label files, such as "ltr"
    subsample: float = 1.0  # share of the utterances to use
    num_batch_buckets: int = 0  # with padding: lengths are padded up to so many sizes
    skip_broken: bool = False  # an unreadable file is replaced by its neighbour instead of stopping
    max_tokens: int | None = None  # longest utterance that fits a batch, in samples
    drop_longer: bool = False  # leave out longer ones (training)


class AudioDataset:
    """The utterances of one split.

    Args:
        folder: has ``<split>.tsv`` and, for labels, ``<split>.<labels>``.
        split: name of the manifest without ``.tsv``.
        options: see :class:`AudioOptions`.
        dictionary: letters, needed with labels.
        convolutions: the model's, for leaving out utterances with fewer frames than labels need.
        seed: key of crops and of the subsample.
        epoch: key of the crops.

    Raises:
        DataError: files are missing or malformed, or nothing is left after filtering.
    """

    order = "longest"

    def __init__(
        self,
        folder: Path | str,
        split: str,
        options: AudioOptions,
        *,
        dictionary: Dictionary | None = None,
        convolutions: tuple[ConvLayer, ...] | None = None,
        seed: int = 1,
        epoch: int = 1,
    ) -> None:
        self.folder, self.split, self.options = Path(folder), split, options
        self.dictionary, self.seed, self.epoch = dictionary, seed, epoch
        _check(options, dictionary)
        manifest = read_manifest(self.folder / f"{split}.tsv")
        #: entries of the manifest, used or not
        self.listed = len(manifest)
        self.fingerprint_parts = [manifest.fingerprint()]
        self._labels: list[str] | None = None
        if options.labels is not None:
            path = self.folder / f"{split}.{options.labels}"
            self._labels = read_label_lines(path, len(manifest))
            self.fingerprint_parts.append(str(hash_lines(self._labels)))
        #: utterances left out, by reason
        self.dropped: dict[str, int] = {}
        kept = self._filtered(manifest, convolutions)
        self.manifest: Manifest = manifest.keep(kept)
        self._edges = self._bucket_edges()
        frames = self.manifest.frames
        if options.pad:
            sizes = frames if options.max_tokens is None else np.minimum(frames, options.max_tokens)
        else:
            sizes = frames if options.max_sample_size is None else np.minimum(frames, options.max_sample_size)
        if self._edges is not None:
            sizes = self._edges[np.searchsorted(self._edges, np.minimum(sizes, self._edges[-1]))]
        #: samples that each utterance takes in a batch
        self.sizes: np.ndarray = sizes

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> AudioSample:
        for step in range(_NEIGHBOURS):
            at = (index + step) % len(self)
            try:
                samples = read_audio(self.manifest.file(at), self.options.sample_rate)
            except DataError as error:
                if not self.options.skip_broken:
                    raise DataError(
                        f"{error} (line {int(self.manifest.lines[at]) + 2} of {self.manifest.path})"
                    ) from None
                logger.warning("skipped, its neighbour is used: %s", error)
                continue
            source = torch.from_numpy(samples)
            sample: AudioSample = {
                "id": int(self.manifest.lines[at]),
                "source": normalized(source) if self.options.normalize else source,
            }
            if self._labels is not None:
                sample["target"] = self.target(at)
            return sample
        raise DataError(
            f"{_NEIGHBOURS} files in a row cannot be read, beginning with line "
            f"{int(self.manifest.lines[index]) + 2} of {self.manifest.path}"
        )

    def target(self, index: int) -> torch.Tensor:
        """(U,) label ids of an utterance."""
        assert self._labels is not None and self.dictionary is not None
        line = self._labels[int(self.manifest.lines[index])]
        return torch.from_numpy(encode_letters(line, self.dictionary))

    def label_line(self, index: int) -> str:
        """The label line of an utterance as it stands in the file."""
        assert self._labels is not None
        return self._labels[int(self.manifest.lines[index])]

    def collate(self, samples: Sequence[AudioSample]) -> AudioBatch:
        """Crop to the shortest, or pad to the longest."""
        lengths = [len(sample["source"]) for sample in samples]
        limit = self.options.max_sample_size
        length = max(lengths) if self.options.pad else min(lengths)
        length = length if limit is None else min(length, limit)
        if self._edges is not None:
            length = int(self._edges[min(np.searchsorted(self._edges, length), len(self._edges) - 1)])
        source = torch.zeros(len(samples), length)
        padding = torch.ones(len(samples), length, dtype=torch.bool)
        for row, sample in enumerate(samples):
            piece = self._piece(sample, length)
            source[row, : len(piece)] = piece
            padding[row, : len(piece)] = False
        batch: AudioBatch = {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "source": source,
            "padding_mask": padding,
            "frames": torch.tensor(lengths),
        }
        targets = [sample["target"] for sample in samples if "target" in sample]
        if targets:
            batch["target_lengths"] = torch.tensor([len(target) for target in targets])
            batch["target"] = torch.full((len(targets), max(map(len, targets))), Dictionary.pad)
            for row, target in enumerate(targets):
                batch["target"][row, : len(target)] = target
        return batch

    def _piece(self, sample: AudioSample, length: int) -> torch.Tensor:
        """At most ``length`` samples from a place that depends on (seed, epoch, utterance) alone."""
        extra = len(sample["source"]) - length
        if extra <= 0:
            return sample["source"]
        start = stable_key("crop", self.seed, self.epoch, sample["id"]) % (extra + 1)
        return sample["source"][start : start + length]

    def for_epoch(self, epoch: int) -> AudioDataset:
        """The data of another epoch: the same utterances, cropped elsewhere."""
        if epoch == self.epoch:
            return self
        other = copy.copy(self)
        other.epoch = epoch
        return other

    def fingerprint(self) -> str:
        """Hash of paths, lengths and labels, wherever the files lie."""
        return "-".join(part[:32] for part in self.fingerprint_parts)

    def verify(self) -> None:
        """Read the headers of (up to 2000) files and compare them with the manifest.

        Raises:
            DataError: one report of all files that are missing, unreadable, or of another rate or length.
        """
        step = max(1, -(-len(self) // _VERIFIED))
        wrong: list[str] = []
        checked = range(0, len(self), step)
        for index in checked:
            path = self.manifest.file(index)
            if not path.endswith((".wav", ".flac", ".ogg")):
                continue
            where = f"line {int(self.manifest.lines[index]) + 2}: "
            try:
                header = read_header(path)
            except DataError as error:
                wrong.append(f"{where}{error}")
                continue
            if header.rate != self.options.sample_rate:
                wrong.append(f"{where}{path}: {header.rate} Hz, not {self.options.sample_rate}")
            elif header.frames != int(self.manifest.frames[index]):
                listed = int(self.manifest.frames[index])
                wrong.append(f"{where}{path}: {header.frames} samples, listed with {listed}")
        if wrong:
            if self.options.skip_broken:
                logger.warning("%d of %d checked files are broken and will be skipped; first: %s",
                               len(wrong), len(checked), wrong[0])  # fmt: skip
                return
            more = f"\n  ... and {len(wrong) - 10} more" if len(wrong) > 10 else ""
            raise DataError(
                f"manifest {self.manifest.path} does not fit its files ({len(wrong)} of {len(checked)} "
                "checked are wrong); make it again with d2v prepare audio-manifest, "
                "or set task.skip_broken=true\n  " + "\n  ".join(wrong[:10]) + more
            )

    def _filtered(self, manifest: Manifest, convolutions: tuple[ConvLayer, ...] | None) -> np.ndarray:
        """Positions of the utterances that are used; counts the others."""
        options = self.options
        keep = np.ones(len(manifest), dtype=bool)

        def drop(reason: str, which: np.ndarray) -> None:
            which = which & keep
            if which.any():
                self.dropped[reason] = int(which.sum())
            keep[which] = False

        if options.min_sample_size is not None:
            drop(
                f"shorter than min_sample_size {options.min_sample_size}",
                manifest.frames < options.min_sample_size,
            )
        if options.drop_longer and options.max_tokens is not None:
            drop(f"longer than dataset.max_tokens {options.max_tokens}", manifest.frames > options.max_tokens)
        if options.drop_longer and convolutions is not None and self._labels is not None:
            drop("fewer frames than labels need", self._too_short(manifest, convolutions))
        if options.subsample < 1.0:
            count = int(np.ceil(options.subsample * keep.sum()))
            keys = row_keys("subsample", self.seed, ids_R=torch.arange(len(manifest))).numpy()
            chosen = np.flatnonzero(keep)[np.argsort(keys[keep], kind="stable")[:count]]
            left_out = np.ones(len(manifest), dtype=bool)
            left_out[chosen] = False
            drop(f"beyond task.subsample {options.subsample:g}", left_out)
        if not keep.any():
            reasons = "; ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            raise DataError(
                f"manifest {manifest.path}: none of {len(manifest)} utterances is left: {reasons}"
            )
        if self.dropped:
            reasons = "; ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            logger.info(
                "%s: %d of %d utterances left out: %s", self.split, int((~keep).sum()), len(keep), reasons
            )
        return np.flatnonzero(keep)

    def _too_short(self, manifest: Manifest, convolutions: tuple[ConvLayer, ...]) -> np.ndarray:
        assert self._labels is not None and self.dictionary is not None
        too_short = np.zeros(len(manifest), dtype=bool)
        for index, line in enumerate(self._labels):
            ids = encode_letters(line, self.dictionary)
            needed = len(ids) + int((ids[1:] == ids[:-1]).sum())
            too_short[index] = frame_count(convolutions, int(manifest.frames[index])) < needed
        return too_short

    def _bucket_edges(self) -> np.ndarray | None:
        if not self.options.num_batch_buckets:
            return None
        frames, limit = self.manifest.frames, self.options.max_sample_size
        frames = frames if limit is None else np.minimum(frames, limit)
        count = self.options.num_batch_buckets
        edges = np.percentile(frames, np.arange(1, count + 1) * 100.0 / count, method="lower")
        return np.unique(edges).astype(np.int64)


def hash_lines(lines: Sequence[str]) -> str:
    """A hash of label lines."""
    return f"{stable_key(*lines):016x}"


def _check(options: AudioOptions, dictionary: Dictionary | None) -> None:
    problems = []
    if options.labels is not None and dictionary is None:
        problems.append(Problem("task.labels", options.labels, "needs a dictionary of its symbols"))
    for name in ("max_sample_size", "min_sample_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            problems.append(Problem(f"task.{name}", value, "must be > 0"))
    if not 0.0 < options.subsample <= 1.0:
        problems.append(Problem("task.subsample", options.subsample, "must lie in 0 < share <= 1"))
    if options.num_batch_buckets and not options.pad:
        problems.append(Problem("task.num_batch_buckets", options.num_batch_buckets, "needs padding"))
    if problems:
        raise ConfigError(problems)
