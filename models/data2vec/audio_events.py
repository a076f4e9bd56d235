"""Audio events: which of many sounds a recording holds, over a pretrained audio model (AudioSet).

Every frame gets a score for every class, and a pooling makes one score of a clip out of them. A clip may hold
several classes, or, mixed with another clip, shares of them.

B clips, S samples, T frames, C classes, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from .audio_trunk import AudioConfig, AudioHead, AudioTrunk, TrunkOptions, freeze_matching, make_audio_trunk
from .errors import Problem
from .placing import moved
from .randomness import generator
from .rules import Rules
from .student import Data2VecMulti
from .v1.audio import Data2VecAudio

EventPooling = Literal[
    "lin_softmax", "average_before", "average", "average_sigmoid", "max", "max_sigmoid", "extremized_odds",
    "proj_avg_proj", "cls",
]  # fmt: skip
_PROBABILITIES = ("average_sigmoid", "max_sigmoid")  # poolings whose result is a probability, not a logit
_WITHOUT_CONVOLUTION = ("average_before", "proj_avg_proj", "cls")  # poolings before or without frames


@dataclass(kw_only=True)
class AudioEventOptions(TrunkOptions):
    """Fine-tuning options of a classifier of audio events."""

    prediction_mode: EventPooling = "lin_softmax"  # how frames become one score of a clip and class
    eval_prediction_mode: EventPooling | None = None  # the same outside training; null = prediction_mode
    conv_kernel: int = -1  # > 1: a convolution of so many frames gives the scores instead of a linear layer
    conv_stride: int = 1  # frames between its outputs
    two_convs: bool = False  # a convolution D -> D, GELU, then the linear layer
    extreme_factor: float = 1.0  # factor of the summed scores (extremized_odds)
    pool_padding: bool = False  # ours: padded frames are pooled too, as in the reference

    @property
    def convolves(self) -> bool:
        """Scores come out of a convolution over frames."""
        return self.conv_kernel > (0 if self.two_convs else 1)

    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible about these options, all of it."""
        found = super().problems(path)
        rule = Rules(self, path)
        rule.at_least(1, "conv_stride")
        evaluated = self.eval_prediction_mode
        for name, mode in (("prediction_mode", self.prediction_mode), ("eval_prediction_mode", evaluated)):
            fits = not (self.convolves and mode in _WITHOUT_CONVOLUTION)
            rule(name, fits, "needs a linear layer; use conv_kernel=-1")
        if evaluated is not None:
            same = (evaluated == "proj_avg_proj") == (self.prediction_mode == "proj_avg_proj")
            rule(
                "eval_prediction_mode", same, f"has other layers than prediction_mode {self.prediction_mode}"
            )
        return found + rule.found


@dataclass(kw_only=True)
class AudioEventConfig(AudioEventOptions):
    """The same with the number of classes, which the data decides."""

    num_classes: int = 527  # C


