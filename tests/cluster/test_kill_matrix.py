"""The rest of the kill matrix, on real Ray, a real MLflow server and a real S3 server; minutes each.

The short tests of each kind: ``test_training.py`` here (a worker; a stopped job) and ``test_sweep.py`` (a
trial); in ``tests/platform`` ``test_killed_runs.py`` (the process itself at awkward moments, in an upload, on
a full disk), ``test_checkpoints.py`` and ``test_tracking.py`` (servers that are away).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

REPO = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def until(done: Callable[[], Any], told: str, seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < deadline, told
        time.sleep(0.02)
    return found


def write_recipe(folder: Path, recipe: dict[str, Any], **groups: dict[str, Any]) -> Path:
    made = json.loads(json.dumps(recipe))
    for name, values in groups.items():
        made[name] = made.get(name, {}) | values
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_run.yaml"
    path.write_text("# @package _group_\n" + yaml.safe_dump(made), encoding="utf-8")
    return path


def launch_here(file: Path, name: str, *overrides: str) -> Any:
    from d2v_platform.recipe.compose import compose
    from d2v_platform.training.launch import launch

    return launch(compose("tiny_run", [f"platform.run_name={name}", *overrides], str(file.parent)))


def highest_step(home: Path) -> int:
    """The newest update that any run of a home has logged, sent or not."""
    highest = 0
    for path in home.glob("queue/*.db"):
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=5)) as db:
            for table in ("points", "marks"):
                found = db.execute(f"SELECT MAX(step) FROM {table} WHERE key = 'train/loss'").fetchone()[0]
                highest = max(highest, found or 0)
    return highest


def same_weights(first: Path, second: Path) -> bool:
    return all(
        torch.equal(a[key], b[key])
        for name in ("model", "teacher")
        for a, b in [[load_file(folder / "model" / f"{name}.safetensors") for folder in (first, second)]]
        for key in b
    )


def steps_of(run_id: str, uri: str | None = None) -> Counter[int]:
    from d2v_platform.tracking.tracker import Tracker

    with Tracker(uri) as tracker:
        return Counter(p.step for p in tracker.client.get_metric_history(run_id, "train/loss"))


def test_workers_killed_at_ten_random_steps(
    ray_cluster: Any, home: Path, tmp_path: Path, tiny_recipe: dict[str, Any]
) -> None:
    updates, kills = 80, 10
    limits = {"optimization": {"max_update": updates}, "platform": {"num_workers": 2, "max_failures": 12}}
    file = write_recipe(tmp_path / "recipe", tiny_recipe, **limits)
    moments = sorted(random.Random(int.from_bytes(os.urandom(4))).sample(range(1, updates - 5), kills))
    killed: list[int] = []

    def starts() -> list[dict[str, Any]]:
        files = list(home.glob("runs/*/workers.jsonl"))
        return [json.loads(line) for line in files[0].read_text().splitlines()] if files else []

    def kill() -> None:
        for moment in moments:
            until(lambda at=moment: highest_step(home) >= at, f"step {moment} never came")
            now = until(lambda: s if len(s := starts()) >= 2 * len(killed) + 2 else None, "no restart")
            victim = random.choice(now[-2:])
            os.kill(victim["pid"], signal.SIGKILL)
            killed.append(victim["rank"])

    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    disturbed = launch_here(file, "disturbed")
    watcher.join(60)
    assert len(killed) == kills, (killed, moments)
    straight = launch_here(file, "straight")
    assert same_weights(disturbed.folder, straight.folder)
    assert steps_of(disturbed.run_id) == dict.fromkeys(range(1, updates + 1), 1)


def test_the_driver_killed_at_three_random_steps(
    ray_cluster: Any, home: Path, tmp_path: Path, tiny_recipe: dict[str, Any]
) -> None:
    from d2v_platform.tracking.tracker import Tracker

    updates = 60
    file = write_recipe(
        tmp_path / "recipe", tiny_recipe, optimization={"max_update": updates}, platform={"num_workers": 2}
    )
    command = [sys.executable, "experiments/train.py", "--config-dir", str(file.parent), "--config-name",
               "tiny_run", "platform.run_name=driven"]  # fmt: skip
    environment = os.environ | {"RAY_ADDRESS": ray_cluster.address, "D2V_HOME": str(home)}
    moments = sorted(random.Random(int.from_bytes(os.urandom(4))).sample(range(1, updates - 10), 3))
    log = tmp_path / "driver.log"

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            return subprocess.Popen(command, env=environment, cwd=REPO, stdout=file, stderr=file)

    for moment in moments:
        driver = start()
        until(lambda at=moment, d=driver: highest_step(home) >= at or d.poll() is not None, log.read_text())
        assert driver.poll() is None, log.read_text()
        driver.kill()
        driver.wait()
    driver = start()
    assert driver.wait(400) == 0, log.read_text()
    assert log.read_text().count("(KILLED") == 3
    with Tracker() as tracker:
        run = tracker.find_run("data2vec", "driven")
        assert run is not None and run.status == "FINISHED"
    straight = launch_here(file, "straight")
    assert same_weights(home / "runs" / run.run_id, straight.folder)
    assert steps_of(run.run_id) == dict.fromkeys(range(1, updates + 1), 1)


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """Address of a server on SQLite, and how to start and stop it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
               "--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
               "--artifacts-destination", str(tmp_path / "artifacts")]  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
        return False

    def start() -> None:
        with (tmp_path / "mlflow.log").open("ab") as log:
            running.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        until(answers, "MLflow's server does not start", 180)

    def stop() -> None:
        os.killpg(running[-1].pid, signal.SIGKILL)
        running.pop().wait()

    start()
    yield f"http://127.0.0.1:{port}", start, stop
    while running:
        stop()


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[float]:
    """Updates that take at least so long; the list gets the time of each."""
    from d2v_platform.training.train_loop import TrainingLoop

    honest, times = TrainingLoop._update, []

    def updated(self: TrainingLoop, *arguments: Any) -> None:
        times.append(time.monotonic())
        time.sleep(seconds)
        honest(self, *arguments)

    monkeypatch.setattr(TrainingLoop, "_update", updated)
    return times


