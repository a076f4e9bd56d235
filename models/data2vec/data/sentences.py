"""Labelled sentences and sentence pairs: the reference's ``<TASK>-bin`` folders.

``input0/`` and, for pairs, ``input1/`` hold the binarized sentences and ``dict.txt``; ``label/`` holds the
binarized labels and their dictionary (class id = dictionary id - 4), or plain numbers in ``<split>.label``
for regression. A sample is ``<s> A </s>`` or ``<s> A </s> </s> B </s>``. Splits without labels (test) have no
target.

B batch, T tokens, C regression targets.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch

from ..errors import ConfigError, DataError, Problem
from .dictionary import NUM_SPECIALS, Dictionary, is_padding_word
from .indexed import TokenLines, open_tokens
from .prepared import (
    ShortenMethod,
    check_ids,
    fingerprint_files,
    fitting_samples,
    load_dictionary,
    read_card,
    sentence_files,
    shortens,
)
from .prepared_blocks import crop_starts, pad_right
from .tokenizer import DICTIONARY_NAME

logger = logging.getLogger(__name__)


class SentenceSample(TypedDict):
    """One sentence or pair."""

    id: int  # row of the split's file, before any is left out
    source: torch.Tensor  # (T,) int64
    target: NotRequired[int | np.ndarray]  # class id, or (C,) float32


class SentenceBatch(TypedDict):
    """Samples padded on the right."""

    id: torch.Tensor  # (B,) int64
    source: torch.Tensor  # (B, T) int64
    padding_mask: torch.Tensor  # (B, T) bool, True on padding
    target: NotRequired[torch.Tensor]  # (B,) int64; regression: (B,) float32, or (B, C) if C > 1


class SentenceDataset:
    """The ``sentence_prediction`` data of one split.

    Args:
        folder: a ``<TASK>-bin`` folder, written by ``d2v prepare glue`` or by the reference.
        split: ``train``, ``valid``, ``valid1``, ``test``, ...; ``train`` also reads ``train1``, ....
        num_classes: classes, or numbers a line for regression.
        regression_target: read numbers from ``label/<split>.label``.
        init_token: id put before the first sentence; ``None`` puts none.
        separator_token: id put before the second sentence; ``None`` puts none.
        max_positions: longest sample.
        shorten_method: ``truncate`` cuts the end of the joined pair, ``random_crop`` keeps a piece of it.
        shorten_data_split_list: comma list of the splits that are shortened; empty means all.
        seed: key of the random crops.
        no_shuffle: keep the file's order (see :attr:`order`).
        max_tokens: batches hold at most so many tokens, so longer samples cannot be used either.
        skip_invalid: leave too long samples out of other splits than train, where they are an error.
        epoch: key of the random crops.

    Raises:
        DataError: files are missing, damaged, of different length, or the labels do not fit ``num_classes``.
        ConfigError: an option has an impossible value.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str,
        *,
        num_classes: int,
        regression_target: bool = False,
        init_token: int | None = 0,
        separator_token: int | None = 2,
        max_positions: int = 512,
        shorten_method: ShortenMethod = "none",
        shorten_data_split_list: str = "",
        seed: int = 1,
        no_shuffle: bool = False,
        max_tokens: int | None = None,
        skip_invalid: bool = False,
        epoch: int = 1,
    ) -> None:
        self.folder, self.split, self.epoch, self._seed = Path(folder), split, epoch, seed
        self.num_classes, self.regression = num_classes, regression_target
        #: how batches are filled: one fixed permutation, or the file's order
        self.order = "file" if no_shuffle else "random"
        self._training = split.startswith("train")
        self._where = f"{self.folder}, split {split}"
        self._read_inputs()
        self._check_options(init_token, separator_token, max_positions, shorten_method)
        self._init, self._separator = init_token, separator_token
        self.labels: list[str] = [] if regression_target else self._read_label_names()
        self.targets: np.ndarray | None = self._read_targets()
        first = np.asarray(self._first.sizes, dtype=np.int64) + (init_token is not None)
        second = 0 if self._second is None else np.asarray(self._second.sizes) + (separator_token is not None)
        self._full_sizes = first + second
        limit = min(max_positions, max_tokens or max_positions)
        self._limit: int | None = limit if shortens(split, shorten_method, shorten_data_split_list) else None
        self._method = shorten_method
        sizes = self._full_sizes if self._limit is None else np.minimum(self._full_sizes, limit)
        self._kept = fitting_samples(sizes, limit, drop=self._training or skip_invalid, where=self._where)
        self.sizes: np.ndarray = sizes if self._kept is None else sizes[self._kept]
        self.num_dropped = len(sizes) - len(self.sizes)
        self._starts = self._crop_starts()

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> SentenceSample:
        row = index if self._kept is None else int(self._kept[index])
        parts: list[np.ndarray | list[int]] = [] if self._init is None else [[self._init]]
        parts.append(self._first[row])
        if self._second is not None:
            parts += [] if self._separator is None else [[self._separator]]
            parts.append(self._second[row])
        tokens = np.concatenate(parts, dtype=np.int64)
        if self._limit is not None:
            start = 0 if self._starts is None else int(self._starts[row])
            tokens = tokens[start : start + self._limit]
        sample: SentenceSample = {"id": row, "source": torch.from_numpy(tokens)}
        if self.targets is not None:
            sample["target"] = self.targets[row] if self.regression else int(self.targets[row])
        return sample

    def collate(self, samples: Sequence[SentenceSample]) -> SentenceBatch:
        """Pad to the longest sample of the batch."""
        source, padding_mask = pad_right([s["source"] for s in samples], Dictionary.pad)
        ids = torch.tensor([s["id"] for s in samples])
        batch: SentenceBatch = {"id": ids, "source": source, "padding_mask": padding_mask}
        if self.targets is not None:
            found = np.asarray([s["target"] for s in samples if "target" in s])
            target = torch.from_numpy(found.astype(np.float32 if self.regression else np.int64))
            batch["target"] = target[:, 0] if self.regression and self.num_classes == 1 else target
        return batch

    def for_epoch(self, epoch: int) -> SentenceDataset:
        """The data of another epoch: itself unless samples are cropped at random."""
        if epoch == self.epoch or self._starts is None:
            return self
        other = copy.copy(self)
        other.epoch = epoch
        other._starts = other._crop_starts()
        return other

    def fingerprint(self) -> str:
        """Hash of the split's content: sentences, labels and dictionaries, wherever the folder lies."""
        return fingerprint_files(sentence_files(self.folder, self.split, self._training))

    def _read_inputs(self) -> None:
        if not (self.folder / "input0").is_dir():
            raise DataError(
                f"{self.folder} is no task folder: it has no input0/; give the <TASK>-bin folder that d2v "
                "prepare glue wrote"
            )
        card = read_card(self.folder)
        self.dictionary = load_dictionary(self.folder / "input0", card).with_mask()
        self._first = open_tokens(self.folder / "input0", self.split, combine=self._training)
        self._second: TokenLines | None = None
        if (self.folder / "input1").is_dir():
            self._second = open_tokens(self.folder / "input1", self.split, combine=self._training)
            path, first = (self.folder / name / DICTIONARY_NAME for name in ("input1", "input0"))
            same = not path.is_file() or path.read_bytes() == first.read_bytes()
            if not same and Dictionary.load(path).digest() != self.dictionary.digest():
                raise DataError(
                    f"{path} differs from input0/{DICTIONARY_NAME}; both inputs must use one dictionary"
                )
            if len(self._second) != len(self._first):
                raise DataError(
                    f"{self._where}: input0 has {len(self._first)} lines, input1 has {len(self._second)}; "
                    "prepare it again"
                )
        if not len(self._first):
            raise DataError(f"{self._where} holds no samples")
        for lines in (self._first, self._second):
            if lines is not None:
                check_ids(lines.stream(0, min(lines.num_tokens, 1 << 16)), self.dictionary, self._where)

    def _read_label_names(self) -> list[str]:
        path = self.folder / "label" / DICTIONARY_NAME
        if not path.is_file() and (self.folder / "label" / "train.label").is_file():
            raise DataError(f"{self.folder} holds numbers as labels; set criterion.regression_target=true")
        symbols = Dictionary.load(path).symbols[NUM_SPECIALS:]
        labels = [symbol for symbol in symbols if not is_padding_word(symbol)]
        if len(labels) != self.num_classes:
            raise DataError(
                f"{path} has {len(labels)} labels ({', '.join(labels[:8])}), but task.num_classes is "
                f"{self.num_classes}; "
                f"set task.num_classes={len(labels)} or give the folder of the right task"
            )
        return labels

    def _read_targets(self) -> np.ndarray | None:
        if self.regression:
            return self._read_numbers()
        folder = self.folder / "label"
        if not (folder / f"{self.split}.idx").is_file():
            return self._without_targets()
        lines = open_tokens(folder, self.split, combine=self._training)
        self._same_length(len(lines), "label")
        sizes = np.asarray(lines.sizes)
        if sizes.min() < 1 or sizes.max() > 2:
            row = int(np.flatnonzero((sizes < 1) | (sizes > 2))[0])
            raise DataError(
                f"{self._where}: the label of row {row} is not one word (label/dict.txt with another tool?)"
            )
        ends = np.cumsum(sizes, dtype=np.int64)
        classes = lines.stream(0, lines.num_tokens)[ends - sizes] - NUM_SPECIALS
        if (wrong := np.flatnonzero((classes < 0) | (classes >= self.num_classes))).size:
            raise DataError(
                f"{self._where}: {wrong.size} labels are not among {', '.join(self.labels)} (first: row "
                f"{int(wrong[0])}, "
                f"label id {int(classes[wrong[0]]) + NUM_SPECIALS})"
            )
        return classes

    def _read_numbers(self) -> np.ndarray | None:
        path = self.folder / "label" / f"{self.split}.label"
        if not path.is_file():
            if (self.folder / "label" / f"{self.split}.idx").is_file():
                rule = "holds classes, not numbers; set criterion.regression_target=false"
                raise DataError(f"{self.folder} {rule}")
            return self._without_targets()
        rows: list[list[float]] = []
        wrong: list[str] = []
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
            try:
                values = [float(word) for word in line.split()]
            except ValueError:
                values = []
            if len(values) != self.num_classes or not np.isfinite(values).all():
                wrong.append(f"line {number}: {line[:40]!r} is not {self.num_classes} finite number(s)")
            rows.append(values)
        if wrong:
            more = f"\n  ... and {len(wrong) - 10} more" if len(wrong) > 10 else ""
            raise DataError(f"{path} is malformed:\n  " + "\n  ".join(wrong[:10]) + more)
        self._same_length(len(rows), path.name)
        return np.asarray(rows, dtype=np.float32)

    def _without_targets(self) -> None:
        if not self.split.startswith("test"):
            raise DataError(
                f"{self._where} has no labels in {self.folder / 'label'}; only test splits may lack them"
            )

    def _same_length(self, labels: int, name: str) -> None:
        if labels != len(self._first):
            raise DataError(
                f"{self._where}: input0 has {len(self._first)} lines, {name} has {labels}; prepare it again"
            )

    def _crop_starts(self) -> np.ndarray | None:
        if self._limit is None or self._method != "random_crop":
            return None
        return crop_starts(self._full_sizes, self._limit, "sentences", self._seed, self.epoch)

    def _check_options(
        self, init: int | None, separator: int | None, max_positions: int, method: str
    ) -> None:
        problems = []
        if self.num_classes < 1:
            problems.append(Problem("task.num_classes", self.num_classes, "must be > 0"))
        if max_positions < 1:
            problems.append(Problem("task.max_positions", max_positions, "must be > 0"))
        if method not in ("none", "truncate", "random_crop"):
            problems.append(
                Problem("task.shorten_method", method, "must be one of none, truncate, random_crop")
            )
        for name, token in (("init_token", init), ("separator_token", separator)):
            if token is not None and not 0 <= token < len(self.dictionary):
                rule = f"must be an id of the dictionary (0 ... {len(self.dictionary) - 1}) or null"
                problems.append(Problem(f"task.{name}", token, rule))
        if problems:
            raise ConfigError(problems)
