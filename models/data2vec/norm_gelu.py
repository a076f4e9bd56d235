"""Layer norm followed by GELU, as after every convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F

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
    return F.gelu(F.layer_norm(x, x.shape[-1:], weight_C, bias_C, EPS))
