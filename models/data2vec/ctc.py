"""Speech recognition by CTC over a pretrained audio model of either generation (``wav2vec_ctc``).

The trunk may be frozen at first while only the new projection learns; frames and channels are masked while
training, as SpecAugment does; the blank is ``<s>`` (id 0).

B utterances, S samples, T frames, U labels, V symbols, D width.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from .audio_masking import span_masks
from .config import Data2VecMultiConfig
from .dropout import Dropout
from .errors import Problem
from .randomness import generator
from .rules import Rules
from .speech import AudioEncoder
from .student import Data2VecMulti
from .v1.config import Data2VecAudioConfig
from .v1.speech import Data2VecAudio

BLANK, PAD, EOS, UNKNOWN = 0, 1, 2, 3
AudioConfig = Data2VecMultiConfig | Data2VecAudioConfig


@dataclass(kw_only=True)
class CTCConfig:
    """Fine-tuning options, which replace the pretraining values of the trunk."""

    final_dropout: float = 0.0  # dropout before the projection
    dropout: float = 0.0  # dropout in the trunk
    attention_dropout: float = 0.0  # dropout on attention probabilities
    activation_dropout: float = 0.0  # dropout inside the feed-forward networks
    dropout_input: float = 0.0  # dropout on the trunk's input
    drop_path: float = 0.0  # without effect on data2vec models, as in the reference
    apply_mask: bool = False  # mask frames and channels while training
    mask_length: int = 10  # frames of a masked span
    mask_prob: float = 0.5  # masked share if spans did not overlap
    mask_selection: Literal["static", "uniform", "normal", "poisson"] = "static"  # only static is built
    mask_other: float = 0.0  # second parameter of mask_selection
    no_mask_overlap: bool = False  # spans may not overlap (not built)
    mask_dropout: float = 0.0  # share of the masked frames that is unmasked again
    mask_channel_length: int = 10  # channels of a masked span
    mask_channel_prob: float = 0.0  # masked share of the channels
    mask_channel_selection: Literal["static", "uniform", "normal", "poisson"] = "static"  # only static
    mask_channel_other: float = 0.0  # second parameter of mask_channel_selection
    no_mask_channel_overlap: bool = False  # spans may not overlap (not built)
    mask_channel_before: bool = False  # v1: mask channels before frames
    require_same_masks: bool = True  # v1: all utterances get the same number of masked frames
    zero_mask: bool = False  # v2: masked frames become zeros instead of noise
    freeze_finetune_updates: int = 0  # updates in which the trunk does not learn
    feature_grad_mult: float = 0.0  # gradient multiplier of the waveform convolutions; 0 = frozen
    layerdrop: float = 0.0  # probability of skipping a block while training
    update_alibi: bool = True  # v2: the ALiBi scale learns
    blank_weight: float = 0.0  # added to the blank's logit, or its value
    blank_mode: Literal["add", "set"] = "add"  # what blank_weight does
    layer_decay: float = 1.0  # v2: each block learns by this factor slower than the one above it
    freeze_regex: str | None = None  # parameters whose whole name matches do not learn

    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible about these options, all of it."""
        rule = Rules(self, path)
        rule.probability(
            "final_dropout",
            "dropout",
            "attention_dropout",
            "activation_dropout",
            "dropout_input",
            "layerdrop",
            "mask_dropout",
        )
        rule.probability("mask_prob")
        rule.share("mask_channel_prob")
        rule.at_least(1, "mask_length", "mask_channel_length")
        rule.at_least(0, "freeze_finetune_updates")
        rule("feature_grad_mult", self.feature_grad_mult >= 0.0, "must be >= 0")
        rule("layer_decay", 0.0 < self.layer_decay <= 1.0, "must lie in 0 < f <= 1")
        rule.only(
            "only {} is built: every recipe uses it",
            ("mask_selection", "static"),
            ("mask_other", 0.0),
            ("no_mask_overlap", False),
            ("mask_channel_selection", "static"),
            ("mask_channel_other", 0.0),
            ("no_mask_channel_overlap", False),
        )
        if self.freeze_regex is not None:
            try:
                re.compile(self.freeze_regex)
            except re.error as error:
                rule("freeze_regex", False, f"is no regular expression: {error}")
        return rule.found


