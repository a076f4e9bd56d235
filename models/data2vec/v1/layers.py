"""The transformer layer of the first data2vec models for audio and text (RoBERTa's), under its names.

R rows, T positions, D width, H heads, C = D / H channels a head.
"""

from __future__ import annotations

import torch
from torch import nn

from ..attention import attend
from ..drop_path import KeptRows
from ..dropout import Dropout
from ..feed_forward import feed_forward
from ..transformer import TransformerBlock


class SelfAttention(nn.Module):
    """Self-attention with four separate projections."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x_RTD: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Shape is kept; ``bias`` is added to the logits, see :func:`data2vec.attention.attention_bias`."""
        rows, length, dim = x_RTD.shape
        heads = (rows, length, self.num_heads, dim // self.num_heads)
        q, k, v = (
            projection(x_RTD).view(heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        out_RHTC = attend(q, k, v, bias, dropout)
        return self.out_proj(out_RHTC.transpose(1, 2).reshape(rows, length, dim))


class EncoderLayer(TransformerBlock):
    """Attention and feed-forward network, each with a residual and a norm after (or before) it.

    Args:
        dim: D.
        hidden: feed-forward width.
        num_heads: H.
        dropout: on both branches.
        attention_dropout: on attention probabilities.
        activation_dropout: after the activation.
        activation: "gelu" (exact) or "relu".
        pre_norm: norms before the branches instead of after the residuals.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        num_heads: int,
        *,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        activation: str = "gelu",
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = SelfAttention(dim, num_heads, attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(dim, eps=1e-5)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.final_layer_norm = nn.LayerNorm(dim, eps=1e-5)
        self.dropout = Dropout(dropout)
        self.activation_dropout = activation_dropout
        self.activation = "gelu" if activation == "gelu" else "relu"

    def _run(
        self, x_RTD: torch.Tensor, bias: torch.Tensor | None, *_all_rows: KeptRows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output (R, T, D), and the feed-forward output before dropout and residual (R, T, D)."""
        inner = self.self_attn_layer_norm(x_RTD) if self.pre_norm else x_RTD
        return self._finish(x_RTD, self.self_attn(inner, bias))

    def after_attention(self, x: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        """The rest of the layer for attention that was computed elsewhere: input and branch to output."""
        return self._finish(x, branch)[0]

    def _finish(self, x: torch.Tensor, branch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = x + self.dropout(branch)
        if self.pre_norm:
            f = self._feed_forward(self.final_layer_norm(h))
            return h + self.dropout(f), f
        h = self.self_attn_layer_norm(h)
        f = self._feed_forward(h)
        return self.final_layer_norm(h + self.dropout(f)), f

    def _feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        dropout = self.activation_dropout if self.training else 0.0
        return feed_forward(x, self.fc1, self.fc2, activation=self.activation, dropout=dropout)
