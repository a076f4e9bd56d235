"""What one training step costs: matrix work and memory of teacher, M masked students and decoder.

The work is what the reference's algorithm does, two FLOPs a multiply-add of matrix products, convolutions and
attention: student forward and backward over the kept positions of every clone, decoder over all positions of
every clone, teacher forward once a sample. The memory is what this implementation keeps for the backward
pass. Tests compare both with PyTorch's counter and with the tensors and the peak of real steps.

B samples, M clones, R = B * M rows, T positions, K kept positions, E extra tokens, D width, F feed-forward
width, C decoder width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .config import AudioModalityConfig, Data2VecMultiConfig
from .step_stages import (
    FLOAT,
    Part,
    StepShape,
    Storage,
    block_stage,
    block_work,
    decoder_stage,
    front_end_stage,
    hidden_width,
    position_stage,
    token_stage,
)

__all__ = ["Part", "StepCost", "StepShape", "Storage", "finetuning_step", "pretraining_step", "work_by_part"]


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Cost of one micro-batch on one worker.

    Attributes:
        parts: stages of the trained network.
        teacher_flops: FLOPs of the teacher's forward pass.
        teacher_parameters: its size.
        teacher_working_bytes: what its forward pass needs while it runs.
        accumulates: gradients of earlier micro-batches are there while this one runs.
        cast_bytes: copies of the weights in lower precision, which autocast keeps through a micro-batch.
    """

    parts: tuple[Part, ...]
    teacher_flops: float = 0.0
    teacher_parameters: int = 0
    teacher_working_bytes: float = 0.0
    accumulates: bool = False
    cast_bytes: int = 0

    @property
    def flops(self) -> float:
        """All matrix work, backward included."""
        return self.teacher_flops + sum(part.forward + part.backward for part in self.parts)

    @property
    def parameters(self) -> int:
        """Parameters of student and decoder, frozen ones included; the teacher is not counted."""
        return sum(part.parameters + part.frozen for part in self.parts)

    @property
    def parameter_bytes(self) -> int:
        """Memory of student and decoder."""
        return FLOAT * self.parameters

    @property
    def gradient_bytes(self) -> int:
        """Memory of all gradients."""
        return FLOAT * sum(part.parameters for part in self.parts)

    @property
    def optimizer_bytes(self) -> int:
        """Memory of Adam's two moments."""
        return 2 * self.gradient_bytes

    @property
    def teacher_bytes(self) -> int:
        """Memory of the teacher, which is kept in fp32."""
        return FLOAT * self.teacher_parameters

    @property
    def activation_bytes(self) -> float:
        """What the forward pass keeps for the backward pass."""
        return sum(part.kept_bytes for part in self.parts)

    @property
    def peak_bytes(self) -> float:
        """Highest memory of an update after the first, when Adam's moments exist.

        The backward pass trades activations for gradients stage by stage, so its first stages decide unless
        gradients outweigh activations or are there from an earlier micro-batch.
        """
        held = self.gradient_bytes if self.accumulates else 0
        alive = self.activation_bytes + self.cast_bytes
        highest = alive + held + self.teacher_working_bytes
        for part in reversed(self.parts):
            highest = max(highest, alive + held + part.working_bytes)
            alive -= part.kept_bytes
            held += 0 if self.accumulates else FLOAT * part.parameters
        return self.parameter_bytes + self.optimizer_bytes + self.teacher_bytes + max(highest, held)


