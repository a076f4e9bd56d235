"""A model whose parts lie on several workers trains like one that every worker holds whole."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import soundfile as sf
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks import make_task
from d2v_platform.tasks.batches import Share
from d2v_platform.training import checkpoint, train_loop
from d2v_platform.training.checkpoint import CheckpointStore
from d2v_platform.training.job import Job, ResolvedModels
from d2v_platform.training.loop_state import TrainingInterrupted, Worker
from d2v_platform.training.train_loop import TrainingLoop, _optimizer_tensors, train
from data2vec.compilation import compile_regions
from data2vec.data.manifest import manifest_text
from tests.platform.process_group import together
from tests.platform.recorder import Recorder

pytestmark = pytest.mark.timeout(900)  # one fixture does the runs that most tests look at
NAMES = ("image", "classes")
FURTHER = ("image v1", "text", "text v1", "audio")


@dataclass(frozen=True)
class Errand:
    """One run of a worker or a group of them."""

    recipe: dict[str, Any]
    folder: Path
    sharded: bool = False
    model_folder: Path | None = None
    only_load: bool = False  # resume, write down what was loaded, and train nothing
    compiled: bool = False

    def do(self, worker: Worker) -> None:
        """Obey as one worker; rank 0 leaves ``points.json``."""
        recipe, recorder = Recipe.from_dict(self.recipe), Recorder()
        if self.only_load:
            loop = TrainingLoop(recipe, make_task(recipe, self.model_folder), self.folder, recorder, worker)
            with patch.object(checkpoint, "load_file", side_effect=load_file) as opened:
                loop.resume()
            read = [str(call.args[0].relative_to(loop.store.folder)) for call in opened.call_args_list]
            place = self.folder / f"loaded-{worker.rank}"
            place.mkdir()
            (place / "read.json").write_text(json.dumps(read))
            for name, tensors in (
                ("model", loop.task.module.state_dict()),
                ("optimizer", _optimizer_tensors(loop.optimizer.adam.state_dict())),
            ):
                save_file(loop.placement.snapshot(tensors, keep=True), place / f"{name}.safetensors")
            return
        summary = train(Job(recipe, self.folder, models=ResolvedModels(self.model_folder)), recorder, worker)
        if worker.rank == 0:
            seen = recorder.points | {"skipped": {0: summary.bad_updates}}
            (self.folder / "points.json").write_text(json.dumps(seen))


def _obey(rank: int, size: int, jobs: list[Errand]) -> None:
    for job in jobs:
        with patch.object(train_loop, "compile_regions", partial(compile_regions, backend="aot_eager")):
            job.do(Worker(rank=rank, size=size, threads=1, sharded=job.sharded, compiled=job.compiled))


def points(folder: Path, name: str) -> list[float]:
    """A curve, by update."""
    return list(json.loads((folder / "points.json").read_text())[name].values())


# ---- recipes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two colours and clips of two tones."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(1)
    for split in ("train", "val"):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for i in range(9):
                values = draw.integers(0, 120, (16, 16, 3))
                values[..., channel] += 120
                Image.fromarray(values.astype(np.uint8)).save(root / split / name / f"{i}.png")
    entries = []
    for index in range(12):
        length = 6400 + 320 * index
        wave = np.sin(2 * np.pi * (250, 900)[index % 2] * np.arange(length) / 16_000)
        sf.write(str(root / f"{index}.wav"), 0.3 * wave + 0.01 * draw.normal(size=length), 16_000)
        entries.append((f"{index}.wav", length))
    (root / "train.tsv").write_text(manifest_text(str(root), entries))
    return root


def common(**groups: Any) -> dict[str, Any]:
    """Three micro-batches an update, so that two workers get one and two."""
    return {
        "common": {"log_interval": 1},
        "dataset": {"batch_size": 3, "num_workers": 0, "required_batch_size_multiple": 1,
                    "disable_validation": True},
        "distributed_training": {"distributed_world_size": 3},
        "optimization": {"max_update": 6, "lr": [2e-3], "clip_norm": 0.5},
        "optimizer": {"_name": "adam", "adam_betas": [0.9, 0.95], "weight_decay": 0.05},
        "lr_scheduler": {"_name": "cosine", "warmup_updates": 1},
        "checkpoint": {"save_interval_updates": 3, "no_epoch_checkpoints": True},
        "criterion": {"_name": "model"},
    } | groups  # fmt: skip


EMA = {"ema_decay": 0.9, "ema_end_decay": 0.99, "ema_anneal_end_step": 10}
V2 = {"_name": "data2vec_multi", "embed_dim": 32, "num_heads": 2, "depth": 3, "average_top_k_layers": 2,
      "clone_batch": 2, "encoder_dropout": 0.1, "layerdrop": 0.3, **EMA}  # fmt: skip


def image(data: Path) -> dict[str, Any]:
    """v2 images with layer drop, a class loss, and probes at validation."""
    decoder = {"decoder_dim": 16, "decoder_groups": 4, "decoder_kernel": 3, "decoder_layers": 1}
    front = {"input_size": 16, "patch_size": 4, "embed_dim": 32, "prenet_depth": 1, "prenet_layerdrop": 0.2,
             "num_extra_tokens": 1, "ema_local_encoder": True, "mask_prob": 0.75, "mask_length": 2,
             "inverse_mask": True, "decoder": decoder}  # fmt: skip
    task = {"_name": "mae_image_pretraining", "data": str(data), "input_size": 16, "probe_bank": "train",
            "probe_neighbours": 3}  # fmt: skip
    model = V2 | {"supported_modality": "IMAGE", "ema_encoder_only": False, "cls_loss": 0.01,
                  "modalities": {"text": None, "image": front}}  # fmt: skip
    made = common(task=task, model=model)
    made["common"] |= {"fp16": True}  # blocks that nobody used step too
    made["dataset"] |= {"disable_validation": False, "valid_subset": "val", "validate_interval_updates": 3,
                        "batch_size_valid": 7}  # fmt: skip
    return made


def image_v1(data: Path) -> dict[str, Any]:
    """v1 images: relative positions, layer scale, drop path."""
    model = {"_name": "data2vec_vision", "depth": 3, "embed_dim": 32, "num_heads": 2, "image_size": 16,
             "patch_size": 4, "num_mask_patches": 8, "min_mask_patches_per_block": 2,
             "max_mask_patches_per_block": 8, "average_top_k_layers": 2, "layer_norm_targets": True,
             "layer_scale_init_value": 0.1, "drop_path": 0.1, **EMA}  # fmt: skip
    return common(task={"_name": "image_pretraining", "data": str(data), "input_size": 16}, model=model)


def text(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    """v2 text; all of a run's workers drop the same layers, sometimes one that nobody uses."""
    model = tiny_recipe["model"] | {"layerdrop": 0.5}
    return common(task=tiny_recipe["task"], model=model)


