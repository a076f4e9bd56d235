"""What one node promises holds on two: lost nodes and heads, folders not shared, a cluster of two jobs."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d2v_platform.training.checkpoint import CheckpointStore
from tests.cluster.conftest import MLflowServer
from tests.cluster.two_nodes import TwoNodes, needs_unshare
from tests.conftest import _free_port

UPDATES = 60
FLOAT_ORDER = 2e-5  # sums in another order, 60 updates long
# A user's package; the recipe is the same with it and without.
SLOW = """
import os, time
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: time.sleep(4 * os.path.exists({!r})))
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), needs_unshare]


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    """For a head that stays from test to test."""
    with tempfile.TemporaryDirectory(prefix="d2v") as folder:
        made = TwoNodes(Path(folder), _free_port())
        yield made
        made.stop()


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """One for all tests here."""
    server = MLflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def nodes(cluster: TwoNodes, launches: Any, tmp_path: Path) -> Iterator[TwoNodes]:
    """Two nodes of one CPU; ``D2V_HOME`` and ``tmp_path/apart`` are not shared, the rest is."""
    cluster.own = [launches.home, tmp_path / "apart"]
    if not cluster.runs("head"):
        cluster.start_head()
    cluster.start_second()
    yield cluster
    cluster.kill("second")


@pytest.fixture
def head(cluster: TwoNodes, launches: Any) -> Iterator[TwoNodes]:
    """One node of two CPUs."""
    cluster.stop()
    cluster.own = []
    cluster.start_head(cpus=2)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the model of a run that nothing happened to, trained by the first test that asks."""
    return tmp_path_factory.mktemp("undisturbed")


def driver(
    launches: Any, nodes: TwoNodes, server: Any, name: str, log: Path, **platform: Any
) -> subprocess.Popen[bytes]:
    platform["tracking_uri"] = server.uri
    launches.write(
        optimization={"max_update": UPDATES}, checkpoint={"save_interval_updates": 10},
        platform={"num_workers": 2} | platform,
    )  # fmt: skip
    return launches.driver(name, nodes.address, log)


def recovery(launches: Any, process: subprocess.Popen[bytes], log: Path, what: str) -> None:
    """Wait until a training has resumed and is beyond where it was, and print what that took."""

    def resumes() -> list[str]:
        return re.findall(r"resumed at update (\d+)", log.read_text())

    earlier, since = len(resumes()), time.monotonic()
    launches.until(lambda: len(resumes()) > earlier or process.poll() is not None, log.read_text, 500)
    assert len(resumes()) > earlier, log.read_text()
    before = launches.highest_step()
    launches.until(lambda: launches.highest_step() > before or process.poll() is not None, log.read_text, 300)
    print(f"{what}: {time.monotonic() - since:.0f} s, {before - int(resumes()[-1])} updates computed again")


def run_folder(storage: Path) -> Path:
    """Of the only run there."""
    (run,) = [path for path in storage.iterdir() if (path / "recipe.json").is_file()]
    return run


def group_sizes(run: Path) -> list[int]:
    """How many workers each start of a run's group had."""
    starts = [json.loads(line) for line in (run / "workers.jsonl").read_text().splitlines()]
    return [start["of"] for start in starts if start["rank"] == 0]


def nothing_was_lost(launches: Any, server: Any, storage: Path) -> Path:
    """The only run there is complete: every update once, at MLflow too."""
    run = run_folder(storage)
    assert json.loads((run / "summary.json").read_text())["summary"]["update"] == UPDATES
    assert launches.steps(run.name, server.uri) == dict.fromkeys(range(1, UPDATES + 1), 1), (
        "no update is missing or doubled"
    )
    return run


def straight(
    launches: Any, nodes: TwoNodes, server: Any, tmp_path: Path, undisturbed: Path, workers: int = 2
) -> Path:
    """The folder of a run of so many workers that nothing happened to."""
    kept = undisturbed / str(workers)
    if not kept.is_dir():
        log, storage = tmp_path / "straight.log", tmp_path / "straight"
        run = driver(launches, nodes, server, "straight", log, storage=str(storage), num_workers=workers)
        assert run.wait(400) == 0, log.read_text()
        shutil.copytree(run_folder(storage) / "model", kept / "model")
    return kept


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
    launches: Any, nodes: TwoNodes, mlflow_server: Any, tmp_path: Path, undisturbed: Path
) -> None:
    log, storage = tmp_path / "driver.log", tmp_path / "shared"
    process = driver(launches, nodes, mlflow_server, "disturbed", log, storage=str(storage))
    launches.until(lambda: launches.highest_step() >= 25 or process.poll() is not None, log.read_text, 600)
    nodes.kill("second")
    launches.until(lambda: "s; free are 1 of 1 CPUs" in log.read_text(), log.read_text)
    nodes.start_second()
    recovery(launches, process, log, "node returned")
    assert process.wait(400) == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    run = nothing_was_lost(launches, mlflow_server, storage)
    assert launches.same_weights(run, straight(launches, nodes, mlflow_server, tmp_path, undisturbed))