def pretraining_step(
    config: Data2VecMultiConfig,
    shape: StepShape,
    *,
    vocab_size: int = 0,
    storage: Storage | None = None,
    accumulates: bool = False,
    checkpoint_activations: bool = False,
    branch_scales: bool = False,
) -> StepCost:
    """The v2 objective on one micro-batch.

    Args:
        config: the model; its modality decides the front end.
        shape: B, T, K, M.
        vocab_size: V of a text model.
        storage: of the processor; by default a CPU in fp32.
        accumulates: the update has further micro-batches on this worker.
        checkpoint_activations: blocks keep their input only and run again in the backward pass.
        branch_scales: each block scales its two branches by learned vectors (data2vec 1 for images).
    """
    storage = storage or Storage()
    modality = config.modality
    rows, extra, width = shape.samples * shape.clones, modality.num_extra_tokens, config.embed_dim
    front = front_end_stage(config, modality, shape, vocab_size, storage)
    own = token_stage(config, modality, shape)
    parts = [front, own]
    positions = None
    if isinstance(modality, AudioModalityConfig):
        positions = position_stage(config, modality, rows * shape.positions, storage)
        parts.append(positions)
    block = block_stage(config, rows, extra + shape.kept, storage, checkpoint_activations, branch_scales)
    parts += [block] * (modality.prenet_depth + config.depth)
    if modality.decoder is not None:
        parts.append(decoder_stage(config, modality.decoder, shape, storage))

    # The teacher sees every sample once, complete, and keeps nothing for a backward pass.
    length, blocks = extra + shape.positions, config.depth
    flops, parameters = 0.0, 0
    if not config.ema_encoder_only:
        blocks += modality.prenet_depth
        parameters += own.parameters + own.frozen
        if positions:
            flops += positions.forward / shape.clones
            parameters += positions.parameters
        if modality.ema_local_encoder:
            flops += front.forward
            parameters += front.parameters + front.frozen
    tokens = shape.samples * length
    working = tokens * ((4 * width + 2 * hidden_width(config)) * storage.matrix_bytes + 4 * width * FLOAT)
    return StepCost(
        parts=tuple(parts),
        teacher_flops=flops + blocks * block_work(config, shape.samples, length),
        teacher_parameters=parameters + blocks * block.parameters,
        teacher_working_bytes=working,
        accumulates=accumulates,
        cast_bytes=0
        if storage.matrix_bytes == FLOAT
        else storage.matrix_bytes * sum(p.parameters for p in parts),
    )


def finetuning_step(
    config: Data2VecMultiConfig,
    shape: StepShape,
    *,
    num_classes: int,
    vocab_size: int = 0,
    storage: Storage | None = None,
    accumulates: bool = False,
    checkpoint_activations: bool = False,
    branch_scales: bool = False,
) -> StepCost:
    """The network without decoder and teacher over complete input, and a head of two linear layers.

    Args:
        config: the pretrained network.
        shape: B and T; masks and clones play no part.
        num_classes: outputs of the head.
        vocab_size: V of a text model.
        storage: of the processor; by default a CPU in fp32.
        accumulates: the update has further micro-batches on this worker.
        checkpoint_activations: blocks keep their input only and run again in the backward pass.
        branch_scales: each block scales its two branches by learned vectors (data2vec 1 for images).
    """
    shape = replace(shape, kept=shape.positions, clones=1)
    width = config.embed_dim
    bare = replace(config.modality, decoder=None)
    modalities = replace(config.modalities, **{config.modality_name.lower(): bare})
    body = pretraining_step(
        replace(config, modalities=modalities),
        shape,
        vocab_size=vocab_size,
        storage=storage,
        checkpoint_activations=checkpoint_activations,
        branch_scales=branch_scales,
    )
    work = 2.0 * shape.samples * width * (width + num_classes)
    size = width * (width + 1) + num_classes * (width + 1)
    head = Part(
        name="head",
        forward=work,
        backward=2 * work,
        parameters=size,
        kept_bytes=FLOAT * shape.samples * 3 * width,
    )
    return StepCost(parts=(*body.parts, head), accumulates=accumulates, cast_bytes=body.cast_bytes)


def work_by_part(parts: Sequence[Part]) -> dict[str, float]:
    """FLOPs by stage name, forward and backward together."""
    found: dict[str, float] = {}
    for part in parts:
        found[part.name] = found.get(part.name, 0.0) + part.forward + part.backward
    return found
