"""``platform.compile``: who compiles, and that a compiled run which goes on ends with the same bits."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from d2v_platform.recipe.schema import Recipe
from d2v_platform.training.job import Job
from d2v_platform.training.loop_state import Summary, Worker
from d2v_platform.training.plan import make_plan
from d2v_platform.training.train_loop import train
from data2vec.compilation import compile_regions
from data2vec.errors import Data2VecError
from tests.platform.recorder import Recorder


def short(recipe: dict[str, Any], **platform: Any) -> Recipe:
    """Three updates of one micro-batch through one block, a checkpoint after two."""
    return Recipe.from_dict({
        **recipe, "platform": platform, "distributed_training": {"distributed_world_size": 1},
        "optimization": {**recipe["optimization"], "max_update": 3},
        "checkpoint": {"save_interval_updates": 2, "keep_interval_updates": -1, "no_epoch_checkpoints": True},
        "model": {**recipe["model"], "depth": 1, "average_top_k_layers": 1},
    })  # fmt: skip


def run(recipe: Recipe, folder: Path, compiled: bool = True) -> tuple[Summary, list[float]]:
    recorder = Recorder()
    summary = train(Job(recipe, folder), recorder, Worker(threads=1, compiled=compiled))
    return summary, recorder.curve()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_resumed_run_ends_with_the_same_bits(
    backend: str, tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    monkeypatch.setattr(
        "d2v_platform.training.train_loop.compile_regions", partial(compile_regions, backend=backend)
    )
    recipe = short(tiny_recipe)
    torch._dynamo.reset()
    _, losses = run(recipe, tmp_path / "straight")
    _, eager = run(recipe, tmp_path / "eager", compiled=False)
    assert losses != eager and losses == pytest.approx(eager, rel=0.05), "dropout draws other numbers"
    shutil.copytree(tmp_path / "straight" / "checkpoints", tmp_path / "resumed" / "checkpoints")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "update_00000003")
    _, rest = run(recipe, tmp_path / "resumed")
    assert rest == losses[2:]
    for file in ("model", "teacher"):
        one, other = (
            load_file(tmp_path / name / "model" / f"{file}.safetensors") for name in ("straight", "resumed")
        )
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_without_a_compiler(
    tiny_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "absent")
    _, losses = run(short(tiny_recipe, compile="auto"), tmp_path / "auto")
    assert "platform.compile=auto: torch.compile needs a C compiler" in caplog.text
    _, eager = run(short(tiny_recipe, compile=False), tmp_path / "eager", compiled=False)
    assert losses == eager
    with pytest.raises(
        Data2VecError, match=r"platform\.compile=true: .*install one, or give platform\.compile=f"
    ):
        run(short(tiny_recipe, compile=True), tmp_path / "true")


@pytest.mark.parametrize(
    ("asked", "gpus", "compiled"), [("auto", 0, False), ("auto", 1, True), (True, 0, True), (False, 1, False)]
)
def test_who_compiles(asked: bool | str, gpus: int, compiled: bool, tiny_recipe: dict[str, Any]) -> None:
    recipe = short(tiny_recipe, compile=asked, num_workers=0)
    plan = make_plan(recipe, None, gpus)
    assert plan.compiled is compiled
    told = f"platform.compile={str(asked).lower()}"
    assert any(told in line for line in plan.lines()) is compiled
    job = Job(recipe, Path("none")).planned(plan)
    assert job.worker().compiled is compiled and Job.from_dict(job.to_dict()).compiled is compiled
