"""Parameter names and shapes of the reference's models, computed from a configuration.

They say what a complete checkpoint holds, so that a file can be checked without building the model. Our
models use the same names.

V vocabulary, D width, C classes.
"""

from __future__ import annotations

import itertools

from ..config import Data2VecMultiConfig, DecoderConfig

Shapes = dict[str, tuple[int, ...]]

_TEXT = "modality_encoders.TEXT"
TEXT_EMBEDDING = f"{_TEXT}.local_encoder.embed_tokens.weight"
TEXT_DECODER = f"{_TEXT}.decoder."
SENTENCE_HEAD = "classification_heads.sentence_classification_head."


def text_encoder(config: Data2VecMultiConfig, vocab_size: int) -> Shapes:
    """What a v2 text model holds without decoder and teacher."""
    text = config.modalities.text
    assert text is not None
    dim = config.embed_dim
    local = f"{_TEXT}.local_encoder"
    shapes: Shapes = {TEXT_EMBEDDING: (vocab_size, dim)}
    if not text.no_token_positional_embeddings:
        # Row 0 is unused and row 1 belongs to padding: positions start at 2.
        shapes[f"{local}.embed_positions.weight"] = (text.max_source_positions + 2, dim)
    if text.layernorm_embedding:
        shapes |= _affine(f"{local}.layernorm_embedding", (dim,))
    context = f"{_TEXT}.context_encoder"
    if text.prenet_depth > 0 and not config.layer_norm_first and config.norm_affine:
        shapes |= _affine(f"{context}.norm", (dim,))
    for i in range(text.prenet_depth):
        shapes |= transformer_block(config, f"{context}.blocks.{i}.")
    for i in range(config.depth):
        shapes |= transformer_block(config, f"blocks.{i}.")
    if config.layer_norm_first and config.norm_affine:
        shapes |= _affine("norm", (dim,))
    return shapes


def text_decoder(config: Data2VecMultiConfig) -> Shapes:
    """What the decoder of a v2 text model holds; nothing if the configuration has none."""
    text = config.modalities.text
    return (
        {}
        if text is None or text.decoder is None
        else decoder_1d(text.decoder, config.embed_dim, TEXT_DECODER)
    )


def text_teacher(config: Data2VecMultiConfig) -> Shapes:
    """What the teacher of a v2 text model holds: the shared blocks, named without ``blocks.``."""
    shapes: Shapes = {}
    for i in range(config.depth):
        shapes |= transformer_block(config, f"{i}.")
    return shapes


def transformer_block(config: Data2VecMultiConfig, prefix: str) -> Shapes:
    """One block: attention with a fused qkv projection, feed-forward network, two layer norms."""
    dim, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
    shapes: Shapes = {}
    if config.norm_affine:
        shapes |= _affine(f"{prefix}norm1", (dim,)) | _affine(f"{prefix}norm2", (dim,))
    shapes |= _affine(f"{prefix}attn.qkv", (3 * dim, dim))
    shapes |= _affine(f"{prefix}attn.proj", (dim, dim))
    shapes |= _affine(f"{prefix}mlp.fc1", (hidden, dim))
    shapes |= _affine(f"{prefix}mlp.fc2", (dim, hidden))
    return shapes


def decoder_1d(decoder: DecoderConfig, dim: int, prefix: str) -> Shapes:
    """Convolutions (their layer norms have no weights) and the projection back to the model's width."""
    shapes: Shapes = {}
    width = decoder.decoder_dim
    for j in range(decoder.decoder_layers):
        channels = (dim if j == 0 else width) // decoder.decoder_groups
        shapes |= _affine(f"{prefix}blocks.{j}.0", (width, channels, decoder.decoder_kernel))
    widths = [width, *[int(width * decoder.projection_ratio)] * (decoder.projection_layers - 1), dim]
    for j, (inner, outer) in enumerate(itertools.pairwise(widths)):
        # A single projection is a plain layer; several are a sequence with an activation between them.
        name = "proj" if len(widths) == 2 else f"proj.{2 * j}"
        shapes |= _affine(f"{prefix}{name}", (outer, inner))
    return shapes


def sentence_head(dim: int, num_classes: int) -> Shapes:
    """The head over ``<s>`` of GLUE fine-tuning."""
    return _affine(f"{SENTENCE_HEAD}dense", (dim, dim)) | _affine(
        f"{SENTENCE_HEAD}out_proj", (num_classes, dim)
    )


def _affine(name: str, weight: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
