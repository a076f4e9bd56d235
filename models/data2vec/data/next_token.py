"""Text for language models: prepared folders to blocks of tokens and the token that follows each.

A block reads one token back: its first input is the token before it in the text, or ``</s>`` at the very
beginning, so that every token is predicted once, in order.

B blocks, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch

from .dictionary import Dictionary
from .prepared_blocks import PreparedBlocks, pad_right


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


class NextTokenDataset(PreparedBlocks):
    """The ``language_modeling`` data of one split, as :class:`PreparedBlocks` describes."""

    def __getitem__(self, index: int) -> NextTokenSample:
        block = self.block_of(index)
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