def test_elastic_workers_follow_the_nodes(
    launches: Any, nodes: TwoNodes, mlflow_server: Any, tmp_path: Path, undisturbed: Path
) -> None:
    log, storage = tmp_path / "driver.log", tmp_path / "shared"
    process = driver(launches, nodes, mlflow_server, "elastic", log, storage=str(storage), num_workers=[1, 2])
    launches.until(lambda: launches.highest_step() >= 15 or process.poll() is not None, log.read_text, 600)
    nodes.kill("second")
    recovery(launches, process, log, "raylet killed, elastic")
    assert process.wait(600) == 0, log.read_text()
    told = log.read_text()
    assert "1 to 2 workers, as nodes go and come; now " in told and "Traceback" not in told, told
    run = nothing_was_lost(launches, mlflow_server, storage)
    assert group_sizes(run)[0] == 2 and group_sizes(run)[-1] == 1, group_sizes(run)
    one = straight(launches, nodes, mlflow_server, tmp_path, undisturbed, workers=1)
    apart = launches.largest_difference(run, one)
    print(f"2 workers, then 1, beside 1: weights differ by at most {apart:.1e}")
    assert apart < FLOAT_ORDER


def test_elastic_workers_grow_again_when_the_node_is_back(
    launches: Any, nodes: TwoNodes, mlflow_server: Any, tmp_path: Path, undisturbed: Path
) -> None:
    """Ray looks for more room when a group is a minute old: until then, updates take a while."""
    log, storage, pause = tmp_path / "driver.log", tmp_path / "shared", tmp_path / "pause"
    slow = tmp_path / "unhurried"
    slow.mkdir()
    (slow / "__init__.py").write_text(SLOW.format(str(pause)))
    launches.recipe["common"]["user_dir"] = str(slow)
    process = driver(launches, nodes, mlflow_server, "growing", log, storage=str(storage), num_workers=[1, 2])
    launches.until(lambda: launches.highest_step() >= 11 or process.poll() is not None, log.read_text, 600)
    pause.touch()
    nodes.kill("second")
    recovery(launches, process, log, "raylet killed, elastic")
    nodes.start_second()
    recovery(launches, process, log, "node returned, elastic")
    pause.unlink()
    assert process.wait(600) == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    run = nothing_was_lost(launches, mlflow_server, storage)
    assert group_sizes(run)[0] == 2 and group_sizes(run)[-2:] == [1, 2], group_sizes(run)
    del launches.recipe["common"]["user_dir"]
    one = straight(launches, nodes, mlflow_server, tmp_path, undisturbed, workers=1)
    apart = launches.largest_difference(run, one)
    print(f"2 workers, then 1, then 2, beside 1: weights differ by at most {apart:.1e}")
    assert apart < FLOAT_ORDER


def test_a_node_that_comes_back_without_the_shared_folder_ends_the_run_where_it_was(
    launches: Any, nodes: TwoNodes, mlflow_server: Any, tmp_path: Path
) -> None:
    log, storage = tmp_path / "driver.log", tmp_path / "shared"
    process = driver(launches, nodes, mlflow_server, "unmounted", log, storage=str(storage))
    launches.until(lambda: launches.highest_step() >= 25 or process.poll() is not None, log.read_text, 600)
    nodes.kill("second")
    nodes.own.append(storage)
    nodes.start_second()
    assert process.wait(400) == 2, log.read_text()
    told = log.read_text()
    run = run_folder(storage)
    assert re.search(rf"error: platform.storage = .*into {run} is not there on \S+ \([\d.]+\); it must", told)
    # Each raylet of this machine sends the lines of all: the same line may stand there more than once.
    assert len({line for line in told.splitlines() if " update 1/" in line}) == 1, told
    assert "Traceback" not in told, told
    assert max(CheckpointStore(run).updates()) >= 20, "and nothing of it is gone"


