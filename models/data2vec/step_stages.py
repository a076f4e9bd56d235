"""The stages of a training step and what each costs: front end, positions, transformer blocks, decoder.

Work is counted as the reference's algorithm does it, two FLOPs a multiply-add; memory is what this
implementation keeps for the backward pass. :mod:`data2vec.flops` puts the stages together.

B samples, M clones, R = B * M rows, T positions, K kept positions, E extra tokens, D width, F feed-forward
width, C decoder width, H heads.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from .attention import PART_ENTRIES
from .config import (
    AudioModalityConfig,
    Data2VecMultiConfig,
    DecoderConfig,
    ImageModalityConfig,
    ModalityConfig,
    TextModalityConfig,
)
from .conv_spec import parse_conv_layers

BLOCKS = "blocks"  # stages that are gathered one by one where workers share the model
FLOAT = 4  # bytes of parameters, gradients, moments, norms and losses
FLAG = 1  # bytes of an entry of a dropout mask


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """Size of one micro-batch."""

    samples: int  # B
    positions: int  # T, of the longest sample, padding included
    kept: int  # K, positions that a student row sees; T where nothing is masked
    clones: int = 1  # M
    raw: int = 0  # numbers in one raw sample that the front end computes on (waveform samples, pixels)


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How a processor keeps what the backward pass needs.

    Attributes:
        matrix_bytes: size of a number that enters or leaves a matrix product: 4 in fp32, 2 under autocast.
        attention_maps: attention with dropout or a learned bias makes maps, keeps small ones, and keeps its
            dropout mask as flags; GPU kernels do none of it.
    """

    matrix_bytes: int = 4
    attention_maps: bool = True

    @classmethod
    def on(cls, device: str, precision: str = "fp32") -> Storage:
        """The storage of a device type ("cpu", "cuda") computing in "fp32", "bf16" or "fp16"."""
        size = 4 if precision == "fp32" else 2
        if device == "cpu":
            return cls(matrix_bytes=size)
        return cls(matrix_bytes=size, attention_maps=False)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a worker runs its micro-batches; by default alone, on a CPU, in fp32."""

    storage: Storage = Storage()  # of the processor
    accumulates: bool = False  # an update has further micro-batches on this worker
    checkpoint_activations: bool = False  # blocks keep their input only and run again in the backward pass
    workers: int = 1  # how many share the model (1: each holds all of it)


ALONE = Execution()


@dataclass(frozen=True, kw_only=True)
class Part:
    """One stage of the trained network, in the order of the forward pass."""

    name: str  # for reports
    forward: float  # FLOPs of the forward pass
    backward: float  # FLOPs of the backward pass
    parameters: int  # number of trained parameters
    frozen: int = 0  # number of further parameters that do not learn
    kept_bytes: float = 0.0  # what the forward pass leaves for the backward pass
    working_bytes: float = 0.0  # what its backward pass needs besides while it runs


def hidden_width(config: Data2VecMultiConfig) -> int:
    return int(config.embed_dim * config.mlp_ratio)


def block_work(config: Data2VecMultiConfig, rows: int, length: int) -> float:
    width = config.embed_dim
    linear = 2.0 * rows * length * (4 * width * width + 2 * width * hidden_width(config))
    return linear + 4.0 * rows * length * length * width


def block_parameters(config: Data2VecMultiConfig) -> int:
    width, hidden = config.embed_dim, hidden_width(config)
    norms = 4 * width if config.norm_affine else 0
    return 4 * width * width + 4 * width + 2 * width * hidden + hidden + width + norms


def _block_kept(config: Data2VecMultiConfig, rows: int, length: int, storage: Storage) -> float:
    """Inputs of qkv, output projection and feed-forward network, its hidden layer, q, k and v, norms, dropout
    masks. Drop path may keep less.
    """
    width, hidden, tokens = config.embed_dim, hidden_width(config), rows * length
    matrix = (6 * width + hidden) * storage.matrix_bytes
    norms = (2 * width + 4) * FLOAT
    rates = (config.encoder_dropout, config.post_mlp_drop, config.activation_dropout)
    flags = width * sum(rate > 0 for rate in rates) + hidden * (config.activation_dropout > 0)
    map_row = config.num_heads * length  # numbers of attention maps, of one token
    if storage.attention_maps and config.attention_dropout > 0:
        flags += map_row
    made = config.attention_dropout > 0 or config.modality.learned_alibi_scale
    if (
        storage.attention_maps and made and tokens * map_row <= PART_ENTRIES
    ):  # kept: weights, and as they enter
        copied = config.attention_dropout > 0 or storage.matrix_bytes < FLOAT
        matrix += map_row * (FLOAT + storage.matrix_bytes * copied)
    if config.modality.use_alibi_encoder and storage.matrix_bytes < FLOAT:
        matrix += map_row * storage.matrix_bytes  # each block has its own copy of the bias
    return tokens * (matrix + norms + flags * FLAG)


def block_stage(
    config: Data2VecMultiConfig,
    rows: int,
    length: int,
    storage: Storage,
    checkpointed: bool,
    branch_scales: bool,
) -> Part:
    """One transformer block, of the prenet or shared."""
    width, tokens = config.embed_dim, rows * length
    work, size = block_work(config, rows, length), block_parameters(config) + 2 * width * branch_scales
    kept = _block_kept(config, rows, length, storage)
    kept += tokens * 2 * width * storage.matrix_bytes * branch_scales
    working = float(tokens * (2 * hidden_width(config) + 2 * width) * storage.matrix_bytes)
    if storage.attention_maps:
        part = max(PART_ENTRIES, config.num_heads * length * length)
        maps = 3.0 * min(part, tokens * config.num_heads * length) * FLOAT
        working = max(working, tokens * 5 * width * storage.matrix_bytes + maps)
    again = 0.0
    if checkpointed:
        kept, working = float(tokens * width * FLOAT), working + kept
        again = work
        if config.layer_norm_first:  # nothing after the last product is kept: the second run stops before it
            again -= 2.0 * tokens * hidden_width(config) * width
    return Part(
        name=BLOCKS,
        forward=work,
        backward=2 * work + again,
        parameters=size,
        kept_bytes=kept,
        working_bytes=working,
    )


def decoder_stage(
    config: Data2VecMultiConfig, decoder: DecoderConfig, shape: StepShape, storage: Storage
) -> Part:
    """Convolutions over all positions of every row, and the projection; the loss reads masked positions."""
    two_dimensional = isinstance(config.modality, ImageModalityConfig)
    width, layers = config.embed_dim, decoder.decoder_layers
    inner = decoder.decoder_dim if layers else width
    rows = shape.samples * shape.clones
    cells, masked = rows * shape.positions, rows * (shape.positions - shape.kept)
    taps = decoder.decoder_kernel ** (2 if two_dimensional else 1)
    work, size = 0.0, 0
    for layer in range(layers):
        weights = (width if layer == 0 else inner) // decoder.decoder_groups * inner * taps
        work += 2.0 * cells * weights
        size += weights + inner
    widths = [inner, width]
    if not two_dimensional:  # the 2-D decoder has one projection
        hidden = [int(inner * decoder.projection_ratio)] * (decoder.projection_layers - 1)
        widths = [inner, *hidden, width]
    for first, second in itertools.pairwise(widths):
        work += 2.0 * cells * first * second
        size += first * second + second
    if config.recon_loss > 0:
        work += 2.0 * masked * width * width
        size += width * width + width
    inputs = width + (layers - 1) * inner
    kept = cells * (inputs * storage.matrix_bytes + layers * (2 * inner + 2) * FLOAT)  # norms compute in fp32
    kept += masked * ((widths[0] + 2 * sum(widths[1:-1])) * storage.matrix_bytes + 2 * width * FLOAT)
    if decoder.input_dropout > 0:
        kept += rows * shape.kept * width * FLAG
    return Part(
        name="decoder",
        forward=work,
        backward=2 * work,
        parameters=size,
        kept_bytes=kept,
        working_bytes=3.0 * cells * inner * storage.matrix_bytes,
    )


def front_end_stage(
    config: Data2VecMultiConfig, modality: ModalityConfig, shape: StepShape, vocab_size: int, storage: Storage
) -> Part:
    """Local features, once a sample; a frozen front end neither keeps nor learns anything."""
    if isinstance(modality, ImageModalityConfig):
        part = _image_front(config, modality, shape, storage)
    elif isinstance(modality, AudioModalityConfig):
        part = _audio_front(config, modality, shape, storage)
    else:
        assert isinstance(modality, TextModalityConfig)
        part = _text_front(config, modality, shape, vocab_size, storage)
    if modality.local_grad_mult > 0:
        return part
    return replace(part, backward=0.0, parameters=0, frozen=part.parameters, kept_bytes=0.0)


def token_stage(config: Data2VecMultiConfig, modality: ModalityConfig, shape: StepShape) -> Part:
    """Extra tokens, fixed positions, ALiBi scale and the norm before (or, pre-LN, after) the blocks."""
    width, rows = config.embed_dim, shape.samples * shape.clones
    parameters = modality.num_extra_tokens * width + _alibi(config, modality)
    frozen, kept = 0, 0.0
    if isinstance(modality, ImageModalityConfig) and modality.fixed_positions:
        frozen = (modality.input_size // modality.patch_size) ** 2 * width
    text = isinstance(modality, TextModalityConfig)
    if config.layer_norm_first or not text or modality.prenet_depth > 0:  # pre-LN: the norm at the end
        parameters += 2 * width * config.norm_affine
        kept = float(rows * (modality.num_extra_tokens + shape.kept) * width * FLOAT)
    return Part(
        name="tokens and norm",
        forward=0.0,
        backward=0.0,
        parameters=parameters,
        frozen=frozen,
        kept_bytes=kept,
    )


def _text_front(
    config: Data2VecMultiConfig, text: TextModalityConfig, shape: StepShape, vocab_size: int, storage: Storage
) -> Part:
    width, cells = config.embed_dim, shape.samples * shape.positions
    rows = vocab_size + (0 if text.no_token_positional_embeddings else text.max_source_positions + 2)
    kept = cells * width * (FLOAT * text.layernorm_embedding + FLAG * (text.dropout > 0))
    return Part(
        name="embeddings",
        forward=0.0,
        backward=0.0,
        parameters=rows * width + 2 * width * text.layernorm_embedding,
        kept_bytes=float(kept),
    )


def _image_front(
    config: Data2VecMultiConfig, image: ImageModalityConfig, shape: StepShape, storage: Storage
) -> Part:
    width, patch = config.embed_dim, image.embed_dim
    values = image.in_chans * image.patch_size**2
    cells = shape.samples * shape.positions
    convolution, linear = 2.0 * cells * values * patch, 0.0
    size, inputs = values * patch + patch, values
    if patch != width:
        linear = 2.0 * cells * patch * width
        size += patch * width + width
        inputs += patch
    return Part(
        name="patches",
        forward=convolution + linear,
        backward=convolution + 2 * linear,  # pixels need no gradient
        parameters=size,
        kept_bytes=float(cells * inputs * storage.matrix_bytes),
    )


def _audio_front(
    config: Data2VecMultiConfig, audio: AudioModalityConfig, shape: StepShape, storage: Storage
) -> Part:
    work = backward = working = 0.0
    size, channels, length = 0, 1, shape.raw
    kept = float(shape.samples * length * storage.matrix_bytes)
    for index, (out, kernel, stride) in enumerate(parse_conv_layers(audio.feature_encoder_spec)):
        length = (length - kernel) // stride + 1
        frames = shape.samples * length
        layer = 2.0 * frames * kernel * channels * out
        work, backward = work + layer, backward + layer * (1 if index == 0 else 2)
        kept += frames * out * storage.matrix_bytes
        # The gradient; norm, GELU and their gradients are made again for a clip at a time.
        working = max(working, (frames + 4.0 * length) * out * FLOAT)
        size += kernel * channels * out
        if audio.extractor_mode == "layer_norm" or index == 0:
            size += 2 * out
        channels = out
    cells, width = shape.samples * length, config.embed_dim
    linear = 2.0 * cells * channels * width
    return Part(
        name="convolutions",
        forward=work + linear,
        backward=backward + 2 * linear,
        parameters=size + 2 * channels + channels * width + width,
        kept_bytes=kept + cells * channels * (2 * FLOAT + storage.matrix_bytes),
        working_bytes=working,
    )


def position_stage(
    config: Data2VecMultiConfig, audio: AudioModalityConfig, cells: int, storage: Storage
) -> Part:
    """Grouped convolutions over the masked sequence of every row."""
    width, depth = config.embed_dim, audio.conv_pos_depth
    kernel = max(3, audio.conv_pos_width // depth)
    weights = kernel * width * (width // audio.conv_pos_groups)
    kept = cells * depth * (width * storage.matrix_bytes + (2 * width + 2) * FLOAT)
    return Part(
        name="positions",
        forward=2.0 * cells * weights * depth,
        backward=4.0 * cells * weights * depth,
        parameters=depth * (weights + width) + 2 * width * audio.conv_pos_pre_ln,
        kept_bytes=float(kept + cells * width * FLOAT * audio.conv_pos_pre_ln),
        working_bytes=3.0 * cells * width * storage.matrix_bytes,
    )


def _alibi(config: Data2VecMultiConfig, modality: ModalityConfig) -> int:
    """Parameters of a learned ALiBi scale."""
    if not (modality.use_alibi_encoder and modality.learned_alibi_scale):
        return 0
    layers = modality.prenet_depth + config.depth if modality.learned_alibi_scale_per_layer else 1
    return layers * (config.num_heads if modality.learned_alibi_scale_per_head else 1)
