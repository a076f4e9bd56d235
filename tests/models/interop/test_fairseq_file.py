"""What is read from a fairseq file, whatever the family."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data2vec.errors import CheckpointError
from data2vec.interop import inspection, read_checkpoint

Write = Callable[..., Path]


def test_everything_is_read_and_independent_of_the_file(pretrained_file: Write) -> None:
    path = pretrained_file()
    stored = torch.load(path, weights_only=True)["model"]
    checkpoint = read_checkpoint(path)
    path.write_bytes(b"overwritten")
    teacher = stored.pop("_ema")
    assert checkpoint.family == "data2vec_multi"
    assert checkpoint.num_updates == 321
    assert checkpoint.section("task")["data"] == "/somewhere/else"
    assert checkpoint.section("task", "data") == {}
    assert checkpoint.teacher is not None
    for read, expected in ((checkpoint.model, stored), (checkpoint.teacher, teacher)):
        assert list(read) == list(expected)
        assert all(torch.equal(read[name], expected[name]) for name in expected)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_half_precision_round_trip_is_exact(tmp_path: Path, zipped: bool) -> None:
    values = torch.randn(1000).half()
    content = {"model": {"w": values, "b": values.bfloat16(), "index": torch.arange(3)}}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    model = read_checkpoint(tmp_path / "a.pt").model
    assert model["w"].dtype == model["b"].dtype == torch.float32
    assert torch.equal(model["w"].half(), values)
    assert torch.equal(model["b"].bfloat16(), values.bfloat16())
    assert model["index"].dtype == torch.int64


def test_parameters_are_read_as_plain_tensors(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.nn.Parameter(torch.ones(2))}}, tmp_path / "a.pt")
    weight = read_checkpoint(tmp_path / "a.pt").model["w"]
    assert type(weight) is torch.Tensor
    assert not weight.requires_grad


def test_references_in_the_configuration_are_resolved(tmp_path: Path, foreign: Any) -> None:
    config = {
        "common": {"seed": 5},
        "optimization": {"max_update": "${common.seed}"},
        "model": {
            "_name": "data2vec_multi",
            "max_update": "${optimization.max_update}",
            "data": "???",
            "lost": "${nowhere.at.all}",
            "group": "${common}",
            "path": "/a/${common.seed}",
            "modality": foreign.Modality.AUDIO,
        },
    }
    torch.save({"model": {}, "cfg": foreign.omega(config)}, tmp_path / "a.pt")
    model = read_checkpoint(tmp_path / "a.pt").section("model")
    assert model == {
        "_name": "data2vec_multi",
        "max_update": 5,
        "path": "/a/${common.seed}",
        "modality": "AUDIO",
    }


def test_speech_dictionary_and_meters(tmp_path: Path, foreign: Any) -> None:
    dictionary = foreign.Dictionary(symbols=["<s>", "<pad>", "|"], count=[1, 1, 9], indices={})
    content = {
        "args": argparse.Namespace(arch="wav2vec_ctc"),
        "cfg": {"model": {"_name": "wav2vec_ctc"}},
        "model": {},
        "task_state": {"target_dictionary": dictionary},
        "extra_state": {"metrics": {"valid": [("loss", np.float64(0.5))]}, "best": np.float32(2.0)},
    }
    torch.save(content, tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    assert checkpoint.symbols == ["<s>", "<pad>", "|"]
    assert checkpoint.num_updates is None
    assert checkpoint.teacher is None


@pytest.mark.parametrize(
    ("arch", "name"), [("roberta_large", "roberta"), ("roberta", "roberta"), ("wav2vec_ctc", "wav2vec_ctc")]
)
def test_older_files_name_their_network_and_its_size_in_one(tmp_path: Path, arch: str, name: str) -> None:
    torch.save({"model": {}, "args": argparse.Namespace(arch=arch, dropout=0.3)}, tmp_path / "a.pt")
    model = read_checkpoint(tmp_path / "a.pt").section("model")
    assert (model["_name"], model["dropout"]) == (name, 0.3)


@pytest.mark.parametrize(
    ("content", "updates"),
    [
        (
            {"optimizer_history": [{"num_updates": 5}, {"num_updates": 70}]},
            70,
        ),
        ({"optimizer_history": [{}], "extra_state": {"num_updates": 9}}, 9),
        ({"optimizer_history": [], "extra_state": {}}, None),
    ],
)
def test_updates_are_those_at_the_end(tmp_path: Path, content: Any, updates: int | None) -> None:
    torch.save({"model": {}, **content}, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").num_updates == updates


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": {}, "epoch": 3}, r"holds the entries weights, epoch, but no 'model'"),
        ([1, 2], r"holds a list, but no 'model'"),
        ({"model": {"w": "text"}}, r"w is no tensor but a str"),
        ({"model": {"w": torch.zeros(1).expand(10**6, 10**6)}}, r"w, has shape \(1000000, 1000000\)"),
        ({"model": {"w": torch.zeros(1).expand(3)}}, r"12 bytes, more than the file holds for them \(4\)"),
        ({"model": {"w": torch.zeros(2, 2).to_sparse()}}, r"w is no dense"),
        ({"model": {"w": torch.zeros(2, device="meta")}}, r"w is no dense"),
        ({"model": {}, "cfg": [1]}, r"configuration is no mapping but a list"),
    ],
)
def test_what_is_no_fairseq_checkpoint(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"a\.pt.*{message}"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(("size", "told"), [(2000, "2000 bytes"), (3 * 2**19, "1.5 MiB")])
def test_the_size_of_a_file_in_words(size: int, told: str, tmp_path: Path) -> None:
    with (tmp_path / "a.pt").open("wb") as file:
        file.truncate(size)
    assert inspection._size(tmp_path / "a.pt") == told
