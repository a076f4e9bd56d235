"""Parameter names and shapes of the reference's audio models, computed from a configuration.

D width, V symbols.
"""

from __future__ import annotations

from ..config import Data2VecMultiConfig
from ..conv_spec import parse_conv_layers
from ..v1.config import Data2VecAudioConfig
from .key_tables import Shapes, affine, decoder_1d, transformer_block

AUDIO = "modality_encoders.AUDIO."
AUDIO_DECODER = f"{AUDIO}decoder."
CTC_PREFIX = "w2v_encoder.w2v_model."


def waveform_convolutions(spec: str, prefix: str) -> Shapes:
    """Convolutions without bias and their layer norms."""
    shapes: Shapes = {}
    before = 1
    for index, (channels, width, _) in enumerate(parse_conv_layers(spec)):
        layer = f"{prefix}conv_layers.{index}."
        shapes[f"{layer}0.weight"] = (channels, before, width)
        shapes |= affine(f"{layer}2.1", (channels,))
        before = channels
    return shapes


def positional_convolutions(dim: int, width: int, groups: int, depth: int, prefix: str, first: int) -> Shapes:
    """Grouped convolutions over frames; their layer norms have no weights."""
    kernel = max(3, width // depth)
    shapes: Shapes = {}
    for index in range(depth):
        shapes |= affine(f"{prefix}{first + index}.0", (dim, dim // groups, kernel))
    return shapes


def v2_audio_encoder(config: Data2VecMultiConfig, *, local: bool = True) -> Shapes:
    """What a v2 audio model holds without decoder; its teacher has no local part."""
    audio = config.modalities.audio
    assert audio is not None
    dim = config.embed_dim
    shapes: Shapes = {}
    if audio.use_alibi_encoder:
        layers = audio.prenet_depth + config.depth if audio.learned_alibi_scale_per_layer else 1
        heads = config.num_heads if audio.learned_alibi_scale_per_head else 1
        shapes[f"{AUDIO}alibi_scale"] = (layers, 1, heads, 1, 1)
    if local:
        channels = parse_conv_layers(audio.feature_encoder_spec)[-1][0]
        shapes |= waveform_convolutions(audio.feature_encoder_spec, f"{AUDIO}local_encoder.")
        shapes |= affine(f"{AUDIO}project_features.1", (channels,))
        shapes |= affine(f"{AUDIO}project_features.2", (dim, channels))
    positions = f"{AUDIO}relative_positional_encoder."
    if audio.conv_pos_pre_ln:
        shapes |= affine(f"{positions}0", (dim,))
        positions += "1."
    shapes |= positional_convolutions(
        dim, audio.conv_pos_width, audio.conv_pos_groups, audio.conv_pos_depth, positions, first=1
    )
    if not config.layer_norm_first and config.norm_affine:
        shapes |= affine(f"{AUDIO}context_encoder.norm", (dim,))
    for index in range(audio.prenet_depth):
        shapes |= transformer_block(config, f"{AUDIO}context_encoder.blocks.{index}.")
    for index in range(config.depth):
        shapes |= transformer_block(config, f"blocks.{index}.")
    if config.layer_norm_first and config.norm_affine:
        shapes |= affine("norm", (dim,))
    return shapes


def v2_audio_decoder(config: Data2VecMultiConfig) -> Shapes:
    """The decoder of a v2 audio model; nothing if the configuration has none."""
    audio = config.modalities.audio
    if audio is None or audio.decoder is None:
        return {}
    return decoder_1d(audio.decoder, config.embed_dim, AUDIO_DECODER)


def v1_transformer(config: Data2VecAudioConfig, prefix: str = "") -> Shapes:
    """Positions, norm and layers: what the v1 teacher holds."""
    dim, hidden = config.encoder_embed_dim, config.encoder_ffn_embed_dim
    shapes = positional_convolutions(
        dim, config.conv_pos, config.conv_pos_groups, config.pos_conv_depth, f"{prefix}pos_conv.", first=0
    )
    for index in range(config.encoder_layers):
        layer = f"{prefix}layers.{index}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= affine(f"{layer}self_attn.{name}", (dim, dim))
        shapes |= affine(f"{layer}self_attn_layer_norm", (dim,)) | affine(f"{layer}final_layer_norm", (dim,))
        shapes |= affine(f"{layer}fc1", (hidden, dim)) | affine(f"{layer}fc2", (dim, hidden))
    return shapes | affine(f"{prefix}layer_norm", (dim,))


def v1_audio(config: Data2VecAudioConfig) -> Shapes:
    """What a v1 audio model holds without its regression head."""
    dim = config.encoder_embed_dim
    channels = parse_conv_layers(config.conv_feature_layers)[-1][0]
    shapes: Shapes = {"mask_emb": (dim,)}
    shapes |= waveform_convolutions(config.conv_feature_layers, "feature_extractor.")
    shapes |= affine("layer_norm", (channels,))
    shapes |= affine("post_extract_proj", (dim, channels))
    return shapes | v1_transformer(config, "encoder.")


def v1_head(config: Data2VecAudioConfig) -> Shapes:
    """The regression head of v1 pretraining."""
    dim = config.encoder_embed_dim
    return affine("final_proj", (dim, dim))


def ctc_projection(dim: int, num_symbols: int) -> Shapes:
    """The projection onto the symbols."""
    return affine("w2v_encoder.proj", (num_symbols, dim))