def trunk_config(pretrained: AudioConfig, options: CTCConfig) -> AudioConfig:
    """The pretraining configuration with the fine-tuning values put in, and without what pretrains only."""
    config = copy.deepcopy(pretrained)
    config.attention_dropout = options.attention_dropout
    config.activation_dropout = options.activation_dropout
    config.dropout_input = options.dropout_input
    if isinstance(config, Data2VecAudioConfig):
        config.dropout, config.encoder_layerdrop = options.dropout, options.layerdrop
        config.feature_grad_mult = options.feature_grad_mult
        for name in ("mask_prob", "mask_length", "mask_dropout", "mask_channel_prob", "mask_channel_length",
                     "mask_channel_before", "require_same_masks"):  # fmt: skip
            setattr(config, name, getattr(options, name))
        return config
    audio = config.modalities.audio
    assert audio is not None, "Data2VecMultiConfig.check refuses an audio model without its section"
    config.encoder_dropout = config.post_mlp_drop = audio.prenet_dropout = options.dropout
    config.layerdrop = audio.prenet_layerdrop = options.layerdrop
    for name in ("mask_prob", "mask_length", "mask_dropout", "mask_channel_prob", "mask_channel_length"):
        setattr(audio, name, getattr(options, name))
    audio.mask_prob_min, audio.inverse_mask = None, False
    audio.encoder_zero_mask, audio.learned_alibi_scale = options.zero_mask, options.update_alibi
    audio.local_grad_mult = options.feature_grad_mult
    config.clone_batch, audio.decoder = 1, None
    return config


@dataclass(frozen=True)
class CTCOutput:
    """Logits of one micro-batch.

    Attributes:
        logits_BTV: (B, T, V) in fp32.
        frames_B: (B,) int64, real frames of each utterance.
        padding_mask_BT: (B, T) bool, true where padded; ``None`` if nothing is.
    """

    logits_BTV: torch.Tensor
    frames_B: torch.Tensor
    padding_mask_BT: torch.Tensor | None

    def emissions(self) -> torch.Tensor:
        """(B, T, V) log-probabilities; padded frames are certain blanks."""
        logits_BTV = self.logits_BTV
        if self.padding_mask_BT is not None:
            only_blank_V = torch.full((logits_BTV.shape[-1],), float("-inf"), device=logits_BTV.device)
            only_blank_V[BLANK] = 0.0
            logits_BTV = torch.where(self.padding_mask_BT[..., None], only_blank_V, logits_BTV)
        return F.log_softmax(logits_BTV, dim=-1)


@dataclass(frozen=True)
class TrainingMasks:
    """Given masks instead of drawn ones (tests).

    Attributes:
        time_BT: (B, T) bool, or ``None``.
        channel_BD: (B, D) bool, or ``None``.
        fill_ND: (N, D) vectors that masked frames become (v2), or ``None``.
    """

    time_BT: torch.Tensor | None = None
    channel_BD: torch.Tensor | None = None
    fill_ND: torch.Tensor | None = None


@dataclass(frozen=True)
class CTCSums:
    """Loss and its divisor.

    Attributes:
        loss: summed over utterances (differentiable).
        sentences: utterances that count; too short ones do not.
        too_short: utterances with fewer frames than their labels need.
    """

    loss: torch.Tensor
    sentences: int
    too_short: int = field(default=0)