def text_v1(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    """v1 text, with layer drop."""
    transformer = {"max_source_positions": 64, "layernorm_embedding": True, "no_scale_embedding": True,
                   "encoder": {"embed_dim": 32, "ffn_embed_dim": 64, "layers": 3, "attention_heads": 2,
                               "learned_pos": True, "layerdrop": 0.3}}  # fmt: skip
    model = {"_name": "data2vec_text", "head_layers": 2, "average_top_k_layers": 2, "loss_scale": 1.0,
             "layer_norm_target_layer": True, "transformer": transformer, **EMA}  # fmt: skip
    task = tiny_recipe["task"] | {"mask_prob": 0.35, "mask_multiple_length": 4}
    return common(task=task, model=model)


def audio(data: Path) -> dict[str, Any]:
    """v2 audio: a learned ALiBi scale, whose one row lies on one worker."""
    decoder = {"decoder_dim": 16, "decoder_groups": 2, "decoder_layers": 2}
    front = {"feature_encoder_spec": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] * 2", "prenet_depth": 1,
             "mask_prob": 0.5, "mask_prob_adjust": 0.05, "conv_pos_width": 15, "conv_pos_depth": 3,
             "conv_pos_groups": 2, "use_alibi_encoder": True, "learned_alibi_scale": True,
             "learned_alibi_scale_per_head": True, "decoder": decoder}  # fmt: skip
    model = V2 | {"supported_modality": "AUDIO", "ema_encoder_only": False,
                  "instance_norm_target_layer": True,
                  "modalities": {"text": None, "audio": front}}  # fmt: skip
    task = {"_name": "audio_pretraining", "data": str(data), "normalize": True, "max_sample_size": 8000}
    return common(task=task, model=model)


