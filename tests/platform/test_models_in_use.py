"""Commands for models in use: batches that change no row, and the device that was asked for."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from typer.testing import CliRunner

import data2vec
from d2v_platform.cli import app
from d2v_platform.inference.command import infer
from d2v_platform.inference.options import WorkerOptions, read_options
from d2v_platform.inference.recordings import find_recordings
from data2vec.errors import ConfigError, Data2VecError, DataError


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Seven recordings of unlike lengths, the fourth of them broken."""
    folder = tmp_path / "talks"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index, length in enumerate((30_000, 4000, 12_000, 0, 4100, 50, 20_000)):
        sf.write(str(folder / f"{index}.wav"), 0.1 * draw.normal(size=length), 16_000)
    (folder / "3.wav").write_text("no audio")
    return folder


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine that seems to have two GPUs: where modules were moved to, without moving them."""
    moved: list[str] = []

    def to(module: torch.nn.Module, device: torch.device | str) -> torch.nn.Module:
        moved.append(str(device))
        return module

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    return moved


def call(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, Data2VecError):
        return 2, str(done.exception)
    return done.exit_code, done.output


def test_rows_keep_their_order_and_values_in_batches(ctc_model: Path, talks: Path, tmp_path: Path) -> None:
    tables = []
    for size in (1, 16):
        dest = tmp_path / f"{size}.parquet"
        code, said = call("embed", talks, "--model", ctc_model, "--dest", dest, "--batch-size", size)
        assert code == 2 and "1 of 7 recordings could not be read" in said and "3.wav" in said
        tables.append(pd.read_parquet(dest))
    for table in tables:
        assert [Path(name).stem for name in table["file"]] == ["0", "1", "2", "4", "5", "6"]
        assert table["seconds"].tolist() == [1.875, 0.25, 0.75, 0.2562, 0.0031, 1.25]
    np.testing.assert_allclose(*(np.stack(list(table["embedding"])) for table in tables), atol=1e-5)
    frames = [tmp_path / f"frames{size}.parquet" for size in (1, 16)]
    for size, dest in zip((1, 16), frames, strict=True):
        call("embed", talks, "--model", ctc_model, "--dest", dest, "--pooling", "none", "--batch-size", size)
    one, many = map(pd.read_parquet, frames)
    assert one[["file", "start_s"]].equals(many[["file", "start_s"]]) and len(one) > 100


def test_transcripts_are_the_same_in_batches(ctc_model: Path, talks: Path, tmp_path: Path) -> None:
    found = []
    for size in (1, 16):
        out = tmp_path / f"text{size}"
        code, said = call("transcribe", talks, "--model", ctc_model, "--out", out, "--batch-size", size)
        assert code == 2 and "3.wav" in said
        printed = [line.split("\t") for line in said.splitlines() if line.startswith(str(talks))]
        read = [json.loads((out / f"{Path(path).stem}.json").read_text()) for path, _ in printed]
        assert [[r["file"], r["text"]] for r in read] == printed and len(read) == 6
        found.append([(r["file"], r["text"], r["words"]) for r in read])
    assert found[0] == found[1] and len({text for _, text, _ in found[0]}) > 3
    assert call("transcribe", talks, "--model", ctc_model, "--batch-size", 0)[0] == 2


def test_recordings_are_found_whatever_their_ending_and_place(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("b.WAV", "deep/er/a.Mp3", "c.flac", "notes.txt", "d.flac.part"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert find_recordings(root) == [root / "b.WAV", root / "c.flac", root / "deep/er/a.Mp3"]
    assert find_recordings(root / "notes.txt") == [root / "notes.txt"], "one file is what was asked for"
    (root / "dev.tsv").write_text(f"{root}\nc.flac\t5\nb.WAV\t6\n")
    assert find_recordings(root / "dev.tsv") == [root / "c.flac", root / "b.WAV"]
    with pytest.raises(DataError, match="no such file"):
        find_recordings(root / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no recordings"):
        find_recordings(tmp_path / "empty")


def test_embed_takes_a_subset_of_recordings(ctc_model: Path, talks: Path, tmp_path: Path) -> None:
    (talks / "short").mkdir()
    (talks / "short" / "x.wav").write_bytes((talks / "1.wav").read_bytes())
    (talks / "listed.tsv").write_text(f"{talks}\n5.wav\t50\n2.wav\t12000\n")
    for subset, wanted in (("short", ["x"]), ("listed", ["5", "2"])):
        dest = tmp_path / f"{subset}.parquet"
        code, said = call("embed", talks, "--model", ctc_model, "--dest", dest, "--subset", subset)
        assert code == 0, said
        assert [Path(name).stem for name in pd.read_parquet(dest)["file"]] == wanted


def test_a_device_that_is_absent_is_refused_at_once(
    ctc_model: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    dest = tmp_path / "e.parquet"
    for words in (
        ["transcribe", talks, "--model", "/no/model"],
        ["embed", talks, "--model", "/no/model", "--dest", dest],
        ["probe", talks, "--model", "/no/model"],
    ):
        code, said = call(*words, "--device", "cuda")
        assert code == 2 and "device = 'cuda' is not here: this machine has no GPU" in said, words
        assert "must be auto, cpu, cuda, or one of several" in call(*words, "--device", "gpu")[1]
    common = ["task.data=/d", "common_eval.path=/m"]
    for name, rule in (("cuda", "has no GPU"), ("cuda:1", "has no GPU"), ("tpu", "must be auto, cpu")):
        with pytest.raises(ConfigError, match=rf"platform\.device = '{name}'.*{rule}"):
            read_options([*common, f"platform.device={name}"])
    assert read_options([*common, "platform.device=auto"])[0].platform.chosen_device() == "cpu"
    with pytest.raises(Data2VecError, match="has no GPU"):
        WorkerOptions(device="cuda").chosen_device()
    away = read_options([*common, "platform.device=cuda", "platform.num_workers=2"])[0]
    assert away.platform.chosen_device() == "cuda", "the workers may have one"
    with pytest.raises(ConfigError, match="Ray gives each worker its GPU"):
        read_options([*common, "platform.device=cuda:1", "platform.num_workers=2"])


def test_commands_move_the_model(
    ctc_model: Path, pretrained: Path, pictures: Path, talks: Path, tmp_path: Path, gpus: list[str]
) -> None:
    dest = tmp_path / "e.parquet"
    for words in (
        ["transcribe", talks, "--model", ctc_model],
        ["embed", talks, "--model", ctc_model, "--dest", dest],
        ["embed", pictures, "--subset", "val", "--model", pretrained, "--dest", dest],
        ["probe", pictures, "--model", pretrained],
    ):
        for device in ("cuda:1", "cpu"):
            gpus.clear()
            call(*words, "--device", device)
            assert gpus[0] == device, words
        gpus.clear()
        call(*words)
        assert gpus[0] == "cuda", "the best there is"


@pytest.mark.parametrize("kind", ["", "_audio", "_image", "_language"])
def test_a_served_model_takes_the_best_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.import_module(f"d2v_platform.registry.pyfunc{kind}_entry")
    (name,) = (n for n, c in vars(entry).items() if n.endswith("Pyfunc") and c.__module__ == entry.__name__)
    asked: list[Any] = []
    monkeypatch.setattr(data2vec, "load", lambda folder, **options: asked.append((folder, options)))
    getattr(entry, name)().load_context(SimpleNamespace(artifacts={"model": "folder"}))
    assert asked == [("folder", {"device": "auto"})]


def test_infer_moves_the_recogniser(
    ctc_model: Path, utterances: Path, tmp_path: Path, gpus: list[str]
) -> None:
    options, _ = read_options(
        [f"task.data={utterances}", f"common_eval.path={ctc_model}", "dataset.gen_subset=test",
         f"common_eval.results_path={tmp_path}/out", "platform.device=cuda:1"]
    )  # fmt: skip
    with pytest.raises(Exception):  # noqa: B017 - there is no such GPU
        infer(options)
    assert "cuda:1" in gpus
