"""The text front end of data2vec 2.0: token and learned position embeddings (RoBERTa's), no extra tokens.

B samples, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn

from .config import Data2VecMultiConfig, TextModalityConfig
from .context import ContextEncoder
from .decoders import Decoder, Decoder1d
from .dropout import Dropout
from .errors import Data2VecError
from .modality import ModalityEncoder

PAD = 1
_POSITION_OFFSET = PAD + 1  # the first real token has position id 2; pads have id 1, whose row is zero


class TextEmbedding(nn.Module):
    """Token + position embedding, layer norm, dropout."""

    regions = ("forward",)

    def __init__(self, config: TextModalityConfig, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.scale = 1.0 if config.no_scale_embedding else dim**0.5
        self.max_positions = config.max_source_positions
        self.embed_tokens = nn.Embedding(vocab_size, dim, padding_idx=PAD)
        self.embed_positions = (
            None
            if config.no_token_positional_embeddings
            else nn.Embedding(config.max_source_positions + _POSITION_OFFSET, dim, padding_idx=PAD)
        )
        self.layernorm_embedding = nn.LayerNorm(dim, eps=1e-5) if config.layernorm_embedding else None
        self.dropout = Dropout(config.dropout)

    def forward(self, source_BT: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids to (B, T, D)."""
        x_BTD = self.embed_tokens(source_BT)
        if self.scale != 1.0:
            x_BTD = x_BTD * self.scale
        if self.embed_positions is not None:
            x_BTD = x_BTD + self.embed_positions(position_ids(source_BT))
        if self.layernorm_embedding is not None:
            x_BTD = self.layernorm_embedding(x_BTD)
        return self.dropout(x_BTD)


def position_ids(source_BT: torch.Tensor) -> torch.Tensor:
    """Running count of the real tokens, from 2; pads get 1."""
    real = source_BT.ne(PAD)
    return torch.cumsum(real, dim=1) * real + PAD


class TextEncoder(ModalityEncoder):
    """Local features, context encoder and decoder of the text modality."""

    def __init__(self, config: Data2VecMultiConfig, vocab_size: int | None, with_decoder: bool) -> None:
        super().__init__(config)
        if vocab_size is None:
            raise Data2VecError("a text model needs the size of its vocabulary (vocab_size)")
        text = config.modalities.text
        assert text is not None
        self.extra_tokens = None
        self.local_encoder = TextEmbedding(text, config.embed_dim, vocab_size)
        self.context_encoder = ContextEncoder(config, text, final_norm=text.prenet_depth > 0)
        self.decoder: Decoder | None = None
        if with_decoder and text.decoder is not None:
            self.decoder = Decoder1d(text.decoder, config.embed_dim)

    @property
    def vocab_size(self) -> int:
        """V, special symbols and ``<mask>`` included."""
        return self.local_encoder.embed_tokens.num_embeddings

    def compute_local_features(self, source: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids to (B, T, D) features; padded positions are not zeroed."""
        return self.local_encoder(source)
