"""What a recipe will cost, told before it starts; refused where it cannot fit, with switches that do help."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from d2v_platform.cli import run, train_command
from d2v_platform.figures import data_size
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks import make_task
from d2v_platform.training import ray_session
from d2v_platform.training.accelerators import GPUS, machine_memory, measured_rate, named_gpu
from d2v_platform.training.forecast import Forecast, forecast, forecast_as_stated, forecast_at_hand, placed
from d2v_platform.training.job import Job
from d2v_platform.training.loop_state import Worker
from d2v_platform.training.plan import make_plan
from d2v_platform.training.ray_session import ClusterInfo
from d2v_platform.training.train_loop import train
from d2v_platform.training.workload import make_workload
from data2vec.artifact import save_artifact
from data2vec.config import Data2VecMultiConfig
from data2vec.errors import ConfigError
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.weight_shapes import Shapes, pretraining_shapes


def planned(recipe: Recipe, **on: Any) -> Forecast:
    """A forecast on an H100, or on what ``on`` says."""
    workload = make_workload(recipe, None)
    assert workload is not None
    return forecast(workload, **{"device": GPUS["h100"], "count": 1, "limit_bytes": None} | on)


def base(*overrides: str) -> Recipe:
    """The published text recipe; its data need not be there for a plan."""
    return compose("v2/base_text_only_task", ["task.data=/not/there", *overrides]).recipe


def test_work_of_real_micro_batches(tiny_recipe: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(tiny_recipe)
    workload = make_workload(recipe, None)
    assert workload is not None
    task = make_task(recipe, None)
    batches = task.batches("train", 1, training=True)
    assert workload.epoch_micro_batches == len(batches)
    dataset = task.dataset("train")
    counted = 0
    for batch in batches[:8]:
        with FlopCounterMode(display=False) as counter:
            task.forward(dataset.collate([dataset[int(i)] for i in batch]), 0).loss.backward()
        counted += counter.get_total_flops()
    assert workload.mean_flops() * 8 / counted == pytest.approx(1.0, abs=0.15)


def test_a_plan_in_words() -> None:
    recipe = base("platform.num_workers=0", "platform.plan_accelerator=h100", "platform.plan_count=16")
    stated = forecast_as_stated(recipe, make_plan(recipe, None), None)
    assert stated is not None
    told = "\n".join(stated.lines())
    assert "4 samples of 512 positions, 8 clones that see 266 of them (data not read" in told
    assert "model: 153.0 M parameters, teacher 85.1 M; computes in bf16" in told
    assert "7.82 TFLOP a micro-batch (teacher 5%, 8 student clones 59%, decoder 36%), " in told
    assert "125 TFLOP an update, 125 EFLOP in all (1000000 updates)" in told
    assert "on 16 x h100 (989 TFLOP/s in bf16, data sheet, 40% of it assumed); 5.49 h in all" in told
    assert stated.rounds == 1
    slower = base("platform.plan_utilisation=0.2", "platform.plan_accelerator=h100", "platform.plan_count=3")
    stated = forecast_as_stated(slower, make_plan(recipe, None), None)
    assert stated is not None and stated.updates and stated.update_s
    assert stated.rounds == 6  # 16 micro-batches on 3 devices
    assert stated.update_s * stated.updates / 3600 == pytest.approx(5.49 * 6 * 2, rel=0.01)


def test_the_run_ends_with_the_first_limit(tiny_recipe: dict[str, Any]) -> None:
    values = copy.deepcopy(tiny_recipe)
    values["optimization"] |= {"max_update": 100, "max_epoch": 2}
    made = planned(Recipe.from_dict(values))
    per_epoch = -(-(made.workload.epoch_micro_batches or 0) // 4)
    assert made.updates == 2 * per_epoch < 100
    values["optimization"]["max_update"] = 5
    assert planned(Recipe.from_dict(values)).updates == 5


def test_what_the_refusal_names_does_help() -> None:
    recipe = base("dataset.batch_size=64")
    small = dataclasses.replace(GPUS["h100"], name="small", memory_bytes=24e9)
    made = planned(recipe, device=small, limit_bytes=24e9)
    with pytest.raises(ConfigError) as caught:
        made.refuse_if_too_large()
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("dataset.batch_size", 64)
    assert "small has 24 GB" in problem.rule
    words = problem.rule.partition("it fits with ")[2].split(" (")[0].split()
    fitting = base("dataset.batch_size=64", *words)
    assert fitting.micro_batches(1) * (fitting.dataset.batch_size or 0) == 16 * 64  # the same update
    mended = planned(fitting, device=small, limit_bytes=24e9)
    assert mended.fits
    mended.refuse_if_too_large()


def test_activation_checkpointing_is_named_where_it_is_enough() -> None:
    made = planned(base())
    limit = 0.85 * made.memory_bytes
    with pytest.raises(ConfigError, match=r"platform\.checkpoint_activations=true \(\d"):
        planned(base(), limit_bytes=limit).refuse_if_too_large()
    assert planned(base("platform.checkpoint_activations=true"), limit_bytes=limit).fits
    with pytest.raises(ConfigError, match="no switch makes it fit"):
        planned(base(), limit_bytes=2e9).refuse_if_too_large()


def test_fewer_workers_share_a_machine() -> None:
    recipe = base("platform.num_workers=4")
    device = dataclasses.replace(GPUS["h100"], name="cpu", rates={"fp32": 1e11})
    share = 0.6 * planned(recipe, device=device, count=4).memory_bytes
    made = planned(recipe, device=device, count=4, limit_bytes=share, workers_per_node=4)
    with pytest.raises(ConfigError, match=r"platform\.num_workers=2 \("):
        made.refuse_if_too_large()


def huge(*overrides: str) -> Recipe:
    """The published recipe of the largest image model."""
    return compose("v2/huge_images14_only_task", ["task.data=/not/there", *overrides]).recipe


def test_sharding_is_chosen_where_the_model_does_not_fit() -> None:
    whole = planned(huge(), count=8, limit_bytes=80e9)
    assert not whole.sharded and "each holds all of it (platform.sharding=auto)" in "\n".join(whole.lines())
    limit = 0.8 * whole.memory_bytes
    chosen = planned(huge(), count=8, limit_bytes=limit)
    assert chosen.sharded and chosen.fits and chosen.flops == whole.flops
    told = "\n".join(chosen.lines())
    assert f"because all of it would need {data_size(whole.memory_bytes)}" in told and "gathered" in told
    chosen.refuse_if_too_large()
    plan = make_plan(huge("platform.num_workers=0"), None)
    assert not plan.sharded and placed(plan, chosen).sharded and not placed(plan, whole).sharded
    # A switch that is off is named by the refusal, and the model is not shared behind the user's back.
    with pytest.raises(ConfigError, match=r"platform\.sharding=full \(\d"):
        planned(huge("platform.sharding=none"), count=8, limit_bytes=limit).refuse_if_too_large()


def test_what_a_worker_holds_of_a_shared_model() -> None:
    whole, shared = (planned(huge(f"platform.sharding={kind}"), count=32).cost for kind in ("none", "full"))
    for part in ("parameter_bytes", "gradient_bytes", "optimizer_bytes", "teacher_bytes"):
        assert getattr(shared, part) == pytest.approx(getattr(whole, part) / 32)
    assert shared.activation_bytes == whole.activation_bytes
    block = 4 * 1280 * 1280 + 2 * 1280 * 5120
    assert 3 * 2 * block < shared.gathered_bytes < 3 * 2 * block + 0.1e9  # three blocks in bf16, and the rest
    # Gradients of several micro-batches are added up whole before the one sum over the workers.
    several = planned(huge("platform.sharding=full"), count=16).cost
    assert several.accumulates and several.gradient_bytes == whole.gradient_bytes


def test_smaller_chunks_of_clones_are_named_where_they_are_enough() -> None:
    limit = 0.8 * planned(huge()).memory_bytes
    with pytest.raises(ConfigError) as caught:
        planned(huge(), limit_bytes=limit).refuse_if_too_large()
    words = next(w for w in caught.value.problems[0].rule.split() if w.startswith("platform.clone_chunk="))
    size = int(words.partition("=")[2])
    assert 1 <= size < 16
    assert planned(huge(words), limit_bytes=limit).fits
    assert not planned(huge(f"platform.clone_chunk={size + 1}"), limit_bytes=limit).fits
    assert planned(huge(words)).flops == pytest.approx(planned(huge()).flops)


def test_a_chunk_needs_a_model_with_clones() -> None:
    with pytest.raises(ConfigError, match="for models with clones"):
        compose("vision/pretraining/base_imagenet", ["task.data=/x", "platform.clone_chunk=2"])


IMAGE_RECIPES = {
    "v2/base_images_only_task": 88.383744, "v2/large_images_only_task": 309.26848,
    "v2/huge_images14_only_task": 637.403392, "v2/huge_images_only_task": 636.0,
    "vision/pretraining/base_imagenet": 86.0, "vision/pretraining/base_imagenet_d2v1": 86.0,
    "vision/pretraining/beit_base_imagenet": 86.0,
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGE_RECIPES)
def test_every_pretraining_recipe_on_images_has_a_plan(name: str) -> None:
    recipe = compose(name, ["task.data=/not/there"]).recipe
    made = planned(recipe, count=recipe.micro_batches(1), limit_bytes=80e9)
    made.refuse_if_too_large()
    assert made.cost.parameters / 1e6 == pytest.approx(IMAGE_RECIPES[name], rel=0.01)
    assert made.updates == recipe.optimization.max_update and made.update_s
    told = "\n".join(made.lines())
    for words in ("micro-batch: up to", "M parameters", "optimizer", "activations", "an update", " in all"):
        assert words in told


def _sparse(folder: Path, shapes: Shapes) -> None:
    """Weights of any size that take no room: a header, and a hole for the numbers."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        kind, size = ("I64", 8) if name.endswith("index") else ("F32", 4)
        start, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize(
    ("name", "parent"),
    [("mae_imagenet_clean", "v2/base_images_only_task"),
     ("mae_imagenet_large_clean", "v2/large_images_only_task"),
     ("mae_imagenet_huge_clean", "v2/huge_images14_only_task"),
     ("imagenet", "vision/pretraining/base_imagenet"),
     ("beit_imagenet", "vision/pretraining/beit_base_imagenet")],
)  # fmt: skip
def test_every_finetuning_recipe_on_images_has_a_plan(name: str, parent: str, tmp_path: Path) -> None:
    config = compose(parent, ["task.data=/not/there"]).recipe.model
    assert isinstance(config, Data2VecMultiConfig | Data2VecVisionConfig)
    folder = save_artifact(tmp_path / "model", kind="pretrained", model_config=config, state={})
    _sparse(folder, pretraining_shapes(config)[0])
    given = ["task.data=/not/there", f"model.model_path={folder}"]
    recipe = compose(f"vision/finetuning/{name}", given).recipe
    workload = make_workload(recipe, folder)
    assert workload is not None and not workload.pretraining
    made = forecast(workload, GPUS["a100"], recipe.micro_batches(1), 80e9)
    made.refuse_if_too_large()
    assert made.cost.teacher_parameters == 0 and made.updates == recipe.optimization.max_update
    model = getattr(recipe.model, "num_classes", 0)
    assert model == 1000 and made.cost.parts[-1].parameters > 1000 * config.embed_dim


