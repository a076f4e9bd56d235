"""One sweep on a real cluster: a trial's process killed, later one seed more; nothing twice or missing."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from d2v_platform.home import home_folder
from d2v_platform.recipe.sweep_definition import load_sweep
from d2v_platform.sweeps.engine import SweepResult, run_sweep
from d2v_platform.tracking.tracker import Tracker

NAME = "killed-and-extended"
SETTINGS = [
    "grid.task=[cola,rte]", "grid.lr=[1e-3,4e-3]", "max_updates=16", "fixed.common.log_interval=4",
    "fixed.checkpoint.save_interval_updates=4", "fixed.checkpoint.keep_interval_updates=1",
    "register.alias=null", "max_concurrent=2",
]  # fmt: skip


class Killer(threading.Thread):
    """Kills the process of the first trial that has a checkpoint."""

    def __init__(self, trials: Path) -> None:
        super().__init__(daemon=True)
        self.trials, self.killed, self.given_up = trials, "", threading.Event()

    def run(self) -> None:
        while not self.given_up.wait(0.005):
            for manifest in self.trials.glob("*/checkpoints/update_*/manifest.json"):
                trial = manifest.parents[2]
                pid = json.loads((trial / "workers.jsonl").read_text().splitlines()[-1])["pid"]
                self.killed = trial.name
                os.kill(pid, signal.SIGKILL)
                return


def sweep(glue: Any, *more: str) -> SweepResult:
    given = [f"model.model_path={glue.model}", f"task.data={glue.raw}", *SETTINGS, *more]
    return run_sweep(load_sweep("glue", given), name=NAME, quiet=True)


@pytest.mark.slow  # a killed worker of a Ray run is among the others
@pytest.mark.timeout(600)  # some 40 s on a free machine: about eight processes are started
def test_a_killed_trial_goes_on_and_an_extended_sweep_repeats_nothing(
    ray_cluster: Any, tiny_glue: Any
) -> None:
    root = home_folder("sweeps") / NAME
    killer = Killer(root / "trials")
    killer.start()
    first = sweep(tiny_glue, "grid.seed=[1]", "register.name=null", "test_files=false")
    killer.given_up.set()
    assert not first.failed
    attempts = {path.parent.name: json.loads(path.read_text())["attempts"] for path in _results(root)}
    assert killer.killed and attempts[killer.killed] == 2 and sum(attempts.values()) == 5
    assert "resumed at update" in (root / "trials" / killer.killed / "train.log").read_text()
    _check_runs(first, trials=4)
    stamps = {path: path.stat().st_mtime_ns for path in _results(root)}

    second = sweep(tiny_glue, "grid.seed=[1,2]", "register.name=tiny-{task}")
    assert second.parent_run_id == first.parent_run_id
    assert second.timing is not None and second.timing.trials == 4
    # Only a winner whose weights went with the losers of the first launch may be trained again.
    again = {path.parent.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert again <= {winner.trial for winner in second.winners}
    _check_runs(second, trials=8)
    _check_result(second)
    _check_no_actor_is_left(ray_cluster.address)


def _results(root: Path) -> list[Path]:
    return sorted(root.glob("trials/*/result.json"))


def _check_runs(result: SweepResult, trials: int) -> None:
    """Every trial is one finished child, and every step of every metric was logged once."""
    with Tracker() as tracker:
        client = tracker.client
        parent = client.get_run(result.parent_run_id)
        assert parent.info.status == "FINISHED"
        children = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        )
        assert len(children) == trials == len({child.info.run_name for child in children})
        for child in children:
            assert (child.info.status, child.data.tags["status"]) == ("FINISHED", "finished")
            assert {"task", "lr", "seed"} <= child.data.tags.keys()
            assert child.data.params["grid.task"] == child.data.tags["task"]
            steps = [point.step for point in client.get_metric_history(child.info.run_id, "train/loss")]
            assert steps == [4, 8, 12, 16]
            history = client.get_metric_history(child.info.run_id, "valid/accuracy")
            assert max(Counter(point.step for point in history).values()) == 1
        files = {item.path for item in client.list_artifacts(parent.info.run_id)}
        assert {"trials.csv", "summary.csv", "results.md"} <= files
        assert ("glue_submission.zip" in files) == (trials == 8)
        assert any(key.startswith("best/cola/") for key in parent.data.metrics)


def _check_result(result: SweepResult) -> None:
    assert len(result.rows) == 4
    assert all(list(row.values) == [1, 2] and None not in row.values.values() for row in result.rows)
    assert {winner.task for winner in result.winners} == {"cola", "rte"}
    for winner in result.winners:
        assert winner.model_uri is not None and winner.model_uri.startswith(f"models:/tiny-{winner.task}/")
        assert (winner.model_folder / "model.safetensors").is_file()
        assert winner.floor is not None
    weights = sorted(path.parents[1].name for path in result.folder.glob("trials/*/model/model.safetensors"))
    assert weights == sorted(winner.trial for winner in result.winners)
    assert not list(result.folder.glob("trials/*/checkpoints"))
    with result.tables["trials.csv"].open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished"] * 8
    with zipfile.ZipFile(result.tables["glue_submission.zip"]) as archive:
        assert sorted(archive.namelist()) == ["CoLA.tsv", "RTE.tsv"]
        lines = archive.read("RTE.tsv").decode().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 11
    assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "not_entailment"}


def _check_no_actor_is_left(address: str) -> None:
    from ray.util.state import list_actors

    deadline = time.monotonic() + 20
    while alive := [a for a in list_actors(address, [("state", "=", "ALIVE")]) if _ours(a)]:
        if time.monotonic() > deadline:
            pytest.fail(f"actors are left: {alive}")
        time.sleep(0.5)


def _ours(actor: Any) -> bool:
    return any(
        part in str(actor.class_name) for part in ("TrackerService", "run_trial", "Implicit", "Trainable")
    )
