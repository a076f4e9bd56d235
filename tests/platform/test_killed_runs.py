"""Runs killed at every awkward moment: the weights of an undisturbed run, and every metric step once.

Launches are real (recipe, MLflow on SQLite, checkpoints, export), in local mode; on Ray: ``tests/cluster``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from d2v_platform.recipe.schema import Recipe
from d2v_platform.storage.locations import open_location
from d2v_platform.tracking.tracker import Tracker
from d2v_platform.training.checkpoint import CheckpointStore
from d2v_platform.training.job import Job
from d2v_platform.training.loop_state import Worker
from d2v_platform.training.train_loop import train
from tests.platform.recorder import Recorder

SCRIPT = Path(__file__).with_name("forked_runs.py")
UPDATES = 20


class Runs:
    """Launches of the tiny recipe under one home."""

    def __init__(self, home: Path, folder: Path, recipe: dict[str, Any]) -> None:
        self.home, self.folder, self.recipe = home, folder, recipe
        self.storage: Path | None = None  # platform.storage, where that is a folder
        folder.mkdir(exist_ok=True)
        text = "# @package _group_\n" + yaml.safe_dump(recipe)
        (folder / "killed.yaml").write_text(text, encoding="utf-8")

    def __call__(self, name: str, kills: list[dict[str, Any]], *overrides: str, **more: Any) -> list[int]:
        """Exit statuses of the launches that were killed, and of the last one."""
        order = {"folder": str(self.folder), "name": "killed", "kills": kills, "log": str(self.log(name)),
                 "overrides": [f"platform.run_name={name}", *overrides], **more}  # fmt: skip
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(order))
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(file)], env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, text=True, timeout=850, check=False,
        )  # fmt: skip
        assert done.returncode == 0, self.log(name).read_text()[-3000:]
        return json.loads(done.stdout)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def run_folder(self, name: str) -> Path:
        return (self.storage or self.home / "runs") / self.find(name).info.run_id

    def find(self, name: str) -> Any:
        with Tracker(home=self.home) as tracker:
            found = tracker.find_run("kills", name)
            assert found is not None
            return tracker.client.get_run(found.run_id)

    def assert_undisturbed(self, name: str, straight: Straight) -> None:
        """Finished, with the weights of an undisturbed run and every point of its metrics once."""
        run = self.find(name)
        assert run.info.status == "FINISHED"
        found = weights(self.run_folder(name) / "model")
        assert found.keys() == straight.weights.keys()
        assert all(torch.equal(found[key], straight.weights[key]) for key in found)
        with Tracker(home=self.home) as tracker:
            for key in ("train/loss", "valid/loss"):
                points = tracker.client.get_metric_history(run.info.run_id, key)
                assert sorted((p.step, p.value) for p in points) == sorted(straight.points[key].items())


def weights(model: Path) -> dict[str, torch.Tensor]:
    parts = [load_file(model / f"{part}.safetensors") for part in ("model", "teacher")]
    return {f"{n}.{key}": value for n, part in enumerate(parts) for key, value in part.items()}


@dataclass(frozen=True)
class Straight:
    """What an undisturbed run ends with."""

    weights: dict[str, torch.Tensor]
    points: dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def recipe(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    made = json.loads(json.dumps(tiny_recipe)) | {"platform": {"num_workers": 0, "experiment": "kills"}}
    made["dataset"] |= {"disable_validation": False, "validate_interval_updates": 5, "batch_size_valid": 8}
    return made


@pytest.fixture(scope="module")
def straight(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Straight:
    folder, recorder = tmp_path_factory.mktemp("straight"), Recorder()
    train(Job(Recipe.from_dict(recipe), folder), recorder, Worker(threads=1))
    assert list(recorder.points["train/loss"]) == list(range(1, UPDATES + 1))
    return Straight(weights(folder / "model"), recorder.points)


@pytest.fixture
def runs(mlflow_home: Path, tmp_path: Path, recipe: dict[str, Any]) -> Runs:
    return Runs(mlflow_home, tmp_path / "recipes", recipe)


KILLED = -9


def _awkward(*more: dict[str, Any]) -> list[dict[str, Any]]:
    steps = random.Random(int.from_bytes(os.urandom(4)))
    return [
        {"at": "in_write", "update": 5},  # nothing is whole yet
        {"at": "in_backward", "update": steps.randint(6, 9)},
        *more,
        {"at": "in_prune", "update": 1},  # nothing is deleted before update 15 is whole
        {"at": "in_backward", "update": steps.randint(16, 19)},
    ]


def _kill_and_compare(runs: Runs, straight: Straight, kills: list[dict[str, Any]]) -> None:
    assert runs("killed", kills) == [KILLED] * len(kills) + [0], kills
    runs.assert_undisturbed("killed", straight)
    log = runs.log("killed").read_text()
    assert log.count("closed the run killed of a process that died (KILLED") == len(kills)
    assert log.count("resumed at update") >= 3
    store = CheckpointStore(runs.run_folder("killed"))
    assert not list(store.folder.glob(".update_*"))
    assert store.latest() is not None


@pytest.mark.timeout(900)  # some 20 s on a free machine
def test_a_run_killed_at_awkward_moments_ends_as_if_nothing_had_happened(
    runs: Runs, straight: Straight
) -> None:
    _kill_and_compare(runs, straight, _awkward())


@pytest.mark.timeout(300)  # some 8 s on a free machine
def test_ctrl_c_and_sigterm_save_at_the_next_update(runs: Runs, straight: Straight) -> None:
    """Between the recipe's checkpoints, in the middle of an interval of the log; nothing extra is logged."""
    for at, update, code in (("sigint", 7, 130), ("sigterm", 13, 143)):
        kill = {"at": at, "update": update - 1}
        assert runs("stopped", [kill], finish=False) == [code]
        assert runs.find("stopped").info.status == "KILLED"
        assert CheckpointStore(runs.run_folder("stopped")).updates()[-1] == update
        log = runs.log("stopped").read_text()
        assert log.count(f"stopped at update {update}; a checkpoint of it is saved\n") == 1
        (last,) = [line for line in log.splitlines()[-2:] if "to resume it" in line]
        assert last.startswith("interrupted; to resume it: d2v train ")
        assert last.endswith("platform.run_name=stopped") and "Traceback" not in log
    assert runs("stopped", []) == [0]
    runs.assert_undisturbed("stopped", straight)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_killed_at_many_more_moments(runs: Runs, straight: Straight) -> None:
    more = [
        {"at": "before_update", "update": 11},
        {"at": "before_publish", "update": 15},
        {"at": "in_write", "update": 15},
    ]
    kills = [{"at": "before_update", "update": 1}, *_awkward(*more), {"at": "at_end", "update": UPDATES}]
    _kill_and_compare(runs, straight, kills)


