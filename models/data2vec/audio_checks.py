"""What is impossible about the audio part of a model configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .conv_spec import parse_conv_layers
from .errors import Data2VecError, Problem
from .rules import Rules

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
    here = f"{path}.modalities.audio"
    rule = Rules(audio, here)
    found = rule.found
    try:
        parse_conv_layers(audio.feature_encoder_spec)
    except Data2VecError as error:
        rule("feature_encoder_spec", False, str(error))
    rule.probability("mask_prob")
    rule.share("mask_channel_prob")
    rule.at_least(1, "mask_length")
    rule.at_least(1, "mask_channel_length")
    rule.probability("mask_dropout")
    if audio.mask_prob_min is not None:
        rule("mask_prob_min", 0.0 <= audio.mask_prob_min < max(audio.mask_prob, 1e-9),
             "must lie in 0 ... mask_prob")  # fmt: skip
    rule.at_least(1, "conv_pos_width", "conv_pos_groups", "conv_pos_depth")
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
