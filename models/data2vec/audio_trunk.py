"""A pretrained audio network of either generation as the trunk of a fine-tuned model.

Fine-tuning replaces the pretraining's dropouts and masks by its own, may freeze the trunk at first, and masks
frames and channels while training, as SpecAugment does. Speech recognition and audio events share it.

B utterances, S samples, T frames, D width.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import nn

from .audio import AudioEncoder
from .audio_masking import span_masks
from .config import Data2VecMultiConfig
from .dropout import Dropout
from .errors import Problem
from .placing import moved
from .randomness import generator
from .rules import Rules
from .student import Data2VecMulti
from .v1.audio import Data2VecAudio
from .v1.config import Data2VecAudioConfig

AudioConfig = Data2VecMultiConfig | Data2VecAudioConfig
AudioTrunk = Data2VecMulti | Data2VecAudio
Output = TypeVar("Output")


@dataclass(kw_only=True)
class TrunkOptions:
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


def trunk_config(pretrained: AudioConfig, options: TrunkOptions) -> AudioConfig:
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
class TrainingMasks:
    """Given masks instead of drawn ones (tests)."""

    time_BT: torch.Tensor | None = None  # (B, T) bool, or ``None``
    channel_BD: torch.Tensor | None = None  # (B, D) bool, or ``None``
    fill_ND: torch.Tensor | None = None  # (N, D) vectors that masked frames become (v2), or ``None``

    def to(self, device: torch.device) -> TrainingMasks:
        """The same on a device; nothing waits for the copies."""
        return TrainingMasks(*(moved(x, device) for x in (self.time_BT, self.channel_BD, self.fill_ND)))


def make_audio_trunk(pretrained: AudioConfig, options: TrunkOptions, seed: int) -> tuple[AudioTrunk, int]:
    """The trunk without its pretraining parts, and its width.

    Args:
        pretrained: configuration of the pretrained model.
        options: fine-tuning options.
        seed: of the initial weights where no pretrained ones are loaded.
    """
    config = trunk_config(pretrained, options)
    if isinstance(config, Data2VecAudioConfig):
        return Data2VecAudio(config, with_head=False, seed=seed), config.encoder_embed_dim
    return Data2VecMulti(config, with_decoder=False, seed=seed), config.embed_dim


def freeze_matching(module: nn.Module, pattern: str | None) -> None:
    """Stop the learning of parameters whose whole name matches."""
    if pattern is None:
        return
    for name, parameter in module.named_parameters():
        if re.fullmatch(pattern, name):
            parameter.requires_grad_(False)


class AudioHead(nn.Module, Generic[Output]):
    """A pretrained trunk under something that is made of its frames: recognition or events.

    Args:
        pretrained: configuration of the pretrained model, of either generation.
        options: fine-tuning options.
    """

    def __init__(self, pretrained: AudioConfig, options: TrunkOptions) -> None:
        super().__init__()
        self.pretrained_config, self.options = pretrained, options
        self.final_dropout = Dropout(options.final_dropout)

    @property
    def trunk(self) -> AudioTrunk:
        """The pretrained network."""
        raise NotImplementedError

    def judge(self, x_BTD: torch.Tensor, padding_BT: torch.Tensor | None) -> Output:
        """What is made of (B, T, D) features; the padding lies where the given flags do."""
        raise NotImplementedError

    def forward(
        self,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        ids: torch.Tensor | None = None,
        *,
        update: int = 0,
        seed: int = 1,
        masks: TrainingMasks | None = None,
    ) -> Output:
        """What the model says of each recording.

        Args:
            source: (B, S) samples at 16 kHz, normalised as the trunk expects.
            padding_mask: (B, S) bool, true where padded.
            ids: (B,) recording ids; masks are functions of (seed, update, id), while training only.
            update: completed optimizer updates; decides freezing and layer drop.
            seed: seed of masks and layer drop.
            masks: given masks instead of drawn ones.
        """
        ids = torch.arange(len(source), device=source.device) if ids is None else ids
        training, options = self.training, self.options
        return self.judge(*masked_features(
            self.trunk, options, source, padding_mask, ids, training=training, update=update, seed=seed,
            masks=masks,
        ))  # fmt: skip


def masked_features(
    trunk: AudioTrunk,
    options: TrunkOptions,
    source: torch.Tensor,
    padding_mask: torch.Tensor | None,
    ids: torch.Tensor,
    *,
    training: bool,
    update: int,
    seed: int,
    masks: TrainingMasks | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features of every frame; nothing of the trunk is recorded for the gradient while it is frozen.

    Args:
        trunk: of :func:`make_audio_trunk`.
        options: fine-tuning options.
        source: (B, S) samples at 16 kHz, normalised as the trunk expects.
        padding_mask: (B, S) bool, true where padded; best on the CPU, as is ``ids``: then a GPU is asked for
            nothing.
        ids: (B,) utterance ids; masks are functions of (seed, update, id).
        training: mask frames and channels, if the options say so.
        update: completed optimizer updates; decides freezing and layer drop.
        seed: seed of masks and layer drop.
        masks: given masks instead of drawn ones.

    Returns:
        (B, T, D), and (B, T) bool where frames are padded or ``None``, where ``padding_mask`` is.
    """
    frozen = training and update < options.freeze_finetune_updates
    masked = training and options.apply_mask
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        if isinstance(trunk, Data2VecAudio):
            x_BTD = trunk.local_features(source)
            padding = trunk.token_padding(padding_mask, x_BTD.shape[1])
            x_BTD = trunk.dropout_input(x_BTD)
            if masked:
                masks = masks or _v1_masks(trunk, options, ids, x_BTD, padding, seed, update)
                masks = masks.to(x_BTD.device)
                x_BTD = trunk.hide(x_BTD, masks.time_BT, masks.channel_BD)
            return trunk.encoder(x_BTD, moved(padding, x_BTD.device), seed, update), padding
        encoder = trunk.encoder
        assert isinstance(encoder, AudioEncoder)
        x_BTD = encoder.local_features(source)
        padding = encoder.token_padding(padding_mask, x_BTD.shape[1])
        if masked:
            masks = masks or _v2_masks(encoder, options, ids, x_BTD, padding, seed, update)
            masks = masks.to(x_BTD.device)
            if masks.time_BT is not None:
                x_BTD = encoder.hide(x_BTD, masks.time_BT, masks.fill_ND)
            if masks.channel_BD is not None:
                x_BTD = x_BTD.masked_fill(masks.channel_BD[:, None, :], 0.0)
        flags = moved(padding, x_BTD.device)
        x_BTD = encoder.add_positions(x_BTD, flags)
        return trunk.encode(x_BTD, flags, seed, update), padding


def _v1_masks(
    trunk: Data2VecAudio,
    options: TrunkOptions,
    ids: torch.Tensor,
    x_BTD: torch.Tensor,
    padding: torch.Tensor | None,
    seed: int,
    update: int,
) -> TrainingMasks:
    draw_time = options.mask_prob > 0
    return TrainingMasks(
        trunk.draw_time_mask(ids, x_BTD.shape[1], padding, seed, update) if draw_time else None,
        trunk.draw_channel_mask(ids, seed, update),
    )


def _v2_masks(
    encoder: AudioEncoder,
    options: TrunkOptions,
    ids: torch.Tensor,
    x_BTD: torch.Tensor,
    padding: torch.Tensor | None,
    seed: int,
    update: int,
) -> TrainingMasks:
    _, length, dim = x_BTD.shape
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
