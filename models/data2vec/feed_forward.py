"""Two linear layers with an activation between them, of whose wide tensors the backward pass keeps one.

R rows, T positions, D width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .dropout import keep_flags, select


@dataclass(frozen=True)
class Activation:
    """An elementwise function, and its gradient from (gradient of the output, input)."""

    value: Callable[[torch.Tensor], torch.Tensor]
    gradient: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": Activation(F.gelu, torch.ops.aten.gelu_backward),  # the exact one
    "relu": Activation(F.relu, lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0)),
}
IDENTITY = Activation(lambda x: x, lambda grad, x: grad)


def feed_forward(
    x_RTD: torch.Tensor,
    widen: nn.Linear,
    narrow: nn.Linear,
    *,
    activation: str = "gelu",
    dropout: float = 0.0,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """``scale * narrow(dropout(activation(widen(x))))``.

    PyTorch would keep what leaves ``widen`` and what enters ``narrow``, both (R, T, F); the backward pass
    here computes the second from the first. What leaves ``narrow`` is not kept for the gradient of ``scale``.

    Args:
        x_RTD: (R, T, D).
        widen: D to F.
        narrow: F to D.
        activation: one of :data:`ACTIVATIONS`.
        dropout: probability of dropping an entry that enters ``narrow``.
        scale: (D,) learned factors of the output (layer scale); ``None`` = 1.

    Returns:
        (R, T, D).
    """
    return _product(widen(x_RTD), narrow, ACTIVATIONS[activation], dropout, scale)


def scaled_product(x_RTD: torch.Tensor, linear: nn.Linear, scale_D: torch.Tensor | None) -> torch.Tensor:
    """``scale * linear(x)``, of which the backward pass keeps ``x`` alone."""
    return linear(x_RTD) if scale_D is None else _product(x_RTD, linear, IDENTITY, 0.0, scale_D)


def _product(
    hidden: torch.Tensor,
    linear: nn.Linear,
    activation: Activation,
    dropout: float,
    scale: torch.Tensor | None,
) -> torch.Tensor:
    # Cast here and not by autocast, whose cache would hold what is cast below without its gradient.
    weight, bias = linear.weight.to(hidden.dtype), linear.bias.to(hidden.dtype)
    return _ActivatedProduct.apply(hidden, weight, bias, scale, activation, dropout)


class _ActivatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, scale, activation, dropout):
        kept = keep_flags(hidden.shape, 1.0 - dropout, hidden.device) if dropout > 0.0 else None
        ctx.save_for_backward(hidden, weight, bias, scale, kept)
        ctx.activation, ctx.dropout = activation, dropout
        out = F.linear(select(activation.value(hidden), kept, dropout), weight, bias)
        return out if scale is None else out * scale

    @staticmethod
    def backward(ctx, *grads):
        hidden, weight, bias, scale, kept = ctx.saved_tensors
        hidden_needed, weight_needed, bias_needed, scale_needed = ctx.needs_input_grad[:4]
        hidden_grad = weight_grad = bias_grad = scale_grad = None
        out_grad = grads[0].reshape(-1, grads[0].shape[-1]).to(weight.dtype)
        if weight_needed or scale_needed:
            entered = select(ctx.activation.value(hidden), kept, ctx.dropout)
            weight_grad = out_grad.t() @ entered.view(-1, entered.shape[-1])
            del entered
        if bias_needed or scale_needed:
            bias_grad = out_grad.sum(dim=0)
        if scale is not None:
            # y = scale * (h @ W.t() + b): the gradient of scale sums dy * (h @ W.t() + b) over rows, which is
            # W times the gradient that W would have without scale, summed over its columns; b likewise.
            if weight_grad is not None and bias_grad is not None:
                products = weight_grad.to(scale.dtype) * weight
                scale_grad = products.sum(dim=1) + bias_grad * bias
            if weight_grad is not None:
                weight_grad.mul_(scale[:, None])
            if bias_grad is not None:
                bias_grad = bias_grad * scale
            weight = weight * scale[:, None]
        if hidden_needed:
            hidden_grad = (out_grad @ weight.to(hidden.dtype)).view(hidden.shape)
            hidden_grad = ctx.activation.gradient(select(hidden_grad, kept, ctx.dropout), hidden)
        return hidden_grad, weight_grad, bias_grad, scale_grad, None, None
