"""Prepared text as blocks of tokens: what pretraining and language models share.

B batch, T tokens.
"""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ..errors import ConfigError, DataError, Problem
from ..randomness import row_keys
from .dictionary import Dictionary
from .indexed import ShortenedLines, TokenLines, open_tokens
from .prepared import (
    ShortenMethod,
    check_ids,
    fingerprint_files,
    fitting_samples,
    load_dictionary,
    read_card,
    shortens,
    split_files,
)
from .token_blocks import BreakMode, TokenBlocks
from .tokenizer import DICTIONARY_NAME

_PROBE_TOKENS = 1 << 16


class PreparedBlocks(ABC):
    """The blocks of one split of a prepared folder; what a sample is made of is the subclass's.

    Args:
        data: a prepared folder, or several separated by ``:``; epoch e reads entry (e - 1) mod n in
            training, and the dictionary is that of the first.
        split: ``train``, ``valid``, ``valid1``, ... ; ``train`` also reads ``train1``, ``train2``, ....
        tokens_per_sample: length of a full sample.
        sample_break_mode: see :mod:`data2vec.data.token_blocks`; ``eos`` makes a block of each line.
        shorten_method: ``truncate`` or ``random_crop`` lines to ``tokens_per_sample`` before blocking.
        shorten_data_split_list: comma list of the splits that are shortened; empty means all.
        seed: key of the random crops.
        max_tokens: batches hold at most so many tokens, so longer samples cannot be used either.
        skip_invalid: leave too long samples out of other splits than train, where they are an error.
        epoch: decides the entry of ``data`` and the random crops.

    Raises:
        DataError: a folder, split or dictionary is missing, damaged or does not fit.
        ConfigError: an option has an impossible value.
    """

    order = "size"  # batches hold samples of similar length
    leading = 0  # tokens that every sample holds beside its block's

    def __init__(
        self,
        data: str | os.PathLike[str],
        split: str,
        *,
        tokens_per_sample: int = 512,
        sample_break_mode: BreakMode = "none",
        shorten_method: ShortenMethod = "none",
        shorten_data_split_list: str = "",
        seed: int = 1,
        max_tokens: int | None = None,
        skip_invalid: bool = False,
        epoch: int = 1,
    ) -> None:
        _check_options(tokens_per_sample, sample_break_mode, shorten_method, epoch)
        self._options: dict[str, Any] = dict(  # noqa: C408 - reads like the call it is repeated in
            tokens_per_sample=tokens_per_sample,
            sample_break_mode=sample_break_mode,
            shorten_method=shorten_method,
            shorten_data_split_list=shorten_data_split_list,
            seed=seed,
            max_tokens=max_tokens,
            skip_invalid=skip_invalid,
        )
        self.data, self.split, self.epoch = os.fspath(data), split, epoch
        self.folders = data_folders(self.data)
        training = split.startswith("train")
        self._combine = training
        self.folder = self.folders[(epoch - 1) % len(self.folders)] if training else self.folders[0]
        self.dictionary = self._dictionary(_common_dictionary(self.folders if training else self.folders[:1]))
        lines = open_tokens(self.folder, split, combine=training)
        where = f"{self.folder}, split {split}"
        if not lines.num_tokens:
            raise DataError(f"{where} holds no tokens")
        for start in (0, max(lines.num_tokens - _PROBE_TOKENS, 0)):
            check_ids(lines.stream(start, start + _PROBE_TOKENS), self.dictionary, where)
        if shortens(split, shorten_method, shorten_data_split_list):
            lines = _shorten(lines, tokens_per_sample, shorten_method, seed, epoch)
        self._lines = lines
        self._blocks = TokenBlocks(lines, tokens_per_sample - self.leading, sample_break_mode)
        sizes = self._blocks.sizes + np.int32(self.leading)
        limit = min(tokens_per_sample, max_tokens or tokens_per_sample)
        self._kept = fitting_samples(sizes, limit, drop=training or skip_invalid, where=where)
        self.sizes: np.ndarray = sizes if self._kept is None else sizes[self._kept]
        self.num_dropped = len(sizes) - len(self.sizes)
        if not len(self.sizes):
            raise DataError(f"{where} gives no block in mode {sample_break_mode!r}")

    @staticmethod
    def _dictionary(common: Dictionary) -> Dictionary:
        """The ids that samples hold, from the folders' dictionary."""
        return common

    def __len__(self) -> int:
        return len(self.sizes)

    def block_of(self, index: int) -> int:
        """Number of a sample's block in its folder, before any is left out: its id."""
        return index if self._kept is None else int(self._kept[index])

    @abstractmethod
    def __getitem__(self, index: int) -> Any: ...

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Any:
        """Samples as one batch, padded to the longest."""

    def for_epoch(self, epoch: int) -> Self:
        """The data of another epoch: itself unless that reads another folder or crops at random."""
        options = self._options
        crops = shortens(self.split, options["shorten_method"], options["shorten_data_split_list"])
        fixed = len(self.folders) == 1 or not self._combine
        if epoch == self.epoch or (fixed and not (crops and options["shorten_method"] == "random_crop")):
            return self
        return type(self)(self.data, self.split, epoch=epoch, **options)

    def fingerprint(self) -> str:
        """Hash of the content (indices, token files, dictionary) of all folders of this split.

        See :func:`data2vec.data.prepared.fingerprint_files`: cheap, and the same wherever the folder lies.
        """
        folders = self.folders if self._combine else self.folders[:1]
        parts = [
            fingerprint_files(
                [(DICTIONARY_NAME, f / DICTIONARY_NAME), *split_files(f, self.split, self._combine)]
            )
            for f in folders
        ]
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def pad_right(sequences: Sequence[torch.Tensor], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of several lengths as one tensor.

    Returns:
        (B, T) int64 and (B, T) bool, True on padding.
    """
    lengths = [len(s) for s in sequences]
    source = torch.full((len(sequences), max(lengths)), value, dtype=torch.int64)
    for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        source[row, :length] = sequence
    return source, torch.arange(max(lengths))[None, :] >= torch.tensor(lengths)[:, None]


def crop_starts(sizes: np.ndarray, length: int, *parts: int | str) -> np.ndarray:
    """Start of a random crop for each sequence, uniform over all places where ``length`` tokens fit.

    The reference never draws the last place; here it can be drawn.
    """
    keys = row_keys("crop", *parts, ids_R=torch.arange(len(sizes))).numpy().view(np.uint64)
    return (keys % (np.maximum(sizes - length, 0) + 1).astype(np.uint64)).astype(np.int64)


def data_folders(data: str) -> list[Path]:
    """The entries of a colon-separated ``task.data``.

    Raises:
        DataError: all missing or remote entries.
    """
    names = [name for name in re.split(r":(?!//)", data) if name]
    if not names:
        raise DataError("task.data is empty; give the folder that d2v prepare text wrote")
    wrong = [
        f"{n}: remote data cannot be memory-mapped; copy it to a local folder first"
        for n in names
        if "://" in n
    ]
    wrong += [f"{n}: no such folder" for n in names if "://" not in n and not Path(n).is_dir()]
    if wrong:
        raise DataError("task.data cannot be used:\n  " + "\n  ".join(wrong))
    return [Path(name) for name in names]


def _shorten(lines: TokenLines, length: int, method: str, seed: int, epoch: int) -> ShortenedLines:
    if method == "truncate":
        return ShortenedLines(lines, length)
    return ShortenedLines(lines, length, crop_starts(np.asarray(lines.sizes), length, "lines", seed, epoch))


def _common_dictionary(folders: Sequence[Path]) -> Dictionary:
    """The first folder's dictionary; the others' must have the same symbols in the same order."""
    first = load_dictionary(folders[0], read_card(folders[0]))
    for folder in folders[1:]:
        card = read_card(folder)
        digest = None if card is None else card.get("dictionary")
        if (folder / DICTIONARY_NAME).is_file():
            digest = load_dictionary(folder, card).digest()
        if digest is not None and digest != first.digest():
            raise DataError(
                f"{folder} was prepared with another dictionary than {folders[0]}; prepare it again with "
                f"--dict {folders[0] / DICTIONARY_NAME}"
            )
    return first


def _check_options(tokens_per_sample: int, mode: str, method: str, epoch: int) -> None:
    problems = []
    if tokens_per_sample < 2:
        problems.append(Problem("task.tokens_per_sample", tokens_per_sample, "must be >= 2"))
    if mode not in ("none", "complete", "complete_doc", "eos"):
        problems.append(
            Problem("task.sample_break_mode", mode, "must be one of none, complete, complete_doc, eos")
        )
    if method not in ("none", "truncate", "random_crop"):
        problems.append(Problem("task.shorten_method", method, "must be one of none, truncate, random_crop"))
    if epoch < 1:
        problems.append(Problem("epoch", epoch, "must be >= 1"))
    if problems:
        raise ConfigError(problems)
