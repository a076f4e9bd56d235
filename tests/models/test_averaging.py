"""The mean of weights: of checkpoints, and of model folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import data2vec
from data2vec.averaging import average_folders, mean_weights
from data2vec.errors import CheckpointError
from tests.models.test_in_use import audio_v1, ctc_model


def test_the_mean_is_taken_in_float32_and_whole_numbers_are_the_last() -> None:
    halves = [{"w": torch.tensor([0.1 * n, 65504.0]).half(), "steps": torch.tensor(n)} for n in (1, 2, 6)]
    found = mean_weights((str(n), state) for n, state in enumerate(halves))
    assert found["w"].dtype == torch.float32 and int(found["steps"]) == 6
    expected = torch.stack([state["w"].float() for state in halves]).mean(0)  # fp16 would overflow
    torch.testing.assert_close(found["w"], expected)
    assert float(halves[0]["w"][0]) == pytest.approx(0.1, abs=1e-3), "what was given is not changed"
    one = {"w": torch.zeros(2), "v": torch.zeros(1)}
    for other, words in (
        ({"w": torch.zeros(3), "v": torch.zeros(1)}, r"b and a are not .*: w is \(2,\) and \(3,\)"),
        ({"w": torch.zeros(2)}, "1 names are in one of them only, first v"),
    ):
        with pytest.raises(CheckpointError, match=words):
            mean_weights([("a", one), ("b", other)])
    with pytest.raises(CheckpointError, match="no weights"):
        mean_weights([])


def test_folders_give_one_that_is_used_like_any_other(tmp_path: Path) -> None:
    ctc_model(tmp_path, audio_v1())
    (first,) = [path.parent for path in tmp_path.rglob("config.json")]
    (first / "check.json").write_text("{}")
    second = tmp_path / "second"
    shutil.copytree(first, second)
    state = load_file(first / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in state.items()}, second / "model.safetensors")
    config = json.loads((second / "config.json").read_text())
    config["origin"] = {"run_id": "b", "update": 7}
    (second / "config.json").write_text(json.dumps(config))
    average_folders([first, second], tmp_path / "mean")
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    torch.testing.assert_close(mean, {name: tensor + 0.5 for name, tensor in state.items()})
    made = json.loads((tmp_path / "mean" / "config.json").read_text())
    assert made["origin"] == {"averaged": [str(first), str(second)], "update": 7}
    assert not (tmp_path / "mean" / "check.json").exists(), "outputs of the first model alone"
    assert data2vec.load(tmp_path / "mean").letters.symbols
    with pytest.raises(CheckpointError, match="mean is not empty"):
        average_folders([first, second], tmp_path / "mean")
    config["model"]["dropout"] = 0.5
    (second / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not one model: model of their"):
        average_folders([first, second], tmp_path / "other")
    assert not (tmp_path / "other").exists()
