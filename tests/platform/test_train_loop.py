"""The training loop: equal results however micro-batches are dealt, exact resume, honest bookkeeping."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from d2v_platform.recipe.schema import Recipe
from d2v_platform.training.checkpoint import CheckpointStore
from d2v_platform.training.job import Job, ResolvedModels
from d2v_platform.training.loop_state import Summary, TrainingStopped, Worker
from d2v_platform.training.train_loop import train
from data2vec.collapse import STAGES
from tests.platform.process_group import together
from tests.platform.recorder import Recorder

WATCHED = [f"train/{stage}_{kind}" for stage in STAGES for kind in ("var", "rank")]


def run(recipe: dict[str, Any], folder: Path, worker: Worker | None = None) -> tuple[Summary, Recorder]:
    recorder = Recorder()
    summary = train(Job(Recipe.from_dict(recipe), folder), recorder, worker or Worker(threads=1))
    return summary, recorder


def changed(recipe: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A copy with dotted fields replaced, written ``group__field=value``."""
    made = copy.deepcopy(recipe)
    for name, value in values.items():
        group, field = name.split("__", 1)
        made[group][field] = value
    return made


def _as_one_of_many(rank: int, size: int, recipe: dict[str, Any], folder: str) -> None:
    recorder = Recorder()
    train(Job(Recipe.from_dict(recipe), Path(folder)), recorder, Worker(rank=rank, size=size, threads=1))
    if rank == 0:
        curves = {key: recorder.curve(key) for key in ("train/loss", "valid/loss", *WATCHED)}
        Path(folder, "curve.json").write_text(json.dumps(curves))


