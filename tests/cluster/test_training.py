"""Training on real Ray: a killed worker costs nothing but time, and jobs submitted bare work and resume."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

REPO = Path(__file__).resolve().parents[2]
# What a cluster's nodes know, and neither jobs nor logs may show.
SECRETS = {
    "AWS_ACCESS_KEY_ID": f"AKIA{secrets.token_hex(8)}",
    "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
    "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(12),
}


def write_recipe(folder: Path, recipe: dict[str, Any]) -> Path:
    path = folder / "tiny_run.yaml"
    path.write_text("# @package _group_\n" + yaml.safe_dump(recipe), encoding="utf-8")
    return path


def metric_steps(run_id: str, key: str = "train/loss") -> Counter[int]:
    from d2v_platform.tracking.tracker import Tracker

    with Tracker() as tracker:
        return Counter(point.step for point in tracker.client.get_metric_history(run_id, key))


def kill_a_worker(home: Path, after_update: int, killed: list[int]) -> None:
    """SIGKILL the worker of rank 1 once a checkpoint of ``after_update`` is there."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        for folder in home.glob("runs/*/checkpoints/update_*"):
            if int(folder.name.rpartition("_")[2]) >= after_update:
                lines = (folder.parents[1] / "workers.jsonl").read_text().splitlines()
                pid = next(entry["pid"] for entry in map(json.loads, lines) if entry["rank"] == 1)
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
        time.sleep(0.02)


@pytest.mark.timeout(900)  # some 60 s on a free machine
def test_a_killed_worker_costs_no_step_and_no_metric(
    ray_cluster: Any, home: Path, tmp_path: Path, tiny_recipe: dict[str, Any]
) -> None:
    from d2v_platform.launch import launch
    from d2v_platform.recipe.compose import compose

    recipe = json.loads(json.dumps(tiny_recipe))
    recipe["optimization"]["max_update"] = 40
    recipe["distributed_training"]["distributed_world_size"] = 2  # one micro-batch a worker
    recipe["platform"] = {"num_workers": 2}
    file = write_recipe(tmp_path, recipe)

    killed: list[int] = []
    watcher = threading.Thread(target=kill_a_worker, args=(home, 10, killed), daemon=True)
    watcher.start()
    disturbed = launch(compose("tiny_run", ["platform.run_name=disturbed"], str(file.parent)))
    watcher.join()
    assert killed, "the run ended before a worker could be killed"
    starts = Counter(
        json.loads(line)["rank"] for line in (disturbed.folder / "workers.jsonl").read_text().splitlines()
    )
    assert starts == {0: 2, 1: 2}

    # Without Ray: two summands have one sum, whoever adds them.
    alone = ["platform.run_name=straight", "platform.num_workers=0"]
    straight = launch(compose("tiny_run", alone, str(file.parent)))
    for name in ("model", "teacher"):
        first = load_file(disturbed.folder / "model" / f"{name}.safetensors")
        second = load_file(straight.folder / "model" / f"{name}.safetensors")
        assert all(torch.equal(first[key], second[key]) for key in second)
    assert metric_steps(disturbed.run_id) == dict.fromkeys(range(1, 41), 1)


@pytest.mark.slow
def test_two_workers_share_a_model(
    ray_cluster: Any, home: Path, tmp_path: Path, tiny_recipe: dict[str, Any]
) -> None:
    from d2v_platform.launch import launch
    from d2v_platform.recipe.compose import compose

    recipe = json.loads(json.dumps(tiny_recipe))
    recipe["optimization"]["max_update"] = 6
    file = write_recipe(tmp_path, recipe)

    def run(*overrides: str) -> Path:
        return launch(compose("tiny_run", list(overrides), str(file.parent))).folder

    alone = run("platform.run_name=alone", "platform.num_workers=0")
    shared = run("platform.run_name=shared", "platform.num_workers=2", "platform.sharding=full")
    for name in ("model", "teacher"):
        first, second = (load_file(folder / "model" / f"{name}.safetensors") for folder in (alone, shared))
        assert first.keys() == second.keys()
        for key in first:
            torch.testing.assert_close(second[key], first[key], rtol=2e-4, atol=2e-4)


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """``ray start --head`` as a user starts it, in its own process group; gives the client's environment."""
    folder = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))  # short: Ray's sockets allow 107 bytes of path
    bin_folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "RAY_TMPDIR": str(folder),
        **SECRETS,
    }
    ports = [free_port() for _ in range(4)]
    options = {
        "--port": ports[0], "--dashboard-port": ports[1], "--dashboard-host": "127.0.0.1", "--num-cpus": 2,
        "--ray-client-server-port": ports[2], "--dashboard-agent-listen-port": ports[3], "--temp-dir": folder,
        "--min-worker-port": 20100, "--max-worker-port": 20900, "--object-store-memory": 150_000_000,
    }  # fmt: skip
    words = [str(word) for option in options.items() for word in option]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            ["ray", "start", "--head", "--block", "--disable-usage-stats", *words],
            env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield {**environment, "RAY_ADDRESS": f"http://127.0.0.1:{ports[1]}"}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(done: Callable[[], object], logs: Callable[[], str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, logs()
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(500)
def test_bare_job_submission_resumes_under_its_name(
    head: dict[str, str], home: Path, tmp_path: Path, tiny_recipe: dict[str, Any]
) -> None:
    """``ray job submit --working-dir . -- python experiments/train.py``: submit, stop, edit, submit again."""
    upload = tmp_path / "upload"  # a checkout without its tests and environment
    for folder in ("platform", "models", "experiments", "configs"):
        shutil.copytree(REPO / folder, upload / folder, ignore=shutil.ignore_patterns("__pycache__"))
    recipe = json.loads(json.dumps(tiny_recipe))
    recipe["optimization"]["max_update"] = 100_000
    recipe["platform"] = {"num_workers": 1, "run_name": "submitted"}
    file = write_recipe(upload / "configs" / "tiny", recipe)
    train = ["python", "experiments/train.py", "--config-dir", "configs/tiny", "--config-name", "tiny_run"]
    variables = json.dumps({"env_vars": {"D2V_HOME": str(home)}})

    def ray(*words: str) -> str:
        return subprocess.run(
            ["ray", "job", *words],
            env=head,
            cwd=upload,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        ).stdout

    def submit(name: str) -> Callable[[], str]:
        options = [
            "--no-wait",
            "--submission-id",
            name,
            "--runtime-env-json",
            variables,
            "--working-dir",
            ".",
        ]
        said: list[str] = []

        def accepted() -> bool:
            said.append(ray("submit", *options, "--", *train))
            return "submitted successfully" in said[-1]

        until(accepted, lambda: said[-1], 240)
        return lambda: ray("logs", name)

    def saved() -> int:
        return max(
            (int(p.parent.name[7:]) for p in home.glob("runs/*/checkpoints/update_*/manifest.json")),
            default=0,
        )

    logs = submit("first")
    until(lambda: saved() >= 5, logs)
    ray("stop", "first")
    (run_folder,) = home.glob("runs/*")
    stopped_at = saved()

    file.write_text(file.read_text().replace("log_interval: 1", "log_interval: 2"))
    logs = submit("second")
    until(lambda: saved() > stopped_at + 5, logs)
    ray("stop", "second")
    assert "resuming run submitted" in logs()
    assert list(home.glob("runs/*")) == [run_folder]
    assert all(count == 1 for count in metric_steps(run_folder.name).values())
    metadata = ray("list")
    assert "first" in metadata and "second" in metadata
    shown = [metadata, logs(), *(p.read_text(errors="replace") for p in _session_logs(head))]
    assert len(shown) > 10
    assert not [name for name, secret in SECRETS.items() if any(secret in text for text in shown)]


def _session_logs(head: dict[str, str]) -> list[Path]:
    folders = Path(head["RAY_TMPDIR"]).glob("session_*/logs")
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]
