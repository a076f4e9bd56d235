"""Work of a step product by product, and what is in memory when, in numbers small enough to follow."""

from __future__ import annotations

from typing import Any

import pytest

from data2vec.config import Data2VecMultiConfig
from data2vec.flops import (
    Execution,
    Part,
    StepCost,
    StepShape,
    Storage,
    finetuning_step,
    pretraining_step,
    work_by_part,
)

B, M, T, K, D, F, H = 3, 2, 16, 7, 24, 36, 2  # samples, clones, positions, kept, width, feed-forward, heads


def product(rows: int, inner: int, outer: int) -> float:
    return 2.0 * rows * inner * outer


def blocks(count: int, rows: int, length: int) -> float:
    """Joint and output projection, logits and weighted sum, two feed-forward layers."""
    tokens = rows * length
    one = product(tokens, D, 3 * D) + product(tokens, D, D) + product(tokens, D, F) + product(tokens, F, D)
    return count * (one + 2 * product(rows * length, D, length))


def config(kind: str, front: dict[str, Any], **values: Any) -> Data2VecMultiConfig:
    decoder = {"decoder_dim": 8, "decoder_groups": 4, "decoder_kernel": 3, "decoder_layers": 3,
               "projection_layers": 3, "projection_ratio": 1.5}  # fmt: skip
    return Data2VecMultiConfig.from_dict(
        {"depth": 3, "embed_dim": D, "num_heads": H, "mlp_ratio": F / D, "average_top_k_layers": 2,
         "supported_modality": kind.upper(), "ema_encoder_only": kind == "text", **values,
         "modalities": {"text": None, kind: {"prenet_depth": 1, "decoder": decoder, **front}}}
    )  # fmt: skip


