"""SIGTERM to the driver of a Ray run, as ``ray job stop`` sends it, and what the log of a clean run holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)  # some 40 s on a free machine
def test_a_stopped_ray_run_saves_and_goes_on_as_if_nothing_had_happened(
    ray_cluster: Any, launches: Any, tmp_path: Path
) -> None:
    """The recipe itself saves nothing before its end."""
    from d2v_platform.tracking.tracker import Tracker

    updates, log = 100, tmp_path / "driver.log"
    launches.write(
        optimization={"max_update": updates}, platform={"num_workers": 2},
        checkpoint={"save_interval_updates": 0, "save_interval": 1000},
    )  # fmt: skip
    driver = launches.driver("stopped", ray_cluster.address, log)
    launches.until(lambda: launches.highest_step() >= 5 or driver.poll() is not None, log.read_text)
    driver.terminate()
    assert driver.wait(200) == 143, log.read_text()
    (saved,) = launches.home.glob("runs/*/checkpoints/update_*/manifest.json")
    update = int(saved.parent.name[7:])
    assert 5 <= update < updates
    told = log.read_text()
    assert f"stopped at update {update}; a checkpoint of it is saved" in told
    assert "interrupted; to resume it: " in told and "platform.run_name=stopped" in told.splitlines()[-1]
    assert not [word for word in ("Traceback", "ERROR", " E ", "\x1b[") if word in told], told
    lines = [line for line in told.splitlines() if line.strip()]
    assert len(set(lines)) == len(lines), told
    run_id = saved.parents[2].name
    with Tracker() as tracker:
        assert tracker.client.get_run(run_id).info.status == "KILLED"
    resumed, straight = launches("stopped"), launches("straight")
    assert resumed.run_id == run_id and launches.same_weights(resumed.folder, straight.folder)
    assert launches.steps(run_id) == dict.fromkeys(range(1, updates + 1), 1)
