"""Image recipes in the training loop: invariance, resume, fine-tuning, probes, prepared shards, commands."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import data2vec
from d2v_platform.inference.images import classify_folder, open_any, probe, run_model, write_embeddings
from d2v_platform.preparation.images import ImageOptions, prepare_images
from d2v_platform.recipe.schema import Recipe
from d2v_platform.registry.image_models import check_images, check_outputs, image_signature, is_image
from d2v_platform.tasks import check_data
from d2v_platform.training.loop_state import Summary, Worker
from d2v_platform.training.train_loop import train
from data2vec.data.image_sources import open_images
from data2vec.errors import DataError


class Recorder:
    def __init__(self) -> None:
        self.points: list[tuple[int, str, float]] = []

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        self.points += [(update, key, value) for key, value in metrics.items()]

    def flush(self) -> None: ...

    def evaluated(self, update: int, metrics: Mapping[str, float]) -> bool:
        return False

    def curve(self, key: str = "train/loss") -> list[float]:
        return [value for _, name, value in sorted(self.points) if name == key]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that a colour tells apart, 12 images each in train and val."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(1)
    for split in ("train", "val"):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for i in range(12):
                values = draw.integers(0, 120, (28, 32, 3))
                values[..., channel] += 120
                Image.fromarray(values.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


def pretraining(data: Path, generation: int = 2, **groups: Any) -> dict[str, Any]:
    decoder = {"decoder_dim": 16, "decoder_groups": 4, "decoder_kernel": 3, "decoder_layers": 1,
               "input_dropout": 0.0}  # fmt: skip
    image = {"input_size": 16, "patch_size": 4, "embed_dim": 32, "prenet_depth": 1, "num_extra_tokens": 1,
             "init_extra_token_zero": False, "ema_local_encoder": True, "mask_prob": 0.75, "mask_length": 2,
             "inverse_mask": True, "decoder": decoder}  # fmt: skip
    second = {
        "_name": "data2vec_multi", "supported_modality": "IMAGE", "embed_dim": 32, "num_heads": 2, "depth": 1,
        "average_top_k_layers": 1, "clone_batch": 2, "ema_encoder_only": False, "cls_loss": 0.01,
        "ema_decay": 0.9, "ema_end_decay": 0.99, "ema_anneal_end_step": 10, "layer_norm_targets": True,
        "encoder_dropout": 0.0, "post_mlp_drop": 0.0, "attention_dropout": 0.0,
        "modalities": {"text": None, "image": image},
    }  # fmt: skip
    first = {
        "_name": "data2vec_vision", "depth": 1, "embed_dim": 32, "num_heads": 2, "image_size": 16,
        "patch_size": 4, "num_mask_patches": 8, "min_mask_patches_per_block": 2,
        "max_mask_patches_per_block": 8, "average_top_k_layers": 1, "layer_norm_targets": True,
        "drop_path": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    task = "mae_image_pretraining" if generation == 2 else "image_pretraining"
    recipe = {
        "common": {"log_interval": 1},
        "task": {"_name": task, "data": str(data), "input_size": 16},
        "dataset": {"batch_size": 4, "num_workers": 0, "required_batch_size_multiple": 1,
                    "disable_validation": True},
        "distributed_training": {"distributed_world_size": 2},
        "optimization": {"max_update": 6, "lr": [1e-3], "clip_norm": 4.0},
        "optimizer": {"_name": "adam", "adam_betas": [0.9, 0.95]},
        "lr_scheduler": {"_name": "cosine", "warmup_updates": 2},
        "checkpoint": {"save_interval_updates": 3, "no_epoch_checkpoints": True},
        "criterion": {"_name": "model"},
        "model": second if generation == 2 else first,
    }  # fmt: skip
    for group, values in groups.items():
        recipe[group] = {**recipe.get(group, {}), **values}
    return recipe


def finetuning(data: Path, **model: Any) -> dict[str, Any]:
    return {
        "common": {"log_interval": 1},
        "task": {"_name": "mae_image_classification", "data": str(data), "input_size": 20,
                 "auto_augment": None, "erasing_prob": 0.0},
        "dataset": {"batch_size": 7, "num_workers": 0, "required_batch_size_multiple": 1,
                    "valid_subset": "val"},
        "optimization": {"max_update": 12, "lr": [5e-3]},
        "optimizer": {"_name": "composite", "dynamic_groups": True, "groups": {"default": {
            "lr_float": 5e-3, "optimizer": {"_name": "adam"},
            "lr_scheduler": {"_name": "cosine", "warmup_updates": 1}}}},
        "lr_scheduler": {"_name": "pass_through"},
        "checkpoint": {"best_checkpoint_metric": "accuracy", "maximize_best_checkpoint_metric": True,
                       "no_epoch_checkpoints": True},
        "criterion": {"_name": "model"},
        "model": {"_name": "mae_image_classification", "model_path": "given", "num_classes": 2,
                  "mixup": 0.0, "cutmix": 0.0, "drop_path_rate": 0.0, **model},
    }  # fmt: skip


def run(
    recipe: dict[str, Any], folder: Path, model_folder: Path | None = None, worker: Worker | None = None
) -> tuple[Summary, Recorder]:
    recorder = Recorder()
    made = Recipe.from_dict(recipe)
    return train(made, folder, recorder, worker or Worker(threads=1), model_folder=model_folder), recorder


def _one_of_two(rank: int, recipe: dict[str, Any], folder: str) -> None:
    store = torch.distributed.FileStore(f"{folder}/rendezvous", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    _, recorder = run(recipe, Path(folder), worker=Worker(rank=rank, size=2, threads=1))
    if rank == 0:
        Path(folder, "curve.json").write_text(json.dumps(recorder.curve()))
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("generation", [2, 1])
def test_workers_and_kills_change_nothing(pictures: Path, tmp_path: Path, generation: int) -> None:
    recipe = pretraining(pictures, generation)
    whole, alone = run(recipe, tmp_path / "alone")
    # killed after the save of update 3: the run goes on from there to the same weights
    short = copy.deepcopy(recipe)
    short["optimization"]["max_update"] = 3
    short["model"]["max_update"] = short["lr_scheduler"]["max_update"] = 6
    long = copy.deepcopy(recipe)
    long["model"]["max_update"] = long["lr_scheduler"]["max_update"] = 6
    run(short, tmp_path / "killed")
    resumed, _ = run(long, tmp_path / "killed")
    assert whole.export is not None and resumed.export is not None
    one, two = (load_file(Path(s.export or "") / "model.safetensors") for s in (whole, resumed))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    if generation == 2:
        (tmp_path / "two").mkdir()
        mp.spawn(_one_of_two, args=(recipe, str(tmp_path / "two")), nprocs=2)  # pyright: ignore
        shared = json.loads((tmp_path / "two" / "curve.json").read_text())
        assert shared == pytest.approx(alone.curve(), rel=1e-5)


@pytest.fixture(scope="module")
def pretrained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    summary, _ = run(pretraining(pictures), tmp_path_factory.mktemp("pretrained"))
    assert summary.export is not None
    return Path(summary.export)


def test_probes_at_validation(pictures: Path, tmp_path: Path) -> None:
    recipe = pretraining(
        pictures,
        task={"probe_bank": "train", "probe_neighbours": 3},
        dataset={"disable_validation": False, "valid_subset": "val"},
    )
    check_data(Recipe.from_dict(recipe), None)
    _, recorder = run(recipe, tmp_path)
    assert recorder.curve("val/knn")[-1] > 90, "a colour is easy to see"
    assert recorder.curve("val/linear_probe")[-1] > 90
    assert recorder.curve("train/loss_cls"), "each loss is logged by itself"


@pytest.mark.parametrize("mixed", [False, True])
def test_finetuning_learns_colours(pictures: Path, pretrained: Path, tmp_path: Path, mixed: bool) -> None:
    recipe = finetuning(pictures, **({"mixup": 0.8, "cutmix": 1.0} if mixed else {}))
    check_data(Recipe.from_dict(recipe), pretrained)
    summary, recorder = run(recipe, tmp_path, pretrained)
    assert recorder.curve("val/accuracy")[-1] > 90
    assert bool(recorder.curve("train/accuracy")) is not mixed, "accuracy of mixed images means nothing"
    model = data2vec.load(summary.export or "")
    assert model.classes == ["blue", "red"] and model.input_size == 20
    results = classify_folder(model, open_any(pictures, "val"), tmp_path / "results")
    assert results["top1"] == pytest.approx(recorder.curve("val/accuracy")[-1])
    for name in ("predictions.parquet", "per_class.csv", "confusion.png", "summary.json"):
        assert (tmp_path / "results" / name).stat().st_size > 0


def test_a_model_in_use(pictures: Path, pretrained: Path, tmp_path: Path) -> None:
    model = data2vec.load(pretrained)
    path = next((pictures / "val" / "red").iterdir())
    array = np.asarray(Image.open(path))
    rows = model.embed([path.read_bytes(), path, array, Image.fromarray(array)])
    assert all(np.allclose(row, rows[0], atol=1e-6) for row in rows) and rows[0].shape == (32,)
    assert model.embed([array], pooling="none", layer=0)[0].shape == (16, 32)
    for wrong in ({"layer": 1}, {"pooling": "max"}):
        with pytest.raises(DataError, match=next(iter(wrong))):
            model.embed([array], **wrong)
    with pytest.raises(DataError, match="uint8"):
        model.embed([array.astype(np.float32)])
    sides = [run_model(model, open_any(pictures, name), "features", "cls", -1) for name in ("train", "val")]
    assert set(probe(*sides, neighbours=3)) == {"knn", "linear_probe"}
    write_embeddings(sides[1], tmp_path / "e.parquet")
    import pandas as pd

    table = pd.read_parquet(tmp_path / "e.parquet")
    assert len(table) == 24 and set(table["label"]) == {"blue", "red"}
    assert np.allclose(np.stack(table["embedding"]), sides[1].values)
    assert is_image(model.config) and image_signature(model.config).inputs is not None
    assert len(check_images()) == 2 and check_outputs(model)[0] == "embedding"


def test_shards_train_like_their_folder(pictures: Path, pretrained: Path, tmp_path: Path) -> None:
    broken = pictures / "train" / "red" / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no jpeg")
    try:
        options = ImageOptions(images_per_shard=7, workers=1)
        reports = prepare_images(pictures, tmp_path, [], options, Console(quiet=True))
        assert reports["train"].images == 24 and len(reports["train"].bad) == 1
        assert "broken.jpg" in (tmp_path / "bad_images.tsv").read_text()
        again = prepare_images(pictures, tmp_path, [], options, Console(quiet=True))
        assert again["train"].reused == again["train"].shards == 4
    finally:
        broken.unlink()
    source = open_images(tmp_path, "train")
    assert source.classes == ["blue", "red"] and np.bincount(source.labels).tolist() == [12, 12]
    _, recorder = run(finetuning(tmp_path), tmp_path / "run", pretrained)
    assert recorder.curve("val/accuracy")[-1] > 90


def test_data_that_does_not_fit_is_refused(pictures: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.num_classes=2"):
        check_data(Recipe.from_dict(finetuning(pictures, num_classes=10)), pretrained)
    with pytest.raises(DataError, match="no folder 'train'"):
        check_data(Recipe.from_dict(finetuning(tmp_path)), pretrained)