@pytest.mark.slow
@pytest.mark.timeout(900)  # some 20 s on a free machine
def test_a_run_killed_in_an_upload_goes_on_on_another_machine(
    runs: Runs,
    straight: Straight,
    s3_bucket: str,
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = open_location(f"{s3_bucket}/text")
    for file in sorted(tiny_text.iterdir()):
        data.upload(file, file.name)
    at_s3 = [f"platform.storage={s3_bucket}/runs", f"task.data={s3_bucket}/text"]
    assert runs("moved", [{"at": "in_upload", "update": 10}], *at_s3, finish=False) == [KILLED]
    run_id = runs.find("moved").info.run_id
    there = open_location(f"{s3_bucket}/runs/{run_id}")
    cut_off = [name for name in there.listing() if "update_00000010" in name]
    assert len(cut_off) == 1

    # The machine is lost: the other one shares MLflow and the bucket, and has nothing else.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{runs.home / 'mlflow' / 'mlflow.db'}")
    monkeypatch.setenv("D2V_HOME", str(tmp_path / "other"))
    other = Runs(tmp_path / "other", tmp_path / "other_recipes", runs.recipe)
    assert other("moved", [], *at_s3, "optimization.clip_norm=2") == [2]
    assert "optimization.clip_norm = 2.0" in other.log("moved").read_text()
    assert other("moved", [], *at_s3) == [0]
    assert "resumed at update 5" in other.log("moved").read_text()
    other.assert_undisturbed("moved", straight)

    files = there.listing()
    assert {"recipe.json", "model/manifest.json", "checkpoints/best.json"} <= files.keys()
    assert f"checkpoints/update_{UPDATES:08d}/manifest.json" in files
    folders = {name.split("/")[1] for name in files if name.startswith("checkpoints/update")}
    assert all(f"checkpoints/{folder}/manifest.json" in files for folder in folders)


@pytest.mark.slow
@pytest.mark.timeout(900)  # some 20 s on a free machine
def test_a_full_disk_names_the_file_and_keeps_the_last_checkpoint(
    runs: Runs, straight: Straight, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs; test_checkpoints limits the size of a file instead")
    try:
        kills = [{"at": "before_update", "update": 7}, {"fill": str(small), "leave": 60_000}]
        statuses = runs("full", kills, f"platform.storage={small}")
        assert statuses == [KILLED, 2, 0], runs.log("full").read_text()
        said = runs.log("full").read_text()
        where = small / runs.find("full").info.run_id / "checkpoints"
        assert f"error: {where}/update_00000010: cannot write the checkpoint of update 10" in said
        assert "No space left on device" in said and "that of update 5 is whole" in said
        assert said.count("resumed at update 5") == 2
        assert "Traceback" not in said
        runs.storage = small
        runs.assert_undisturbed("full", straight)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)
