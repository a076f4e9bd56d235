"""Multi-head self-attention of data2vec: one fused kernel, and the plain formula it must agree with.

R rows, T positions, D width, H heads, C = D / H channels a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend

from .dropout import Dropout, factors, keep_flags
from .recomputation import recomputed

PART_ENTRIES = 2**22
"""Numbers of an attention map that are computed at a time: 16 MB in fp32."""


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
        self.proj_drop = Dropout(projection_dropout)

    def forward(self, x_RTD: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Attend over the T positions of each row.

        Args:
            x_RTD: (R, T, D).
            bias: added to the logits, broadcastable to (R, H, T, T): see :func:`attention_bias`.

        Returns:
            (R, T, D).
        """
        rows, length, dim = x_RTD.shape
        dropout = self.attention_dropout if self.training else 0.0
        compute = attend if self.fused else _attend_step_by_step
        out_RHTC = compute(*split_heads(self.qkv(x_RTD), self.num_heads), bias, dropout)
        return self.proj_drop(self.proj(out_RHTC.transpose(1, 2).reshape(rows, length, dim)))


def attend(
    q_RHTC: torch.Tensor,
    k_RHTC: torch.Tensor,
    v_RHTC: torch.Tensor,
    bias: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scaled dot-product attention that keeps no large (T, T) map of numbers for the backward pass.

    PyTorch's function, which takes the device's best kernel: flash attention or cuDNN's without a bias, the
    memory-efficient one with a bias, whose gradient it gives too. A CPU has no kernel for some inputs, as
    dropout or a bias that learns: there the maps are made, and large ones again by the backward pass.
    Compiled code has PyTorch's function.

    Args:
        q_RHTC: queries, (R, H, T, C).
        k_RHTC: keys.
        v_RHTC: values.
        bias: added to the logits, broadcastable to (R, H, T, T).
        dropout: probability of dropping an attention weight.

    Returns:
        (R, H, T, C).
    """
    if bias is not None:
        bias = bias.to(q_RHTC.dtype)
    if (
        torch.compiler.is_compiling()
        or q_RHTC.device.type != "cpu"
        or not torch.is_grad_enabled()
        or _has_fused_kernel(q_RHTC, k_RHTC, v_RHTC, bias, dropout)
    ):
        return F.scaled_dot_product_attention(q_RHTC, k_RHTC, v_RHTC, attn_mask=bias, dropout_p=dropout)
    return _attend_in_parts(q_RHTC, k_RHTC, v_RHTC, bias, dropout)


def split_heads(qkv_RT3D: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values, each (R, H, T, C), of what a joint projection gives."""
    rows, length, width = qkv_RT3D.shape
    qkv_RT3HC = qkv_RT3D.view(rows, length, 3, num_heads, width // 3 // num_heads)
    q_RHTC, k_RHTC, v_RHTC = qkv_RT3HC.permute(2, 0, 3, 1, 4).unbind(0)
    return q_RHTC, k_RHTC, v_RHTC


def _has_fused_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, dropout: float
) -> bool:
    choice = torch._fused_sdp_choice(q, k, v, attn_mask=bias, dropout_p=dropout)
    return choice != SDPBackend.MATH.value


def _attend_in_parts(
    q_RHTC: torch.Tensor,
    k_RHTC: torch.Tensor,
    v_RHTC: torch.Tensor,
    bias: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """All rows at once, or some at a time where their maps are large: then only the dropout flags exist as a
    whole, and the backward pass makes the maps again.

    Keeping small ones takes 0.8 of the CPU time of making them twice (12 heads, 16 rows of 125 positions).
    """
    rows, heads, length, _ = q_RHTC.shape
    keys = k_RHTC.shape[2]
    step = max(1, PART_ENTRIES // (heads * length * keys))
    if step >= rows:
        kept = _draw(rows, heads, length, keys, dropout, q_RHTC.device)
        return _weighted_values(q_RHTC, k_RHTC, v_RHTC, bias, kept, dropout)
    biases: Sequence[torch.Tensor | None] = [bias] * math.ceil(rows / step)
    if bias is not None and bias.ndim == 4 and bias.shape[0] > 1:
        biases = bias.split(step)
    parts: list[torch.Tensor] = []
    for q, k, v, own in zip(*(x.split(step) for x in (q_RHTC, k_RHTC, v_RHTC)), biases, strict=True):
        kept = _draw(len(q), heads, length, keys, dropout, q.device)
        parts.append(recomputed(_weighted_values, q, k, v, own, kept, dropout))
    return torch.cat(parts)


def _draw(
    rows: int, heads: int, length: int, keys: int, dropout: float, device: torch.device
) -> torch.Tensor | None:
    if dropout == 0.0:
        return None
    return keep_flags(torch.Size([rows, heads, length, keys]), 1.0 - dropout, device)


def _weighted_values(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    kept: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """The formula. A position that may attend to nothing gets zeros, as in the kernel."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    alone = None
    if bias is not None:
        alone = bias.detach().amax(dim=-1, keepdim=True).isneginf()
        if alone.any():
            bias = bias.masked_fill(alone, 0.0)
        else:
            alone = None
        logits += bias
    weights = logits.softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))
    if kept is not None:
        weights = weights * factors(kept)
    out = (weights.to(v.dtype) @ v) * (1.0 / (1.0 - dropout))
    return out if alone is None else out.masked_fill(alone, 0.0)


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
