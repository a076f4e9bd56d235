"""Sweeps whose trials or driver are killed, and races on two processors; minutes each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


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


def no_actor_is_left(launches: Any, address: str) -> None:
    from ray.util.state import list_actors

    names = ("TrackerService", "run_trial", "Implicit", "Trainable")
    launches.until(
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


def test_trials_killed_in_a_sweep_of_24(ray_cluster: Any, home: Path, launches: Any, tiny_glue: Any) -> None:
    killer = Killer(home / "sweeps" / "two-dozen" / "trials", most=6)
    killer.start()
    result = run_sweep_here(tiny_glue, "two-dozen", *GRID_24)
    killer.over.set()
    killer.join()
    assert len(killer.killed) >= 3, "the sweep was over before trials could be killed"
    assert not result.failed
    assert sum(len(row.values) for row in result.rows) == 24
    check_children(result, 24, {"finished"})
    no_actor_is_left(launches, ray_cluster.address)
    assert result.timing is not None
    print(f"24 trials, {len(killer.killed)} killed: {result.timing.line()}")


def test_a_sweep_whose_driver_is_killed_goes_on(
    ray_cluster: Any, home: Path, launches: Any, tiny_glue: Any, tmp_path: Path
) -> None:
    grid = ["grid.task=[cola]", "grid.lr=[1e-3,2e-3]", "grid.seed=[1,2,3]", "max_updates=12"]
    words = sweep_words(tiny_glue, *grid, "platform.run_name=orphaned")
    environment = os.environ | {"RAY_ADDRESS": ray_cluster.address, "D2V_HOME": str(home)}
    command = [sys.executable, "experiments/glue_sweep.py", *words]
    log = tmp_path / "driver.log"
    with log.open("wb") as file:
        driver = subprocess.Popen(command, env=environment, cwd=REPO, stdout=file, stderr=file)
    results = home / "sweeps" / "orphaned" / "trials"
    launches.until(
        lambda: len(list(results.glob("*/result.json"))) >= 2 or driver.poll() is not None, log.read_text
    )
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
    no_actor_is_left(launches, ray_cluster.address)


def test_asha_on_two_processors(ray_cluster: Any, home: Path, launches: Any, tiny_glue: Any) -> None:
    grid = ["grid.task=[cola,rte]", "grid.lr=[1e-6,1e-3,4e-3]", "grid.seed=[1,2]", "max_updates=24"]
    asha = ["scheduler.name=asha", "scheduler.grace_fraction=0.25", "scheduler.reduction_factor=2",
            "fixed.dataset.validate_interval_updates=6", "max_concurrent=2"]  # fmt: skip
    result = run_sweep_here(tiny_glue, "racing", *grid, *asha)
    trials = sorted((home / "sweeps" / "racing" / "trials").glob("*/result.json"))
    statuses = Counter(json.loads(path.read_text())["status"] for path in trials)
    assert statuses["stopped"] >= 1 and statuses["finished"] >= 2 and sum(statuses.values()) == 12
    assert not result.failed
    check_children(result, 12, {"finished", "stopped"})
    no_actor_is_left(launches, ray_cluster.address)
    stamps = {path: path.stat().st_mtime_ns for path in trials}
    again = run_sweep_here(tiny_glue, "racing", *grid, *asha)
    assert again.timing is None and again.parent_run_id == result.parent_run_id
    assert {path: path.stat().st_mtime_ns for path in trials} == stamps
