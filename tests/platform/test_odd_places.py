"""Odd but honest inputs of users: names, marks, places and addresses that other programs make."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest

from d2v_platform.home import d2v_home
from d2v_platform.inference.transcription import output_stems
from d2v_platform.preparation.audio import ManifestOptions, prepare_manifests
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.local_data import with_local_data
from d2v_platform.training.ray_session import _refuse_no_head
from data2vec.data.dictionary import Dictionary
from data2vec.data.event_labels import read_classes
from data2vec.data.letters import read_label_lines
from data2vec.data.manifest import read_manifest
from data2vec.errors import ConfigError, Data2VecError, DataError
from data2vec.interop.huggingface import weights_file
from data2vec.lexicon import read_lexicon

BOM = "\ufeff"
NAME = "tiny/text_pretraining"


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    def written(name: str, text: str) -> Path:
        (tmp_path / name).write_text(BOM + text, encoding="utf-8")
        return tmp_path / name

    assert Dictionary.load(written("dict.txt", "| 5\ne 3\n")).index("|") == 4
    assert read_label_lines(written("train.ltr", "a b |\n"), 1) == ["a b |"]
    assert read_manifest(written("train.tsv", f"{tmp_path}\na.wav\t5\n")).file(0) == f"{tmp_path}/a.wav"
    letters = Dictionary(list("word|"), [1] * 5)
    assert list(read_lexicon(written("lexicon.txt", "word w o r d |\n"), letters)) == ["word"]
    assert read_classes(written("labels.csv", "0,dog\n1,cat\n")) == ["dog", "cat"]


def test_names_of_recordings_may_hold_all_but_tabs_and_line_breaks(tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    names = ["u\u2028x.wav", "n\u0085x.wav", " b.wav", "c\rd.wav", "plain.wav"]
    (tmp_path / "wav").mkdir()
    for name in [*names, "tab\tx.wav", "break\nx.wav"]:
        soundfile.write(tmp_path / "wav" / name, np.full(400, 0.5), 16_000)
    report = prepare_manifests(tmp_path / "wav", tmp_path / "m", ManifestOptions(valid_percent=0, ext="wav"))
    assert len(report.dropped) == 2
    manifest = read_manifest(tmp_path / "m" / "train.tsv")
    assert sorted(manifest.name(i) for i in range(len(manifest))) == sorted(names)
    assert all(Path(manifest.file(i)).is_file() for i in range(len(manifest)))


def test_a_manifest_may_come_from_windows_and_name_files_by_their_whole_path(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_bytes(b"/some/root\r\n/data/a.wav\t 5\r\nb.wav\t7\r\n")
    manifest = read_manifest(path)
    assert [manifest.file(i) for i in range(2)] == ["/data/a.wav", "/some/root/b.wav"]
    assert manifest.frames.tolist() == [5, 7]
    path.write_bytes(b"\n/data/a.wav\t5\n")
    assert read_manifest(path).file(0) == "/data/a.wav"
    for count in ("0", "-1", "1e3", "9999999999999999", str(2**64)):
        path.write_text(f"/root\na.wav\t{count}\n")
        with pytest.raises(DataError, match="line 2"):
            read_manifest(path)


def test_a_repeated_symbol_keeps_its_mark_when_a_dictionary_is_written(tmp_path: Path) -> None:
    text = "<s> 0 #fairseq:overwrite\na 3\nb 2\na 1 #fairseq:overwrite\n"
    (tmp_path / "dict.txt").write_text(text)
    read = Dictionary.load(tmp_path / "dict.txt")
    assert read.text() == text
    read.save(tmp_path / "again.txt")
    assert Dictionary.load(tmp_path / "again.txt").symbols == read.symbols


def test_a_local_folder_may_be_given_as_a_file_address(home: Path, tmp_path: Path) -> None:
    recipe = compose(NAME, [f"task.data=file://{tmp_path}/x:/y"]).recipe
    assert with_local_data(recipe).task.data == f"{tmp_path}/x:/y"
    plain = dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, data="/x:/y"))
    assert with_local_data(plain) is plain


@pytest.mark.parametrize("name", ["feature%2Fx", "a?b", "c#1"])
def test_a_home_that_a_database_address_cannot_name_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2V_HOME", str(tmp_path / name))
    with pytest.raises(Data2VecError, match=r"cannot hold [%?#]; set D2V_HOME"):
        d2v_home()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alias", ["latest", "Latest", "v1", "V12", "a b", "x" * 64, "1st"])
def test_an_alias_that_mlflow_would_refuse_is_refused_before_any_work(alias: str) -> None:
    with pytest.raises(ConfigError, match=r"platform\.alias.*must start with a letter"):
        compose(
            "tiny/text_pretraining", ["task.data=/x", "platform.register_as=m", f"platform.alias='{alias}'"]
        )


def test_a_name_too_long_for_the_registry_is_refused_before_any_work() -> None:
    compose(
        "tiny/text_pretraining", ["task.data=/x", f"platform.register_as={'m' * 200}", "platform.alias=v1x"]
    )
    with pytest.raises(ConfigError, match=r"platform\.register_as.*up to 200"):
        compose(NAME, ["task.data=/x", f"platform.register_as={'m' * 201}"])


def test_a_ray_address_that_cannot_work_is_said_at_once() -> None:
    with pytest.raises(Data2VecError, match="dashboard's address"):
        _refuse_no_head("http://127.0.0.1:8265")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _refuse_no_head(f"127.0.0.1:{port}")
    with pytest.raises(Data2VecError, match="no Ray cluster at RAY_ADDRESS"):
        _refuse_no_head(f"127.0.0.1:{port}")
    for left_to_ray in ("", "auto", "local", "ray://127.0.0.1:9"):
        _refuse_no_head(left_to_ray)


def test_the_weights_of_a_hugging_face_folder(tmp_path: Path) -> None:
    cases = {
        "bin": (["pytorch_model.bin"], "pytorch_model.bin"),
        "both": (["pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        "parts": (["model.safetensors.index.json"], "split into several"),
        "old_parts": (["pytorch_model.bin.index.json"], "split into several"),
        "none": ([], "has no weights"),
    }
    for name, (files, expected) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).touch()
        if "." in expected:
            assert weights_file(folder) == folder / expected
        else:
            with pytest.raises(Data2VecError, match=expected):
                weights_file(folder)


def test_transcripts_of_a_manifest_stay_in_the_output_folder() -> None:
    files = [Path("/data/clips/../../etc/a.wav"), Path("/data/clips/b.wav"), Path("/data/clips/b.flac")]
    stems = output_stems(files, Path("/somewhere/list.tsv"))
    assert stems == [Path("etc/a"), Path("data/clips/b.wav"), Path("data/clips/b.flac")]
    assert output_stems(files[1:2], files[1]) == [Path("b")]