@pytest.mark.timeout(400)  # five processes import PyTorch
def test_the_number_of_workers_does_not_change_the_losses(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = changed(
        tiny_recipe, dataset__disable_validation=False, dataset__validate_interval_updates=10,
        dataset__batch_size_valid=3,
    )  # fmt: skip
    _, alone = run(recipe, tmp_path / "1")
    assert len(alone.curve()) == 20 and len(alone.curve("valid/loss")) > 1
    for size in (2, 3):  # 3 do not divide the 4 micro-batches of an update
        folder = tmp_path / str(size)
        together(_as_one_of_many, folder, recipe, str(folder), size=size)
        curves = json.loads((folder / "curve.json").read_text())
        assert curves["train/loss"] == pytest.approx(alone.curve(), rel=1e-5)
        assert curves["valid/loss"] == pytest.approx(alone.curve("valid/loss"), rel=1e-5)
        for key in WATCHED:  # the collapse watch
            assert len(alone.curve(key)) == 20
            assert curves[key] == pytest.approx(alone.curve(key), rel=1e-4)


def test_world_size_and_accumulation_are_interchangeable(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    _, wide = run(changed(tiny_recipe, optimization__max_update=6), tmp_path / "wide")
    deep_recipe = changed(
        tiny_recipe,
        optimization__max_update=6,
        optimization__update_freq=[4],
        distributed_training__distributed_world_size=1,
    )
    _, deep = run(deep_recipe, tmp_path / "deep")
    assert deep.curve() == wide.curve()


def test_a_resumed_run_ends_with_the_same_bits(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = changed(tiny_recipe, common__log_interval=4, checkpoint__keep_interval_updates=-1)
    straight, straight_points = run(recipe, tmp_path / "straight")
    # What a run killed after update 10's checkpoint leaves behind: that checkpoint as the newest.
    for update in (15, 20):
        shutil.rmtree(tmp_path / "straight" / "checkpoints" / f"update_{update:08d}")
    shutil.copytree(tmp_path / "straight" / "checkpoints", tmp_path / "resumed" / "checkpoints")
    resumed, resumed_points = run(recipe, tmp_path / "resumed")
    first = load_file(tmp_path / "straight" / "model" / "model.safetensors")
    second = load_file(tmp_path / "resumed" / "model" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    teachers = [
        load_file(tmp_path / name / "model" / "teacher.safetensors") for name in ("straight", "resumed")
    ]
    assert all(torch.equal(teachers[0][name], teachers[1][name]) for name in teachers[0])
    # The interval that the kill cut in two is reported as if nothing had happened.
    assert resumed_points.curve() == straight_points.curve()[2:]
    assert resumed.metrics == straight.metrics


def test_figures_are_durable_before_their_checkpoint_is_visible(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Durable(Recorder):
        safe = 0

        def flush(self) -> None:
            self.safe = max(max(points) for points in self.points.values())

    recorder, honest, published = Durable(), CheckpointStore.publish, []

    def publish(self: CheckpointStore, beside: Path, update: int) -> Path:
        published.append((update, recorder.safe >= update))
        return honest(self, beside, update)

    monkeypatch.setattr(CheckpointStore, "publish", publish)
    train(Job(Recipe.from_dict(tiny_recipe), tmp_path), recorder, Worker(threads=1))
    assert published == [(update, True) for update in (5, 10, 15, 16, 20)]


def test_training_learns(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    # A frozen teacher is a fixed goal; a moving one may raise the loss while both learn.
    recipe = changed(tiny_recipe, optimization__max_update=60, model__ema_decay=1.0, model__ema_end_decay=1.0)
    summary, recorder = run(recipe, tmp_path)
    assert recorder.curve()[-1] < 0.8 * recorder.curve()[0]
    assert summary.reason == "max_update 60 reached"
    assert math.isclose(summary.metrics["train/first_loss"], recorder.curve()[0])


def test_first_subset_decides_and_ties_count_as_best(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = changed(
        tiny_recipe,
        dataset__disable_validation=False,
        dataset__validate_interval_updates=5,
        dataset__batch_size_valid=8,
        checkpoint__keep_interval_updates=1,
    )
    summary, recorder = run(recipe, tmp_path)
    losses = recorder.points["valid/loss"]
    assert list(losses) == [5, 10, 15, 16, 20]  # the first epoch ends at 16
    assert summary.best == min(losses.values())
    assert losses[summary.best_update or 0] == summary.best
    assert CheckpointStore(tmp_path).best_update() == summary.best_update


def test_collapse_stops_with_advice(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d2v_platform.tasks.pretraining.COLLAPSE_GUARD_AFTER", 5)
    recipe = copy.deepcopy(tiny_recipe)
    recipe["model"]["min_target_var"] = 100.0
    with pytest.raises(
        TrainingStopped, match=r"target_var .* at update 6: the representations have collapsed"
    ):
        run(recipe, tmp_path)


def test_bfloat16_autocast_stays_near_fp32(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    _, exact = run(tiny_recipe, tmp_path / "fp32")
    recipe = copy.deepcopy(tiny_recipe)
    recipe["platform"] = {"precision": "bf16"}
    _, rounded = run(recipe, tmp_path / "bf16")
    assert rounded.curve() == pytest.approx(exact.curve(), rel=0.03)
    assert rounded.curve() != exact.curve()


def steps_of_adam(recipe: dict[str, Any], folder: Path) -> set[int]:
    """How often parameters were stepped, in a run of 6 updates whose blocks drop out half the time."""
    run(changed(recipe, optimization__max_update=6, model__layerdrop=0.5), folder)
    state = CheckpointStore(folder).load(6).tensors["optimizer"]
    return {int(tensor) for name, tensor in state.items() if name.endswith("step")}


def test_mixed_precision_steps_dropped_blocks_too(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """As the reference's recipes, all fp16; the recipe decides, not the device's precision."""
    assert min(steps_of_adam(tiny_recipe, tmp_path / "fp32")) < 6
    for name in ("fp16", "bf16"):
        mixed = changed(tiny_recipe, **{f"common__{name}": True})
        assert steps_of_adam(mixed, tmp_path / name) == {6}


def test_norms_of_student_and_teacher_are_logged_unless_refused(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = changed(tiny_recipe, optimization__max_update=3)
    _, seen = run(recipe, tmp_path / "a")
    student, teacher = seen.curve("train/model_norm"), seen.curve("train/ema_norm")
    assert len(student) == len(teacher) == 3
    saved = CheckpointStore(tmp_path / "a").load(3).tensors["model"]
    for norm, part in ((student, "student.blocks."), (teacher, "teacher.module.")):
        square = sum(float(t.double().square().sum()) for name, t in saved.items() if name.startswith(part))
        assert norm[-1] == pytest.approx(square**0.5, rel=1e-5)
    assert student[-1] != teacher[-1]
    _, silent = run(changed(recipe, model__log_norms=False), tmp_path / "b")
    assert not {"train/model_norm", "train/ema_norm"} & silent.points.keys()


def test_starting_from_another_models_weights(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    run(tiny_recipe, tmp_path / "first")
    recorder = Recorder()
    recipe = Recipe.from_dict(changed(tiny_recipe, optimization__max_update=1, optimization__lr=[0.0]))
    train(
        Job(recipe, tmp_path / "second", models=ResolvedModels(initial=tmp_path / "first" / "model")),
        recorder,
        Worker(threads=1),
    )
    first = load_file(tmp_path / "first/model/model.safetensors")
    second = load_file(tmp_path / "second/model/model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
