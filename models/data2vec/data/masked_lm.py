"""Text for pretraining: prepared folders to blocks of at most ``tokens_per_sample`` tokens, ``<s>`` first.

The data set does not mask: data2vec 2.0 draws its masks in the model, from (seed, update, sample id, clone).

B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch

from .dictionary import Dictionary
from .prepared_blocks import PreparedBlocks, pad_right


class TextSample(TypedDict):
    """One block."""

    id: int  # number of the block in its folder, before any is left out
    source: torch.Tensor  # (T,) int64


class TextBatch(TypedDict):
    """Blocks padded on the right."""

    id: torch.Tensor  # (B,) int64
    source: torch.Tensor  # (B, T) int64
    padding_mask: torch.Tensor  # (B, T) bool, True on padding


class TextBlocksDataset(PreparedBlocks):
    """The ``masked_lm`` data of one split, as :class:`PreparedBlocks` describes."""

    leading = 1  # <s>

    @staticmethod
    def _dictionary(common: Dictionary) -> Dictionary:
        return common.with_mask()

    def __getitem__(self, index: int) -> TextSample:
        block = self.block_of(index)
        tokens = self._blocks[block]
        source = np.empty(len(tokens) + 1, dtype=np.int64)
        source[0] = Dictionary.bos
        source[1:] = tokens
        return {"id": block, "source": torch.from_numpy(source)}

    def collate(self, samples: Sequence[TextSample]) -> TextBatch:
        """Pad to the longest sample of the batch."""
        source, padding_mask = pad_right([s["source"] for s in samples], Dictionary.pad)
        return {
            "id": torch.tensor([s["id"] for s in samples]),
            "source": source,
            "padding_mask": padding_mask,
        }
