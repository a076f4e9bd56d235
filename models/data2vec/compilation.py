"""Compiling a network by ``torch.compile``, region by region.

A region is a method that one graph holds: blocks, convolutions, decoder and losses name theirs in
``regions``. All blocks share one compiled region, so compiling takes the time of one block; what is decided
from update to update (masks, layer drop, drop path, recomputation, who holds which parameters) stays outside,
in Python, and only sends tensors. Where sizes change, they are variables of the region, which is compiled
once for all of them.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MOST_VARIANTS = 64
"""Of one region: student and teacher, in training or not, with and without padding, each with its sizes."""


def compile_regions(
    module: nn.Module, *, sizes_change: bool, backend: str | Callable[..., Any] = "inductor"
) -> int:
    """Compile every region inside a module, at its first call; a part that one graph cannot hold is an error.

    Dropout of compiled regions draws other numbers than eager ones do, from the same seeds. On a CPU a module
    that says ``eager_on_cpu`` stays as it is.

    Args:
        module: the network; its parameters and their names stay.
        sizes_change: lengths and numbers of rows do; otherwise a region is compiled for the sizes that it
            meets first, and for all when it meets others.
        backend: of ``torch.compile``.

    Returns:
        The number of regions.
    """
    torch._dynamo.config.recompile_limit = MOST_VARIANTS
    compiler: Any = importlib.import_module("torch._inductor.config")
    compiler.deterministic = torch.are_deterministic_algorithms_enabled()
    count, dynamic = 0, True if sizes_change else None
    for part in module.modules():
        if getattr(part, "eager_on_cpu", False) and next(part.parameters()).device.type == "cpu":
            continue
        for name in getattr(part, "regions", ()):
            whole = torch.compile(getattr(part, name), fullgraph=True, dynamic=dynamic, backend=backend)
            setattr(part, name, whole)
            count += 1
    return count


def has_compiler() -> bool:
    """Whether this machine has the C compiler that builds what ``torch.compile`` writes, also for a GPU."""
    return any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))))
