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


def feed_forward(
    x_RTD: torch.Tensor,
    widen: nn.Linear,
    narrow: nn.Linear,
    *,
    activation: str = "gelu",
    dropout: float = 0.0,
) -> torch.Tensor:
    """``narrow(dropout(activation(widen(x))))``.

    PyTorch would keep what leaves ``widen`` and what enters ``narrow``, both (R, T, F); the backward pass
    here computes the second from the first.

    Args:
        x_RTD: (R, T, D).
        widen: D to F.
        narrow: F to D.
        activation: one of :data:`ACTIVATIONS`.
        dropout: probability of dropping an entry that enters ``narrow``.

    Returns:
        (R, T, D).
    """
    hidden_RTF = widen(x_RTD)
    # Cast here and not by autocast, whose cache would hold what is cast below without its gradient.
    weight, bias = narrow.weight.to(hidden_RTF.dtype), narrow.bias.to(hidden_RTF.dtype)
    return _ActivatedProduct.apply(hidden_RTF, weight, bias, ACTIVATIONS[activation], dropout)


class _ActivatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, activation, dropout):
        kept = keep_flags(hidden.shape, 1.0 - dropout, hidden.device) if dropout > 0.0 else None
        ctx.save_for_backward(hidden, weight, kept)
        ctx.activation, ctx.dropout = activation, dropout
        return F.linear(select(activation.value(hidden), kept, dropout), weight, bias)

    @staticmethod
    def backward(ctx, *grads):
        (out_grad,) = grads
        hidden, weight, kept = ctx.saved_tensors
        hidden_grad = weight_grad = bias_grad = None
        flat_grad = out_grad.reshape(-1, out_grad.shape[-1])
        if ctx.needs_input_grad[1]:
            entered = select(ctx.activation.value(hidden), kept, ctx.dropout)
            weight_grad = flat_grad.t() @ entered.view(-1, entered.shape[-1])
            del entered
        if ctx.needs_input_grad[2]:
            bias_grad = flat_grad.sum(dim=0)
        if ctx.needs_input_grad[0]:
            hidden_grad = (flat_grad @ weight).view(hidden.shape)
            hidden_grad = ctx.activation.gradient(select(hidden_grad, kept, ctx.dropout), hidden)
        return hidden_grad, weight_grad, bias_grad, None, None