class CTCModel(nn.Module):
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
        super().__init__()
        self.pretrained_config, self.options = pretrained, options
        config = trunk_config(pretrained, options)
        trunk: nn.Module
        if isinstance(config, Data2VecAudioConfig):
            trunk, dim = Data2VecAudio(config, with_head=False, seed=seed), config.encoder_embed_dim
        else:
            trunk, dim = Data2VecMulti(config, with_decoder=False, seed=seed), config.embed_dim
        projection = nn.Linear(dim, num_symbols)
        self.final_dropout = Dropout(options.final_dropout)
        self.w2v_encoder = nn.ModuleDict({"w2v_model": trunk, "proj": projection})
        with torch.no_grad():
            bound = (6.0 / (dim + num_symbols)) ** 0.5
            projection.weight.uniform_(-bound, bound, generator=generator("init", seed, "ctc"))
            projection.bias.zero_()
        if options.freeze_regex is not None:
            for name, parameter in self.named_parameters():
                if re.fullmatch(options.freeze_regex, name):
                    parameter.requires_grad_(False)

    @property
    def trunk(self) -> Data2VecMulti | Data2VecAudio:
        """The pretrained network."""
        trunk = self.w2v_encoder["w2v_model"]
        assert isinstance(trunk, Data2VecMulti | Data2VecAudio)
        return trunk

    @property
    def num_symbols(self) -> int:
        """V."""
        return int(self.w2v_encoder["proj"].out_features)  # pyright: ignore[reportArgumentType]

    def forward(
        self,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        ids: torch.Tensor | None = None,
        *,
        update: int = 0,
        seed: int = 1,
        masks: TrainingMasks | None = None,
    ) -> CTCOutput:
        """Logits of every frame.

        Args:
            source: (B, S) samples at 16 kHz, normalised as the trunk expects.
            padding_mask: (B, S) bool, true where padded.
            ids: (B,) utterance ids; masks are functions of (seed, update, id), while training only.
            update: completed optimizer updates; decides freezing and layer drop.
            seed: seed of masks and layer drop.
            masks: given masks instead of drawn ones.
        """
        ids = torch.arange(len(source), device=source.device) if ids is None else ids
        frozen = self.training and update < self.options.freeze_finetune_updates
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            if isinstance(self.trunk, Data2VecAudio):
                x_BTD, padding = self._v1(self.trunk, source, padding_mask, ids, masks, seed, update)
            else:
                x_BTD, padding = self._v2(self.trunk, source, padding_mask, ids, masks, seed, update)
        logits_BTV = self.w2v_encoder["proj"](self.final_dropout(x_BTD)).float()
        if self.options.blank_weight != 0.0:
            blank = logits_BTV[..., BLANK] if self.options.blank_mode == "add" else 0.0
            logits_BTV = logits_BTV.index_copy(
                -1,
                torch.tensor([BLANK], device=logits_BTV.device),
                (blank + torch.full_like(logits_BTV[..., BLANK], self.options.blank_weight))[..., None],
            )
        length = x_BTD.shape[1]
        frames_B = torch.full((len(source),), length, dtype=torch.int64, device=source.device)
        if padding is not None:
            frames_B = (~padding).sum(dim=1)
        return CTCOutput(logits_BTV, frames_B, padding)

    def loss(self, output: CTCOutput, targets_BU: torch.Tensor, lengths_B: torch.Tensor) -> CTCSums:
        """CTC loss summed over utterances; those with too few frames for their labels are left out.

        Args:
            output: of :meth:`forward`.
            targets_BU: (B, U) label ids; what lies behind a row's length is not read.
            lengths_B: (B,) labels of each utterance.
        """
        wanted_B = frames_needed(targets_BU, lengths_B)
        fits_B = (output.frames_B >= wanted_B) & (output.frames_B > 0)
        log_probs_TBV = F.log_softmax(output.logits_BTV, dim=-1).transpose(0, 1)
        labels_N = torch.cat([row[:count] for row, count in zip(targets_BU, lengths_B.tolist(), strict=True)])
        loss_B = F.ctc_loss(
            log_probs_TBV,
            labels_N,
            output.frames_B,
            lengths_B,
            blank=BLANK,
            reduction="none",
            zero_infinity=True,
        )
        kept = int(fits_B.sum())
        return CTCSums(loss_B[fits_B].sum(), kept, len(fits_B) - kept)

    def _v2(
        self,
        trunk: Data2VecMulti,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None,
        ids: torch.Tensor,
        masks: TrainingMasks | None,
        seed: int,
        update: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        encoder = trunk.encoder
        assert isinstance(encoder, AudioEncoder)
        x_BTD = encoder.local_features(source)
        padding = encoder.token_padding(padding_mask, x_BTD.shape[1])
        if self.training and self.options.apply_mask:
            if masks is None:
                masks = self._draw_v2_masks(ids, x_BTD, padding, seed, update)
            if masks.time_BT is not None:
                x_BTD = encoder.hide(x_BTD, masks.time_BT, masks.fill_ND)
            if masks.channel_BD is not None:
                x_BTD = x_BTD.masked_fill(masks.channel_BD[:, None, :], 0.0)
        x_BTD = encoder.add_positions(x_BTD, padding)
        return trunk.encode(x_BTD, padding, seed, update), padding

    def _draw_v2_masks(
        self, ids: torch.Tensor, x_BTD: torch.Tensor, padding: torch.Tensor | None, seed: int, update: int
    ) -> TrainingMasks:
        options, (_, length, dim) = self.options, x_BTD.shape
        time_BT, channel_BD, fill_ND = None, None, None
        if options.mask_prob > 0:
            time_BT = span_masks(
                ids,
                length,
                mask_prob=options.mask_prob,
                mask_length=options.mask_length,
                valid_R=None if padding is None else (~padding).sum(dim=1),
                mask_dropout=options.mask_dropout,
                key=(seed, update),
            )
            if not options.zero_mask:
                encoder = self.w2v_encoder["w2v_model"].encoder
                assert isinstance(encoder, AudioEncoder)
                fill_ND = torch.empty(int(time_BT.sum()), dim, device=x_BTD.device)
                draw = generator("fill", seed, update, int(ids[0]), device=x_BTD.device)
                fill_ND.normal_(0.0, encoder.audio.mask_noise_std, generator=draw)
        if options.mask_channel_prob > 0:
            channel_BD = span_masks(
                ids,
                dim,
                mask_prob=options.mask_channel_prob,
                mask_length=options.mask_channel_length,
                min_spans=0,
                key=("channels", seed, update),
            )
        return TrainingMasks(time_BT, channel_BD, fill_ND)

    def _v1(
        self,
        trunk: Data2VecAudio,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None,
        ids: torch.Tensor,
        masks: TrainingMasks | None,
        seed: int,
        update: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x_BTD = trunk.local_features(source)
        padding = trunk.token_padding(padding_mask, x_BTD.shape[1])
        x_BTD = trunk.dropout_input(x_BTD)
        if self.training and self.options.apply_mask:
            if masks is None:
                draw_time = self.options.mask_prob > 0
                masks = TrainingMasks(
                    trunk.draw_time_mask(ids, x_BTD.shape[1], padding, seed, update) if draw_time else None,
                    trunk.draw_channel_mask(ids, seed, update),
                )
            x_BTD = trunk.hide(x_BTD, masks.time_BT, masks.channel_BD)
        return trunk.encoder(x_BTD, padding, seed, update), padding


def frames_needed(targets_BU: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """(B,) frames that the labels need: one each, and a blank between equal neighbours."""
    if targets_BU.shape[1] < 2:
        return lengths_B
    inside_BU = torch.arange(1, targets_BU.shape[1], device=targets_BU.device)[None, :] < lengths_B[:, None]
    repeats_B = ((targets_BU[:, 1:] == targets_BU[:, :-1]) & inside_BU).sum(dim=1)
    return lengths_B + repeats_B


def read_options(values: dict[str, Any]) -> CTCConfig:
    """Fine-tuning options out of a mapping that has other fields too."""
    names = CTCConfig.__dataclass_fields__
    return CTCConfig(**{name: value for name, value in values.items() if name in names})
