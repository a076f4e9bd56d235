"""Parts of a network that the backward pass computes again instead of keeping what is inside them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., torch.Tensor], *inputs: object) -> torch.Tensor:
    """``function(*inputs)``, of which only the inputs are kept.

    The second run stops where nothing more is missing: a matrix product at the end runs once. Compiled code
    decides itself what it keeps.

    Args:
        function: draws no random numbers.
        inputs: its arguments.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
