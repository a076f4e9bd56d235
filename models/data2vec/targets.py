"""Training targets: the average of the teacher's top blocks, normalised (v1 paper section 3.3; v2 section
3.1).

Every layer is normalised before averaging so that no layer dominates. Instance norm (over positions, for each
channel) removes what is constant over a sample: it suits sequences whose neighbours are correlated, as in
speech; layer norm (over channels) suits the rest. None of these norms has parameters, and each uses epsilon
1e-5 whatever ``norm_eps`` says.

B samples, T positions, D width.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

TARGET_EPS = 1e-5


class TargetConfig(Protocol):
    """Which layers are averaged and how they are normalised: any model configuration with these fields."""

    @property
    def depth(self) -> int:
        """Teacher blocks."""
        ...

    average_top_k_layers: int
    batch_norm_target_layer: bool
    instance_norm_target_layer: bool
    layer_norm_target_layer: bool
    layer_norm_targets: bool
    instance_norm_targets: bool


class TargetAverage:
    """Running average of normalised teacher layers: one (B, T, D) buffer however many layers there are."""

    def __init__(self, config: TargetConfig) -> None:
        self._config = config
        self._first = config.depth - config.average_top_k_layers
        self._sum: torch.Tensor | None = None

    def add(self, index: int, layer_BTD: torch.Tensor) -> None:
        """Take in the target candidate of teacher block ``index``; lower blocks are ignored."""
        if index < self._first:
            return
        config, x = self._config, layer_BTD.float()
        if config.batch_norm_target_layer:
            x = _batch_norm(x)
        if config.instance_norm_target_layer:
            x = instance_norm(x)
        if getattr(config, "group_norm_target_layer", False):  # an option of v1 audio alone
            x = F.layer_norm(x, x.shape[-2:], eps=TARGET_EPS)
        if config.layer_norm_target_layer:
            x = F.layer_norm(x, x.shape[-1:], eps=TARGET_EPS)
        self._sum = x.clone() if self._sum is None else self._sum.add_(x)

    def result(self) -> torch.Tensor:
        """The (B, T, D) targets in fp32."""
        config = self._config
        assert self._sum is not None, "no teacher block was added"
        x = self._sum / config.average_top_k_layers
        if config.layer_norm_targets:
            x = F.layer_norm(x, x.shape[-1:], eps=TARGET_EPS)
        if config.instance_norm_targets:
            x = instance_norm(x)
        return x


def instance_norm(x_BTD: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance over T for each sample and channel."""
    return F.instance_norm(x_BTD.transpose(1, 2), eps=TARGET_EPS).transpose(1, 2)  # sums in double precision


def _batch_norm(x_BTD: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance over B and T for each channel."""
    variance, mean = torch.var_mean(x_BTD, dim=(0, 1), correction=0, keepdim=True)
    return (x_BTD - mean) * torch.rsqrt(variance + TARGET_EPS)
