"""Naming a model by a path or a URI: what it is, where it is cached, what is said when it is not there."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import fsspec
import pytest

from d2v_platform.registry.model_source import resolve
from d2v_platform.storage import locations
from d2v_platform.storage.locations import Patience
from data2vec.errors import CheckpointError, Data2VecError

OURS = {"format": 1, "kind": "pretrained", "model": {}}


def folder_with(path: Path, config: object) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def test_what_lies_at_a_path_decides_the_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = folder_with(tmp_path / "ours", OURS)
    hugging = folder_with(tmp_path / "hf", {"model_type": "data2vec-text"})
    package = tmp_path / "package"
    inner = folder_with(package / "artifacts" / "model", OURS)
    (package / "MLmodel").touch()
    checkpoint = tmp_path / "nlp_base.pt"
    checkpoint.touch()
    assert (resolve(str(ours)).kind, resolve(str(ours)).path) == ("artifact", ours)
    assert resolve(ours.as_uri()).path == ours
    assert resolve(str(hugging)).kind == "huggingface"
    assert resolve(str(checkpoint)).kind == "fairseq"
    assert (resolve(str(package)).path, resolve(str(package)).package) == (inner, package)
    monkeypatch.chdir(tmp_path)
    assert resolve("ours").path == ours  # absolute: the name outlives the working directory


def test_what_is_no_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "MLmodel").touch()
    cases = [
        (tmp_path / "absent", Data2VecError, "no such file or folder; a model is named by models:/"),
        (tmp_path / "empty", CheckpointError, "has no config.json"),
        (tmp_path / "notes.txt", CheckpointError, "no fairseq .pt checkpoint"),
        (foreign, CheckpointError, "not one of d2v"),
        (folder_with(tmp_path / "a", "{"), CheckpointError, "not readable JSON"),
        (folder_with(tmp_path / "b", {"x": 1}), CheckpointError, "neither ours"),
        (folder_with(tmp_path / "c", [1]), CheckpointError, "holds a list, not an object"),
    ]
    for path, kind, words in cases:
        with pytest.raises(kind, match=words):
            resolve(str(path))


def test_a_remote_folder_is_fetched_once_and_again_when_it_changed(home: Path) -> None:
    remote = fsspec.filesystem("memory")
    uri = "memory://bucket/models/m1"
    remote.pipe({f"{uri}/config.json": json.dumps(OURS).encode(), f"{uri}/tokenizer/dict.txt": b"a 1\n"})
    first = resolve(uri)
    assert first.kind == "artifact"
    assert (first.path / "tokenizer" / "dict.txt").read_text() == "a 1\n"
    assert home in first.path.parents
    (first.path / "mark").touch()
    assert (resolve(uri).path / "mark").exists()
    remote.pipe(f"{uri}/tokenizer/dict.txt", b"a 1\nb 1\n")
    again = resolve(uri)
    assert again.path != first.path
    assert (again.path / "tokenizer" / "dict.txt").read_text() == "a 1\nb 1\n"
    remote.pipe("memory://bucket/nlp_base.pt", b"weights")
    single = resolve("memory://bucket/nlp_base.pt")
    assert (single.kind, single.path.read_bytes()) == ("fairseq", b"weights")


def test_a_broken_download_leaves_nothing_behind(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = fsspec.filesystem("memory")
    uri = "memory://bucket/broken"
    remote.pipe({f"{uri}/config.json": json.dumps(OURS).encode(), f"{uri}/z.bin": b"1"})
    real = type(remote).get_file

    def fail(self: object, path: str, *args: object, **kwargs: object) -> None:
        if path.endswith("z.bin"):
            raise OSError("connection lost")
        real(self, path, *args, **kwargs)  # pyright: ignore

    with monkeypatch.context() as patch:
        patch.setattr(type(remote), "get_file", fail)
        patch.setattr(locations, "Patience", functools.partial(Patience, seconds=0.2, first_s=0.01))
        with pytest.raises(Data2VecError, match=r"[3-9] attempts.*connection lost"):
            resolve(uri)
    assert not [path for path in (home / "cache" / "data").glob("[!.]*") if path.is_dir()]
    assert (resolve(uri).path / "z.bin").exists()


def test_absent_and_forbidden_remotes_are_clear_and_keep_secrets(home: Path) -> None:
    with pytest.raises(Data2VecError, match="nothing lies there"):
        resolve("memory://bucket/nowhere")
    with pytest.raises(Data2VecError, match="nosuchscheme") as caught:
        resolve("nosuchscheme://user:hunter2@host/model")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["../outside.txt", "a/../../outside.txt"])
def test_a_listing_that_leaves_its_folder_writes_nothing(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = fsspec.filesystem("memory")
    remote.pipe({"memory://bucket/trap/config.json": json.dumps(OURS).encode()})
    entry = {"name": f"/bucket/trap/{name}", "size": 1, "type": "file"}
    honest = type(remote).find
    listed = lambda self, path, **more: {**honest(self, path, **more), entry["name"]: entry}  # noqa: E731
    monkeypatch.setattr(type(remote), "find", listed)
    monkeypatch.setattr(type(remote), "get_file", lambda self, path, to, **more: Path(to).write_text("x"))
    with pytest.raises(Data2VecError, match="leads outside its folder"):
        resolve("memory://bucket/trap")
    assert not list(home.rglob("outside.txt*"))
