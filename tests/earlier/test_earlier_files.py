"""What commit 4753fc4 has written still loads: a model folder of each kind and a checkpoint of a training.

``expected.safetensors`` and ``losses.json`` hold what that commit computed from them.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from d2v_platform.recipe.schema import Recipe
from d2v_platform.training.job import Job
from d2v_platform.training.train_loop import train
from data2vec.loading import load
from tests.platform.recorder import Recorder

HERE = Path(__file__).parent
FOLDERS = sorted(path.name for path in (HERE / "folders").iterdir())
EXPECTED = load_file(HERE / "expected.safetensors")
WAVE = np.sin(np.arange(3200) * 0.05).astype(np.float32) * np.linspace(0, 1, 3200, dtype=np.float32)
PICTURE = Image.fromarray((np.arange(16 * 16 * 3).reshape(16, 16, 3) * 7 % 256).astype(np.uint8))
TEXTS = ["the river", "th"]


def outputs(name: str) -> list[Any]:
    """What the model in ``folders/name`` makes of the fixed inputs."""
    model = load(HERE / "folders" / name)
    match name.split("_")[0]:
        case "language":
            return list(model.token_scores(["the old river mill", "mill"]))
        case "text":
            return list(model.embed(TEXTS))
        case "image":
            return list(model.embed([PICTURE]))
        case "audio":
            return list(model.embed([WAVE]))
        case "letters":
            return [model.emissions(WAVE)]
        case "sentences":
            return [model.classify(TEXTS)[1]]
        case "classes":
            return [model.classify([PICTURE])[1]]
        case "events":
            return [model.classify([WAVE])[1]]
    raise AssertionError(name)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_an_earlier_version_gives_the_same_numbers(name: str) -> None:
    found = outputs(name)
    wanted = [tensor for key, tensor in sorted(EXPECTED.items()) if key.rsplit(".", 1)[0] == name]
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            torch.as_tensor(np.asarray(one, dtype=np.float32)), other, rtol=1e-4, atol=1e-6
        )


def test_every_kind_of_folder_is_kept() -> None:
    kinds = {json.loads((HERE / "folders" / name / "config.json").read_text())["kind"] for name in FOLDERS}
    assert kinds == {
        "pretrained", "sentence_classifier", "ctc", "image_classifier", "audio_classifier", "language_model",
    }  # fmt: skip
    assert {key.rsplit(".", 1)[0] for key in EXPECTED} == set(FOLDERS)


def test_a_training_of_an_earlier_version_goes_on(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = copy.deepcopy(tiny_recipe)
    recipe["optimization"]["max_update"] = 10
    recipe["checkpoint"]["keep_interval_updates"] = -1
    recipe["model"]["embed_dim"] = 16
    recipe["model"]["modalities"]["text"]["decoder"]["decoder_dim"] = 8
    (tmp_path / "checkpoints").mkdir()
    shutil.copytree(HERE / "checkpoint" / "update_00000005", tmp_path / "checkpoints" / "update_00000005")
    recorder = Recorder()
    train(Job(Recipe.from_dict(recipe), tmp_path, threads=1), recorder)
    wanted = json.loads((HERE / "checkpoint" / "losses.json").read_text())
    assert min(recorder.points["train/loss"]) == 6
    for key in wanted:
        assert recorder.curve(key) == pytest.approx(wanted[key][5:], rel=1e-4), key