def classes(data: Path) -> dict[str, Any]:
    """Fine-tuning: layer decay, and layer drop that differs from micro-batch to micro-batch."""
    made = common(
        task={"_name": "mae_image_classification", "data": str(data), "input_size": 16, "auto_augment": None,
              "erasing_prob": 0.0},
        model={"_name": "mae_image_classification", "model_path": "given", "num_classes": 2, "mixup": 0.0,
               "cutmix": 0.0, "drop_path_rate": 0.1, "layerdrop": 0.3},
    )  # fmt: skip
    made["optimizer"] = {"_name": "composite", "dynamic_groups": True, "groups": {"default": {
        "lr_float": 5e-3, "optimizer": {"_name": "adam"}, "lr_scheduler": {"_name": "cosine"}}}}  # fmt: skip
    made["lr_scheduler"] = {"_name": "pass_through"}
    made["dataset"] |= {"disable_validation": False, "valid_subset": "val", "validate_interval_updates": 3,
                        "batch_size_valid": 5}  # fmt: skip
    made["checkpoint"] |= {"best_checkpoint_metric": "accuracy", "maximize_best_checkpoint_metric": True}
    return made


def diverging(data: Path) -> dict[str, Any]:
    """A learning rate that ends all hope with the second update."""
    made = image_v1(data)
    made["optimization"] = {"max_epoch": 3, "lr": [1e30]}
    return made


def without_dropout(recipe: dict[str, Any]) -> dict[str, Any]:
    """A v2 image recipe in which only masks and noise are random."""
    made = copy.deepcopy(recipe)
    made["model"] |= {
        "encoder_dropout": 0.0,
        "post_mlp_drop": 0.0,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
    }
    front = made["model"]["modalities"]["image"]
    front |= {"prenet_layerdrop": 0.0, "decoder": front["decoder"] | {"input_dropout": 0.0}}
    made["dataset"] |= {"disable_validation": True}
    return made


# ---- the runs that the tests look at ----------------------------------------------------------------------


def _alone(root: Path, recipes: dict[str, Any], parent: dict[str, Path]) -> list[Errand]:
    """Each recipe run by one worker; returns what two are to do."""
    both: list[Errand] = []
    for name, recipe in recipes.items():
        (root / name).mkdir()
        (root / name / "recipe.json").write_text(json.dumps(recipe))
        Errand(recipe, root / name / "alone", model_folder=parent.get(name)).do(Worker(threads=1))
        for kind in ("replicated", "sharded"):
            both.append(Errand(recipe, root / name / kind, kind == "sharded", parent.get(name)))
    return both


