"""The sizes of every family's models in the terms of data2vec 2.0, so that one function prices their blocks.

A first-generation student is a second-generation one that sees every position (masked ones as embeddings),
has one clone, and a head of linear layers instead of a decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..config import (
    AudioModalityConfig,
    Data2VecMultiConfig,
    DecoderConfig,
    ImageModalityConfig,
    ModalitiesConfig,
    TextModalityConfig,
)
from ..lm.config import TransformerLMConfig
from ..lm.flops import decoder_as_multi
from ..mae_config import MaeConfig
from .config import Data2VecAudioConfig
from .image_config import Data2VecVisionConfig
from .text_config import Data2VecTextConfig


def as_multi(config: object) -> Data2VecMultiConfig | None:
    """A configuration of equal widths, depths and dropouts; ``None`` for what is no model of ours."""
    made = _FAMILIES.get(type(config))  # not of a subclass: a user's front end has a cost that we do not know
    return None if made is None else made(config)


def _head(layers: int) -> DecoderConfig:
    return DecoderConfig(decoder_layers=0, input_dropout=0.0, projection_layers=layers, projection_ratio=2.0)


def _multi(kind: str, modality: Any, **values: Any) -> Data2VecMultiConfig:
    modalities = ModalitiesConfig(text=None)
    setattr(modalities, kind, modality)
    return Data2VecMultiConfig(modalities=modalities, clone_batch=1, average_top_k_layers=1, **values)


def _text(config: Data2VecTextConfig) -> Data2VecMultiConfig:
    net, encoder = config.transformer, config.transformer.encoder
    front = TextModalityConfig(
        prenet_depth=0,
        mask_length=1,
        max_source_positions=net.max_source_positions,
        dropout=net.dropout,
        layernorm_embedding=net.layernorm_embedding,
        no_token_positional_embeddings=net.no_token_positional_embeddings,
        ema_local_encoder=True,
        decoder=_head(config.head_layers),
    )
    return _multi(
        "text",
        front,
        ema_encoder_only=False,
        depth=encoder.layers,
        embed_dim=encoder.embed_dim,
        num_heads=encoder.attention_heads,
        mlp_ratio=encoder.ffn_embed_dim / encoder.embed_dim,
        encoder_dropout=net.dropout,
        post_mlp_drop=net.dropout,
        attention_dropout=net.attention_dropout,
        activation_dropout=net.activation_dropout,
    )


def _audio(config: Data2VecAudioConfig) -> Data2VecMultiConfig:
    front = AudioModalityConfig(
        prenet_depth=0,
        extractor_mode=config.extractor_mode,
        feature_encoder_spec=config.conv_feature_layers,
        conv_pos_width=config.conv_pos,
        conv_pos_groups=config.conv_pos_groups,
        conv_pos_depth=config.pos_conv_depth,
        local_grad_mult=config.feature_grad_mult,
        decoder=_head(1),
    )
    return _multi(
        "audio",
        front,
        ema_encoder_only=False,
        depth=config.encoder_layers,
        embed_dim=config.encoder_embed_dim,
        num_heads=config.encoder_attention_heads,
        mlp_ratio=config.encoder_ffn_embed_dim / config.encoder_embed_dim,
        encoder_dropout=config.dropout,
        post_mlp_drop=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
    )


def _vision(config: Data2VecVisionConfig) -> Data2VecMultiConfig:
    front = ImageModalityConfig(
        prenet_depth=0,
        input_size=config.image_size,
        in_chans=config.in_channels,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        num_extra_tokens=1,
        fixed_positions=False,
        learned_alibi_scale=True,  # a bias that learns, here of relative positions: no fused kernel takes it
        ema_local_encoder=not config.ema_transformer_only,
        decoder=_head(1) if config.use_final_proj else None,
    )
    return _multi(
        "image",
        front,
        ema_encoder_only=config.ema_transformer_only,
        depth=config.depth,
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        mlp_ratio=float(config.mlp_ratio),
        encoder_dropout=0.0,
        post_mlp_drop=0.0,
        attention_dropout=config.attention_dropout,
        activation_dropout=0.0,
    )


_FAMILIES: dict[type[Any], Callable[[Any], Data2VecMultiConfig]] = {
    Data2VecMultiConfig: lambda config: config,
    MaeConfig: MaeConfig.encoder,
    TransformerLMConfig: decoder_as_multi,
    Data2VecTextConfig: _text,
    Data2VecAudioConfig: _audio,
    Data2VecVisionConfig: _vision,
}
