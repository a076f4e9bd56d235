"""What lies where: ids and padding flags decide shapes, so they stay on the CPU until they have.

A GPU that is asked for a number must finish everything first; one that is only sent tensors goes on.
"""

from __future__ import annotations

from typing import TypeVar

import torch

Maybe = TypeVar("Maybe", torch.Tensor, torch.Tensor | None)


def read(x: torch.Tensor) -> torch.Tensor:
    """Numbers that a device has computed: the only place where an update waits for it."""
    return x.cpu()


def moved(x: Maybe, device: torch.device) -> Maybe:
    """A tensor, if it is one, on a device; nothing waits for the copy."""
    return x if x is None else x.to(device, non_blocking=True)
