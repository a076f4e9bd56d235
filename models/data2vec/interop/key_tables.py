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
_IMAGE = "modality_encoders.IMAGE"
IMAGE_PATCHES = f"{_IMAGE}.local_encoder."
IMAGE_POSITIONS = f"{_IMAGE}.fixed_positional_encoder.positions"
IMAGE_DECODER = f"{_IMAGE}.decoder."
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
        shapes |= affine(f"{local}.layernorm_embedding", (dim,))
    context = f"{_TEXT}.context_encoder"
    if text.prenet_depth > 0 and not config.layer_norm_first and config.norm_affine:
        shapes |= affine(f"{context}.norm", (dim,))
    for i in range(text.prenet_depth):
        shapes |= transformer_block(config, f"{context}.blocks.{i}.")
    for i in range(config.depth):
        shapes |= transformer_block(config, f"blocks.{i}.")
    if config.layer_norm_first and config.norm_affine:
        shapes |= affine("norm", (dim,))
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


def image_encoder(config: Data2VecMultiConfig) -> Shapes:
    """What a v2 image model (and its teacher) holds without decoder."""
    image = config.modalities.image
    assert image is not None
    dim, side = config.embed_dim, image.input_size // image.patch_size
    shapes: Shapes = {}
    if image.num_extra_tokens:
        shapes[f"{_IMAGE}.extra_tokens"] = (1, image.num_extra_tokens, dim)
    if image.fixed_positions:
        shapes[IMAGE_POSITIONS] = (1, side * side, dim)
    shapes |= image_local_encoder(config)
    context = f"{_IMAGE}.context_encoder"
    if not config.layer_norm_first and config.norm_affine:
        shapes |= affine(f"{context}.norm", (dim,))
    for i in range(image.prenet_depth):
        shapes |= transformer_block(config, f"{context}.blocks.{i}.")
    for i in range(config.depth):
        shapes |= transformer_block(config, f"blocks.{i}.")
    if config.layer_norm_first and config.norm_affine:
        shapes |= affine("norm", (dim,))
    return shapes


def image_local_encoder(config: Data2VecMultiConfig) -> Shapes:
    """The patch convolution, and the linear layer where its width is not the model's."""
    image = config.modalities.image
    assert image is not None
    local, patch = f"{_IMAGE}.local_encoder", image.patch_size
    conv = (image.embed_dim, image.in_chans, patch, patch)
    if image.embed_dim == config.embed_dim:
        return affine(f"{local}.proj", conv)
    return affine(f"{local}.0.proj", conv) | affine(f"{local}.1", (config.embed_dim, image.embed_dim))


def image_decoder(config: Data2VecMultiConfig) -> Shapes:
    """The decoder of a v2 image model; nothing if the configuration has none."""
    image = config.modalities.image
    if image is None or image.decoder is None:
        return {}
    decoder, dim, prefix = image.decoder, config.embed_dim, IMAGE_DECODER
    width, kernel = decoder.decoder_dim, decoder.decoder_kernel
    shapes: Shapes = {}
    for j in range(decoder.decoder_layers):
        channels = (dim if j == 0 else width) // decoder.decoder_groups
        shapes |= affine(f"{prefix}blocks.{j}.0", (width, channels, kernel, kernel))
    return shapes | affine(f"{prefix}proj", (dim, width if decoder.decoder_layers else dim))


def image_teacher(config: Data2VecMultiConfig) -> Shapes:
    """What the teacher of a v2 image model holds, as ``ema_encoder_only`` and ``ema_local_encoder`` say."""
    image = config.modalities.image
    assert image is not None
    if config.ema_encoder_only:
        return text_teacher(config)
    shapes = image_encoder(config)
    if not image.ema_local_encoder:
        shapes = {name: shape for name, shape in shapes.items() if name not in image_local_encoder(config)}
    return shapes


def image_head(dim: int, num_classes: int, use_fc_norm: bool) -> Shapes:
    """The head of image classification."""
    norm = affine("fc_norm", (dim,)) if use_fc_norm else {}
    return norm | affine("head", (num_classes, dim))


def transformer_block(config: Data2VecMultiConfig, prefix: str) -> Shapes:
    """One block: attention with a fused qkv projection, feed-forward network, two layer norms."""
    dim, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
    shapes: Shapes = {}
    if config.norm_affine:
        shapes |= affine(f"{prefix}norm1", (dim,)) | affine(f"{prefix}norm2", (dim,))
    shapes |= affine(f"{prefix}attn.qkv", (3 * dim, dim))
    shapes |= affine(f"{prefix}attn.proj", (dim, dim))
    shapes |= affine(f"{prefix}mlp.fc1", (hidden, dim))
    shapes |= affine(f"{prefix}mlp.fc2", (dim, hidden))
    return shapes


def decoder_1d(decoder: DecoderConfig, dim: int, prefix: str) -> Shapes:
    """Convolutions (their layer norms have no weights) and the projection back to the model's width."""
    shapes: Shapes = {}
    width = decoder.decoder_dim
    for j in range(decoder.decoder_layers):
        channels = (dim if j == 0 else width) // decoder.decoder_groups
        shapes |= affine(f"{prefix}blocks.{j}.0", (width, channels, decoder.decoder_kernel))
    widths = [width, *[int(width * decoder.projection_ratio)] * (decoder.projection_layers - 1), dim]
    for j, (inner, outer) in enumerate(itertools.pairwise(widths)):
        # A single projection is a plain layer; several are a sequence with an activation between them.
        name = "proj" if len(widths) == 2 else f"proj.{2 * j}"
        shapes |= affine(f"{prefix}{name}", (outer, inner))
    return shapes


def sentence_head(dim: int, num_classes: int) -> Shapes:
    """The head over ``<s>`` of GLUE fine-tuning."""
    return affine(f"{SENTENCE_HEAD}dense", (dim, dim)) | affine(
        f"{SENTENCE_HEAD}out_proj", (num_classes, dim)
    )


def affine(name: str, weight: tuple[int, ...]) -> Shapes:
    """A weight, and a bias as long as its first side."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
