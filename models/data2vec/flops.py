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
    ALONE,
    BLOCKS,
    FLOAT,
    Execution,
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

__all__ = [
    "Execution",
    "Part",
    "StepCost",
    "StepShape",
    "Storage",
    "finetuning_step",
    "pretraining_step",
    "work_by_part",
]


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Cost of one micro-batch on one worker.

    Attributes:
        parts: stages of the trained network.
        teacher_flops: FLOPs of the teacher's forward pass.
        teacher_parameters: its size.
        teacher_working_bytes: what its forward pass needs while it runs.
        teacher_blocks: its transformer blocks, each as large as the student's.
        accumulates: gradients of earlier micro-batches are there while this one runs.
        matrix_bytes: size of a number in matrix products: 4 in fp32, 2 in lower precision, where autocast
            keeps a copy of the weights through a micro-batch.
        workers: how many share parameters, gradients, moments and teacher (1: each holds all of it).
    """

    parts: tuple[Part, ...]
    teacher_flops: float = 0.0
    teacher_parameters: int = 0
    teacher_working_bytes: float = 0.0
    teacher_blocks: int = 0
    accumulates: bool = False
    matrix_bytes: int = FLOAT
    workers: int = 1

    @property
    def flops(self) -> float:
        """All matrix work, backward included."""
        return self.teacher_flops + sum(part.forward + part.backward for part in self.parts)

    @property
    def parameters(self) -> int:
        """Parameters of student and decoder, frozen ones included; the teacher is not counted."""
        return sum(part.parameters + part.frozen for part in self.parts)

    @property
    def parameter_bytes(self) -> float:
        """Memory of this worker's part of student and decoder."""
        return FLOAT * self.parameters / self.workers

    @property
    def gradient_bytes(self) -> float:
        """Memory of gradients: of this worker's part, or of all while they are added up before the sum."""
        whole = float(FLOAT * sum(part.parameters for part in self.parts))
        return whole if self.accumulates else whole / self.workers

    @property
    def optimizer_bytes(self) -> float:
        """Memory of this worker's part of Adam's two moments."""
        return 2.0 * FLOAT * sum(part.parameters for part in self.parts) / self.workers

    @property
    def teacher_bytes(self) -> float:
        """Memory of this worker's part of the teacher, which is kept in fp32."""
        return FLOAT * self.teacher_parameters / self.workers

    @property
    def block_parameters(self) -> int:
        """Parameters of the largest block, which is gathered to run."""
        return max((p.parameters + p.frozen for p in self.parts if p.name == BLOCKS), default=0)

    @property
    def gathered_bytes(self) -> float:
        """What a worker that holds a part only has gathered at its peak.

        All outside the blocks of student and teacher, the block that runs, the next one, and the message that
        brings it.
        """
        if self.workers == 1:
            return 0.0
        rest = sum(p.parameters + p.frozen for p in self.parts if p.name != BLOCKS)
        rest += self.teacher_parameters - self.teacher_blocks * self.block_parameters
        return FLOAT * rest + 3.0 * self.matrix_bytes * self.block_parameters

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
        held = self.gradient_bytes if self.accumulates else 0.0
        alive = self.activation_bytes + self.gathered_bytes + self._cast_bytes
        highest = alive + held + self.teacher_working_bytes
        for part in reversed(self.parts):
            highest = max(highest, alive + held + part.working_bytes + self._message_bytes(part))
            alive -= part.kept_bytes
            held += self._left_bytes(part)
        return self.parameter_bytes + self.optimizer_bytes + self.teacher_bytes + max(highest, held)

    @property
    def _cast_bytes(self) -> int:
        """Copies of the weights that autocast keeps; blocks that are gathered come in lower precision."""
        cast = [p for p in self.parts if self.workers == 1 or p.name != BLOCKS]
        return 0 if self.matrix_bytes == FLOAT else self.matrix_bytes * sum(p.parameters for p in cast)

    def _message_bytes(self, part: Part) -> float:
        """Whole gradients of a block and the message that sums them over the workers."""
        return 2.0 * FLOAT * part.parameters if self.workers > 1 and part.name == BLOCKS else 0.0

    def _left_bytes(self, part: Part) -> float:
        """What a stage's backward pass adds to the gradients at hand."""
        whole = float(FLOAT * part.parameters)
        if self.workers > 1 and part.name == BLOCKS:
            return whole / self.workers - (whole if self.accumulates else 0.0)
        return 0.0 if self.accumulates else whole