@dataclass(frozen=True)
class EventOutput:
    """Scores of one micro-batch."""

    scores_BC: torch.Tensor  # (B, C) in fp32, logits or probabilities
    are_logits: bool  # whether they are logits

    def probabilities(self) -> torch.Tensor:
        """(B, C) in 0 ... 1; classes do not exclude each other."""
        return torch.sigmoid(self.scores_BC) if self.are_logits else self.scores_BC

    def loss(self, labels_BC: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy summed over clips and classes; its divisor is ``labels_BC.sum()``.

        Args:
            labels_BC: (B, C), 1 where the clip holds the class, or a share of it.
        """
        if self.are_logits:
            return F.binary_cross_entropy_with_logits(self.scores_BC, labels_BC, reduction="sum")
        scores_BC = self.scores_BC.clamp(0.0, 1.0)
        with torch.autocast(scores_BC.device.type, enabled=False):
            return F.binary_cross_entropy(scores_BC, labels_BC, reduction="sum")


class AudioEventModel(AudioHead[EventOutput]):
    """Trunk, projection onto the classes and pooling over frames, under the reference's names.

    Args:
        pretrained: configuration of the pretrained model, of either generation.
        options: fine-tuning options.
        seed: seed of the projection's (and, without a pretrained model, the trunk's) initial weights.
    """

    def __init__(self, pretrained: AudioConfig, options: AudioEventConfig, *, seed: int = 1) -> None:
        super().__init__(pretrained, options)
        self.options: AudioEventConfig = options
        trunk, dim = make_audio_trunk(pretrained, options, seed)
        self.d2v_model = trunk
        self.proj, self.proj2 = _projection(options, dim)
        for name, module in (("proj", self.proj), ("proj2", self.proj2)):
            for index, part in enumerate([] if module is None else module.modules()):
                if isinstance(part, nn.Linear | nn.Conv1d):
                    _initialise(part, seed, name, index)
        freeze_matching(self, options.freeze_regex)

    @property
    def trunk(self) -> AudioTrunk:
        """The pretrained network."""
        assert isinstance(self.d2v_model, Data2VecMulti | Data2VecAudio)
        return self.d2v_model

    def judge(self, x_BTD: torch.Tensor, padding_BT: torch.Tensor | None) -> EventOutput:
        """Scores of every clip and class."""
        padding_BT = moved(padding_BT, x_BTD.device)
        if padding_BT is not None:
            x_BTD = x_BTD.masked_fill(padding_BT[..., None], 0.0)
        options = self.options
        mode = options.prediction_mode if self.training else options.eval_prediction_mode
        scores_BC = self._scores(self.final_dropout(x_BTD), padding_BT, mode or options.prediction_mode)
        scores_BC = torch.nan_to_num(scores_BC.float())
        return EventOutput(scores_BC, (mode or options.prediction_mode) not in _PROBABILITIES)

    def _scores(
        self, x_BTD: torch.Tensor, padding_BT: torch.Tensor | None, mode: EventPooling
    ) -> torch.Tensor:
        real_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
        if padding_BT is not None and not self.options.pool_padding:
            real_BT = ~padding_BT
        if mode == "cls":
            return self.proj(x_BTD[:, 0])
        if mode == "average_before":
            return self.proj(_mean(x_BTD, real_BT))
        if mode == "proj_avg_proj":
            assert self.proj2 is not None
            return self.proj2(_mean(self.proj(x_BTD), real_BT))
        if self.options.convolves:
            short = self.options.conv_kernel - x_BTD.shape[1]
            if short > 0:  # a clip shorter than the kernel still gives one output
                x_BTD = F.pad(x_BTD, (0, 0, 0, short))
            z_BTC = self.proj(x_BTD)
            real_BT = _outputs_of(real_BT, self.options.conv_kernel, self.options.conv_stride, z_BTC.shape[1])
        else:
            z_BTC = self.proj(x_BTD)
        return pool_events(z_BTC.float(), real_BT, mode, self.options.extreme_factor)


def pool_events(
    z_BTC: torch.Tensor, real_BT: torch.Tensor, mode: EventPooling, extreme_factor: float = 1.0
) -> torch.Tensor:
    """Scores of frames to scores of clips, over real frames only.

    Args:
        z_BTC: (B, T, C) logits in fp32.
        real_BT: (B, T) bool, at least one true in each row.
        mode: ``lin_softmax`` weighs each frame's probability by itself, ``sum p^2 / sum p``, in logarithms; a
            clip whose every frame is certain gets a logit of 16, not infinity.
        extreme_factor: of ``extremized_odds``.

    Returns:
        (B, C) logits, or probabilities where the mode's name says sigmoid.
    """
    hidden_BT1 = ~real_BT[..., None]
    if mode == "lin_softmax":
        log_p = F.logsigmoid(z_BTC)
        twice = (2.0 * log_p).masked_fill(hidden_BT1, float("-inf")).logsumexp(dim=1)
        once = log_p.masked_fill(hidden_BT1, float("-inf")).logsumexp(dim=1)
        log_pooled = (twice - once).clamp(max=-1e-7)
        return log_pooled - torch.log(-torch.expm1(log_pooled))
    if mode == "extremized_odds":
        return z_BTC.masked_fill(hidden_BT1, 0.0).sum(dim=1) * extreme_factor
    if mode in ("average", "average_sigmoid"):
        return _mean(z_BTC.sigmoid() if mode == "average_sigmoid" else z_BTC, real_BT)
    assert mode in ("max", "max_sigmoid"), mode
    z_BTC = z_BTC.sigmoid() if mode == "max_sigmoid" else z_BTC
    return z_BTC.masked_fill(hidden_BT1, float("-inf")).amax(dim=1)


def _mean(x_BTD: torch.Tensor, real_BT: torch.Tensor) -> torch.Tensor:
    weight_BT1 = real_BT[..., None].to(x_BTD.dtype)
    return (x_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)


def _outputs_of(real_BT: torch.Tensor, kernel: int, stride: int, length: int) -> torch.Tensor:
    """Which outputs of a convolution see real frames only; the first one always counts."""
    count_B = ((real_BT.sum(dim=1) - kernel).div(stride, rounding_mode="floor") + 1).clamp(min=1)
    return torch.arange(length, device=real_BT.device)[None, :] < count_B[:, None]


class _OverTime(nn.Module):
    """Swaps frames and channels, which convolutions want the other way round."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


def _projection(options: AudioEventConfig, dim: int) -> tuple[nn.Module, nn.Linear | None]:
    """The layers from features to classes, numbered as in the reference's files."""
    classes = options.num_classes
    if options.prediction_mode == "proj_avg_proj":
        return nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, classes)
    if not options.convolves:
        return nn.Linear(dim, classes), None
    kernel, stride = options.conv_kernel, options.conv_stride
    if options.two_convs:
        convolution = nn.Conv1d(dim, dim, kernel, stride)
        return nn.Sequential(_OverTime(), convolution, _OverTime(), nn.GELU(), nn.Linear(dim, classes)), None
    return nn.Sequential(_OverTime(), nn.Conv1d(dim, classes, kernel, stride), _OverTime()), None


@torch.no_grad()
def _initialise(layer: nn.Linear | nn.Conv1d, seed: int, name: str, index: int) -> None:
    """PyTorch's own initialisation, from our keys."""
    bound = layer.weight[0].numel() ** -0.5
    for part in ("weight", "bias"):
        draw = generator("init", seed, "events", name, index, part)
        getattr(layer, part).uniform_(-bound, bound, generator=draw)
