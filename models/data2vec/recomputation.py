"""Parts of a network that the backward pass computes again instead of keeping what is inside them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

LEAST = 2**17
"""Numbers of the largest input from which on it pays: PyTorch's checkpoint imports its compiler, which takes
two seconds and 150 MB once."""


def recomputed(function: Callable[..., torch.Tensor], *inputs: object) -> torch.Tensor:
    """``function(*inputs)``, of which only the inputs are kept where they are large.

    The second run stops where nothing more is missing: a matrix product at the end runs once. Compiled code
    decides itself what it keeps.

    Args:
        function: draws no random numbers.
        inputs: its arguments.
    """
    largest = max(value.numel() for value in inputs if isinstance(value, torch.Tensor))
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or largest < LEAST:
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