def pretraining_step(
    config: Data2VecMultiConfig,
    shape: StepShape,
    *,
    vocab_size: int = 0,
    branch_scales: bool = False,
    execution: Execution = ALONE,
    clones_at_once: int | None = None,
) -> StepCost:
    """The v2 objective on one micro-batch.

    Args:
        config: the model; its modality decides the front end.
        shape: B, T, K, M.
        vocab_size: V of a text model.
        branch_scales: each block scales its two branches by learned vectors (data2vec 1 for images).
        execution: how a worker runs it.
        clones_at_once: clones of a chunk; ``None`` computes all together.
    """
    storage, accumulates, modality = execution.storage, execution.accumulates, config.modality
    extra, width = modality.num_extra_tokens, config.embed_dim
    whole, turns = shape, 1.0
    if clones_at_once is not None and clones_at_once < shape.clones:
        # Memory is that of the largest chunk; the work of all of them is put back below.
        shape, turns = replace(shape, clones=clones_at_once), shape.clones / clones_at_once
        accumulates = True
    rows = shape.samples * shape.clones
    front = front_end_stage(config, modality, shape, vocab_size, storage)
    own = token_stage(config, modality, shape)
    parts = [front, own]
    positions = None
    if isinstance(modality, AudioModalityConfig):
        positions = position_stage(config, modality, rows * shape.positions, storage)
        parts.append(positions)
    block = block_stage(
        config, rows, extra + shape.kept, storage, execution.checkpoint_activations, branch_scales
    )
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
    if turns > 1.0:
        repeated = [replace(p, forward=turns * p.forward, backward=turns * p.backward) for p in parts[1:]]
        shared_bytes = 2.0 * FLOAT * whole.samples * whole.positions * width  # targets, gradient of the front
        parts = [replace(front, kept_bytes=front.kept_bytes + shared_bytes), *repeated]
    return StepCost(
        parts=tuple(parts),
        teacher_flops=flops + blocks * block_work(config, shape.samples, length),
        teacher_parameters=parameters + blocks * block.parameters,
        teacher_working_bytes=working,
        teacher_blocks=blocks,
        accumulates=accumulates,
        matrix_bytes=storage.matrix_bytes,
        workers=execution.workers,
    )


def finetuning_step(
    config: Data2VecMultiConfig,
    shape: StepShape,
    *,
    num_classes: int,
    vocab_size: int = 0,
    branch_scales: bool = False,
    execution: Execution = ALONE,
) -> StepCost:
    """The network without decoder and teacher over complete input, and a head of two linear layers.

    Args:
        config: the pretrained network.
        shape: B and T; masks and clones play no part.
        num_classes: outputs of the head.
        vocab_size: V of a text model.
        branch_scales: each block scales its two branches by learned vectors (data2vec 1 for images).
        execution: how a worker runs it.
    """
    shape = replace(shape, kept=shape.positions, clones=1)
    width = config.embed_dim
    bare = replace(config.modality, decoder=None)
    modalities = replace(config.modalities, **{config.modality_name.lower(): bare})
    body = pretraining_step(
        replace(config, modalities=modalities),
        shape,
        vocab_size=vocab_size,
        branch_scales=branch_scales,
        execution=execution,
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
    return StepCost(
        parts=(*body.parts, head),
        accumulates=execution.accumulates,
        matrix_bytes=body.matrix_bytes,
        workers=execution.workers,
    )


def work_by_part(parts: Sequence[Part]) -> dict[str, float]:
    """FLOPs by stage name, forward and backward together."""
    found: dict[str, float] = {}
    for part in parts:
        found[part.name] = found.get(part.name, 0.0) + part.forward + part.backward
    return found
