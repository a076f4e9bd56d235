"""Killed workers, drivers and writers and a full disk, on real Ray; minutes each.

Servers that are away: ``test_outages.py``; sweeps: ``test_sweep_kills.py``. The short tests of each kind:
``test_training.py`` here (a worker; a stopped job) and ``test_sweep.py`` (a trial); in ``tests/platform``
``test_killed_runs.py`` (the process itself at awkward moments, in an upload, on a full disk),
``test_checkpoints.py`` and ``test_tracking.py`` (servers that are away).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from data2vec.errors import Data2VecError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def drawn(count: int, until: int) -> list[int]:
    """Ascending random updates, other ones in every run."""
    return sorted(random.Random(int.from_bytes(os.urandom(4))).sample(range(1, until), count))


def test_workers_killed_at_ten_random_steps(ray_cluster: Any, launches: Any) -> None:
    updates, kills = 80, 10
    launches.write(optimization={"max_update": updates}, platform={"num_workers": 2, "max_failures": 12})
    moments, killed = drawn(kills, updates - 5), list[int]()

    def kill() -> None:
        for moment in moments:
            launches.until(lambda at=moment: launches.highest_step() >= at, f"step {moment} never came")
            starts = launches.until(
                lambda: s if len(s := launches.starts()) >= 2 * len(killed) + 2 else None, "no restart"
            )
            victim = random.choice(starts[-2:])
            os.kill(victim["pid"], signal.SIGKILL)
            killed.append(victim["rank"])

    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    disturbed = launches("disturbed")
    watcher.join(60)
    assert len(killed) == kills, (killed, moments)
    straight = launches("straight")
    assert launches.same_weights(disturbed.folder, straight.folder)
    assert launches.steps(disturbed.run_id) == dict.fromkeys(range(1, updates + 1), 1)


def test_the_driver_killed_at_three_random_steps(ray_cluster: Any, launches: Any, tmp_path: Path) -> None:
    from d2v_platform.tracking.tracker import Tracker

    updates, log = 60, tmp_path / "driver.log"
    launches.write(optimization={"max_update": updates}, platform={"num_workers": 2})

    def reached(moment: int, launched: int) -> bool:
        # What an earlier driver's workers computed before they noticed may be beyond the moment already.
        return log.read_text().count(" run driven (") == launched and launches.highest_step() >= moment

    for launched, moment in enumerate(drawn(3, updates - 10), start=1):
        driver = launches.driver("driven", ray_cluster.address, log)
        launches.until(
            lambda at=moment, n=launched, d=driver: reached(at, n) or d.poll() is not None, log.read_text
        )
        assert driver.poll() is None, log.read_text()
        driver.kill()
        driver.wait()
    driver = launches.driver("driven", ray_cluster.address, log)
    assert driver.wait(400) == 0, log.read_text()
    assert log.read_text().count("(KILLED") == 3
    with Tracker() as tracker:
        run = tracker.find_run("data2vec-text", "driven")
        assert run is not None and run.status == "FINISHED"
    straight = launches("straight")
    assert launches.same_weights(launches.home / "runs" / run.run_id, straight.folder)
    assert launches.steps(run.run_id) == dict.fromkeys(range(1, updates + 1), 1)


def test_a_worker_killed_three_times_while_it_writes_a_checkpoint(ray_cluster: Any, launches: Any) -> None:
    """It is stopped first and killed only if the checkpoint it was writing is not complete."""
    updates, kills, killed = 300, 3, list[str]()
    launches.write(
        optimization={"max_update": updates}, platform={"num_workers": 2, "max_failures": kills + 1},
        checkpoint={"save_interval_updates": 3},
    )  # fmt: skip
    over = threading.Event()

    def unfinished() -> Path | None:
        found = launches.home.glob("runs/*/checkpoints/.update_*")
        with contextlib.suppress(OSError):
            return next((p for p in found if any(p.iterdir()) and not (p / "manifest.json").exists()), None)
        return None

    def kill() -> None:
        while len(killed) < kills and not over.is_set():
            starts = [start for start in launches.starts() if start["rank"] == 0]
            if len(starts) <= len(killed) or unfinished() is None:
                time.sleep(0.0005)
                continue
            pid = starts[len(killed)]["pid"]
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.05)
                writing = unfinished()
                os.kill(pid, signal.SIGKILL if writing else signal.SIGCONT)
                if writing:
                    killed.append(writing.name)

    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    disturbed = launches("disturbed")
    over.set()
    watcher.join()
    assert len(killed) == kills, killed
    assert not list(disturbed.folder.glob("checkpoints/.update_*"))
    straight = launches("straight")
    assert launches.same_weights(disturbed.folder, straight.folder)
    assert launches.steps(disturbed.run_id) == dict.fromkeys(range(1, updates + 1), 1)


def test_the_tracker_killed_twice(ray_cluster: Any, launches: Any) -> None:
    """The process that writes to MLflow: Ray starts another, which goes on from the queue on disk."""
    from ray.util.state import list_actors

    updates, killed = 400, list[int]()
    launches.write(optimization={"max_update": updates}, platform={"num_workers": 2})

    def kill() -> None:
        for moment in (60, 200):
            launches.until(lambda at=moment: launches.highest_step() >= at, f"step {moment} never came")
            found = list_actors(
                ray_cluster.address, [("class_name", "=", "TrackerService"), ("state", "=", "ALIVE")]
            )
            (pid,) = [actor.pid for actor in found]
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    disturbed = launches("disturbed")
    watcher.join(60)
    assert len(set(killed)) == 2, killed
    assert len(launches.starts()) == 2, "the workers were started again"
    assert launches.steps(disturbed.run_id) == dict.fromkeys(range(1, updates + 1), 1)


def test_a_full_disk_under_a_checkpoint_of_two_workers(
    ray_cluster: Any, launches: Any, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        launches.write(
            optimization={"max_update": 400}, platform={"num_workers": 2, "storage": str(small)},
            checkpoint={"save_interval_updates": 40},
        )  # fmt: skip

        def fill() -> None:
            launches.until(lambda: launches.highest_step() >= 60, "step 60 never came")
            (small / "ballast").write_bytes(b"x" * (shutil.disk_usage(small).free - 60_000))

        watcher = threading.Thread(target=fill, daemon=True)
        watcher.start()
        with pytest.raises(Data2VecError) as caught:
            launches("full")
        watcher.join()
        (folder,) = small.glob("*/checkpoints")
        told = str(caught.value)
        assert f"{folder}/update_" in told and "No space left on device" in told and "is whole" in told
        assert len((folder.parent / "workers.jsonl").read_text().splitlines()) <= 4  # not tried in vain
        (small / "ballast").unlink()
        mended = launches("full")
        straight = launches("straight", f"platform.storage={tmp_path / 'large'}")
        assert launches.same_weights(mended.folder, straight.folder)
        assert launches.steps(mended.run_id) == dict.fromkeys(range(1, 401), 1)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)
