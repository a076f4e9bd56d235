"""What is impossible about the audio part of a model configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .conv_spec import parse_conv_layers
from .errors import Data2VecError, Problem

if TYPE_CHECKING:
    from .config import AudioModalityConfig, Data2VecMultiConfig

_SUPPORTED = (("learned_alibi", False), ("num_extra_tokens", 0), ("ema_local_encoder", False),
              ("keep_masked_pct", 0.0))  # fmt: skip


def audio_problems(config: Data2VecMultiConfig, audio: AudioModalityConfig, path: str) -> list[Problem]:
    """All problems of the audio front end.

    Args:
        config: the model.
        audio: its audio section.
        path: dotted name of the model in messages.
    """
    found: list[Problem] = []
    here = f"{path}.modalities.audio"

    def rule(name: str, holds: bool, text: str) -> None:
        if not holds:
            found.append(Problem(f"{here}.{name}", getattr(audio, name), text))

    try:
        parse_conv_layers(audio.feature_encoder_spec)
    except Data2VecError as error:
        rule("feature_encoder_spec", False, str(error))
    rule("mask_prob", 0.0 <= audio.mask_prob < 1.0, "must lie in 0 <= p < 1")
    rule("mask_channel_prob", 0.0 <= audio.mask_channel_prob <= 1.0, "must lie in 0 ... 1")
    rule("mask_length", audio.mask_length >= 1, "must be >= 1")
    rule("mask_channel_length", audio.mask_channel_length >= 1, "must be >= 1")
    rule("mask_dropout", 0.0 <= audio.mask_dropout < 1.0, "must lie in 0 <= p < 1")
    if audio.mask_prob_min is not None:
        rule("mask_prob_min", 0.0 <= audio.mask_prob_min < max(audio.mask_prob, 1e-9),
             "must lie in 0 ... mask_prob")  # fmt: skip
    for name in ("prenet_layerdrop", "prenet_dropout"):
        rule(name, 0.0 <= getattr(audio, name) < 1.0, "must lie in 0 <= p < 1")
    for name in ("conv_pos_width", "conv_pos_groups", "conv_pos_depth"):
        rule(name, getattr(audio, name) >= 1, "must be >= 1")
    if audio.conv_pos_groups >= 1:
        rule("conv_pos_groups", config.embed_dim % audio.conv_pos_groups == 0,
             f"must divide embed_dim {config.embed_dim}")  # fmt: skip
    for name, wanted in _SUPPORTED:
        rule(name, getattr(audio, name) == wanted, f"audio supports {wanted!r} only; no recipe uses another")
    rule("extractor_mode", audio.extractor_mode == "layer_norm",
         "only layer_norm is built: every data2vec recipe uses it")  # fmt: skip
    decoder = audio.decoder
    if decoder is not None:
        if decoder.decoder_groups < 1 or decoder.decoder_dim % decoder.decoder_groups:
            text = f"must be a multiple of decoder_groups {decoder.decoder_groups}"
            found.append(Problem(f"{here}.decoder.decoder_dim", decoder.decoder_dim, text))
        elif config.embed_dim % decoder.decoder_groups:
            text = f"must divide embed_dim {config.embed_dim}"
            found.append(Problem(f"{here}.decoder.decoder_groups", decoder.decoder_groups, text))
        for name in ("add_positions_masked", "add_positions_all"):
            if getattr(decoder, name):
                text = "audio has no fixed positions to add; use false"
                found.append(Problem(f"{here}.decoder.{name}", True, text))
    for name, wanted in (("ema_encoder_only", False), ("cls_loss", 0.0), ("recon_loss", 0.0)):
        if getattr(config, name) != wanted:
            text = f"audio supports {wanted!r} only; no recipe uses another"
            found.append(Problem(f"{path}.{name}", getattr(config, name), text))
    return found
