"""What one training step of a masked autoencoder costs, in the terms of :mod:`data2vec.flops`."""

from __future__ import annotations

from dataclasses import replace

from .flops import StepCost, pretraining_step
from .mae_config import MaeConfig
from .step_stages import ALONE, FLOAT, Execution, Part, StepShape, block_stage


def autoencoder_step(config: MaeConfig, shape: StepShape, execution: Execution = ALONE) -> StepCost:
    """Encoder over the kept patches, decoder over all of them, pixels of the masked ones.

    Args:
        config: the model.
        shape: B, T and K.
        execution: how a worker runs it.
    """
    storage, recompute = execution.storage, execution.checkpoint_activations
    encoder = pretraining_step(config.encoder(), shape, execution=execution)
    rows, length, width = shape.samples, 1 + shape.positions, config.decoder_embed_dim
    seen, masked = rows * (1 + shape.kept), rows * (shape.positions - shape.kept)
    block = block_stage(config.decoder(), rows, length, storage, recompute, False)
    embed = Part(
        name="decoder",
        forward=2.0 * seen * config.embed_dim * width,
        backward=4.0 * seen * config.embed_dim * width,
        parameters=(config.embed_dim + 2) * width,  # the mask token too
        frozen=shape.positions * width,
        kept_bytes=float(seen * config.embed_dim * storage.matrix_bytes),
    )
    pixels = Part(
        name="decoder",
        forward=2.0 * masked * width * config.pixels,
        backward=4.0 * masked * width * config.pixels,
        parameters=2 * width + (width + 1) * config.pixels,
        kept_bytes=float(
            rows * length * width * FLOAT
            + masked * (width * storage.matrix_bytes + 2 * config.pixels * FLOAT)
        ),
    )
    blocks = [replace(block, name="decoder")] * config.decoder_depth
    return replace(
        encoder,
        parts=(*encoder.parts, embed, *blocks, pixels),
        teacher_flops=0.0,
        teacher_parameters=0,
        teacher_working_bytes=0.0,
        teacher_blocks=0,
    )
