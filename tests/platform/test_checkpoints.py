"""Checkpoints: written beside training, complete or invisible on both sides, found where they are newest."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_platform.storage.locations import Location, Patience, StorageAwayError, open_location
from d2v_platform.training import checkpoint_writer, run_storage
from d2v_platform.training.checkpoint import CheckpointStore, Merit, Retention
from d2v_platform.training.checkpoint_writer import Checkpoints
from d2v_platform.training.remote_checkpoints import RemoteCheckpoints, fetch_model, upload_model
from data2vec.errors import CheckpointError, ConfigError


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((100,), value)}, "optimizer": {"0.step": torch.tensor(value)}}


@pytest.fixture
def run(tmp_path: Path) -> Location:
    return open_location(f"memory://{tmp_path.name}/run")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "_UPLOAD_PATIENCE", Patience(seconds=0.2, first_s=0.05))
    monkeypatch.setattr(checkpoint_writer, "_PAUSE_S", (0.05, 0.2))


def remote_files(run: Location) -> list[str]:
    return list(run.child("checkpoints").listing())


def test_the_snapshot_is_taken_before_training_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    gate = threading.Event()
    save = CheckpointStore.save

    def slow(self: CheckpointStore, *arguments: Any, **options: Any) -> Path:
        assert gate.wait(20)
        return save(self, *arguments, **options)

    monkeypatch.setattr(CheckpointStore, "save", slow)
    store = CheckpointStore(tmp_path)
    checkpoints = Checkpoints(store)
    weights = tensors(1.0)
    checkpoints.save(1, weights, {"n": 1})
    weights["model"]["w"].zero_()  # the next update, while the thread is still waiting
    assert store.updates() == []
    gate.set()
    checkpoints.save(2, weights, {"n": 2})  # waits for the first
    assert 1 in store.updates()
    checkpoints.finish()
    assert store.load(1).tensors["model"]["w"].eq(1).all()
    assert store.load(2).tensors["model"]["w"].eq(0).all()
    checkpoints.close()


def test_a_failed_write_is_raised_at_the_next_call_and_names_the_file(
    tmp_path: Path, monkeypatch: Any
) -> None:
    checkpoints = Checkpoints(CheckpointStore(tmp_path))
    checkpoints.save(1, tensors(1), {})
    checkpoints.wait()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("d2v_platform.training.checkpoint.save_file", full)
    checkpoints.save(2, tensors(2), {})
    with pytest.raises(CheckpointError, match=r"update_00000002.*No space left.*update 1 is whole"):
        checkpoints.save(3, tensors(3), {})
    checkpoints.close()
    assert checkpoints.store.updates() == [1]
    assert not list((tmp_path / "checkpoints").glob(".update_*"))


def test_a_write_that_the_system_cuts_short(tmp_path: Path) -> None:
    """A limit on file sizes stops a real write in the middle, as a full disk does."""
    code = (
        "import resource, torch\n"
        "from d2v_platform.training.checkpoint import CheckpointStore\n"
        f"store = CheckpointStore({str(tmp_path)!r})\n"
        "store.save(1, {'model': {'w': torch.zeros(10)}}, {})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "store.save(2, {'model': {'w': torch.zeros(100_000)}}, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr and "update 1 is whole" in done.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["update_00000001"]


def test_both_sides_keep_the_last_and_the_best(tmp_path: Path, run: Location) -> None:
    store = CheckpointStore(tmp_path, Retention(interval=2, epochs=1, best=1))
    checkpoints = Checkpoints(store, run)
    for update in range(1, 8):
        metric = 0.1 if update == 2 else float(update)
        checkpoints.save(
            update, tensors(update), {}, Merit(epoch_end=update in (3, 6), metric=metric, best=update == 2)
        )
        checkpoints.wait()
    checkpoints.finish()
    checkpoints.close()
    assert store.updates() == [2, 5, 6, 7]  # best, last epoch end, two last others
    assert RemoteCheckpoints(store, run).updates() == [2, 5, 6, 7]
    assert json.loads(run.child("checkpoints").read("best.json")) == {"update": 2}


def test_the_manifest_goes_last_and_is_deleted_first(tmp_path: Path, run: Location, monkeypatch: Any) -> None:
    store = CheckpointStore(tmp_path, Retention(interval=1))
    store.save(1, tensors(1), {})
    remote = RemoteCheckpoints(store, run)
    order: list[str] = []
    upload, delete = Location.upload, Location.delete

    def uploaded(self: Location, file: Path, name: str, patience: Any = None) -> None:
        order.append(f"+{name}")
        upload(self, file, name, patience)

    def deleted(self: Location, *names: str, patience: Any = None) -> None:
        order.extend(f"-{name}" for name in names)
        delete(self, *names, patience=patience)

    monkeypatch.setattr(Location, "upload", uploaded)
    monkeypatch.setattr(Location, "delete", deleted)
    remote.sync()
    assert len(order) == 4 and order[-1] == "+manifest.json"
    order.clear()
    store.save(2, tensors(2), {})
    remote.sync()
    gone = [name for name in order if name.startswith("-")]
    assert len(gone) == 4 and gone[0] == "-update_00000001/manifest.json"
    assert remote.updates() == [2]


def test_a_half_written_upload_is_invisible_and_cleared_away(tmp_path: Path, run: Location) -> None:
    store = CheckpointStore(tmp_path / "a", Retention(interval=1))
    store.save(1, tensors(1), {})
    remote = RemoteCheckpoints(store, run)
    remote.sync()
    # An uploader that was killed left two files of update 2, and a lost machine has nothing else.
    run.child("checkpoints").write("update_00000002/model.safetensors", b"half")
    run.child("checkpoints").write("update_00000002/state.json", b"{}")
    elsewhere = Checkpoints(CheckpointStore(tmp_path / "b", Retention(interval=1)), run)
    assert elsewhere.available() == {1}
    assert elsewhere.load(1).tensors["model"]["w"].eq(1).all()
    elsewhere.store.save(3, tensors(3), {})
    assert elsewhere.remote is not None
    elsewhere.remote.sync()
    assert {name.split("/")[0] for name in remote_files(run)} == {"update_00000003"}


def test_a_damaged_local_checkpoint_is_fetched_from_the_other_side(
    tmp_path: Path, run: Location, caplog: Any
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, tensors(1), {})
    checkpoints = Checkpoints(store, run)
    assert checkpoints.remote is not None
    checkpoints.remote.sync()
    broken = store.folder / "update_00000001" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-7])
    assert checkpoints.load(1).tensors["model"]["w"].eq(1).all()
    assert "model.safetensors has" in caplog.text
    # Damaged on both sides: named, and no folder of that update appears here.
    shutil.rmtree(store.folder / "update_00000001")
    run.child("checkpoints").write("update_00000001/optimizer.safetensors", b"garbage")
    with pytest.raises(CheckpointError, match=r"run/checkpoints/update_00000001.*optimizer"):
        checkpoints.load(1)
    assert store.updates() == []


def test_an_escaping_manifest_is_refused(tmp_path: Path, run: Location) -> None:
    files = {"../../outside": {"size": 1, "sha256": ""}}
    text = json.dumps({"update": 1, "files": files}).encode()
    run.child("checkpoints").write("update_00000001/manifest.json", text)
    with pytest.raises(CheckpointError, match="outside its folder"):
        RemoteCheckpoints(CheckpointStore(tmp_path), run).fetch(1)


def test_a_server_that_is_away_delays_uploads_and_nothing_else(
    tmp_path: Path, s3_server: Any, s3_bucket: str, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "d2v_platform")
    run = open_location(f"{s3_bucket}/run")
    store = CheckpointStore(tmp_path, Retention(interval=2))
    checkpoints = Checkpoints(store, run)
    checkpoints.save(1, tensors(1), {})
    _until(lambda: RemoteCheckpoints(store, run).updates() == [1])
    s3_server.stop()
    try:
        begin = time.monotonic()
        for update in (2, 3, 4):
            checkpoints.save(update, tensors(update), {})
        checkpoints.wait()
        assert time.monotonic() - begin < 15  # an upload tried to its end takes a minute
        assert store.updates() == [3, 4]
        _until(lambda: "are uploaded later" in caplog.text)
        assert str(store.folder) in caplog.text
    finally:
        s3_server.start()
    checkpoints.finish()
    checkpoints.close()
    assert RemoteCheckpoints(store, run).updates() == [3, 4]
    assert "answers again after" in caplog.text
    assert caplog.text.count("are uploaded later") == 1


def test_what_stayed_behind_is_known_and_uploaded_later(
    tmp_path: Path, run: Location, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(checkpoint_writer, "LAST_UPLOAD_S", 0.5)
    store = CheckpointStore(tmp_path, Retention(interval=1))
    checkpoints = Checkpoints(store, run)
    put = run.filesystem.put_file

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("not now")

    monkeypatch.setattr(type(run.filesystem), "put_file", away)
    checkpoints.save(1, tensors(1), {})
    checkpoints.finish()
    checkpoints.close()
    assert "doctor --mend" in caplog.text and str(store.folder) in caplog.text
    remote = RemoteCheckpoints(store, run)
    assert remote.missing() == [1]
    monkeypatch.setattr(type(run.filesystem), "put_file", lambda self, *a, **k: put(*a, **k))
    assert remote.sync() == [1] and remote.missing() == []


def test_a_run_whose_checkpoints_cannot_be_seen_does_not_start_from_nothing(
    tmp_path: Path, run: Location, monkeypatch: Any, caplog: Any
) -> None:
    checkpoints = Checkpoints(CheckpointStore(tmp_path), run)

    def away(*_: Any, **__: Any) -> None:
        raise StorageAwayError("memory://x does not answer")

    monkeypatch.setattr(Location, "listing", away)
    with pytest.raises(StorageAwayError, match="does not start from nothing"):
        checkpoints.available()
    checkpoints.store.save(7, tensors(7), {})
    assert checkpoints.available() == {7}
    assert "going on from the checkpoints in" in caplog.text


def test_an_exported_model_travels_whole(tmp_path: Path, run: Location) -> None:
    model = tmp_path / "model"
    (model / "deep").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "deep" / "dict.txt").write_text("a 1")
    upload_model(model, run)
    assert fetch_model(run, tmp_path / "elsewhere" / "model").is_dir()
    assert (tmp_path / "elsewhere" / "model" / "deep" / "dict.txt").read_text() == "a 1"
    run.child("model").write("deep/dict.txt", b"b 1")
    with pytest.raises(CheckpointError, match=r"dict\.txt"):
        fetch_model(run, tmp_path / "third" / "model")
    assert not (tmp_path / "third" / "model").exists()


def test_remains_of_dead_writers_go(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, tensors(1), {})
    for owner in ("999999999-aaaa", f"{__import__('os').getpid()}-older"):
        (store.folder / f".update_00000009.{owner}").mkdir()
    store.prune()
    assert not list(store.folder.glob(".update_*"))


def test_storage_is_tried_before_anything_starts(home: Path, monkeypatch: Any, caplog: Any) -> None:
    run_storage.check_storage(None, new=True)
    run_storage.check_storage("/a/folder", new=True)
    run_storage.check_storage(f"memory://{home.name}", new=True)

    def away(*_: Any) -> None:
        raise StorageAwayError("does not answer")

    monkeypatch.setattr(run_storage, "check_writable", away)
    with pytest.raises(ConfigError, match=r"platform\.storage = 'memory://x'\s+does not answer"):
        run_storage.check_storage("memory://x", new=True)
    run_storage.check_storage("memory://x", new=False)
    assert "stay on this machine" in caplog.text


def test_the_recipe_is_known_on_another_machine(tmp_path: Path, tiny_recipe: dict[str, Any]) -> None:
    from d2v_platform.recipe.schema import Recipe

    recipe = Recipe.from_dict(tiny_recipe)
    remote = f"memory://{tmp_path.name}/runs/abc"
    (tmp_path / "here").mkdir()
    run_storage.keep_start(tmp_path / "here", remote, recipe, "abc")
    assert run_storage.started_with(tmp_path / "elsewhere", remote) == recipe.to_dict()
    assert run_storage.started_with(tmp_path / "elsewhere", None) is None
    assert run_storage.data_started_with(tmp_path / "elsewhere", remote) == "abc"
    assert run_storage.data_started_with(tmp_path / "elsewhere", None) is None
    assert run_storage.remote_of(tmp_path / "here") == remote


def _until(done: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
