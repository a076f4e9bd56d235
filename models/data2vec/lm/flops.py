"""What one training step of a language model costs, in the terms of :mod:`data2vec.flops`."""

from __future__ import annotations

import dataclasses

from ..config import Data2VecMultiConfig, ModalitiesConfig, TextModalityConfig
from ..flops import StepCost
from ..step_stages import ALONE, FLAG, FLOAT, Execution, Part, StepShape, block_stage
from ..weight_shapes import without_memory
from .config import TransformerLMConfig
from .transformer import TransformerLM

BAND_SHARE = 0.1  # assumed share of the tokens in each band after the first; text decides the real one


def decoder_as_multi(config: TransformerLMConfig) -> Data2VecMultiConfig:
    """A network of equal width, depth and dropouts, whose blocks cost the same."""
    front = TextModalityConfig(
        prenet_depth=0,
        mask_length=1,
        max_source_positions=config.max_target_positions,
        dropout=config.dropout,
        layernorm_embedding=config.layernorm_embedding,
        decoder=None,
    )
    return Data2VecMultiConfig(
        modalities=ModalitiesConfig(text=front),
        supported_modality="TEXT",
        clone_batch=1,
        average_top_k_layers=1,
        depth=config.decoder_layers,
        embed_dim=config.decoder_embed_dim,
        num_heads=config.decoder_attention_heads,
        mlp_ratio=config.decoder_ffn_embed_dim / config.decoder_embed_dim,
        encoder_dropout=config.dropout,
        post_mlp_drop=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
    )


def language_model_step(
    config: TransformerLMConfig, shape: StepShape, *, vocab_size: int, execution: Execution = ALONE
) -> StepCost:
    """Embeddings, causal layers and softmax on one micro-batch.

    Args:
        config: the model.
        shape: samples and positions; masks and clones play no part.
        vocab_size: V.
        execution: how a worker runs it.
    """
    storage, network = execution.storage, decoder_as_multi(config)
    shape = dataclasses.replace(shape, kept=shape.positions, clones=1)
    rows, length = shape.samples, shape.positions
    block = block_stage(network, rows, length, storage, execution.checkpoint_activations, False)
    blocks = [block] * network.depth
    tokens, width = shape.samples * shape.positions, config.decoder_embed_dim
    with without_memory():
        model = TransformerLM(config, vocab_size, seed=None)
    everything = sum(p.numel() for p in model.parameters())
    softmax, logits = _softmax(config, vocab_size)
    output = Part(
        name="softmax",
        forward=2.0 * tokens * softmax,
        backward=4.0 * tokens * softmax,
        parameters=0,
        kept_bytes=tokens * (logits * FLOAT + width * storage.matrix_bytes),
        working_bytes=tokens * logits * FLOAT,
    )
    embeddings = Part(
        name="embeddings and softmax",
        forward=0.0,
        backward=0.0,
        parameters=everything - sum(part.parameters for part in blocks),
        kept_bytes=float(tokens * width * (FLOAT + FLAG * (config.dropout > 0))),
    )
    return StepCost(
        parts=(embeddings, *blocks, output),
        accumulates=execution.accumulates,
        matrix_bytes=storage.matrix_bytes,
        workers=execution.workers,
    )


def _softmax(config: TransformerLMConfig, vocab_size: int) -> tuple[float, float]:
    """Multiply-adds and logits of a token."""
    width, cutoff = config.output_dim, config.softmax_cutoff
    if cutoff is None:
        return float(width * vocab_size), float(vocab_size)
    ends = [*cutoff, vocab_size]
    work = float(width * (ends[0] + len(cutoff)))
    logits = float(ends[0] + len(cutoff))
    for band in range(1, len(ends)):
        inner, words = int(width // config.adaptive_softmax_factor**band), ends[band] - ends[band - 1]
        work += BAND_SHARE * inner * (width + words)
        logits += BAND_SHARE * words
    return work, logits
