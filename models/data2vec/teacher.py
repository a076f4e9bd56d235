"""The teacher: an exponential moving average of (part of) the student.

It steps once per optimizer update, at the start of the next one and before its forward pass, with a decay
that is annealed linearly. The average is kept in fp32; where training computes in a lower precision, autocast
makes the copy.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from .shards import full_norm, own_part


class TeacherConfig(Protocol):
    """The teacher's schedule: any model configuration with these fields."""

    ema_decay: float
    ema_end_decay: float
    ema_anneal_end_step: int | None
    max_update: int | None


def annealed_decay(start: float, end: float, anneal_end_step: int, update: int) -> float:
    """The teacher's decay when ``update`` optimizer updates are complete."""
    if start == end or update >= anneal_end_step:
        return end
    return end - (end - start) * (1.0 - update / anneal_end_step)


class Teacher(nn.Module):
    """Holds the averaged module and moves it towards the student.

    Args:
        module: built like the student's part that it follows; its weights are overwritten.
        source: the student's part, whose parameter names include the module's.
        config: decay, end decay and annealing.
        copied: beginnings of names that are copied at every step instead of averaged.
    """

    def __init__(
        self, module: nn.Module, source: nn.Module, config: TeacherConfig, *, copied: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.module = module
        self.num_updates = 0  # optimizer updates that the average has taken in
        self._copied = copied
        self._start, self._end = config.ema_decay, config.ema_end_decay
        self._anneal = config.ema_anneal_end_step or config.max_update or 0
        # A plain tuple: the student must not become a submodule of its teacher.
        self._source = (source,)
        module.requires_grad_(False)
        module.eval()
        self.copy_from_student()

    def train(self, mode: bool = True) -> Teacher:
        """The teacher has no dropout: it stays in evaluation mode."""
        return super().train(False)

    def decay(self, update: int) -> float:
        """Decay in force at ``update``."""
        return annealed_decay(self._start, self._end, self._anneal, update)

    @torch.no_grad()
    def copy_from_student(self) -> None:
        """Start over as an exact copy of the student."""
        for mine, theirs in self._pairs(trainable=None):
            mine.copy_(theirs)

    @torch.no_grad()
    def step(self, update: int) -> bool:
        """Move the average, once for each ``update``; repeated calls (accumulation, retries) change nothing.

        Args:
            update: completed optimizer updates; 0 never moves it.

        Returns:
            Whether it moved.
        """
        if update <= self.num_updates:
            return False
        self.num_updates = update
        decay = self.decay(update)
        for mine, theirs in self._pairs(trainable=False):
            mine.copy_(theirs)
        if decay == 1.0:
            return False
        pairs = self._pairs(trainable=True)
        torch._foreach_lerp_([mine for mine, _ in pairs], [theirs for _, theirs in pairs], 1.0 - decay)
        return True

    def norms(self) -> tuple[float, float]:
        """Norms of what is averaged, of the student and of the teacher; every worker must call this."""
        pairs = self._whole_pairs(trainable=True)
        return full_norm([theirs for _, theirs in pairs]), full_norm([mine for mine, _ in pairs])

    def _pairs(self, trainable: bool | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(teacher tensor, student tensor) pairs: averaged ones, copied ones (frozen, buffers), or all."""
        # Sharded alike, each worker holds the same rows of both: the average needs nothing from the others.
        return [(own_part(mine), own_part(theirs)) for mine, theirs in self._whole_pairs(trainable)]

    def _whole_pairs(self, trainable: bool | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        source = self._source[0]
        theirs: dict[str, torch.Tensor] = {**dict(source.named_parameters()), **dict(source.named_buffers())}
        mine: dict[str, torch.Tensor] = {
            **dict(self.module.named_parameters()),
            **dict(self.module.named_buffers()),
        }
        return [
            (tensor.detach(), theirs[name].detach())
            for name, tensor in mine.items()
            if trainable is None or self._is_averaged(name, theirs[name]) is trainable
        ]

    def _is_averaged(self, name: str, tensor: torch.Tensor) -> bool:
        return tensor.requires_grad and not name.startswith(self._copied)
