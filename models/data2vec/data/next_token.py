"""Text for language models: prepared folders to blocks of tokens and the token that follows each.

A block reads one token back: its first input is the token before it in the text, or ``</s>`` at the very
beginning, so that every token is predicted once, in order.

B blocks, T tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch

from ..errors import ConfigError, DataError, Problem
from .dictionary import Dictionary
from .indexed import ShortenedLines, open_tokens
from .masked_lm import crop_starts, data_folders, pad_right
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


class NextTokenSample(TypedDict):
    """One block."""

    id: int
    source: torch.Tensor  # (T,) int64
    target: torch.Tensor  # (T,) int64, source one token later


class NextTokenBatch(TypedDict):
    """Blocks padded on the right."""

    id: torch.Tensor  # (B,) int64
    source: torch.Tensor  # (B, T) int64
    target: torch.Tensor  # (B, T) int64, 1 on padding


class NextTokenDataset:
    """The ``language_modeling`` data of one split.

    Args:
        data: a prepared folder; of several separated by ``:`` epoch e reads entry (e - 1) mod n in training.
        split: ``train``, ``valid``, ...; ``train`` also reads ``train1``, ``train2``, ....
        tokens_per_sample: tokens of a full block.
        sample_break_mode: see :mod:`data2vec.data.token_blocks`; ``eos`` makes a block of each line.
        shorten_method: what happens to lines longer than a block before blocking.
        shorten_data_split_list: comma list of the splits that are shortened; empty means all.
        seed: key of the random crops.
        max_tokens: batches hold at most so many tokens, so longer blocks cannot be used either.
        skip_invalid: leave too long blocks out of other splits than train, where they are an error.
        epoch: decides the entry of ``data`` and the random crops.

    Raises:
        DataError: a folder, split or dictionary is missing, damaged or does not fit.
        ConfigError: an option has an impossible value.
    """

    order = "size"

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
        if tokens_per_sample < 2:
            raise ConfigError([Problem("task.tokens_per_sample", tokens_per_sample, "must be >= 2")])
        self._options = {
            "tokens_per_sample": tokens_per_sample,
            "sample_break_mode": sample_break_mode,
            "shorten_method": shorten_method,
            "shorten_data_split_list": shorten_data_split_list,
            "seed": seed,
            "max_tokens": max_tokens,
            "skip_invalid": skip_invalid,
        }
        self.data, self.split, self.epoch = os.fspath(data), split, epoch
        folders, self._training = data_folders(self.data), split.startswith("train")
        self.folders = folders if self._training else folders[:1]
        self.folder = self.folders[(epoch - 1) % len(self.folders)]
        self.dictionary = load_dictionary(self.folders[0], read_card(self.folders[0]))
        for folder in self.folders[1:]:
            if load_dictionary(folder, read_card(folder)).digest() != self.dictionary.digest():
                raise DataError(f"{folder} was prepared with another dictionary than {self.folders[0]}")
        lines = open_tokens(self.folder, split, combine=self._training)
        where = f"{self.folder}, split {split}"
        if not lines.num_tokens:
            raise DataError(f"{where} holds no tokens")
        for start in (0, max(lines.num_tokens - _PROBE_TOKENS, 0)):
            check_ids(lines.stream(start, start + _PROBE_TOKENS), self.dictionary, where)
        if shortens(split, shorten_method, shorten_data_split_list):
            starts = None
            if shorten_method == "random_crop":
                starts = crop_starts(np.asarray(lines.sizes), tokens_per_sample, "lines", seed, epoch)
            lines = ShortenedLines(lines, tokens_per_sample, starts)
        self._lines = lines
        self._blocks = TokenBlocks(lines, tokens_per_sample, sample_break_mode)
        limit = min(tokens_per_sample, max_tokens or tokens_per_sample)
        sizes = self._blocks.sizes
        self._kept = fitting_samples(sizes, limit, drop=self._training or skip_invalid, where=where)
        self.sizes: np.ndarray = sizes if self._kept is None else sizes[self._kept]
        if not len(self.sizes):
            raise DataError(f"{where} gives no block in mode {sample_break_mode!r}")

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> NextTokenSample:
        block = index if self._kept is None else int(self._kept[index])
        start, size = self._blocks.span(block)
        tokens = np.empty(size + 1, dtype=np.int64)
        tokens[0] = self._lines.stream(start - 1, start)[0] if start else Dictionary.eos
        tokens[1:] = self._lines.stream(start, start + size)
        both = torch.from_numpy(tokens)
        return {"id": block, "source": both[:-1], "target": both[1:]}

    def collate(self, samples: Sequence[NextTokenSample]) -> NextTokenBatch:
        """Pad to the longest block of the batch."""
        source, _ = pad_right([s["source"] for s in samples], Dictionary.pad)
        target, _ = pad_right([s["target"] for s in samples], Dictionary.pad)
        return {"id": torch.tensor([s["id"] for s in samples]), "source": source, "target": target}

    def for_epoch(self, epoch: int) -> NextTokenDataset:
        """The data of another epoch: itself unless that reads another folder or crops at random."""
        crops = self._options["shorten_method"] == "random_crop"
        if epoch == self.epoch or (len(self.folders) == 1 and not crops):
            return self
        return NextTokenDataset(self.data, self.split, epoch=epoch, **self._options)  # pyright: ignore[reportArgumentType]

    def fingerprint(self) -> str:
        """Hash of the content of this split in all folders; the same wherever they lie."""
        files = [
            pair
            for folder in self.folders
            for pair in [
                (DICTIONARY_NAME, folder / DICTIONARY_NAME),
                *split_files(folder, self.split, self._training),
            ]
        ]
        return fingerprint_files(files)
