"""The context encoder: a modality's own norm, dropout and prenet blocks before the shared ones.

R rows, K positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .config import Data2VecMultiConfig, ModalityConfig
from .dropout import Dropout
from .transformer import Block, drop_path_rates, kept_blocks, make_norm


class ContextEncoder(nn.Module):
    """``norm -> dropout -> prenet blocks``; with neither norm nor blocks it is the identity."""

    def __init__(self, config: Data2VecMultiConfig, modality: ModalityConfig, final_norm: bool) -> None:
        super().__init__()
        self.layerdrop = modality.prenet_layerdrop
        self.norm = make_norm(config) if final_norm and not config.layer_norm_first else None
        self.dropout = Dropout(modality.prenet_dropout)
        first, last, depth = modality.start_drop_path_rate, modality.end_drop_path_rate, modality.prenet_depth
        self.blocks = nn.ModuleList(Block(config, rate) for rate in drop_path_rates(first, last, depth))

    def forward(
        self, x_RKD: torch.Tensor, biases: Sequence[torch.Tensor | None], *key: int | str
    ) -> torch.Tensor:
        """Shape is kept; ``biases`` has one for each block at least, and ``key`` decides layer drop."""
        if self.norm is not None:
            x_RKD = self.norm(x_RKD)
        x_RKD = self.dropout(x_RKD)
        for index, block in kept_blocks(self.blocks, self.layerdrop, self.training, "prenet", *key):
            x_RKD, _ = block(x_RKD, biases[index])
        return x_RKD
