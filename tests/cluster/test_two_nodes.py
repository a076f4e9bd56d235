"""What one node promises holds on two: a folder that is not shared, a node that is killed and comes back."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.two_nodes import TwoNodes, needs_unshare
from tests.conftest import _free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), needs_unshare]


@pytest.fixture
def nodes(launches: Any, tmp_path: Path) -> Iterator[TwoNodes]:
    """Two nodes of one CPU; ``D2V_HOME`` and ``tmp_path/apart`` are not shared, the rest is."""
    with tempfile.TemporaryDirectory(prefix="d2v") as folder:
        made = TwoNodes(Path(folder), _free_port(), [launches.home, tmp_path / "apart"])
        made.start_head()
        made.start_second()
        yield made
        made.stop()


def driver(
    launches: Any, nodes: TwoNodes, server: Any, name: str, log: Path, **platform: Any
) -> subprocess.Popen[bytes]:
    platform["tracking_uri"] = server.uri
    launches.write(
        optimization={"max_update": 60}, checkpoint={"save_interval_updates": 10},
        platform={"num_workers": 2} | platform,
    )  # fmt: skip
    return launches.driver(name, nodes.address, log)


def test_a_folder_that_is_not_shared_is_refused_before_anything_is_lost(
    launches: Any, nodes: TwoNodes, mlflow_server: Any, tmp_path: Path
) -> None:
    log = tmp_path / "driver.log"
    process = driver(launches, nodes, mlflow_server, "apart", log, storage=str(tmp_path / "apart"))
    assert process.wait(300) == 2, log.read_text()
    told = log.read_text()
    assert re.search(
        r"error: platform.storage = .*is not there on \S+ \([\d.]+\); it must be a folder", told
    ), told
    assert "update 1/" not in told and "Traceback" not in told


def test_a_node_that_is_killed_and_comes_back_costs_no_update(
    launches: Any, nodes: TwoNodes, mlflow_server: Any, tmp_path: Path
) -> None:
    log, storage = tmp_path / "driver.log", tmp_path / "shared"
    process = driver(launches, nodes, mlflow_server, "disturbed", log, storage=str(storage))
    launches.until(lambda: launches.highest_step() >= 25 or process.poll() is not None, log.read_text)
    nodes.kill("second")
    launches.until(lambda: "s; free are 1 of 1 CPUs" in log.read_text(), log.read_text)
    lost = time.monotonic()
    nodes.start_second()
    assert process.wait(400) == 0, log.read_text()
    told = log.read_text()
    assert "resumed at update" in told and "Traceback" not in told, told
    print(f"node lost, back and finished in {time.monotonic() - lost:.0f} s")
    (run,) = [path for path in storage.iterdir() if (path / "summary.json").is_file()]
    assert json.loads((run / "summary.json").read_text())["summary"]["update"] == 60
    assert launches.steps(run.name, mlflow_server.uri) == dict.fromkeys(range(1, 61), 1), (
        "no update is missing or doubled"
    )
    straight = driver(launches, nodes, mlflow_server, "straight", log, storage=str(storage))
    assert straight.wait(300) == 0, log.read_text()
    (other,) = [path for path in storage.iterdir() if (path / "summary.json").is_file() and path != run]
    assert launches.same_weights(run, other)


def test_elastic_workers_follow_the_nodes(
    launches: Any, nodes: TwoNodes, mlflow_server: Any, tmp_path: Path
) -> None:
    log, storage = tmp_path / "driver.log", tmp_path / "shared"
    process = driver(launches, nodes, mlflow_server, "elastic", log, storage=str(storage), num_workers=[1, 2])
    launches.until(lambda: launches.highest_step() >= 15 or process.poll() is not None, log.read_text)
    nodes.kill("second")
    assert process.wait(600) == 0, log.read_text()
    told = log.read_text()
    assert "1 to 2 workers, as nodes go and come; now 2" in told and "Traceback" not in told, told
    (run,) = [path for path in storage.iterdir() if (path / "summary.json").is_file()]
    starts = [json.loads(line) for line in (run / "workers.jsonl").read_text().splitlines()]
    assert [start["rank"] for start in starts[-1:]] == [0] and len(starts) >= 3, starts
    assert launches.steps(run.name, mlflow_server.uri) == dict.fromkeys(range(1, 61), 1)