def test_the_same_command_goes_on_when_the_head_was_lost(
    launches: Any, head: TwoNodes, mlflow_server: Any, tmp_path: Path, undisturbed: Path
) -> None:
    log, storage = tmp_path / "driver.log", tmp_path / "shared"
    process = driver(launches, head, mlflow_server, "headless", log, storage=str(storage))
    launches.until(lambda: launches.highest_step() >= 25 or process.poll() is not None, log.read_text, 600)
    head.kill("head")
    lost = time.monotonic()
    assert process.wait(300) not in (0, None), log.read_text()
    assert "Ray's head at" in log.read_text() and "with the same name goes on" in log.read_text()
    print(f"the driver ended {time.monotonic() - lost:.0f} s after its head, with {process.returncode}")
    head.start_head(cpus=2)
    again = driver(launches, head, mlflow_server, "headless", log, storage=str(storage))
    recovery(launches, again, log, "head restarted and command repeated")
    assert again.wait(400) == 0, log.read_text()
    run = nothing_was_lost(launches, mlflow_server, storage)
    assert launches.same_weights(run, straight(launches, head, mlflow_server, tmp_path, undisturbed))


def test_the_second_of_two_jobs_waits_and_says_so(
    launches: Any, head: TwoNodes, mlflow_server: Any, tmp_path: Path
) -> None:
    from d2v_platform.tracking.tracker import Tracker

    def state(name: str) -> str:
        with Tracker(mlflow_server.uri) as tracker:
            run = tracker.find_run("data2vec-text", name)
            assert run is not None
            return f"{run.status} {run.tags.get('d2v.state', '')}"

    log, other_log, storage = tmp_path / "first.log", tmp_path / "second.log", tmp_path / "shared"
    launches.write(
        optimization={"max_update": 1_000_000, "stop_time_hours": 120 / 3600},
        checkpoint={"save_interval_updates": 100}, common={"log_interval": 100},
        platform={"num_workers": 2, "tracking_uri": mlflow_server.uri, "storage": str(storage / "first")},
    )  # fmt: skip
    first = launches.driver("first", head.address, log)
    launches.until(lambda: launches.highest_step() >= 100 or first.poll() is not None, log.read_text, 600)
    second = driver(launches, head, mlflow_server, "second", other_log, storage=str(storage / "second"))
    launches.until(
        lambda: "waiting for 2 workers of 1 CPU since" in other_log.read_text() or second.poll() is not None,
        other_log.read_text,
    )
    assert re.search(r"free are 0 of 2 CPUs; held by job \d+ 2 CPUs", other_log.read_text())
    launches.until(lambda: "waiting for 2 workers of 1 CPU" in state("second"), lambda: state("second"), 60)
    assert first.poll() is None and state("second").startswith("RUNNING")
    assert first.wait(400) == 0, log.read_text()
    ended = time.monotonic()
    assert second.wait(400) == 0, other_log.read_text()
    print(f"the second job ended {time.monotonic() - ended:.0f} s after the first")
    assert state("second") == "FINISHED training"
    nothing_was_lost(launches, mlflow_server, storage / "second")


def test_mlflow_away_for_longer_than_a_heart_may_pause(
    launches: Any, nodes: TwoNodes, mlflow_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is back, a driver of another host looks for dead runs at once."""
    from d2v_platform.tracking.tracker import Tracker

    log, storage = tmp_path / "driver.log", tmp_path / "shared"
    launches.write(
        optimization={"max_update": 1_000_000, "stop_time_hours": 240 / 3600},
        checkpoint={"save_interval_updates": 200}, common={"log_interval": 100},
        platform={"num_workers": 2, "tracking_uri": mlflow_server.uri, "storage": str(storage)},
    )  # fmt: skip
    process = launches.driver("patient", nodes.address, log)
    launches.until(lambda: launches.highest_step() >= 100 or process.poll() is not None, log.read_text, 600)
    mlflow_server.stop()
    time.sleep(130)
    reached = launches.highest_step()
    mlflow_server.start()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "another-host")
        with Tracker(mlflow_server.uri, tmp_path / "its home") as other:
            taken_for_dead = other.close_orphans()
            print(f"taken for dead just after the outage: {taken_for_dead}")
            time.sleep(40)
            assert other.close_orphans() == [], "its heart beats again"
    assert process.wait(500) == 0, log.read_text()
    run = run_folder(storage)
    last = json.loads((run / "summary.json").read_text())["summary"]["update"]
    assert last > reached > 100
    with Tracker(mlflow_server.uri) as tracker:
        assert tracker.client.get_run(run.name).info.status == "FINISHED"
    wanted = sorted({*range(100, last + 1, 100), last})
    assert launches.steps(run.name, mlflow_server.uri) == dict.fromkeys(wanted, 1)
