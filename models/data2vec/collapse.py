"""Is a stage of the network still telling its inputs apart? Variance and effective rank of its vectors.

A network that predicts its own averaged features can win by making all features equal. Variance finds
features that are constant; rank finds features that differ along a few directions only, which the per-channel
target norms hide from the variance.

N vectors, D width, C channels that are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

STAGES = ("local_features", "encoder", "targets", "predictions")
"""What is watched: front end, student encoder, teacher's targets and predictions at masked positions."""

MAX_VECTORS = 256  # of a micro-batch, evenly spaced
MAX_CHANNELS = 256  # evenly spaced: a wider network's rank shows in them too


def watched_channels(dim: int) -> int:
    """C for vectors of width D."""
    return len(range(0, dim, _stride(dim, MAX_CHANNELS)))


@dataclass(frozen=True)
class Scatter:
    """Sums over vectors, which add up over micro-batches and workers to a covariance."""

    count: int  # number of vectors
    total_C: torch.Tensor  # (C,) float64 sum
    outer_CC: torch.Tensor  # (C, C) float64 sum of outer products

    @classmethod
    def of(cls, x: torch.Tensor, padding_mask: torch.Tensor | None = None) -> Scatter:
        """Sums of evenly spaced vectors and channels.

        Args:
            x: (..., D).
            padding_mask: (...) bool, true for vectors to leave out.
        """
        dim = x.shape[-1]
        x_ND = x.detach().reshape(-1, dim) if padding_mask is None else x.detach()[~padding_mask]
        vectors = _stride(x_ND.shape[0], MAX_VECTORS)
        x_NC = x_ND[::vectors, :: _stride(dim, MAX_CHANNELS)].float()
        count = x_NC.shape[0]
        if count == 0:
            return cls.zeros(x_NC.shape[1], x.device)
        mean_C = x_NC.mean(dim=0)
        centred_NC = x_NC - mean_C  # about their own mean, for accuracy in fp32
        mean64_C = mean_C.double()
        outer_CC = (centred_NC.T @ centred_NC).double() + count * torch.outer(mean64_C, mean64_C)
        return cls(count, count * mean64_C, outer_CC)

    @classmethod
    def zeros(cls, channels: int, device: torch.device | None = None) -> Scatter:
        """No vector yet."""
        kind = {"dtype": torch.float64, "device": device}
        return cls(0, torch.zeros(channels, **kind), torch.zeros(channels, channels, **kind))

    def __add__(self, other: Scatter) -> Scatter:
        return Scatter(self.count + other.count, self.total_C + other.total_C, self.outer_CC + other.outer_CC)

    def covariance(self) -> torch.Tensor:
        """(C, C) unbiased covariance."""
        mean_C = self.total_C / max(self.count, 1)
        return (self.outer_CC - self.count * torch.outer(mean_C, mean_C)) / max(self.count - 1, 1)

    def deviation(self) -> float:
        """Mean over channels of the standard deviation."""
        return float(self.covariance().diagonal().clamp_min(0.0).sqrt().mean())

    def effective_rank(self) -> float:
        """Exponential of the entropy of the covariance's spectrum (Roy and Vetterli 2007).

        C if all directions vary equally, 1 if all vectors lie on one line, 0 if they do not vary.
        """
        values_C = torch.linalg.eigvalsh(self.covariance().cpu()).clamp_min(0.0)
        total = float(values_C.sum())
        if total <= 1e-20:
            return 0.0
        share_C = values_C / total
        return float(torch.exp(-torch.special.xlogy(share_C, share_C).sum()))


def stage_scatters(stages: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]) -> dict[str, Scatter]:
    """Sums by stage from vectors and their padding."""
    return {name: Scatter.of(x, padding) for name, (x, padding) in stages.items()}


def _stride(size: int, most: int) -> int:
    return max(1, -(-size // most))
