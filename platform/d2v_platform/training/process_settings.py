"""What a process switches in PyTorch and its libraries before it builds a model."""

from __future__ import annotations

import os

CACHE_LIMIT = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
CACHED_CONVOLUTIONS = 64
"""Shapes whose code oneDNN keeps; it would keep 1024. Audio has ever new lengths and filled 0.8 GB with them.

A training step of ours has some 40.
"""


def limit_memory() -> None:
    """Bound what oneDNN keeps; before the first convolution. The user's own value wins."""
    os.environ.setdefault(CACHE_LIMIT, str(CACHED_CONVOLUTIONS))


def be_deterministic(*, strict: bool) -> None:
    """Repeat results bit for bit.

    Args:
        strict: stop at an operation that cannot, instead of warning.
    """
    import torch

    # Attention kernels of a GPU are deterministic only where an operation that is not would be an error.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Not use_deterministic_algorithms: that imports the compiler, which takes seconds; where regions are
    # compiled, compilation.py tells it.
    torch.set_deterministic_debug_mode("error" if strict else "warn")
    # Every tensor here is written before it is read.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - missing in the types
