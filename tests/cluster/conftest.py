"""What the tests of killed processes and absent servers share: launches of a tiny recipe under one home."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
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


class Launches:
    """Trainings of one recipe, ``tiny_run``, here or by drivers of their own.

    Args:
        home: ``D2V_HOME``.
        folder: for the recipe and logs.
        recipe: changed by :meth:`write`.
    """

    def __init__(self, home: Path, folder: Path, recipe: dict[str, Any]) -> None:
        self.home, self.folder, self.recipe = home, folder, recipe

    def write(self, **groups: dict[str, Any]) -> None:
        """The recipe's file, with some values changed."""
        made = json.loads(json.dumps(self.recipe))
        for name, values in groups.items():
            made[name] = made.get(name, {}) | values
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "# @package _group_\n" + yaml.safe_dump(made)
        (self.folder / "tiny_run.yaml").write_text(text, encoding="utf-8")

    def __call__(self, name: str, *overrides: str) -> Any:
        """Train in this process's cluster, or without one if the recipe says so."""
        from d2v_platform.launch import launch
        from d2v_platform.recipe.compose import compose

        return launch(compose("tiny_run", [f"platform.run_name={name}", *overrides], str(self.folder)))

    def driver(self, name: str, address: str, log: Path) -> subprocess.Popen[bytes]:
        """``experiments/train.py`` in a process of its own."""
        command = [sys.executable, "experiments/train.py", "--config-dir", str(self.folder), "--config-name",
                   "tiny_run", f"platform.run_name={name}"]  # fmt: skip
        environment = os.environ | {"RAY_ADDRESS": address, "D2V_HOME": str(self.home)}
        with log.open("ab") as file:
            return subprocess.Popen(command, env=environment, cwd=REPO, stdout=file, stderr=file)

    def starts(self) -> list[dict[str, Any]]:
        """Rank and process of every start of a worker, of the only run so far."""
        files = list(self.home.glob("runs/*/workers.jsonl"))
        return [json.loads(line) for line in files[0].read_text().splitlines()] if files else []

    def highest_step(self) -> int:
        """The newest update that any run has logged, sent or not."""
        highest, asked = 0, "SELECT MAX(step) FROM {} WHERE key = 'train/loss'"
        for path in self.home.glob("queue/*.db"):
            with (
                contextlib.suppress(sqlite3.Error),
                contextlib.closing(sqlite3.connect(path, timeout=5)) as db,
            ):
                found = [db.execute(asked.format(table)).fetchone()[0] for table in ("points", "marks")]
                highest = max(highest, *(step or 0 for step in found))
        return highest

    @staticmethod
    def steps(run_id: str, uri: str | None = None) -> Counter[int]:
        """How often each step of the loss is in MLflow."""
        from d2v_platform.tracking.tracker import Tracker

        with Tracker(uri) as tracker:
            return Counter(p.step for p in tracker.client.get_metric_history(run_id, "train/loss"))

    @classmethod
    def same_weights(cls, first: Path, second: Path) -> bool:
        """Two run folders hold the same student and teacher, bit for bit."""
        return all(torch.equal(a, b) for a, b in cls._weights(first, second))

    @classmethod
    def largest_difference(cls, first: Path, second: Path) -> float:
        """Between any weight of two run folders' students or teachers."""
        return max(float((a.double() - b.double()).abs().max()) for a, b in cls._weights(first, second))

    @staticmethod
    def _weights(first: Path, second: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for name in ("model", "teacher"):
            a, b = (load_file(folder / "model" / f"{name}.safetensors") for folder in (first, second))
            assert a.keys() == b.keys()
            yield from ((a[key], b[key]) for key in b)

    @staticmethod
    def until(done: Callable[[], Any], told: Callable[[], str] | str, seconds: float = 300) -> Any:
        """Wait for something true, and give it back."""
        deadline = time.monotonic() + seconds
        while not (found := done()):
            assert time.monotonic() < deadline, told if isinstance(told, str) else told()
            time.sleep(0.02)
        return found


@pytest.fixture
def launches(home: Path, tmp_path: Path, tiny_recipe: dict[str, Any]) -> Launches:
    """Under the test's own home."""
    return Launches(home, tmp_path / "recipe", tiny_recipe)


class MLflowServer:
    """A server on SQLite that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                   "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
                   "--artifacts-destination", str(self.folder / "artifacts")]  # fmt: skip
        with (self.folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        Launches.until(self.answers, "MLflow's server does not start", 180)

    def answers(self) -> bool:
        """Whether it does."""
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        return False

    def stop(self) -> None:
        """Kill it and its workers at once."""
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[MLflowServer]:
    """Started."""
    server = MLflowServer(tmp_path)
    server.start()
    yield server
    server.stop()
