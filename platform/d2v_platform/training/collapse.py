"""The collapse watch of the training loop: variance and effective rank of each stage at every log line.

The sums are taken over all micro-batches of the update that the line ends with, so they do not depend on how
the micro-batches were dealt. A collapsed stage is warned about with advice; after
``platform.collapse_patience`` lines in a row training stops.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from data2vec.collapse import Scatter

from ..recipe.schema import Recipe
from ..tasks.reduction import reduce_vector
from .loop_state import LoopState

logger = logging.getLogger(__name__)

_ADVICE = {
    "local_features": (
        "the front end gives all inputs the same features: look for constant data (silence, blank images, "
        "one repeated line), lower optimization.lr or lengthen the warm-up"
    ),
    "encoder": "the student no longer tells its inputs apart: lower optimization.lr or lengthen the warm-up",
    "targets": (
        "the teacher gives all positions the same targets: raise model.ema_decay and model.ema_end_decay, "
        "keep a norm of each target layer (model.instance_norm_target_layer or layer_norm_target_layer), or "
        "lower optimization.lr"
    ),
    "predictions": (
        "the decoder predicts the same everywhere: lower optimization.lr, lengthen the warm-up, or give it "
        "more to see (a lower mask_prob)"
    ),
}


class CollapseWatch:
    """Watches the stages of a task.

    Args:
        recipe: the limits, in its ``platform`` group.
        channels: number of watched channels by stage; empty = nothing to watch.
    """

    def __init__(self, recipe: Recipe, channels: Mapping[str, int]) -> None:
        self.rules, self.interval = recipe.platform, recipe.common.log_interval
        self.channels = dict(channels)
        self.figures: dict[str, float] = {}
        self._sums: dict[str, Scatter] | None = None

    def begin(self, update: int) -> bool:
        """An update is about to run after ``update`` completed ones; returns whether it is looked at."""
        self.figures = {}
        due = bool(self.channels) and (update + 1) % self.interval == 0
        self._sums = {} if due else None
        return due

    def add(self, stages: Mapping[str, Scatter]) -> None:
        """Take in one micro-batch."""
        if self._sums is None:
            return
        for name, part in stages.items():
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def finish(self, device: torch.device) -> None:
        """Add up over the workers and compute the figures of the update."""
        if self._sums is None:
            return
        sums = [self._sums.get(name, Scatter.zeros(size, device)) for name, size in self.channels.items()]
        parts = [
            torch.cat([torch.full_like(s.total_C[:1], s.count), s.total_C, s.outer_CC.flatten()])
            for s in sums
        ]
        vector, offset = reduce_vector(torch.cat(parts), device), 0
        for name, size in self.channels.items():
            block = vector[offset : offset + 1 + size + size * size]
            offset += len(block)
            total = Scatter(int(block[0]), block[1 : 1 + size], block[1 + size :].view(size, size))
            self.figures[f"{name}_var"] = total.deviation()
            self.figures[f"{name}_rank"] = total.effective_rank()
        self._sums = None

    def judge(self, state: LoopState, *, speaks: bool) -> str | None:
        """Compare the last figures with the limits; warn, count, and return a reason to stop.

        Args:
            state: its streaks are updated.
            speaks: this worker writes the warnings.
        """
        if not self.figures or state.update <= self.rules.collapse_after:
            return None
        for name in self.channels:
            var, rank = self.figures[f"{name}_var"], self.figures[f"{name}_rank"]
            below = []
            if var < self.rules.collapse_min_var:
                below.append(
                    f"deviation {var:.3g} < platform.collapse_min_var {self.rules.collapse_min_var:g}"
                )
            if rank < self.rules.collapse_min_rank:
                limit = f"{self.rules.collapse_min_rank:g}"
                below.append(f"effective rank {rank:.3g} < platform.collapse_min_rank {limit}")
            if not below:
                state.collapse_streaks.pop(name, None)
                continue
            streak = state.collapse_streaks[name] = state.collapse_streaks.get(name, 0) + 1
            patience = self.rules.collapse_patience
            told = f"update {state.update}: {name} collapsed ({', '.join(below)})"
            if patience and streak >= patience:
                return f"{told} for {streak} log lines (platform.collapse_patience); {_ADVICE[name]}"
            if speaks:
                rest = f", line {streak} of {patience}" if patience else ""
                logger.warning("%s%s; %s", told, rest, _ADVICE[name])
        return None


def collapsed_stages(recipe: Recipe, metrics: Mapping[str, float], update: int) -> list[str]:
    """The stages whose last logged figures are below the limits, for the registry's gate."""
    rules = recipe.platform
    if update <= rules.collapse_after:
        return []
    return [
        name
        for name in _ADVICE
        if metrics.get(f"train/{name}_var", rules.collapse_min_var) < rules.collapse_min_var
        or metrics.get(f"train/{name}_rank", rules.collapse_min_rank) < rules.collapse_min_rank
    ]
