"""Image recipes in the training loop: invariance, resume, fine-tuning, probes, prepared shards, commands."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import data2vec
from d2v_platform.inference.image_probes import probe
from d2v_platform.inference.image_rows import open_any, run_model, write_embeddings
from d2v_platform.inference.images import classify_folder
from d2v_platform.preparation.images import ImageOptions, prepare_images
from d2v_platform.recipe.schema import Recipe
from d2v_platform.registry.image_models import check_images, image_check_outputs, image_signature
from d2v_platform.registry.registration import gate_tags
from d2v_platform.tasks import check_data, make_task
from d2v_platform.training.loop_state import Worker
from d2v_platform.training.train_loop import TrainingLoop
from data2vec.data.image_sources import open_images
from data2vec.errors import DataError
from tests.platform.recorder import Recorder


@pytest.mark.timeout(400)
@pytest.mark.parametrize("generation", [2, 1])
def test_workers_and_kills_change_nothing(
    image_runs: Any, pictures: Path, tmp_path: Path, generation: int
) -> None:
    recipe = image_runs.pretraining(pictures, generation)
    whole, alone = image_runs.run(recipe, tmp_path / "alone")
    # killed after the save of update 3: the run goes on from there to the same weights
    short = copy.deepcopy(recipe)
    short["optimization"]["max_update"] = 3
    short["model"]["max_update"] = short["lr_scheduler"]["max_update"] = 6
    long = copy.deepcopy(recipe)
    long["model"]["max_update"] = long["lr_scheduler"]["max_update"] = 6
    image_runs.run(short, tmp_path / "killed")
    resumed, _ = image_runs.run(long, tmp_path / "killed")
    assert whole.export is not None and resumed.export is not None
    one, two = (load_file(Path(s.export or "") / "model.safetensors") for s in (whole, resumed))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    for workers in (3,) if generation == 2 else (2,):
        shared = image_runs.shared_curve(recipe, tmp_path / str(workers), workers)
        assert shared == pytest.approx(alone.curve(), rel=1e-5), f"{workers} workers"


def test_a_run_that_goes_on_ends_with_the_same_bits(image_runs: Any, pictures: Path, tmp_path: Path) -> None:
    """From the checkpoint that a killed run leaves behind; crops, masks and teacher go on."""
    recipe = image_runs.pretraining(
        pictures, optimization={"max_update": 12},
        checkpoint={"save_interval_updates": 5, "keep_interval_updates": -1},
    )  # fmt: skip
    whole, _ = image_runs.run(recipe, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "killed" / "checkpoints")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "update_00000012")
    resumed, recorder = image_runs.run(recipe, tmp_path / "killed")
    assert min(recorder.points["train/loss"]) == 6, "it did not start again"
    for name in ("model", "teacher"):
        one, two = (load_file(Path(s.export) / f"{name}.safetensors") for s in (whole, resumed))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_probes_at_validation(image_runs: Any, pictures: Path, tmp_path: Path) -> None:
    recipe = image_runs.pretraining(
        pictures,
        task={"probe_bank": "train", "probe_neighbours": 3},
        dataset={"disable_validation": False, "valid_subset": "val"},
    )
    check_data(Recipe.from_dict(recipe), None)
    summary, recorder = image_runs.run(recipe, tmp_path)
    untrained = TrainingLoop(
        typed := Recipe.from_dict(recipe), make_task(typed, None), tmp_path / "none", Recorder(), Worker()
    )
    assert summary.facts["floor.metric"] == "knn" and len(summary.facts["floor.data"]) == 64
    assert float(summary.facts["floor.value"]) == pytest.approx(untrained.evaluate("val")["knn"])
    tags = gate_tags(typed, summary)
    assert tags["downstream.name"] == "knn" and tags["downstream.data"] == summary.facts["floor.data"]
    assert float(tags["downstream.value"]) == recorder.curve("val/knn")[-1]
    assert recorder.curve("val/knn")[-1] > 90, "a colour is easy to see"
    assert recorder.curve("val/linear_probe")[-1] > 90
    assert recorder.curve("train/loss_cls"), "each loss is logged by itself"


@pytest.mark.parametrize("mixed", [False, True])
def test_finetuning_learns_colours(
    image_runs: Any, pictures: Path, pretrained: Path, tmp_path: Path, mixed: bool
) -> None:
    recipe = image_runs.finetuning(pictures, **({"mixup": 0.8, "cutmix": 1.0} if mixed else {}))
    check_data(Recipe.from_dict(recipe), pretrained)
    summary, recorder = image_runs.run(recipe, tmp_path, pretrained)
    assert recorder.curve("val/accuracy")[-1] > 90
    assert bool(recorder.curve("train/accuracy")) is not mixed, "accuracy of mixed images means nothing"
    model = data2vec.load(summary.export or "")
    assert model.classes == ["blue", "red"] and model.input_size == 20
    results = classify_folder(model, open_any(pictures, "val"), tmp_path / "results")
    assert results["top1"] == pytest.approx(recorder.curve("val/accuracy")[-1])
    for name in ("predictions.parquet", "per_class.csv", "confusion.png", "summary.json"):
        assert (tmp_path / "results" / name).stat().st_size > 0


def test_a_model_in_use(image_runs: Any, pictures: Path, pretrained: Path, tmp_path: Path) -> None:
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
    assert np.allclose(np.stack(list(table["embedding"])), sides[1].values)
    assert image_signature(model.config).inputs is not None
    assert len(check_images()) == 2 and image_check_outputs(model)[0] == "embedding"


def test_shards_train_like_their_folder(
    image_runs: Any, pictures: Path, pretrained: Path, tmp_path: Path
) -> None:
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
    _, recorder = image_runs.run(image_runs.finetuning(tmp_path), tmp_path / "run", pretrained)
    assert recorder.curve("val/accuracy")[-1] > 90


def test_data_that_does_not_fit_is_refused(
    image_runs: Any, pictures: Path, pretrained: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"model\.num_classes=2"):
        check_data(Recipe.from_dict(image_runs.finetuning(pictures, num_classes=10)), pretrained)
    with pytest.raises(DataError, match="no folder 'train'"):
        check_data(Recipe.from_dict(image_runs.finetuning(tmp_path)), pretrained)
