"""Speech recognition by CTC over a pretrained audio model of either generation (``wav2vec_ctc``).

The trunk may be frozen at first while only the new projection learns; frames and channels are masked while
training, as SpecAugment does; the blank is ``<s>`` (id 0).

B utterances, S samples, T frames, U labels, V symbols, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from .audio_trunk import AudioConfig, AudioHead, AudioTrunk, TrunkOptions, freeze_matching, make_audio_trunk
from .placing import moved
from .randomness import generator
from .student import Data2VecMulti
from .v1.audio import Data2VecAudio

BLANK, PAD, EOS, UNKNOWN = 0, 1, 2, 3


@dataclass(kw_only=True)
class CTCConfig(TrunkOptions):
    """Fine-tuning options of a recogniser."""

    blank_weight: float = 0.0  # added to the blank's logit, or its value
    blank_mode: Literal["add", "set"] = "add"  # what blank_weight does


@dataclass(frozen=True)
class CTCOutput:
    """Logits of one micro-batch."""

    logits_BTV: torch.Tensor  # (B, T, V) in fp32
    frames_B: torch.Tensor  # (B,) int64, real frames of each utterance; where the given padding was
    padding_mask_BT: torch.Tensor | None  # (B, T) bool, true where padded; ``None`` if nothing is

    def emissions(self) -> torch.Tensor:
        """(B, T, V) log-probabilities; padded frames are certain blanks."""
        logits_BTV = self.logits_BTV
        if self.padding_mask_BT is not None:
            only_blank_V = torch.full((logits_BTV.shape[-1],), float("-inf"), device=logits_BTV.device)
            only_blank_V[BLANK] = 0.0
            logits_BTV = torch.where(self.padding_mask_BT[..., None], only_blank_V, logits_BTV)
        return F.log_softmax(logits_BTV, dim=-1)


@dataclass(frozen=True)
class CTCSums:
    """Loss and its divisor."""

    loss: torch.Tensor  # summed over utterances (differentiable)
    sentences: int  # utterances that count; too short ones do not
    too_short: int = field(default=0)  # utterances with fewer frames than their labels need


class CTCModel(AudioHead[CTCOutput]):
    """Trunk and projection onto the symbols, under the reference's names.

    Args:
        pretrained: configuration of the pretrained model.
        options: fine-tuning options.
        num_symbols: V.
        seed: seed of the projection's (and, without a pretrained model, the trunk's) initial weights.
    """

    def __init__(
        self, pretrained: AudioConfig, options: CTCConfig, *, num_symbols: int, seed: int = 1
    ) -> None:
        super().__init__(pretrained, options)
        self.options: CTCConfig = options
        trunk, dim = make_audio_trunk(pretrained, options, seed)
        projection = nn.Linear(dim, num_symbols)
        self.w2v_encoder = nn.ModuleDict({"w2v_model": trunk, "proj": projection})
        with torch.no_grad():
            bound = (6.0 / (dim + num_symbols)) ** 0.5
            projection.weight.uniform_(-bound, bound, generator=generator("init", seed, "ctc"))
            projection.bias.zero_()
        freeze_matching(self, options.freeze_regex)

    @property
    def trunk(self) -> AudioTrunk:
        """The pretrained network."""
        trunk = self.w2v_encoder["w2v_model"]
        assert isinstance(trunk, Data2VecMulti | Data2VecAudio)
        return trunk

    @property
    def num_symbols(self) -> int:
        """V."""
        return int(self.w2v_encoder["proj"].out_features)  # pyright: ignore[reportArgumentType]

    def judge(self, x_BTD: torch.Tensor, padding_BT: torch.Tensor | None) -> CTCOutput:
        """Logits of every frame."""
        logits_BTV = self.w2v_encoder["proj"](self.final_dropout(x_BTD)).float()
        if self.options.blank_weight != 0.0:
            blank = logits_BTV[..., BLANK] if self.options.blank_mode == "add" else 0.0
            logits_BTV = logits_BTV.index_copy(
                -1,
                torch.full((1,), BLANK, device=logits_BTV.device),
                (blank + torch.full_like(logits_BTV[..., BLANK], self.options.blank_weight))[..., None],
            )
        frames_B = torch.full((len(x_BTD),), x_BTD.shape[1], dtype=torch.int64)
        if padding_BT is not None:
            frames_B = (~padding_BT).sum(dim=1)
        return CTCOutput(logits_BTV, frames_B, moved(padding_BT, x_BTD.device))

    def loss(self, output: CTCOutput, targets_BU: torch.Tensor, lengths_B: torch.Tensor) -> CTCSums:
        """CTC loss summed over utterances; those with too few frames for their labels are left out.

        Args:
            output: of :meth:`forward`.
            targets_BU: (B, U) label ids; what lies behind a row's length is not read.
            lengths_B: (B,) labels of each utterance; best on the CPU, as are ``targets_BU``.
        """
        device, frames_B = output.logits_BTV.device, output.frames_B.cpu()
        targets_BU, lengths_B = targets_BU.cpu(), lengths_B.cpu()
        fits_B = (frames_B >= frames_needed(targets_BU, lengths_B)) & (frames_B > 0)
        log_probs_TBV = F.log_softmax(output.logits_BTV, dim=-1).transpose(0, 1)
        labels_N = torch.cat([row[:count] for row, count in zip(targets_BU, lengths_B.tolist(), strict=True)])
        loss_B = F.ctc_loss(
            log_probs_TBV,
            moved(labels_N, device),
            frames_B,
            lengths_B,
            blank=BLANK,
            reduction="none",
            zero_infinity=True,
        )
        kept_K = fits_B.nonzero()[:, 0]
        loss = loss_B.index_select(0, moved(kept_K, device)).sum()
        return CTCSums(loss, len(kept_K), len(fits_B) - len(kept_K))


def frames_needed(targets_BU: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """(B,) frames that the labels need: one each, and a blank between equal neighbours."""
    if targets_BU.shape[1] < 2:
        return lengths_B
    inside_BU = torch.arange(1, targets_BU.shape[1], device=targets_BU.device)[None, :] < lengths_B[:, None]
    repeats_B = ((targets_BU[:, 1:] == targets_BU[:, :-1]) & inside_BU).sum(dim=1)
    return lengths_B + repeats_B
