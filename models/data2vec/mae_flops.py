"""What one training step of a masked autoencoder costs, in the terms of :mod:`data2vec.flops`."""

from __future__ import annotations

from dataclasses import replace

from .flops import StepCost, pretraining_step
from .mae_config import MaeConfig
from .step_stages import FLOAT, Part, StepShape, Storage, block_stage


def autoencoder_step(
    config: MaeConfig,
    shape: StepShape,
    *,
    storage: Storage | None = None,
    accumulates: bool = False,
    checkpoint_activations: bool = False,
    workers: int = 1,
) -> StepCost:
    """Encoder over the kept patches, decoder over all of them, pixels of the masked ones.

    Args:
        config: the model.
        shape: B, T and K.
        storage: of the processor; by default a CPU in fp32.
        accumulates: the update has further micro-batches on this worker.
        checkpoint_activations: blocks keep their input only and run again in the backward pass.
        workers: how many share the model (1: each holds all of it).
    """
    storage = storage or Storage()
    encoder = pretraining_step(
        config.encoder(),
        shape,
        storage=storage,
        accumulates=accumulates,
        checkpoint_activations=checkpoint_activations,
        workers=workers,
    )
    rows, length, width = shape.samples, 1 + shape.positions, config.decoder_embed_dim
    seen, masked = rows * (1 + shape.kept), rows * (shape.positions - shape.kept)
    block = block_stage(config.decoder(), rows, length, storage, checkpoint_activations, False)
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
