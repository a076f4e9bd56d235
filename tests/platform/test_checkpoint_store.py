"""Which checkpoints stay, what is whole, and what a copy at a URI must have: rule by rule."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_platform.recipe.groups import CheckpointOptions as Rules
from d2v_platform.recipe.schema import Recipe
from d2v_platform.storage.locations import Location, StorageAwayError, StorageError, open_location
from d2v_platform.training import remote_checkpoints, run_storage
from d2v_platform.training.checkpoint import (
    CheckpointStore,
    Merit,
    Retention,
    manifest_entry,
    update_of,
    verify,
)
from d2v_platform.training.checkpoint_writer import Checkpoints, Uploader
from d2v_platform.training.remote_checkpoints import RemoteCheckpoints, copy_folder, fetch_model, upload_model
from data2vec.errors import CheckpointError, ConfigError
from tests.platform.toy_task import toy_recipe


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    number = float(value)
    return {"model": {"w": torch.full((4,), number)}, "optimizer": {"0.step": torch.tensor(number)}}


@pytest.fixture
def run(tmp_path: Path) -> Location:
    return open_location(f"memory://{tmp_path.name}/run")


# ---- retention --------------------------------------------------------------------------------------------

# update -> (at the end of an epoch, metric)
HISTORY = {1: (False, 5.0), 2: (True, 3.0), 3: (False, None), 4: (True, 1.0), 5: (False, 2.0),
           6: (True, 4.0), 7: (False, 2.5)}  # fmt: skip
MANIFESTS = {update: {"epoch_end": end, "metric": metric} for update, (end, metric) in HISTORY.items()}


@pytest.mark.parametrize(
    ("retention", "best", "wanted"),
    [
        (Retention(), None, {1, 2, 3, 4, 5, 6, 7}),
        (Retention(interval=0, epochs=0), None, {7}),
        (Retention(interval=0, epochs=0), 1, {1, 7}),
        (Retention(interval=2, epochs=0), None, {5, 7}),
        (Retention(interval=3, epochs=1), None, {3, 5, 6, 7}),
        (Retention(interval=0, epochs=2), None, {4, 6, 7}),
        (Retention(interval=9, epochs=0), None, {1, 3, 5, 7}),
        (Retention(interval=0, epochs=-1), None, {2, 4, 6, 7}),
        (Retention(interval=-1, epochs=0), None, {1, 3, 5, 7}),
        (Retention(interval=0, epochs=0, best=2), None, {4, 5, 7}),
        (Retention(interval=0, epochs=0, best=3, maximize=True), None, {1, 6, 2, 7}),
        (Retention(interval=0, epochs=0, best=9), None, {1, 2, 4, 5, 6, 7}),
    ],
)
def test_what_retention_keeps(retention: Retention, best: int | None, wanted: set[int]) -> None:
    assert retention.kept(MANIFESTS, best) == wanted
    assert retention.kept({}, None) == set()


def test_retention_follows_the_recipes_fields() -> None:
    rules = Rules(keep_interval_updates=1, keep_last_epochs=2, keep_best_checkpoints=3)
    assert Retention.of(rules) == Retention(interval=1, epochs=2, best=3, maximize=False)
    rules = Rules(no_epoch_checkpoints=True, keep_last_epochs=2, maximize_best_checkpoint_metric=True)
    assert Retention.of(rules) == Retention(interval=-1, epochs=0, best=-1, maximize=True)


def test_a_store_prunes_by_its_retention_and_keeps_what_is_being_copied(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, Retention(interval=1, epochs=1, best=1, maximize=True))
    with store.pinned(1) as folder:
        for update, (end, metric) in HISTORY.items():
            store.save(update, tensors(update), {}, Merit(epoch_end=end, metric=metric, best=update == 4))
        assert store.updates() == [1, 4, 6, 7] and verify(folder) is None
    store.prune()
    assert store.updates() == [1, 4, 6, 7], "1 has the largest metric"
    store.save(8, tensors(8), {}, Merit(metric=9.0))
    assert store.updates() == [4, 6, 8]
    assert store.manifests()[8] == {
        "update": 8, "epoch_end": False, "between": False, "metric": 9.0,
        "files": store.manifests()[8]["files"],
    }  # fmt: skip
    assert store.best_update() == 4
    shutil.rmtree(store.folder / "update_00000004")
    assert store.best_update() is None, "it was marked and is gone"
    beside = store.beside(9)
    beside.mkdir()
    store.prune()
    assert beside.is_dir(), "this process is making it"


def test_a_checkpoint_is_deleted_manifest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, Retention(interval=1))
    store.save(1, tensors(1), {})
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before the rest is gone
    store.save(2, tensors(2), {})
    assert (store.folder / "update_00000001" / "model.safetensors").is_file()
    assert store.updates() == [2]


# ---- what is whole ----------------------------------------------------------------------------------------


def test_a_checkpoint_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        folder = CheckpointStore(tmp_path).save(1, tensors(1.0), {})
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    turned = torch.arange(6.0).view(2, 3).T  # not contiguous
    store.save(3, {"model": {"w": turned}, "optimizer": {}}, {"n": [1, None, "ü"]})
    store.save(12, tensors(12), {"n": 12})
    store.save(12, tensors(13), {"n": 13})  # a resumed run saves an update again
    assert store.updates() == [3, 12]
    found = store.load(3)
    assert torch.equal(found.tensors["model"]["w"], turned) and found.tensors["optimizer"] == {}
    assert (found.update, found.state, found.folder.name) == (3, {"n": [1, None, "ü"]}, "update_00000003")
    latest = store.latest()
    assert latest is not None and (latest.update, latest.state) == (12, {"n": 13})


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_every_file_is_verified(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path)
    for update in (1, 2):
        store.save(update, tensors(update), {"n": update})
    path = store.folder / "update_00000002" / name
    whole = path.read_bytes()
    for damaged, words in (
        (whole[:-1], f"{name} has {len(whole) - 1} bytes, the manifest says {len(whole)}"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), f"{name} does not match its sha256"),
        (None, f"{name} is missing"),
    ):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=words):
            store.load(2)
        latest = store.latest()
        assert latest is not None and latest.update == 1
        assert words in caplog.text and "using an older checkpoint" in caplog.text
    (store.folder / "update_00000002" / "manifest.json").unlink()
    assert store.updates() == [1]
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing or unreadable"):
        store.load(2)
    assert CheckpointStore(tmp_path / "nothing").latest() is None


def test_names_of_checkpoints() -> None:
    names = ("update_00000007", "update_123456789", "update_7", ".update_00000007", "update_00000007x")
    assert [update_of(name) for name in names] == [7, 123456789, None, None, None]


# ---- the copy at a URI ------------------------------------------------------------------------------------


def test_an_upload_that_arrived_short_is_no_checkpoint(
    tmp_path: Path, run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, tensors(1), {})
    upload = Location.upload

    def short(self: Location, file: Path, name: str, patience: Any = None) -> None:
        if name == "optimizer.safetensors":
            self.write(name, file.read_bytes()[:-1], patience)
        else:
            upload(self, file, name, patience)

    monkeypatch.setattr(Location, "upload", short)
    size = (store.folder / "update_00000001" / "optimizer.safetensors").stat().st_size
    with pytest.raises(StorageError, match=rf"optimizer\.safetensors has {size - 1} bytes .* not {size}"):
        RemoteCheckpoints(store, run).sync()
    assert RemoteCheckpoints(store, run).updates() == []
    monkeypatch.setattr(Location, "upload", upload)
    assert RemoteCheckpoints(store, run).sync() == [1]
    assert sorted(run.child("checkpoints", "update_00000001").listing()) == [
        "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    monkeypatch.setattr(Location, "upload", lambda *_: None)
    with pytest.raises(StorageError, match="has None bytes"):
        copy_folder(store.folder / "update_00000001", run.child("x"), ["state.json"], None)


def test_a_copy_follows_what_retention_keeps_of_both_sides(tmp_path: Path, run: Location) -> None:
    first = CheckpointStore(tmp_path / "a", Retention(interval=1, epochs=1, best=1))
    first.save(1, tensors(1), {}, Merit(metric=0.5, best=True))
    first.save(2, tensors(2), {}, Merit(metric=3.0, epoch_end=True))
    remote = RemoteCheckpoints(first, run)
    assert remote.missing() == [1, 2]
    assert remote.sync() == [2, 1], "the newest first"
    assert remote.missing() == [] and remote.sync() == []
    assert json.loads(run.child("checkpoints").read("best.json")) == {"update": 1}
    # Another machine goes on with nothing; what is kept of both sides stays there.
    second = CheckpointStore(tmp_path / "b", first.retention)
    second.save(5, tensors(5), {}, Merit(metric=4.0))
    other = RemoteCheckpoints(second, run)
    assert other.missing() == [5]
    assert other.sync() == [5] and other.updates() == [1, 2, 5]
    assert RemoteCheckpoints(second, run).fetch(2).name == "update_00000002"
    assert second.load(2).tensors["model"]["w"].eq(2).all()
    second.save(6, tensors(6), {}, Merit(metric=0.1, best=True))
    assert other.sync() == [6] and other.updates() == [2, 6]
    assert json.loads(run.child("checkpoints").read("best.json")) == {"update": 6}
    with pytest.raises(CheckpointError, match=r"update_00000009.*missing"):
        other.fetch(9)
    assert not list(second.folder.glob(".update*"))


def test_the_best_may_be_marked_after_its_copy_and_the_rest_is_not_missed(
    tmp_path: Path, run: Location
) -> None:
    store = CheckpointStore(tmp_path)
    for update in (1, 2):
        store.save(update, tensors(update), {})
    RemoteCheckpoints(store, run).sync()
    store.mark_best(1)
    assert RemoteCheckpoints(store, run).sync() == []
    assert json.loads(run.child("checkpoints").read("best.json")) == {"update": 1}
    narrow = CheckpointStore(tmp_path, Retention(interval=1))
    assert RemoteCheckpoints(narrow, run.child("other")).missing() == [1, 2], "the best and the newest"
    store.mark_best(2)
    assert RemoteCheckpoints(narrow, run.child("other")).missing() == [2]


def test_a_checkpoint_that_is_pruned_before_its_copy_is_left_out(
    tmp_path: Path, run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, honest = CheckpointStore(tmp_path), CheckpointStore.pinned
    store.save(1, tensors(1), {})

    def too_late(self: CheckpointStore, update: int) -> Any:
        shutil.rmtree(self.folder / "update_00000001")
        return honest(self, update)

    monkeypatch.setattr(CheckpointStore, "pinned", too_late)
    assert RemoteCheckpoints(store, run).sync() == [] and RemoteCheckpoints(store, run).updates() == []


def test_what_the_other_side_calls_best_is_kept_by_a_machine_that_does_not_know(
    tmp_path: Path, run: Location
) -> None:
    first = CheckpointStore(tmp_path / "a", Retention(interval=1))
    first.save(1, tensors(1), {}, Merit(best=True))
    RemoteCheckpoints(first, run).sync()
    second = CheckpointStore(tmp_path / "b", Retention(interval=1))
    second.save(2, tensors(2), {})
    second.save(3, tensors(3), {})
    assert RemoteCheckpoints(second, run).sync() == [3]
    assert RemoteCheckpoints(second, run).updates() == [1, 3]


def test_a_checkpoint_is_taken_from_whichever_side_has_it_whole(tmp_path: Path, run: Location) -> None:
    first = CheckpointStore(tmp_path / "a")
    first.save(1, tensors(1), {})
    RemoteCheckpoints(first, run).sync()
    here = Checkpoints(CheckpointStore(tmp_path / "b"), run)
    here.store.save(2, tensors(2), {})
    assert here.available() == {1, 2}
    assert here.load(2).tensors["model"]["w"].eq(2).all()
    assert here.load(1).tensors["model"]["w"].eq(1).all() and here.store.updates() == [1, 2]
    assert here.load_or_warn(3) is None
    assert Checkpoints(CheckpointStore(tmp_path / "b")).available() == {1, 2}


def test_a_model_is_not_there_while_it_is_being_replaced(
    tmp_path: Path, run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    (model / "deep").mkdir(parents=True)
    (model / "deep" / "dict.txt").write_text("a 1")
    upload_model(model, run)
    wanted = {"files": {"deep/dict.txt": manifest_entry(model / "deep" / "dict.txt")}}
    assert json.loads(run.child("model").read("manifest.json")) == wanted

    def away(*_: Any) -> None:
        raise StorageAwayError("gone")

    monkeypatch.setattr(Location, "upload", away)
    with pytest.raises(StorageAwayError):
        upload_model(model, run)
    with pytest.raises(CheckpointError, match="holds no complete model"):
        fetch_model(run, tmp_path / "fetched")
    monkeypatch.undo()
    upload_model(model, run)
    (tmp_path / "fetched").mkdir()
    (tmp_path / "fetched" / "old").write_text("of an earlier attempt")
    there = fetch_model(run, tmp_path / "fetched")
    assert sorted(p.name for p in there.rglob("*")) == ["deep", "dict.txt"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# ---- the writer -------------------------------------------------------------------------------------------


def test_a_save_hands_everything_on_and_is_timed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(CheckpointStore(tmp_path), wait=True)
    checkpoints.save(4, tensors(4), {"n": 4}, Merit(epoch_end=True, metric=0.25, best=True))
    assert checkpoints.store.updates() == [4] and checkpoints.store.best_update() == 4
    manifest = checkpoints.store.manifests()[4]
    assert (manifest["epoch_end"], manifest["metric"]) == (True, 0.25)
    (took,) = checkpoints.times
    assert (took.update, took.file_bytes) == (4, 4 * 4 + 4) and took.thread_s > 0
    owned = torch.zeros(4)
    checkpoints.save(5, {"model": {"w": owned}}, {}, owned=True)
    assert checkpoints.store.best_update() == 4
    assert checkpoints.store.manifests()[5]["metric"] is None
    checkpoints.close()
    checkpoints.save(6, tensors(6), {})
    checkpoints.close()
    assert checkpoints.store.updates() == [4, 5, 6]


def test_the_exported_model_goes_along_when_everything_is_uploaded(tmp_path: Path, run: Location) -> None:
    checkpoints = Checkpoints(CheckpointStore(tmp_path / "run"), run)
    checkpoints.save(1, tensors(1), {})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    checkpoints.finish(tmp_path / "model")
    checkpoints.close()
    assert "config.json" in run.child("model").listing()
    assert RemoteCheckpoints(checkpoints.store, run).updates() == [1]


def test_an_absent_place_is_asked_again_after_growing_pauses(
    tmp_path: Path, run: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uploader = Uploader(RemoteCheckpoints(CheckpointStore(tmp_path), run))
    answers, pauses = iter([False] * 7 + [True, False, False]), list[float]()
    monkeypatch.setattr(uploader, "_attempt", lambda: next(answers))

    def wait_for(ready: Any, timeout: float | None = None) -> bool:
        if timeout is not None:
            pauses.append(timeout)
            uploader._stopping = len(pauses) == 9
        uploader._wanted = uploader._done + 1  # there is always something new
        return True

    monkeypatch.setattr(uploader._changed, "wait_for", wait_for)
    uploader._run()
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 2, 4]


# ---- a run's folders --------------------------------------------------------------------------------------


def test_where_a_runs_state_lies(home: Path, tmp_path: Path) -> None:
    assert run_storage.run_root(None) == run_storage.run_root("s3://bucket/x") == home / "runs"
    assert run_storage.run_root(str(tmp_path / "disk")) == tmp_path / "disk"
    assert run_storage.remote_folder("s3://bucket/x/", "abc") == "s3://bucket/x/abc"
    assert run_storage.remote_folder(str(tmp_path), "abc") is None
    assert run_storage.remote_folder(None, "abc") is None


def test_what_a_run_was_started_with_is_kept_without_secrets(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(toy_recipe(platform={"tracking_uri": "https://me:hidden@host/"}))
    remote = f"memory://{tmp_path.name}/kept"
    run_storage.keep_start(tmp_path, None, recipe, None)
    assert run_storage.data_started_with(tmp_path, None) is None and run_storage.remote_of(tmp_path) is None
    run_storage.keep_start(tmp_path, remote, recipe, "print")
    for place in (tmp_path, tmp_path / "elsewhere"):
        found = run_storage.started_with(place, remote)
        assert found is not None and found["optimization"] == recipe.to_dict()["optimization"]
        assert "hidden" not in json.dumps(found)
        assert run_storage.data_started_with(place, remote) == "print"
    # What lies here is asked first.
    (tmp_path / "recipe.json").write_text('{"here": 1}')
    assert run_storage.started_with(tmp_path, remote) == {"here": 1}
    assert run_storage.remote_of(tmp_path) == remote


def test_a_refused_storage_stops_old_runs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise StorageError("access denied")

    monkeypatch.setattr(run_storage, "check_writable", refused)
    for new in (True, False):
        with pytest.raises(ConfigError, match="access denied"):
            run_storage.check_storage("memory://x", new=new)
    run_storage.check_storage("/a/folder", new=True)


def test_the_driver_fetches_the_model_only_where_it_is_not(
    tmp_path: Path, run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    upload_model(source, run)
    run_storage.bring_model(tmp_path / "driver", run.uri)
    assert (tmp_path / "driver" / "model" / "config.json").is_file()
    monkeypatch.setattr(run_storage, "fetch_model", lambda *_: pytest.fail("it is here already"))
    run_storage.bring_model(tmp_path / "driver", run.uri)
    run_storage.bring_model(tmp_path / "elsewhere", None)


@pytest.mark.parametrize(("nodes", "remote", "wanted"), [
    (1, None, "{run}/ray"), (1, "s3://b/r", "{run}/ray"), (2, None, "{run}/ray"), (2, "s3://b/r", "b/r/ray"),
])  # fmt: skip
def test_rays_notes_lie_where_all_nodes_see_them(
    nodes: int, remote: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    alive = [{"Alive": True}] * nodes + [{"Alive": False}]
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    notes = run_storage.RayNotes.of(tmp_path, remote)
    assert notes.path == wanted.format(run=tmp_path)
    assert (notes.filesystem() is None) == (notes.at is None) == (notes.path == f"{tmp_path}/ray")
    if notes.at is None:
        (tmp_path / "ray" / "attempt").mkdir(parents=True)
        (tmp_path / "ray" / "other").mkdir()
        notes.remove("attempt")
        notes.remove("never made")
        assert [path.name for path in (tmp_path / "ray").iterdir()] == ["other"]
        notes.remove()
        assert not (tmp_path / "ray").exists() and tmp_path.is_dir()


def test_rays_notes_at_s3_go_through_our_file_system(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key of the AWS files: Ray's own client would ask another server, or none."""
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}] * 2)
    notes = run_storage.RayNotes.of(Path("/nowhere"), f"{s3_bucket}/runs/r1")
    there = pickle.loads(pickle.dumps(notes.filesystem()))  # noqa: S301 - as Ray sends it to workers
    there.create_dir(f"{notes.path}/attempt")
    with there.open_output_stream(f"{notes.path}/attempt/.marker") as file:
        file.write(b"x")
    assert open_location(f"{s3_bucket}/runs/r1").listing() == {"ray/attempt/.marker": 1}
    open_location(f"{s3_bucket}/runs/r1").write("ray/killed/.marker", b"x")
    notes.remove("attempt")
    assert open_location(f"{s3_bucket}/runs/r1").listing() == {"ray/killed/.marker": 1}
    notes.remove()
    assert open_location(f"{s3_bucket}/runs/r1").listing() == {}


def test_files_of_a_manifest_stay_inside(tmp_path: Path) -> None:
    for name in ("/etc/passwd", "a/../../b"):
        (tmp_path / "manifest.json").write_text(json.dumps({"files": {name: {}}}))
        with pytest.raises(CheckpointError, match="outside its folder"):
            remote_checkpoints._files(tmp_path / "manifest.json")
    assert os.listdir(tmp_path) == ["manifest.json"]
