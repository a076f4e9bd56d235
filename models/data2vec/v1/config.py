"""What a data2vec 1 model for audio is (``data2vec_audio``): names and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..config import AUDIO_CONVOLUTIONS, RegressionConfig
from ..conv_spec import parse_conv_layers
from ..errors import Data2VecError, Problem
from ..rules import Rules

MaskSelection = Literal["static", "uniform", "normal", "poisson"]


@dataclass(kw_only=True)
class Data2VecAudioConfig(RegressionConfig):
    """data2vec 1 for audio: a transformer over masked frames, regressing its own teacher's features."""

    extractor_mode: Literal["default", "layer_norm"] = "default"  # norm after each convolution
    encoder_layers: int = 12  # transformer layers
    encoder_embed_dim: int = 768  # width
    encoder_ffn_embed_dim: int = 3072  # feed-forward width
    encoder_attention_heads: int = 12  # attention heads
    activation_fn: Literal["gelu", "relu"] = "gelu"  # between the feed-forward layers
    layer_type: Literal["transformer"] = "transformer"  # kind of layer
    dropout: float = 0.1  # dropout on branches and on the encoder's input
    attention_dropout: float = 0.1  # dropout on attention probabilities
    activation_dropout: float = 0.0  # dropout after the activation
    encoder_layerdrop: float = 0.0  # probability of skipping a layer while training
    dropout_input: float = 0.0  # dropout on the frames before masking
    dropout_features: float = 0.0  # without effect, as in the reference
    final_dim: int = 0  # without effect here: the head predicts encoder_embed_dim values
    layer_norm_first: bool = False  # pre-LN layers and a final norm
    conv_feature_layers: str = AUDIO_CONVOLUTIONS  # (channels, width, stride) of each convolution
    conv_bias: bool = False  # bias in the convolutions over the waveform
    feature_grad_mult: float = 1.0  # gradient multiplier of the convolutions; 0 = frozen
    mask_length: int = 10  # frames of a masked span
    mask_prob: float = 0.65  # masked share if spans did not overlap
    mask_selection: MaskSelection = "static"  # how span lengths are chosen
    mask_other: float = 0.0  # second parameter of mask_selection
    no_mask_overlap: bool = False  # spans may not overlap
    mask_min_space: int = 1  # frames between spans that may not overlap
    require_same_masks: bool = True  # all rows get the same number of masked frames
    mask_dropout: float = 0.0  # share of the masked frames that is unmasked again
    mask_channel_length: int = 10  # length of a masked span of channels
    mask_channel_prob: float = 0.0  # masked share of the channels
    mask_channel_before: bool = False  # mask channels before frames
    mask_channel_selection: MaskSelection = "static"  # as mask_selection
    mask_channel_other: float = 0.0  # as mask_other
    no_mask_channel_overlap: bool = False  # as no_mask_overlap
    mask_channel_min_space: int = 1  # as mask_min_space
    conv_pos: int = 128  # frames that the positional convolutions see together
    conv_pos_groups: int = 16  # groups of the positional convolutions
    pos_conv_depth: int = 1  # number of positional convolutions; 1 = one weight-normed convolution
    required_seq_len_multiple: int = 2  # without effect: lengths need no padding here
    group_norm_target_layer: bool = False  # group norm (frames and channels together) of each teacher layer
    ema_transformer_only: bool = True  # the teacher is the transformer alone
    ema_layers_only: bool = True  # positional convolutions are copied instead of averaged
    padding_leaks: bool = False  # padded frames reach real ones through positions, as in the reference

    @property
    def depth(self) -> int:
        """Transformer layers, by the name that v2 uses."""
        return self.encoder_layers

    @property
    def embed_dim(self) -> int:
        """Width, by the name that v2 uses."""
        return self.encoder_embed_dim

    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible about this configuration, all of it."""
        rule = Rules(self, path)
        try:
            parse_conv_layers(self.conv_feature_layers)
        except Data2VecError as error:
            rule("conv_feature_layers", False, str(error))
        rule.at_least(
            1,
            "encoder_layers",
            "encoder_embed_dim",
            "encoder_ffn_embed_dim",
            "encoder_attention_heads",
            "mask_length",
            "mask_channel_length",
            "conv_pos",
            "conv_pos_groups",
            "pos_conv_depth",
        )
        if min(self.encoder_embed_dim, self.encoder_attention_heads, self.conv_pos_groups) >= 1:
            for name in ("encoder_attention_heads", "conv_pos_groups"):
                holds = self.encoder_embed_dim % getattr(self, name) == 0
                rule(name, holds, f"must divide encoder_embed_dim {self.encoder_embed_dim}")
        rule.probability(
            "dropout",
            "attention_dropout",
            "activation_dropout",
            "encoder_layerdrop",
            "dropout_input",
            "mask_dropout",
            "mask_prob",
        )
        rule.share("mask_channel_prob")
        self.objective_rules(rule, self.encoder_layers, "encoder_layers")
        rule("pos_conv_depth", self.pos_conv_depth >= 2,
             "the single weight-normed convolution of wav2vec 2.0 is not built; data2vec uses 5")  # fmt: skip
        rule.only(
            "only {} is built: every recipe uses it",
            ("mask_selection", "static"),
            ("mask_other", 0.0),
            ("no_mask_overlap", False),
            ("mask_channel_selection", "static"),
            ("mask_channel_other", 0.0),
            ("no_mask_channel_overlap", False),
            ("ema_transformer_only", True),
            ("extractor_mode", "layer_norm"),
            ("conv_bias", False),
        )
        return rule.found