def test_more_devices_than_micro_batches() -> None:
    recipe = base("platform.plan_accelerator=a100", "platform.plan_count=17")
    with pytest.raises(ConfigError, match="at most 16 devices have work"):
        forecast_as_stated(recipe, make_plan(base("platform.num_workers=0"), None), None)


def test_this_process_takes_a_gpu_where_there_is_one() -> None:
    recipe = base("platform.num_workers=0")
    assert make_plan(recipe, None).gpus_per_worker == 0
    assert make_plan(recipe, None, local_gpus=2).gpus_per_worker == 1
    assert "1 GPU" in make_plan(recipe, None, local_gpus=2).lines()[1]
    assert (
        make_plan(base("common.cpu=true", "platform.num_workers=0"), None, local_gpus=1).gpus_per_worker == 0
    )
    with pytest.raises(ConfigError, match="no GPU that PyTorch can use"):
        make_plan(base("platform.num_workers=0", "platform.gpus_per_worker=1"), None)


def test_forecast_of_this_machine(tiny_recipe: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(tiny_recipe | {"platform": {"num_workers": 0}})
    made = forecast_at_hand(recipe, make_plan(recipe, None), None, None)
    assert made is not None and made.fits
    assert made.limit_bytes == machine_memory() > 1e9
    assert 1e9 < measured_rate(1) < 1e13
    assert "measured now" in made.lines()[-1]


@pytest.mark.parametrize(
    ("title", "name"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"), ("A100-40G", "a100-40gb"),
     ("NVIDIA A100-SXM4-80GB", "a100"), ("Tesla V100-SXM2-32GB", "v100"), ("H200", "h200"),
     ("NVIDIA T4", None)],
)  # fmt: skip
def test_names_of_gpus(title: str, name: str | None) -> None:
    found = named_gpu(title)
    assert (found.name if found else None) == name


def test_the_plan_command_refuses_with_exit_code_2(
    home: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    words = ["v2/large_text_only_task", "task.data=/not/there", "platform.num_workers=0", "--plan"]
    train_command([*words, "platform.plan_accelerator=a100"], "d2v train")
    assert "on 1 x a100" in caplog.text
    with pytest.raises(SystemExit, match="2"):
        run(lambda: train_command([*words, "platform.plan_accelerator=v100", "dataset.batch_size=64"], "d2v"))
    shown = capsys.readouterr().err
    assert "the plan has 1 problem" in shown and "Traceback" not in shown


def test_a_plan_starts_no_ray_to_count_the_cpus_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked: list[None] = []

    @contextlib.contextmanager
    def connected() -> Iterator[ClusterInfo]:
        asked.append(None)
        yield ClusterInfo(cpus=2.0, gpus=0.0, nodes=1)

    monkeypatch.setattr(ray_session, "connected", connected)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["tiny/text_pretraining", "task.data=/not/there", "--plan"]
    train_command(words, "d2v train")
    here = [line for line in caplog.messages if "platform.num_workers is not given" in line]
    assert len(here) == 1 and "2 of 2 that fit" in here[0] and not asked
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    train_command(words, "d2v train")
    assert asked, "only Ray knows what a cluster has"


def test_recomputed_activations_train_equally(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    class Curve:
        def __init__(self) -> None:
            self.losses: list[float] = []

        def log(self, update: int, metrics: Any) -> None:
            self.losses.append(metrics["train/loss"])

        def flush(self) -> None: ...

        def evaluated(self, update: int, metrics: Any) -> bool:
            return False

    curves: list[list[float]] = []
    for recompute in (False, True):
        values = tiny_recipe | {"platform": {"checkpoint_activations": recompute}}
        values["optimization"] = tiny_recipe["optimization"] | {"max_update": 4}
        curve = Curve()
        train(Job(Recipe.from_dict(values), tmp_path / str(recompute)), curve, Worker(threads=1))
        curves.append(curve.losses)
    assert curves[0] == curves[1]
    assert len(curves[0]) == 4


@pytest.mark.parametrize(
    ("name", "millions"),
    [("v2/base_text_only_task", 152.961792), ("v2/large_text_only_task", 385.379584),
     ("v2/base_images_only_task", 88.383744), ("v2/large_images_only_task", 309.26848),
     ("v2/huge_images14_only_task", 637.403392), ("v2/base_audio_only_task", 93.783308),
     ("v2/large_audio_only_task", 315.184144)],
)  # fmt: skip
def test_plans_of_the_published_recipes(name: str, millions: float) -> None:
    recipe = compose(name, ["task.data=/not/there"]).recipe
    made = planned(recipe, count=recipe.micro_batches(1), limit_bytes=80e9)
    assert made.cost.parameters / 1e6 == pytest.approx(millions, abs=1e-6)  # spec: data2vec 2.0, section 14
    assert made.fits and made.updates == recipe.optimization.max_update