def decoder_1d() -> float:
    cells = B * M * T
    convolutions = product(cells, 3 * D // 4, 8) + 2 * product(cells, 3 * 8 // 4, 8)
    return convolutions + product(cells, 8, 12) + product(cells, 12, 12) + product(cells, 12, D)


def test_text() -> None:
    made = config("text", {"mask_length": 1})
    cost = pretraining_step(made, StepShape(samples=B, positions=T, kept=K, clones=M), vocab_size=50)
    work = work_by_part(cost.parts)
    assert work["embeddings"] == 0 and work["blocks"] == 3 * blocks(4, B * M, K)
    assert work["decoder"] == pytest.approx(3 * decoder_1d())
    assert cost.teacher_flops == blocks(3, B, T), "the shared blocks over every sample once, complete"
    assert cost.flops == pytest.approx(sum(work.values()) + cost.teacher_flops)


@pytest.mark.parametrize(("own", "patch"), [(True, 24), (False, 24), (True, 10)])
def test_images(own: bool, patch: int) -> None:
    front = {"input_size": 16, "patch_size": 4, "embed_dim": patch, "num_extra_tokens": 1,
             "ema_local_encoder": own}  # fmt: skip
    made = config("image", front, recon_loss=0.0)
    cost = pretraining_step(made, StepShape(samples=B, positions=T, kept=K, clones=M))
    work, cells = work_by_part(cost.parts), B * M * T
    local = product(B * T, 3 * 4 * 4, patch)
    linear = product(B * T, patch, D) if patch != D else 0.0
    assert work["patches"] == 2 * local + 3 * linear, "pixels need no gradient"
    assert work["blocks"] == 3 * blocks(4, B * M, 1 + K)
    convolutions = product(cells, 9 * D // 4, 8) + 2 * product(cells, 9 * 8 // 4, 8)
    assert work["decoder"] == pytest.approx(3 * (convolutions + product(cells, 8, D)))
    assert cost.teacher_flops == blocks(4, B, 1 + T) + (local + linear if own else 0.0)


def test_pixels_are_predicted_at_masked_patches() -> None:
    front = {"input_size": 8, "patch_size": 2, "in_chans": 6, "embed_dim": D, "num_extra_tokens": 1}
    shape = StepShape(samples=B, positions=T, kept=K, clones=M)
    plain, both = (
        work_by_part(pretraining_step(config("image", front, recon_loss=loss), shape).parts)
        for loss in (0, 1)
    )
    assert both["decoder"] - plain["decoder"] == 3 * product(B * M * (T - K), D, D)


def test_audio() -> None:
    front = {"feature_encoder_spec": "[(8, 4, 2)] + [(12, 3, 2)]", "conv_pos_width": 9, "conv_pos_depth": 3,
             "conv_pos_groups": 4}  # fmt: skip
    shape = StepShape(samples=B, positions=16, kept=K, clones=M, raw=68)  # 33, 16 frames
    cost = pretraining_step(config("audio", front), shape)
    work = work_by_part(cost.parts)
    first, second, linear = product(B * 33, 4, 8), product(B * 16, 3 * 8, 12), product(B * 16, 12, D)
    assert work["convolutions"] == 2 * first + 3 * (second + linear), "samples need no gradient"
    positions = 3 * product(B * M * 16, 3 * D // 4, D)
    assert work["positions"] == 3 * positions
    assert work["blocks"] == 3 * blocks(4, B * M, K) and work["decoder"] == pytest.approx(3 * decoder_1d())
    assert cost.teacher_flops == blocks(4, B, 16) + positions / M


def test_fine_tuning_sees_everything_once() -> None:
    made = config("text", {"mask_length": 1})
    shape = StepShape(samples=B, positions=T, kept=K, clones=M)
    cost = finetuning_step(made, shape, num_classes=5, vocab_size=50)
    work = work_by_part(cost.parts)
    assert work == {"embeddings": 0, "tokens and norm": 0, "blocks": 3 * blocks(4, B, T),
                    "head": 3 * (product(B, D, D) + product(B, D, 5))}  # fmt: skip
    assert cost.teacher_flops == cost.teacher_parameters == cost.teacher_working_bytes == 0
    head = cost.parts[-1]
    assert head.parameters == D * D + D + 5 * D + 5 and head.kept_bytes == 4 * B * 3 * D


def test_recomputing_runs_blocks_twice_and_keeps_their_input() -> None:
    made = config("text", {"mask_length": 1})
    shape = StepShape(samples=B, positions=T, kept=K, clones=M)
    for storage in (Storage(), Storage.on("cuda", "bf16")):
        plain, again = (
            pretraining_step(
                made, shape, vocab_size=50, execution=Execution(checkpoint_activations=on, storage=storage)
            )
            for on in (False, True)
        )
        one, other = (next(p for p in cost.parts if p.name == "blocks") for cost in (plain, again))
        assert (other.forward, other.backward) == (one.forward, 1.5 * one.backward)
        assert other.kept_bytes == B * M * K * D * 4
        assert other.working_bytes == one.working_bytes + one.kept_bytes


@pytest.mark.parametrize("size", [1, 2, 4])
def test_chunks_of_clones_work_as_much_and_keep_what_they_hold(size: int) -> None:
    made = config("text", {"mask_length": 1})
    shape = StepShape(samples=B, positions=T, kept=K, clones=4)
    whole = pretraining_step(made, shape, vocab_size=50)
    chunks = pretraining_step(made, shape, vocab_size=50, clones_at_once=size)
    part = pretraining_step(made, StepShape(samples=B, positions=T, kept=K, clones=size), vocab_size=50)
    assert chunks.flops == pytest.approx(whole.flops) and chunks.accumulates is (size < 4)
    shared = 0 if size == 4 else 2 * 4 * B * T * D  # targets, and the gradient of local features
    assert chunks.activation_bytes == pytest.approx(part.activation_bytes + shared)


def test_what_each_storage_keeps_of_a_block() -> None:
    """Per token: inputs of four products, q, k and v, the hidden layer; norms in fp32; flags of dropouts."""

    def kept(storage: Storage, **values: Any) -> float:
        off = {"encoder_dropout": 0.0, "post_mlp_drop": 0.0, "attention_dropout": 0.0}
        cost = pretraining_step(
            config("text", {"mask_length": 1}, **{**off, **values}),
            StepShape(samples=B, positions=T, kept=K, clones=M), vocab_size=50,
            execution=Execution(storage=storage),
        )  # fmt: skip
        return next(p for p in cost.parts if p.name == "blocks").kept_bytes / (B * M * K)

    cpu, gpu, half = Storage.on("cpu"), Storage.on("cuda"), Storage.on("cuda", "bf16")
    assert (cpu.matrix_bytes, gpu.matrix_bytes, half.matrix_bytes) == (4, 4, 2)
    assert Storage.on("cpu", "bf16").matrix_bytes == 2 and Storage.on("cpu", "bf16").attention_maps
    norms = 4 * (2 * D + 4)
    assert kept(cpu) == kept(gpu) == 4 * (6 * D + F) + norms and kept(half) == 2 * (6 * D + F) + norms
    assert kept(cpu, encoder_dropout=0.1) - kept(cpu) == D == kept(gpu, post_mlp_drop=0.1) - kept(gpu)
    assert kept(cpu, activation_dropout=0.1) - kept(cpu) == D + F
    # Small maps are kept: the softmax, its product with the dropout's factors, and the flags.
    assert kept(cpu, attention_dropout=0.1) - kept(cpu) == (4 + 4 + 1) * H * K
    assert kept(gpu, attention_dropout=0.1) == kept(gpu)


# ---- what is in memory when -------------------------------------------------------------------------------

PARTS = (
    Part(name="front", forward=1, backward=2, parameters=10, frozen=5, kept_bytes=100, working_bytes=7),
    Part(name="blocks", forward=3, backward=6, parameters=20, kept_bytes=200, working_bytes=30),
    Part(name="blocks", forward=3, backward=6, parameters=20, kept_bytes=200, working_bytes=30),
    Part(name="head", forward=2, backward=4, parameters=4, kept_bytes=50, working_bytes=400),
)


def cost(**values: Any) -> StepCost:
    teacher = {
        "teacher_flops": 9.0,
        "teacher_parameters": 50,
        "teacher_working_bytes": 60.0,
        "teacher_blocks": 2,
    }
    return StepCost(parts=PARTS, **{**teacher, **values})


def test_sums() -> None:
    whole, third = cost(), cost(workers=3)
    assert whole.flops == 9 + 3 + 9 + 9 + 6 and whole.parameters == 15 + 20 + 20 + 4
    assert whole.parameter_bytes == 4 * 59 and third.parameter_bytes == 4 * 59 / 3
    assert whole.gradient_bytes == 4 * 54 and third.gradient_bytes == 4 * 54 / 3
    assert cost(workers=3, accumulates=True).gradient_bytes == 4 * 54, "added up whole before they are dealt"
    assert whole.optimizer_bytes == 2 * 4 * 54 and third.optimizer_bytes == 2 * 4 * 54 / 3
    assert whole.teacher_bytes == 4 * 50 and third.teacher_bytes == 4 * 50 / 3
    assert whole.activation_bytes == 550 and whole.block_parameters == 20
    assert whole.gathered_bytes == 0
    assert third.gathered_bytes == 4 * (15 + 4 + 50 - 2 * 20) + 3 * 4 * 20
    assert cost(workers=3, matrix_bytes=2).gathered_bytes == 4 * (15 + 4 + 10) + 3 * 2 * 20
    assert work_by_part(PARTS) == {"front": 3, "blocks": 18, "head": 6}


def peak(
    gathered: float = 0, cast: float = 0, left: Any = None, message: float = 0, held: float = 0
) -> float:
    """Walk through the backward pass by hand."""
    alive, seen = 550 + gathered + cast, [550 + gathered + cast + held + 60]
    for part in reversed(PARTS):
        extra = message if part.name == "blocks" else 0
        seen.append(alive + held + part.working_bytes + extra)
        alive -= part.kept_bytes
        held += 4 * part.parameters if left is None else left(part)
    return max([*seen, held])


def test_the_peak_of_an_update() -> None:
    fixed = 4 * 59 + 2 * 4 * 54 + 4 * 50
    assert cost().peak_bytes == fixed + 550 + 400, "at the last stage, whose gradient is made first"
    assert cost().peak_bytes == fixed + peak()
    assert cost(accumulates=True).peak_bytes == fixed + peak(held=4 * 54, left=lambda part: 0)
    assert cost(matrix_bytes=2).peak_bytes == fixed + peak(cast=2 * 54)
    small = cost(teacher_working_bytes=5000.0)
    assert small.peak_bytes == fixed + 550 + 5000, "or in the teacher's pass"


def test_the_peak_where_workers_share_the_model() -> None:
    fixed = (4 * 59 + 2 * 4 * 54 + 4 * 50) / 3
    for accumulates in (False, True):

        def left(part: Part, accumulates: bool = accumulates) -> float:
            whole = 4.0 * part.parameters
            if part.name == "blocks":  # summed over the workers and dealt out at once
                return whole / 3 - (whole if accumulates else 0)
            return 0.0 if accumulates else whole

        shared = cost(workers=3, accumulates=accumulates, matrix_bytes=2)
        held = 4.0 * 54 if accumulates else 0.0
        wanted = peak(shared.gathered_bytes, 2 * 14, left, 2 * 4 * 20, held)
        assert shared.peak_bytes == pytest.approx(fixed + wanted)
