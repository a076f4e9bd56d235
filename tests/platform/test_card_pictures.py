"""Pictures of a model card: what they show is what training does, and the version holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d2v_platform.launch import launch
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.schema import Recipe
from d2v_platform.registry.card_pictures import with_pictures
from d2v_platform.registry.model_source import resolve
from d2v_platform.registry.registration import draw_data
from d2v_platform.tasks.image_pictures import masks_of
from data2vec.masking import clone_ids
from data2vec.pretraining import Data2VecPretraining
from data2vec.v1.image import Data2VecVisionPretraining


def test_the_masks_are_those_of_training(image_runs: Any, pictures: Path) -> None:
    ids = [3, 11]
    recipe = Recipe.from_dict(image_runs.pretraining(pictures))
    config: Any = recipe.model
    drawn = masks_of(config, ids, recipe.common.seed)
    assert drawn.shape == (2, config.clone_batch, 4, 4)
    rows = clone_ids(torch.tensor(ids), config.clone_batch)
    encoder = Data2VecPretraining(config).student.encoder
    trained = encoder.draw_masks(rows, 16, None, ids[0], recipe.common.seed, 0)
    assert np.array_equal(drawn.reshape(4, 16), trained.mask_RT.numpy())
    config = Recipe.from_dict(image_runs.pretraining(pictures, 1)).model
    old = Data2VecVisionPretraining(config)
    output = old(torch.zeros(2, 3, 16, 16), None, torch.tensor(ids), update=0, seed=1)
    assert output.sample_size == masks_of(config, ids, 1).sum()


def test_a_mask_hides_patches_of_the_image(image_runs: Any, pictures: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(image_runs.pretraining(pictures))
    (path,) = draw_data(recipe, tmp_path, tmp_path)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    grey = (np.abs(pixels - 110).max(axis=2) < 3).mean()
    coloured = (np.ptp(pixels, axis=2) > 60).mean()
    assert grey > 0.1 and coloured > 0.05, "hidden patches beside real ones"


def test_missing_data_costs_the_pictures_only(
    image_runs: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert draw_data(Recipe.from_dict(image_runs.pretraining(tmp_path / "gone")), tmp_path, tmp_path) == []
    assert "no pictures of the data" in caplog.text


def test_with_pictures_comes_before_the_first_section() -> None:
    card = "# name\n\nsummary\n\n## Recipe\n\ntext\n"
    shown = with_pictures(card, {"curves": "card/curves.png"})
    assert shown.index("![curves](card/curves.png)") < shown.index("## Recipe")
    assert with_pictures(card, {}) == card


@pytest.mark.timeout(300)
def test_versions_hold_their_pictures_and_say_what_they_are(
    pictures: Path, pretrained: Path, mlflow_home: Path, new_tracker: Any
) -> None:
    small = [
        "platform.num_workers=0", f"task.data={pictures}", "common.log_interval=1", "dataset.batch_size=8",
        "optimization.max_update=2",
    ]  # fmt: skip
    first = [
        "model.depth=1", "model.embed_dim=32", "model.num_heads=2", "model.average_top_k_layers=1",
        "lr_scheduler.warmup_updates=1", "platform.register_as=first", "platform.alias=demo",
    ]  # fmt: skip
    launch(compose("tiny/image_pretraining_v1", [*small, *first]))
    tuned = [
        f"model.model_path={pretrained}", "model.num_classes=2", "task.input_size=16",
        "optimizer.groups.default.lr_scheduler.warmup_updates=1", "platform.register_as=tuned",
    ]  # fmt: skip
    launch(compose("tiny/image_finetuning", [*small, *tuned]))
    tracker = new_tracker()
    for name, wanted, generation in (
        ("first@demo", {"curves.png", "masks.png"}, "data2vec image encoder"),
        ("tuned/1", {"curves.png", "verdicts.png"}, "data2vec 2.0 image classifier"),
    ):
        found = resolve(f"models:/{name}", tracker)
        assert found.package is not None and found.version is not None
        files = sorted((found.package / "card").iterdir())
        assert {file.name for file in files} == wanted
        assert all(min(Image.open(file).size) > 150 for file in files)
        card = (found.package / "model_card.md").read_text()
        assert generation in card and '"file": [open("picture.jpg", "rb").read()]' in card
        assert all(f"](card/{file.name})" in card for file in files)
        registered = tracker.client.get_model_version(found.version.name, str(found.version.version))
        address = f"ajax-api/2.0/mlflow/logged-models/{found.version.model_id}/artifacts/files"
        assert all(
            f"]({address}?artifact_file_path=card/{file.name})" in registered.description for file in files
        )
