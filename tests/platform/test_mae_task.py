"""Masked autoencoders in the training loop and after it: resume, groups, use, fine-tuning, card, plan."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import data2vec
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.schema import Recipe
from d2v_platform.registry.image_models import check_images, image_check_outputs, image_signature
from d2v_platform.registry.registration import gate_tags
from d2v_platform.tasks import make_task
from d2v_platform.tasks.image_classification import ImageClassification
from d2v_platform.tasks.image_pictures import masks_of
from d2v_platform.training.loop_state import Summary
from d2v_platform.training.optimizer import make_optimizer
from d2v_platform.training.workload import make_workload, matrix_work
from data2vec.artifact import read_artifact
from data2vec.errors import CheckpointError, ConfigError
from data2vec.image_model import ImageModel
from data2vec.interop.export import export_fairseq
from data2vec.mae import MaskedAutoencoder
from data2vec.mae_config import MaeConfig
from data2vec.mae_flops import autoencoder_step
from data2vec.masking import MaskSet
from data2vec.step_stages import StepShape

CONFIG = MaeConfig(input_size=16, patch_size=4, embed_dim=32, num_heads=2, depth=2, decoder_embed_dim=16,
                   decoder_depth=1, decoder_num_heads=2)  # fmt: skip


@pytest.fixture(scope="module")
def finished(
    image_runs: Any, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Summary, Any]:
    return image_runs.run(image_runs.autoencoding(pictures), tmp_path_factory.mktemp("mae"))


@pytest.fixture(scope="module")
def folder(finished: tuple[Summary, Any]) -> Path:
    return Path(finished[0].export or "")


def test_a_run_that_goes_on_ends_with_the_same_bits(
    image_runs: Any, pictures: Path, folder: Path, tmp_path: Path
) -> None:
    recipe = image_runs.autoencoding(pictures)
    short = copy.deepcopy(recipe)
    short["optimization"]["max_update"] = 3
    image_runs.run(short, tmp_path)
    resumed, recorder = image_runs.run(recipe, tmp_path)
    assert min(recorder.points["train/loss"]) > 3, "it did not start again"
    one, two = (load_file(path / "model.safetensors") for path in (folder, Path(resumed.export)))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_what_is_logged(image_runs: Any, pictures: Path, finished: tuple[Summary, Any]) -> None:
    summary, recorder = finished
    names = {name.removeprefix("train/") for name in recorder.points}
    assert {"loss", "masked_pct", "target_var", "pred_var", "lr_with_decay", "lr_no_decay", "encoder_rank",
            "predictions_var"} <= names  # fmt: skip
    assert not any(name.startswith(("ema", "loss_")) for name in names)
    assert recorder.curve("train/masked_pct")[-1] == 0.75
    assert 0.5 < recorder.curve()[-1] < 3, "a mean over pixels of deviation 1"
    assert gate_tags(Recipe.from_dict(image_runs.autoencoding(pictures)), summary) == {"collapse": "false"}


def test_the_groups_of_the_recipe(image_runs: Any, pictures: Path) -> None:
    values = image_runs.autoencoding(pictures)
    values["optimizer"]["groups"]["no_decay"]["lr_float"] = 2e-3
    recipe = Recipe.from_dict(values)
    model = MaskedAutoencoder(CONFIG)
    optimizer = make_optimizer(recipe, model)
    assert optimizer.learning_rates(2) == {"with_decay": 1e-3, "no_decay": 2e-3}
    decay = {id(p): group["weight_decay"] for group in optimizer.adam.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert decay[id(parameter)] == (0.0 if parameter.ndim == 1 else 0.05), name
    flat = {**values, "optimizer": {"_name": "adam", "weight_decay": 0.1},
            "lr_scheduler": {"_name": "cosine", "warmup_updates": 2}}  # fmt: skip
    groups = make_optimizer(Recipe.from_dict(flat), model).adam.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1], "one optimizer for all"


@pytest.mark.parametrize(
    ("words", "field", "rule"),
    [
        (["~optimizer.groups.no_decay"], "optimizer.groups", "has no group 'no_decay'"),
        (["optimizer.groups.default={optimizer:adam,lr_scheduler:fixed}"], "optimizer.groups.default",
         "groups are with_decay, no_decay"),
        (["model.mask_ratio=1"], "model.mask_ratio", "must leave some of the 64 patches visible"),
        (["task.input_size=32"], "task.input_size", "must equal the model's input of 64 pixels"),
        (["task.probe_layer=4", "task.probe_bank=a", "dataset.disable_validation=false"], "task.probe_layer",
         "must lie in -4 ... 3"),
        (["criterion.log_keys=[ema_decay]"], "criterion.log_keys", "the model reports target_var"),
        (["criterion.loss_weights={recon:1}"], "criterion.loss_weights", "the model's losses are regression"),
        (["platform.clone_chunk=1"], "platform.clone_chunk", "models with clones"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(words: list[str], field: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("tiny/image_pretraining_mae", ["task.data=/data", *words])
    assert [(p.field, rule in p.rule) for p in caught.value.problems] == [(field, True)], caught.value


def test_a_model_in_use(pictures: Path, folder: Path) -> None:
    artifact = read_artifact(folder)
    assert artifact.config["family"] == "mae" and artifact.config["kind"] == "pretrained"
    assert artifact.model_config == CONFIG and not (folder / "teacher.safetensors").exists()
    model = data2vec.load(folder)
    assert isinstance(model, ImageModel) and model.input_size == 16
    path = next((pictures / "val" / "red").iterdir())
    (row,) = model.embed([path])
    trained = MaskedAutoencoder(CONFIG)
    trained.student.load_state_dict(artifact.state)  # encoder and decoder
    source = model.transform(Image.open(path).convert("RGB"))[None]
    with torch.no_grad():
        features = trained.eval().student_features(source)
    assert np.allclose(row, features.x_BTD.mean(1)[0], atol=1e-6), "after the final norm"
    assert features.extra_BED is not None
    assert np.allclose(model.embed([path], pooling="cls")[0], features.extra_BED[0, 0], atol=1e-6)
    assert image_signature(model.config).inputs is not None
    assert len(check_images()) == 2 and image_check_outputs(model)[0] == "embedding"
    fresh, start = (m.state_dict() for m in (model.untrained(1).network, MaskedAutoencoder(CONFIG).student))
    assert all(torch.equal(fresh[name], start[name]) for name in fresh if "extra_tokens" not in name)


def test_a_new_run_starts_from_its_weights(image_runs: Any, pictures: Path, folder: Path) -> None:
    task = make_task(Recipe.from_dict(image_runs.autoencoding(pictures)), None)
    task.initialise_from(folder)
    state, wanted = task.trained.state_dict(), read_artifact(folder).state
    assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in state)


def test_finetuning(image_runs: Any, pictures: Path, folder: Path, tmp_path: Path) -> None:
    recipe = image_runs.finetuning(pictures, layer_decay=0.5)
    task = make_task(Recipe.from_dict(recipe), folder)
    assert isinstance(task, ImageClassification) and task.lr_scales is not None
    assert task.lr_scales["model.modality_encoders.IMAGE.extra_tokens"] == 0.5**3
    assert task.lr_scales["model.blocks.1.norm1.weight"] == 0.5 and task.lr_scales["model.norm.bias"] == 1.0
    own, wanted = task.model.model.state_dict(), read_artifact(folder).state
    assert all(torch.equal(own[n], wanted[n]) for n in own if "positions" not in n), (
        "20 pixels: new positions"
    )
    summary, recorder = image_runs.run(image_runs.finetuning(pictures), tmp_path / "run", folder)
    assert recorder.curve("val/accuracy")[-1] > 90
    model = data2vec.load(summary.export or "")
    assert model.classes == ["blue", "red"]
    for holder in (folder, Path(summary.export or "")):
        with pytest.raises(CheckpointError, match=r"pre-LN network.*use --to safetensors"):
            export_fairseq(read_artifact(holder), tmp_path / "model.pt")


def test_the_masks_on_the_card_are_those_of_training() -> None:
    ids, model = [5, 3], MaskedAutoencoder(CONFIG)
    drawn = masks_of(CONFIG, ids, 7)
    assert drawn.shape == (2, 1, 4, 4) and drawn.sum() == 24
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        trained = model(images, ids=torch.tensor(ids), seed=7)
        given = model(images, masks=MaskSet.from_mask(torch.from_numpy(drawn).flatten(1)))
    assert float(trained.loss) == pytest.approx(float(given.loss), rel=1e-6)


def test_the_plan_prices_it(image_runs: Any, pictures: Path) -> None:
    recipe = Recipe.from_dict(image_runs.autoencoding(pictures))
    workload = make_workload(recipe, None)
    assert workload is not None and workload.pretraining and not workload.sees_all
    assert workload.shape(4, 1) == StepShape(samples=4, positions=16, kept=4)
    wanted = autoencoder_step(CONFIG, workload.shape(4, 1)).flops
    assert workload.mean_flops() == wanted
    work = matrix_work(recipe, MaskedAutoencoder(CONFIG))
    assert work is not None and work(4, 1) == wanted
