"""MLflow's and the S3 server away for a while, under a training on real Ray; minutes each."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def aws_files(s3_server: Any) -> Iterator[None]:
    """Credentials and endpoint in the usual AWS files, which workers of a running cluster read too."""
    config, keys = (Path(os.environ[name]) for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"))
    given = s3_server.environment()
    config.write_text(f"[default]\nregion = us-east-1\nendpoint_url = {given['AWS_ENDPOINT_URL']}\n")
    keys.write_text(
        f"[default]\naws_access_key_id = {given['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {given['AWS_SECRET_ACCESS_KEY']}\n"
    )
    yield
    config.unlink()
    keys.unlink()


def test_mlflow_away_for_a_minute_and_s3_for_twenty_seconds(
    ray_cluster: Any, launches: Any, mlflow_server: Any, s3_bucket: str, s3_server: Any, aws_files: None
) -> None:
    from d2v_platform.storage.locations import open_location

    every = 5
    launches.write(
        common={"log_interval": every},
        optimization={"max_update": 1_000_000, "stop_time_hours": 110 / 3600},
        checkpoint={"save_interval_updates": 100},
        platform={"num_workers": 2, "tracking_uri": mlflow_server.uri, "storage": f"{s3_bucket}/runs"},
    )
    progress: list[int] = []

    def outage() -> None:
        launches.until(lambda: launches.highest_step() > 20, "training never began")
        mlflow_server.stop()
        s3_server.stop()
        threading.Timer(20, s3_server.start).start()
        for _ in range(6):
            progress.append(launches.highest_step())
            time.sleep(10)
        mlflow_server.start()

    watcher = threading.Thread(target=outage, daemon=True)
    watcher.start()
    result = launches("patient")
    watcher.join()
    assert progress == sorted(set(progress)), f"training stood still: {progress}"  # rises every 10 s
    last = result.summary.update
    assert "stop_time_hours" in result.summary.reason and last > progress[-1]
    assert launches.steps(result.run_id, mlflow_server.uri) == dict.fromkeys(
        sorted({*range(every, last + 1, every), last}), 1
    )
    complete(open_location(f"{s3_bucket}/runs/{result.run_id}").listing(), last)


def complete(files: Any, last: int) -> None:
    """The newest checkpoint and the model are there, and nothing without its manifest."""
    assert f"checkpoints/update_{last:08d}/manifest.json" in files and "model/manifest.json" in files
    folders = {name.split("/")[1] for name in files if "update_" in name}
    assert all(f"checkpoints/{folder}/manifest.json" in files for folder in folders)


def test_s3_goes_away_in_the_middle_of_an_upload(
    launches: Any, s3_bucket: str, s3_server: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two files of one checkpoint; in this process, so that the moment is certain."""
    from d2v_platform.storage.locations import open_location
    from d2v_platform.storage.s3 import S3FileSystem
    from d2v_platform.training.train_loop import TrainingLoop

    updates, times = 120, list[float]()
    honest_update = TrainingLoop._update

    def slow_update(self: TrainingLoop, *arguments: Any) -> None:
        times.append(time.monotonic())
        time.sleep(0.4)
        honest_update(self, *arguments)

    monkeypatch.setattr(TrainingLoop, "_update", slow_update)
    caplog.set_level(logging.INFO, "d2v_platform")
    launches.write(
        optimization={"max_update": updates}, platform={"num_workers": 0, "storage": f"{s3_bucket}/runs"}
    )
    honest, cut = S3FileSystem.put_file, threading.Event()

    def put(self: S3FileSystem, lpath: Any, rpath: str, *arguments: Any, **options: Any) -> None:
        honest(self, lpath, rpath, *arguments, **options)
        if len(times) > 20 and "update_" in rpath and not cut.is_set():
            cut.set()
            s3_server.stop()
            threading.Timer(20, s3_server.start).start()

    monkeypatch.setattr(S3FileSystem, "put_file", put)
    result = launches("patient")
    assert cut.is_set()
    assert "are uploaded later" in caplog.text and "answers again" in caplog.text
    complete(open_location(f"{s3_bucket}/runs/{result.run_id}").listing(), updates)
    assert launches.steps(result.run_id) == dict.fromkeys(range(1, updates + 1), 1)
