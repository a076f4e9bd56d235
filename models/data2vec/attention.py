"""Multi-head self-attention of data2vec: one fused kernel, and the plain formula it must agree with.

R rows, T positions, D width, H heads, C = D / H channels a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Self-attention with a joint query-key-value projection.

    Args:
        dim: D, a multiple of ``num_heads``.
        num_heads: H.
        attention_dropout: dropout on the attention probabilities.
        projection_dropout: dropout on the output.
        fused: use PyTorch's fused kernel; ``False`` computes the formula step by step, which is the
            reference that tests compare the kernel with.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attention_dropout: float = 0.0,
        projection_dropout: float = 0.0,
        *,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.fused = fused
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(projection_dropout)

    def forward(self, x_RTD: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Attend over the T positions of each row.

        Args:
            x_RTD: (R, T, D).
            bias: added to the logits, broadcastable to (R, H, T, T): see :func:`attention_bias`.

        Returns:
            (R, T, D).
        """
        rows, length, dim = x_RTD.shape
        qkv = self.qkv(x_RTD).view(rows, length, 3, self.num_heads, dim // self.num_heads)
        q_RHTC, k_RHTC, v_RHTC = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.attention_dropout if self.training else 0.0
        attend = F.scaled_dot_product_attention if self.fused else _attend_step_by_step
        if bias is not None:
            bias = bias.to(q_RHTC.dtype)
        out_RHTC = attend(q_RHTC, k_RHTC, v_RHTC, attn_mask=bias, dropout_p=dropout)
        return self.proj_drop(self.proj(out_RHTC.transpose(1, 2).reshape(rows, length, dim)))


def attention_bias(padding_mask_RT: torch.Tensor | None) -> torch.Tensor | None:
    """The additive bias that keeps attention off padded positions.

    Args:
        padding_mask_RT: (R, T) bool, true where padded; ``None`` if nothing is.

    Returns:
        (R, 1, 1, T) float32, 0 or minus infinity; ``None`` if there is no padding.
    """
    if padding_mask_RT is None:
        return None
    bias = torch.zeros(padding_mask_RT.shape, device=padding_mask_RT.device)
    return bias.masked_fill_(padding_mask_RT, float("-inf"))[:, None, None, :]


def _attend_step_by_step(
    q_RHTC: torch.Tensor,
    k_RHTC: torch.Tensor,
    v_RHTC: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
) -> torch.Tensor:
    logits_RHTT = (q_RHTC * q_RHTC.shape[-1] ** -0.5) @ k_RHTC.transpose(-2, -1)
    if attn_mask is None:
        weights_RHTT = logits_RHTT.softmax(dim=-1, dtype=torch.float32)
    else:  # like the kernel: a position that may attend to nothing gets zeros, not NaN
        alone = attn_mask.isneginf().all(dim=-1, keepdim=True)
        logits_RHTT = (logits_RHTT + attn_mask).masked_fill(alone, 0.0)
        weights_RHTT = logits_RHTT.softmax(dim=-1, dtype=torch.float32).masked_fill(alone, 0.0)
    weights_RHTT = weights_RHTT.to(v_RHTC.dtype)
    return F.dropout(weights_RHTT, dropout_p) @ v_RHTC
