"""Learning rates as functions of the number of completed updates (``training_loop.md`` section 7).

The optimizer step that produces update ``u + 1`` uses the value at ``u``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up, then half a cosine from ``peak`` to ``min_lr``; then it restarts, shrunk."""

    peak: float
    min_lr: float = 0.0
    warmup_updates: int = 0
    warmup_init_lr: float = -1.0  # negative: min_lr
    period_updates: float = -1.0  # negative: max_update - warmup_updates
    max_update: int = 0
    lr_shrink: float = 0.1
    t_mult: float = 1.0

    def __call__(self, update: int) -> float:
        """Learning rate at ``update``."""
        # A layer-decayed group keeps the unscaled minimum, capped by its own peak.
        low = min(self.min_lr, self.peak)
        if update < self.warmup_updates:
            start = low if self.warmup_init_lr < 0 else self.warmup_init_lr
            return start + update * (self.peak - start) / self.warmup_updates
        elapsed = update - self.warmup_updates
        first = self.period_updates if self.period_updates > 0 else self.max_update - self.warmup_updates
        if self.t_mult != 1.0:
            index = math.floor(math.log(1 - elapsed / first * (1 - self.t_mult), self.t_mult))
            period = first * self.t_mult**index
            begin = (1 - self.t_mult**index) / (1 - self.t_mult) * first
        else:
            index = math.floor(elapsed / first)
            period, begin = first, index * first
        shrink = self.lr_shrink**index
        low, peak = low * shrink, self.peak * shrink
        return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * (elapsed - begin) / period))


@dataclass(frozen=True, kw_only=True)
class TriStage:
    """Linear warm-up from ``init_scale * peak``, hold, decay to ``final_scale * peak``, constant."""

    peak: float
    warmup_steps: int
    hold_steps: int
    decay_steps: int
    init_scale: float = 0.01
    final_scale: float = 0.01

    def __call__(self, update: int) -> float:
        """Learning rate at ``update``."""
        start = self.init_scale * self.peak
        if update < self.warmup_steps:
            return start + (self.peak - start) / self.warmup_steps * update
        update -= self.warmup_steps
        if update < self.hold_steps:
            return self.peak
        update -= self.hold_steps
        if update <= self.decay_steps and self.decay_steps > 0:
            return self.peak * math.exp(math.log(self.final_scale) / self.decay_steps * update)
        return self.final_scale * self.peak


@dataclass(frozen=True, kw_only=True)
class PolynomialDecay:
    """Linear warm-up, then a polynomial down to ``end`` at ``total``."""

    peak: float
    warmup_updates: int = 0
    total: float = 0.0
    end: float = 0.0
    power: float = 1.0

    def __call__(self, update: int) -> float:
        """Learning rate at ``update``."""
        if self.warmup_updates > 0 and update <= self.warmup_updates:
            return update / self.warmup_updates * self.peak
        if update >= self.total:
            return self.end
        remaining = 1 - (update - self.warmup_updates) / (self.total - self.warmup_updates)
        return (self.peak - self.end) * remaining**self.power + self.end


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A constant, reached by an optional linear warm-up."""

    peak: float
    warmup_updates: int = 0

    def __call__(self, update: int) -> float:
        """Learning rate at ``update``."""
        if self.warmup_updates > 0 and update < self.warmup_updates:
            return (update + 1) / self.warmup_updates * self.peak
        return self.peak


Schedule = Cosine | TriStage | PolynomialDecay | Fixed