@pytest.fixture(scope="module")
def further(data: Path, tiny_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other families, in the same three ways."""
    root = tmp_path_factory.mktemp("further")
    recipes = {"image v1": image_v1(data), "text": text(tiny_recipe), "text v1": text_v1(tiny_recipe),
               "audio": audio(data)}  # fmt: skip
    together(_obey, root / "first", _alone(root, recipes, {}))
    return root


def _still(data: Path) -> dict[str, Any]:
    """Without dropout, four updates."""
    made = without_dropout(image(data))
    made["optimization"] = {"max_update": 4, "lr": [2e-3]}
    return made


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes alone, by two workers that hold all of it, and by two that share it; one in clone chunks."""
    root = tmp_path_factory.mktemp("runs")
    recipes = {"image": image(data), "classes": classes(data), "diverging": diverging(data)}
    both = _alone(root, recipes, {"classes": root / "image" / "alone" / "model"})
    still = _still(data)
    in_chunks = still | {"platform": {"clone_chunk": 1}}
    Errand(still, root / "chunked" / "whole").do(Worker(threads=1))
    Errand(in_chunks, root / "chunked" / "alone").do(Worker(threads=1))
    both.append(Errand(in_chunks, root / "chunked" / "sharded", sharded=True))
    together(_obey, root / "first", both)
    # A run goes on the other way from the checkpoint of update 3.
    others: list[Errand] = []
    for first, then in (("sharded", "replicated"), ("replicated", "sharded"), ("alone", "sharded")):
        others.append(Errand(recipes["image"], root / "image" / f"{first} then {then}", then == "sharded"))
    for job in list(others):
        source = root / "image" / job.folder.name.partition(" then ")[0]
        shutil.copytree(source / "checkpoints", job.folder / "checkpoints")
        load = Path(f"{job.folder} loaded")
        shutil.copytree(job.folder, load)
        (load / "checkpoints" / "update_00000006" / "optimizer.safetensors").write_bytes(b"cut short")
        shutil.rmtree(job.folder / "checkpoints" / "update_00000006")
        others.append(Errand(job.recipe, load, job.sharded, only_load=True))
    together(_obey, root / "second", others)
    return root


def tensors(folder: Path, update: int = 6) -> dict[str, torch.Tensor]:
    """Student, decoder, teacher and Adam's moments of a checkpoint."""
    place = CheckpointStore(folder)._path(update)
    return load_file(place / "model.safetensors") | load_file(place / "optimizer.safetensors")


def assert_near(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], within: float) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.shape == two[name].shape, name
        torch.testing.assert_close(
            two[name], tensor, rtol=within, atol=within, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", FURTHER)
def test_so_are_those_of_the_other_families(further: Path, name: str) -> None:
    test_losses_norms_weights_and_teacher_are_equal(further, name)


@pytest.mark.parametrize("name", NAMES)
def test_losses_norms_weights_and_teacher_are_equal(runs: Path, name: str) -> None:
    alone, replicated, sharded = (runs / name / kind for kind in ("alone", "replicated", "sharded"))
    for key in ("train/loss", "train/gnorm"):
        curve = points(alone, key)
        assert len(curve) == 6 and all(np.isfinite(curve))
        assert points(replicated, key) == pytest.approx(curve, rel=1e-5)
        assert points(sharded, key) == pytest.approx(curve, rel=1e-5)
    assert_near(tensors(alone), tensors(replicated), 2e-5)
    assert_near(tensors(alone), tensors(sharded), 2e-5)
    assert_near(tensors(replicated), tensors(sharded), 1e-5)
    start, end = tensors(sharded, 3), tensors(sharded)
    assert any(not torch.equal(start[key], end[key]) for key in end)


def test_collapse_figures_probes_and_validation_are_equal(runs: Path) -> None:
    seen = json.loads((runs / "image" / "alone" / "points.json").read_text())
    wanted = [key for key in seen if key.endswith(("_var", "_rank", "_norm")) or key.startswith("val/")]
    assert {"val/knn", "val/linear_probe", "val/loss", "train/targets_rank", "train/ema_norm"} <= set(wanted)
    for key in wanted:
        curve = points(runs / "image" / "alone", key)
        assert points(runs / "image" / "sharded", key) == pytest.approx(curve, rel=1e-4), key
    for key in ("val/loss", "val/accuracy"):
        curve = points(runs / "classes" / "alone", key)
        assert points(runs / "classes" / "sharded", key) == pytest.approx(curve, rel=1e-4), key


@pytest.mark.parametrize("name", ["image", "classes"])
def test_the_exported_model_is_whole(runs: Path, name: str) -> None:
    folders = [runs / name / kind / "model" for kind in ("alone", "sharded")]
    for file in ("model.safetensors", *(["teacher.safetensors"] if name == "image" else [])):
        assert_near(load_file(folders[0] / file), load_file(folders[1] / file), 2e-5)


@pytest.mark.parametrize("way", ["sharded then replicated", "replicated then sharded", "alone then sharded"])
def test_checkpoints_move_between_them(runs: Path, way: str) -> None:
    first = tensors(runs / "image" / way.partition(" then ")[0], 3)
    for rank in (0, 1):
        loaded = runs / "image" / f"{way} loaded" / f"loaded-{rank}"
        again = load_file(loaded / "model.safetensors") | load_file(loaded / "optimizer.safetensors")
        assert first.keys() == again.keys()
        assert all(torch.equal(first[key], again[key]) for key in first), "bit-equal, on every worker"
        read = ["model", "optimizer"] if rank == 0 else []
        assert json.loads((loaded / "read.json").read_text()) == [
            f"update_00000003/{file}.safetensors" for file in read
        ], "rank 0 reads for all, and goes past what is damaged"
    assert_near(tensors(runs / "image" / "alone"), tensors(runs / "image" / way), 2e-5)


@pytest.mark.slow
def test_a_block_that_nobody_used_is_not_touched(further: Path) -> None:
    # With a probability of a half each, some of the text model's two blocks sit out an update.
    for name in ("text", "text v1"):
        steps = {
            kind: {k: int(v) for k, v in tensors(further / name / kind).items() if k.endswith(".step")}
            for kind in ("alone", "replicated", "sharded")
        }
        assert steps["alone"] == steps["replicated"] == steps["sharded"]
        assert len(set(steps["alone"].values())) > 1, "a layer was dropped by all"


def from_the_third_update(runs: Path, folder: Path) -> dict[str, Any]:
    """A folder in which a sharded run was killed after its save of update 3; returns the run's recipe."""
    shutil.copytree(runs / "image" / "sharded" / "checkpoints", folder / "checkpoints")
    shutil.rmtree(folder / "checkpoints" / "update_00000006")
    return json.loads((runs / "image" / "recipe.json").read_text())


def test_a_sharded_run_goes_on_alone(runs: Path, tmp_path: Path) -> None:
    recipe = from_the_third_update(runs, tmp_path)
    Errand(recipe, tmp_path).do(Worker(threads=1))
    assert_near(tensors(runs / "image" / "alone"), tensors(tmp_path), 2e-5)


@pytest.mark.slow
def test_a_run_of_two_goes_on_with_three(runs: Path, tmp_path: Path) -> None:
    recipe = from_the_third_update(runs, tmp_path / "run")
    together(_obey, tmp_path / "three", [Errand(recipe, tmp_path / "run", sharded=True)], size=3)
    assert_near(tensors(runs / "image" / "alone"), tensors(tmp_path / "run"), 2e-5)


def _so_many(rank: int, size: int, recipe: dict[str, Any], folder: Path, updates: int) -> None:
    """Be one of ``size`` workers for some updates; the last of them is saved."""
    done = count(1)
    with suppress(TrainingInterrupted):
        train(
            Job(Recipe.from_dict(recipe), folder), Recorder(), Worker(rank, size, threads=1),
            stop_asked=lambda: next(done) >= updates,
        )  # fmt: skip


@pytest.mark.slow
def test_workers_that_go_and_come_leave_the_weights_to_float_order(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """60 updates by one, and by two, then one, then two: what elastic scaling does to a run."""
    recipe = tiny_recipe | {"optimization": tiny_recipe["optimization"] | {"max_update": 60}}
    _so_many(0, 1, recipe, tmp_path / "one", 61)
    together(_so_many, tmp_path / "first", recipe, tmp_path / "elastic", 20)
    _so_many(0, 1, recipe, tmp_path / "elastic", 20)
    together(_so_many, tmp_path / "second", recipe, tmp_path / "elastic", 21)
    for part in ("model", "teacher"):
        one, elastic = (load_file(tmp_path / k / "model" / f"{part}.safetensors") for k in ("one", "elastic"))
        apart = max(float((one[name] - elastic[name]).abs().max()) for name in one)
        print(f"{part}: at most {apart:.1e} apart, of {max(float(t.abs().max()) for t in one.values()):.2g}")
        assert_near(one, elastic, 2e-5)


def test_turns_of_padded_shares() -> None:
    batches = [np.array([i]) for i in range(7)]  # updates of 3, 3 and 1 micro-batches
    mine = [Share(batches, 0, 3, rank, 2, padded=True) for rank in (0, 1)]
    assert [[i for (i,) in share] for share in mine] == [[0, 2, 3, 5, 6], [1, 0, 4, 3, 6]]
    assert [len(share) for share in mine] == [5, 5]
    assert [list(share.own_indices(3)) for share in mine] == [[0, 2], [1, 3]], "the third is a repetition"


def test_a_non_finite_update_is_skipped_by_all(runs: Path) -> None:
    for kind in ("replicated", "sharded"):
        assert points(runs / "diverging" / kind, "skipped") == points(runs / "diverging" / "alone", "skipped")
    assert points(runs / "diverging" / "alone", "skipped")[0] > 1


def test_clones_in_chunks_train_equally(runs: Path) -> None:
    for kind in ("alone", "sharded"):
        for key in ("train/loss", "train/gnorm", "train/loss_cls", "train/targets_rank", "train/target_var"):
            curve = points(runs / "chunked" / "whole", key)
            assert points(runs / "chunked" / kind, key) == pytest.approx(curve, rel=1e-4), key
        assert_near(tensors(runs / "chunked" / "whole", 4), tensors(runs / "chunked" / kind, 4), 5e-5)


@pytest.mark.slow
def test_compiled_blocks_train_equally(data: Path, tmp_path: Path) -> None:
    still = _still(data)
    Errand(still, tmp_path / "whole").do(Worker(threads=1))
    kinds = {"replicated": False, "sharded": True}
    jobs = [Errand(still, tmp_path / kind, sharded, compiled=True) for kind, sharded in kinds.items()]
    together(_obey, tmp_path / "both", jobs)
    for kind in kinds:
        for key in ("train/loss", "train/gnorm"):
            curve = points(tmp_path / "whole", key)
            assert points(tmp_path / kind, key) == pytest.approx(curve, rel=1e-4), (kind, key)
        assert_near(tensors(tmp_path / "whole", 4), tensors(tmp_path / kind, 4), 5e-5)


# ---- a group of one, in this process ----------------------------------------------------------------------


@pytest.fixture
def group_of_one(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """The default process group, of this process alone."""
    backend = "nccl" if request.node.get_closest_marker("gpu") else "gloo"
    store = torch.distributed.FileStore(str(tmp_path / "rendezvous"), 1)
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compare_precisions(data: Path, place: Path, device: str) -> None:
    """Sharded against replicated in fp32 and bf16."""
    recipe = without_dropout(image(data))
    for precision, within in (("fp32", 1e-4), ("bf16", 0.03)):
        recipe["platform"] = {"precision": precision}
        for sharded in (False, True):
            folder = place / f"{precision}-{sharded}"
            Errand(recipe, folder).do(Worker(threads=1, device=torch.device(device), sharded=sharded))
        curve = points(place / f"{precision}-False", "train/loss")
        assert points(place / f"{precision}-True", "train/loss") == pytest.approx(curve, rel=within)
        kinds = {tensor.dtype for tensor in tensors(place / f"{precision}-True").values()}
        assert kinds == {torch.float32}, "weights, teacher and moments"
    assert_near(tensors(place / "fp32-False"), tensors(place / "fp32-True"), 1e-4)


def test_lower_precision_keeps_fp32_weights(data: Path, tmp_path: Path, group_of_one: None) -> None:
    compare_precisions(data, tmp_path, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(data: Path, tmp_path: Path, group_of_one: None) -> None:
    compare_precisions(data, tmp_path, "cuda:0")
