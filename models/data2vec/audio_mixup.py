"""Mixing clips of a batch while training on audio events: sounds add up, and so do their labels.

B clips, S samples, C classes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .errors import Problem
from .placing import moved
from .randomness import generator
from .rules import Rules

GainMode = Literal["none", "naive_rms", "RMSE", "A_weighting"]
_WINDOW = 2048  # samples that a level is measured over, at 16 kHz; windows overlap by half
_FLOOR_DB = -80.0
_SAMPLE_RATE = 16_000


@dataclass(kw_only=True)
class MixupOptions:
    """How clips are mixed in training; nothing is where ``source_mixup`` is negative."""

    mixup_prob: float = 1.0  # probability that a clip is mixed with another one
    source_mixup: float = -1.0  # smallest share of a clip's own sound; < 0: nothing is mixed
    same_mixup: bool = True  # one ratio for the batch instead of one a clip
    label_mixup: bool = False  # labels become shares in the same ratio
    gain_mode: GainMode = "none"  # level that evens out clips of unequal loudness before the ratio acts

    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible about these options, all of it."""
        rule = Rules(self, path)
        rule.share("mixup_prob")
        rule("source_mixup", self.source_mixup <= 1.0, "must be at most 1 (negative: off)")
        return rule.found

    @property
    def mixes(self) -> bool:
        """Whether anything is mixed at all."""
        return self.source_mixup >= 0.0 and self.mixup_prob > 0.0


@torch.no_grad()
def mix_clips(
    source_BS: torch.Tensor,
    labels_BC: torch.Tensor,
    padding_mask_BS: torch.Tensor | None,
    options: MixupOptions,
    key: tuple[int | str, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each clip with a share of another clip of the batch.

    With a clip's own share r, drawn evenly from ``source_mixup`` to 1: ``(p x + (1 - p) x') / sqrt(p^2 +
    (1 - p)^2)``, p = r or, with a gain mode and levels G, ``1 / (1 + 10^((G - G') / 20) (1 - r) / r)``.
    Labels are mixed with r, the sound with p, as in the reference. What a longer partner has behind the end
    of a clip is cut off.

    Args:
        source_BS: (B, S).
        labels_BC: (B, C).
        padding_mask_BS: (B, S) bool, true where padded, or ``None``.
        options: ratios and levels.
        key: what partners and ratios are a function of.
    """
    count, device = len(source_BS), source_BS.device
    draw = generator("event mixup", *key)
    partner_B = moved(torch.randperm(count, generator=draw), device)
    low = max(1e-6, options.source_mixup)
    ratio_B = torch.empty(1 if options.same_mixup else count).uniform_(low, 1.0, generator=draw)
    ratio_B1 = moved(ratio_B, device)[:, None].expand(count, 1)
    chosen_B1 = moved(torch.rand(count, generator=draw) < options.mixup_prob, device)[:, None]
    own_B1 = ratio_B1
    if options.gain_mode != "none":
        level_B1 = clip_levels(source_BS, options.gain_mode)[:, None].to(source_BS.dtype)
        odds = 10.0 ** ((level_B1 - level_B1[partner_B]) / 20.0) * (1.0 - ratio_B1) / ratio_B1
        own_B1 = 1.0 / (1.0 + odds)
    mixed_BS = own_B1 * source_BS + (1.0 - own_B1) * source_BS[partner_B]
    mixed_BS = mixed_BS / torch.sqrt(own_B1**2 + (1.0 - own_B1) ** 2)
    if padding_mask_BS is not None:
        mixed_BS = mixed_BS.masked_fill(moved(padding_mask_BS, device), 0.0)
    if options.label_mixup:
        shared_BC = ratio_B1 * labels_BC + (1.0 - ratio_B1) * labels_BC[partner_B]
        labels_BC = torch.where(chosen_B1, shared_BC, labels_BC)
    return torch.where(chosen_B1, mixed_BS, source_BS), labels_BC


def clip_levels(source_BS: torch.Tensor, mode: GainMode) -> torch.Tensor:
    """Loudness of clips, (B,).

    ``naive_rms`` is the root mean square itself. ``RMSE`` and ``A_weighting`` are decibels of the loudest
    window of 2048 samples, at least -80, the latter weighed by the ear's sensitivity (IEC 61672's A curve).
    """
    if mode == "naive_rms":
        return source_BS.pow(2).mean(dim=-1).sqrt()
    short = _WINDOW - source_BS.shape[-1]
    if short > 0:
        source_BS = torch.nn.functional.pad(source_BS, (0, short))
    windows_BNS = source_BS.float().unfold(-1, _WINDOW, _WINDOW // 2)
    if mode == "RMSE":
        power_BN = windows_BNS.pow(2).mean(dim=-1)
    else:
        spectrum = torch.fft.rfft(windows_BNS * torch.hann_window(_WINDOW, device=source_BS.device))
        power_BN = (spectrum.abs() ** 2 * moved(_a_curve(), spectrum.device)).sum(dim=-1)
    return 10.0 * torch.log10(power_BN.clamp(min=10.0 ** (_FLOOR_DB / 10.0))).amax(dim=-1)


@functools.cache
def _a_curve() -> torch.Tensor:
    """Power factor of each frequency of a window's spectrum."""
    square = np.linspace(0, _SAMPLE_RATE // 2, _WINDOW // 2 + 1) ** 2
    square[0] = 1.0
    decibels = 2.0 + 20.0 * (
        2 * np.log10(12194)
        + 2 * np.log10(square)
        - np.log10(square + 12194**2)
        - np.log10(square + 20.6**2)
        - 0.5 * np.log10(square + 107.7**2)
        - 0.5 * np.log10(square + 737.9**2)
    )
    return torch.from_numpy(10.0 ** (np.maximum(decibels, _FLOOR_DB) / 10.0)).float()