def test_mlflow_away_for_a_minute(
    home: Path,
    tmp_path: Path,
    tiny_recipe: dict[str, Any],
    mlflow_server: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, start, stop = mlflow_server
    updates = 200
    times = slowed(monkeypatch, 0.45)  # a minute and a half
    file = write_recipe(
        tmp_path / "recipe", tiny_recipe, optimization={"max_update": updates},
        platform={"num_workers": 0, "tracking_uri": uri},
    )  # fmt: skip
    away: list[float] = []

    def outage() -> None:
        until(lambda: len(times) > 20, "training never began")
        stop()
        away.append(time.monotonic())
        time.sleep(60)
        start()
        away.append(time.monotonic())

    watcher = threading.Thread(target=outage, daemon=True)
    watcher.start()
    result = launch_here(file, "patient")
    watcher.join()
    meanwhile = [t for t in times if away[0] < t < away[1]]
    assert len(meanwhile) > 20, "training stood still"
    assert max(b - a for a, b in itertools.pairwise(meanwhile)) < 15
    assert steps_of(result.run_id, uri) == dict.fromkeys(range(1, updates + 1), 1)


def test_s3_away_for_twenty_seconds(
    home: Path, tmp_path: Path, tiny_recipe: dict[str, Any], s3_bucket: str, s3_server: Any, caplog: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from d2v_platform.storage.locations import open_location
    from d2v_platform.storage.s3 import S3FileSystem

    updates = 120
    times = slowed(monkeypatch, 0.4)
    caplog.set_level(logging.INFO, "d2v_platform")
    file = write_recipe(
        tmp_path / "recipe", tiny_recipe, optimization={"max_update": updates},
        platform={"num_workers": 0, "storage": f"{s3_bucket}/runs"},
    )  # fmt: skip
    honest, cut = S3FileSystem.put_file, threading.Event()

    def put(self: S3FileSystem, lpath: Any, rpath: str, *arguments: Any, **options: Any) -> None:
        honest(self, lpath, rpath, *arguments, **options)
        if len(times) > 20 and "update_" in rpath and not cut.is_set():
            cut.set()
            s3_server.stop()  # between two files of one checkpoint
            threading.Timer(20, s3_server.start).start()

    monkeypatch.setattr(S3FileSystem, "put_file", put)
    result = launch_here(file, "patient")
    assert cut.is_set()
    assert "are uploaded later" in caplog.text and "answers again" in caplog.text
    there = open_location(f"{s3_bucket}/runs/{result.run_id}")
    files = there.listing()
    assert f"checkpoints/update_{updates:08d}/manifest.json" in files and "model/manifest.json" in files
    folders = {name.split("/")[1] for name in files if "update_" in name}
    assert all(f"checkpoints/{folder}/manifest.json" in files for folder in folders)
    assert steps_of(result.run_id) == dict.fromkeys(range(1, updates + 1), 1)


class Killer(threading.Thread):
    """Kills a trial's process, one after another, each time a new one has a checkpoint."""

    def __init__(self, trials: Path, most: int) -> None:
        super().__init__(daemon=True)
        self.trials, self.most = trials, most
        self.killed: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.01) and len(self.killed) < self.most:
            for manifest in self.trials.glob("*/checkpoints/update_*/manifest.json"):
                trial = manifest.parents[2]
                if trial.name in self.killed or (trial / "result.json").exists():
                    continue
                pid = json.loads((trial / "workers.jsonl").read_text().splitlines()[-1])["pid"]
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.killed.append(trial.name)
                break


def run_sweep_here(glue: Any, name: str, *settings: str) -> Any:
    from d2v_platform.recipe.sweep_definition import load_sweep
    from d2v_platform.sweeps.engine import run_sweep

    return run_sweep(load_sweep("glue", sweep_words(glue, *settings)), name=name, quiet=True)


def sweep_words(glue: Any, *settings: str) -> list[str]:
    return [
        f"model.model_path={glue.model}", f"task.data={glue.raw}", "fixed.common.log_interval=4",
        "fixed.checkpoint.save_interval_updates=4", "fixed.checkpoint.keep_interval_updates=1",
        "register.name=null", "register.alias=null", "test_files=false", *settings,
    ]  # fmt: skip


GRID_24 = ["grid.task=[cola,rte]", "grid.lr=[1e-3,2e-3,4e-3]", "grid.seed=[1,2,3,4]", "max_updates=12"]


def check_children(result: Any, trials: int, statuses: set[str]) -> None:
    from d2v_platform.tracking.tracker import Tracker

    with Tracker() as tracker:
        client = tracker.client
        parent = client.get_run(result.parent_run_id)
        assert parent.info.status == "FINISHED"
        children = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        )
        assert len(children) == trials == len({child.info.run_name for child in children})
        assert {child.data.tags["status"] for child in children} <= statuses
        assert {child.info.status for child in children} == {"FINISHED"}
        for child in children:
            points = client.get_metric_history(child.info.run_id, "train/loss")
            assert max(Counter(point.step for point in points).values()) == 1


