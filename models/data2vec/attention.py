"""Multi-head self-attention of data2vec: one fused kernel, and the plain formula it must agree with.

R rows, T positions, D width, H heads, C = D / H channels a head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend

from .dropout import Dropout, factors, keep_flags

PART_ENTRIES = 2**20
"""Numbers of an attention map that are computed at a time: 4 MB in fp32."""


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
        qkv_RT3HC = self.qkv(x_RTD).view(rows, length, 3, self.num_heads, dim // self.num_heads)
        dropout = self.attention_dropout if self.training else 0.0
        if self.fused:
            out_RHTC = attend_jointly(qkv_RT3HC, bias, dropout)
        else:
            q_RHTC, k_RHTC, v_RHTC = _queries_keys_values(qkv_RT3HC)
            out_RHTC = _attend_step_by_step(q_RHTC, k_RHTC, v_RHTC, bias, dropout)
        return self.proj_drop(self.proj(out_RHTC.transpose(1, 2).reshape(rows, length, dim)))


def attend(
    q_RHTC: torch.Tensor,
    k_RHTC: torch.Tensor,
    v_RHTC: torch.Tensor,
    bias: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scaled dot-product attention that keeps no (T, T) map of numbers for the backward pass.

    PyTorch's fused kernel where it has one for these inputs. For some it has none, as dropout on a CPU or
    a bias that learns: there PyTorch would keep the softmax, the dropout mask and their product; we keep the
    mask as flags and compute the softmax again.

    Args:
        q_RHTC: queries, (R, H, T, C).
        k_RHTC: keys.
        v_RHTC: values.
        bias: added to the logits, broadcastable to (R, H, T, T).
        dropout: probability of dropping an attention weight.

    Returns:
        (R, H, T, C).
    """
    return _attend((q_RHTC, k_RHTC, v_RHTC), bias, dropout)


def attend_jointly(
    qkv_RT3HC: torch.Tensor, bias: torch.Tensor | None = None, dropout: float = 0.0
) -> torch.Tensor:
    """:func:`attend` for what one projection gives, (R, T, 3, H, C): its gradient is made in that layout."""
    return _attend((qkv_RT3HC,), bias, dropout)


def _attend(qkv: tuple[torch.Tensor, ...], bias: torch.Tensor | None, dropout: float) -> torch.Tensor:
    q, k, v = _queries_keys_values(*qkv)
    if bias is not None:
        bias = bias.to(q.dtype)
    if torch.is_grad_enabled() and not _has_fused_kernel(q, k, v, bias, dropout):
        return _RecomputedAttention.apply(bias, dropout, *qkv)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def _queries_keys_values(*qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Three (R, H, T, C), of which one (R, T, 3, H, C) tensor holds all or which are given."""
    return qkv if len(qkv) == 3 else qkv[0].permute(2, 0, 3, 1, 4).unbind(0)


def _has_fused_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, dropout: float
) -> bool:
    choice = torch._fused_sdp_choice(q, k, v, attn_mask=bias, dropout_p=dropout)
    return choice != SDPBackend.MATH.value


class _RecomputedAttention(torch.autograd.Function):
    """Attention whose backward pass computes the softmax again, some rows at a time.

    Of the (R, H, T, T) maps only the dropout flags exist as a whole; the numbers of a few rows fit a cache.
    """

    @staticmethod
    def forward(ctx, bias, dropout, *qkv):
        q, k, v = _queries_keys_values(*qkv)
        rows, heads, length, width = v.shape
        kept = None
        if dropout > 0.0:
            kept = torch.empty(rows, heads, q.shape[2], length, dtype=torch.bool, device=q.device)
        out = v.new_empty(rows, q.shape[2], heads, width).transpose(1, 2)  # so that joining heads is a view
        for part in _row_parts(q, k):
            weights = _softmax(q[part], k[part], None if bias is None else _own_rows(bias, part))
            if kept is not None:
                weights.mul_(factors(keep_flags(weights.shape, 1.0 - dropout, q.device, out=kept[part])))
            torch.mul(weights.to(v.dtype) @ v[part], 1.0 / (1.0 - dropout), out=out[part])
        ctx.save_for_backward(bias, kept, *qkv)
        ctx.dropout = dropout
        return out

    @staticmethod
    def backward(ctx, *grads):
        (out_grad,) = grads
        bias, kept, *qkv = ctx.saved_tensors
        q, k, v = _queries_keys_values(*qkv)
        scale, keep = q.shape[-1] ** -0.5, 1.0 - ctx.dropout
        qkv_grads = [torch.empty_like(tensor) for tensor in qkv]
        q_grad, k_grad, v_grad = _queries_keys_values(*qkv_grads)
        bias_grad = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[0] else None
        for part in _row_parts(q, k):
            rows_grad = out_grad[part] * (1.0 / keep)
            weights = _softmax(q[part], k[part], None if bias is None else _own_rows(bias, part))
            weights_grad = (rows_grad @ v[part].transpose(-2, -1)).to(weights.dtype)
            dropped = weights
            if kept is not None:
                dropped = weights * factors(kept[part])
                weights_grad.mul_(factors(kept[part]))
            v_grad[part] = dropped.to(v.dtype).transpose(-2, -1) @ rows_grad
            logits_grad = torch._softmax_backward_data(weights_grad, weights, -1, weights.dtype)
            if bias_grad is not None:
                own = _own_rows(bias_grad, part)
                own += logits_grad.sum_to_size(own.shape)
            logits_grad = logits_grad.to(q.dtype)
            torch.mul(logits_grad @ k[part], scale, out=q_grad[part])
            torch.mul(logits_grad.transpose(-2, -1) @ q[part], scale, out=k_grad[part])
        return bias_grad, None, *qkv_grads


def _row_parts(q: torch.Tensor, k: torch.Tensor) -> Iterator[slice]:
    """Slices of the rows whose attention maps are small enough to stay in a processor's cache."""
    rows, heads, length, _ = q.shape
    step = max(1, PART_ENTRIES // (heads * length * k.shape[2]))
    return (slice(start, start + step) for start in range(0, rows, step))


def _own_rows(bias: torch.Tensor, part: slice) -> torch.Tensor:
    """The part of a bias that belongs to some rows; one without rows is for all of them."""
    return bias if bias.ndim < 4 or bias.shape[0] == 1 else bias[part]


def _softmax(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(R, H, T, T) attention weights, in fp32 at least.

    A position that may attend to nothing gets zeros, as in the kernel.
    """
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    dtype = torch.promote_types(q.dtype, torch.float32)
    if bias is None:
        return logits.softmax(dim=-1, dtype=dtype)
    alone = bias.amax(dim=-1, keepdim=True).isneginf()
    weights = logits.add_(bias).softmax(dim=-1, dtype=dtype)
    return weights.masked_fill_(alone, 0.0) if alone.any() else weights


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
