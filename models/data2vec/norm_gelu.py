"""Layer norm followed by GELU, as after every convolution, keeping one tensor for the backward pass.

PyTorch would keep the norm's output too, which GELU's backward pass needs; here it is normalised again there.
"""

from __future__ import annotations

import torch

EPS = 1e-5


def norm_gelu(
    x: torch.Tensor, weight_C: torch.Tensor | None = None, bias_C: torch.Tensor | None = None
) -> torch.Tensor:
    """``gelu(layer_norm(x))`` over the last dimension, exact GELU, epsilon 1e-5; in fp32 under autocast.

    Args:
        x: (..., C).
        weight_C: gain, ``None`` without one.
        bias_C: offset, ``None`` without one.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.float()
    return _NormGelu.apply(x, weight_C, bias_C)


class _NormGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        normed, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], weight, bias, EPS)
        ctx.save_for_backward(x, weight, bias, mean, deviation)
        return torch.ops.aten.gelu_(normed)

    @staticmethod
    def backward(ctx, *grads):
        x, weight, bias, mean, deviation = ctx.saved_tensors
        normed, _, _ = torch.native_layer_norm(x, x.shape[-1:], weight, bias, EPS)
        grad = torch.ops.aten.gelu_backward.grad_input(grads[0].contiguous(), normed, grad_input=normed)
        return torch.ops.aten.native_layer_norm_backward(
            grad, x, x.shape[-1:], mean, deviation, weight, bias, list(ctx.needs_input_grad)
        )
