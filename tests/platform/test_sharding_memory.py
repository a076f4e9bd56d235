"""The forecast of a worker that shares a model, against the peak of real updates."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_platform.training.loop_state import Worker
from d2v_platform.training.sharding import Sharded
from data2vec.config import Data2VecMultiConfig
from data2vec.flops import Execution, StepShape, pretraining_step
from data2vec.optim import GroupSettings, ScheduledAdam, parameter_groups
from data2vec.pretraining import Data2VecPretraining
from data2vec.schedules import Fixed
from tests.platform.process_group import together

WIDE = {"embed_dim": 384, "num_heads": 6, "depth": 6, "average_top_k_layers": 6, "clone_batch": 4,
        "ema_encoder_only": False, "supported_modality": "IMAGE", "modalities": {"text": None, "image": {
            "input_size": 64, "patch_size": 8, "embed_dim": 384, "prenet_depth": 0, "num_extra_tokens": 1,
            "ema_local_encoder": True, "mask_prob": 0.75, "mask_length": 2, "inverse_mask": True,
            "decoder": {"decoder_dim": 64, "decoder_groups": 4, "decoder_kernel": 3,
                        "decoder_layers": 2}}}}  # fmt: skip


def status(key: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _measure(rank: int, size: int, place: str) -> None:
    """Peak memory of an update of one and of two micro-batches, of a worker that shares a model."""
    torch.set_num_threads(1)
    images = torch.randn(4, 3, 64, 64)

    def make(**values: Any) -> tuple[Data2VecPretraining, Sharded, ScheduledAdam]:
        model = Data2VecPretraining(Data2VecMultiConfig.from_dict(WIDE | values)).train()
        placement = Sharded(model, Worker(rank=rank, size=size, sharded=True))
        groups = parameter_groups(model.student, dynamic=False)
        schedules = [[Fixed(peak=1e-4, warmup_updates=0)]]
        return model, placement, ScheduledAdam(groups, {"default": GroupSettings()}, schedules)

    def update(
        model: Data2VecPretraining, placement: Sharded, adam: ScheduledAdam, passes: int, step: int
    ) -> None:
        parameters = list(model.student.parameters())
        for parameter in parameters:
            parameter.grad = None
        model.teacher.step(step)
        for index in range(passes):
            placement.backward(model(images, update=step).loss, True, index == passes - 1)
        placement.reduce(parameters)
        placement.total(torch.zeros(1, dtype=torch.float64), parameters)
        adam.step(step, 1)

    warm = make(depth=1, average_top_k_layers=1)
    update(*warm, passes=1, step=1)
    del warm
    gc.collect()
    before = status("VmRSS")
    made = make()
    update(*made, passes=1, step=1)  # makes Adam's moments
    gc.collect()
    peaks: list[int] = []
    for passes in (1, 2):
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        update(*made, passes=passes, step=1 + passes)
        peaks.append(status("VmHWM") - before)
    Path(place, f"peaks-{rank}.json").write_text(json.dumps(peaks))


@pytest.mark.slow
@pytest.mark.timeout(400)  # three processes import PyTorch
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's memory high-water mark")
def test_peak_memory_of_a_shared_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The allocator gives every tensor back at once, so that tensors are measured and not its holes.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    together(_measure, tmp_path, str(tmp_path))
    config, shape = Data2VecMultiConfig.from_dict(WIDE), StepShape(samples=4, positions=64, kept=16, clones=4)
    measured = [json.loads((tmp_path / f"peaks-{rank}.json").read_text()) for rank in (0, 1)]
    for index, accumulates in enumerate((False, True)):
        shared = pretraining_step(
            config, shape, execution=Execution(accumulates=accumulates, workers=2)
        ).peak_bytes
        whole = pretraining_step(config, shape, execution=Execution(accumulates=accumulates)).peak_bytes
        peak = max(peaks[index] for peaks in measured)
        assert shared / peak == pytest.approx(1.0, abs=0.15)
        assert peak < 0.8 * whole