def no_actor_is_left(address: str) -> None:
    from ray.util.state import list_actors

    names = ("TrackerService", "run_trial", "Implicit", "Trainable")
    until(
        lambda: (
            not [
                actor
                for actor in list_actors(address, [("state", "=", "ALIVE")])
                if any(name in str(actor.class_name) for name in names)
            ]
        ),
        "actors are left",
        60,
    )


def test_trials_killed_in_a_sweep_of_24(ray_cluster: Any, home: Path, tiny_glue: Any) -> None:
    killer = Killer(home / "sweeps" / "two-dozen" / "trials", most=6)
    killer.start()
    result = run_sweep_here(tiny_glue, "two-dozen", *GRID_24)
    killer.over.set()
    killer.join()
    assert len(killer.killed) >= 3, "the sweep was over before trials could be killed"
    assert not result.failed
    assert sum(len(row.values) for row in result.rows) == 24
    check_children(result, 24, {"finished"})
    no_actor_is_left(ray_cluster.address)
    assert result.timing is not None
    print(f"24 trials, {len(killer.killed)} killed: {result.timing.line()}")


def test_a_sweep_whose_driver_is_killed_goes_on(
    ray_cluster: Any, home: Path, tiny_glue: Any, tmp_path: Path
) -> None:
    grid = ["grid.task=[cola]", "grid.lr=[1e-3,2e-3]", "grid.seed=[1,2,3]", "max_updates=12"]
    words = sweep_words(tiny_glue, *grid, "platform.run_name=orphaned")
    environment = os.environ | {"RAY_ADDRESS": ray_cluster.address, "D2V_HOME": str(home)}
    command = [sys.executable, "experiments/glue_sweep.py", *words]
    log = tmp_path / "driver.log"
    with log.open("wb") as file:
        driver = subprocess.Popen(command, env=environment, cwd=REPO, stdout=file, stderr=file)
    results = home / "sweeps" / "orphaned" / "trials"
    until(lambda: len(list(results.glob("*/result.json"))) >= 2 or driver.poll() is not None, log.read_text())
    assert driver.poll() is None, log.read_text()
    driver.kill()
    driver.wait()
    time.sleep(3)  # Ray ends the dead driver's processes
    done = {path: path.stat().st_mtime_ns for path in results.glob("*/result.json")}
    result = run_sweep_here(
        tiny_glue,
        "orphaned",
        "grid.task=[cola]",
        "grid.lr=[1e-3,2e-3]",
        "grid.seed=[1,2,3]",
        "max_updates=12",
    )
    assert not result.failed and sum(len(row.values) for row in result.rows) == 6
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items()), "a finished trial ran again"
    check_children(result, 6, {"finished"})
    no_actor_is_left(ray_cluster.address)


def test_asha_on_two_processors(ray_cluster: Any, home: Path, tiny_glue: Any) -> None:
    grid = ["grid.task=[cola,rte]", "grid.lr=[1e-6,1e-3,4e-3]", "grid.seed=[1,2]", "max_updates=24"]
    asha = ["scheduler.name=asha", "scheduler.grace_fraction=0.25", "scheduler.reduction_factor=2",
            "fixed.dataset.validate_interval_updates=6", "max_concurrent=2"]  # fmt: skip
    result = run_sweep_here(tiny_glue, "racing", *grid, *asha)
    trials = sorted((home / "sweeps" / "racing" / "trials").glob("*/result.json"))
    statuses = Counter(json.loads(path.read_text())["status"] for path in trials)
    assert statuses["stopped"] >= 1 and statuses["finished"] >= 2 and sum(statuses.values()) == 12
    assert not result.failed
    check_children(result, 12, {"finished", "stopped"})
    no_actor_is_left(ray_cluster.address)
    stamps = {path: path.stat().st_mtime_ns for path in trials}
    again = run_sweep_here(tiny_glue, "racing", *grid, *asha)
    assert again.timing is None and again.parent_run_id == result.parent_run_id
    assert {path: path.stat().st_mtime_ns for path in trials} == stamps
