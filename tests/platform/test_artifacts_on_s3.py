"""MLflow's artifacts and registered models in a bucket, without a server in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from d2v_platform.registry.model_versions import NewVersion
from d2v_platform.registry.register import LINEAGE_TAGS, register, resolve
from d2v_platform.storage.locations import open_location
from d2v_platform.tracking.tracker import NewRun, Tracker


@pytest.mark.timeout(300)
def test_artifacts_and_models_lie_in_a_bucket_and_come_back(
    new_tracker: Callable[..., Tracker], s3_bucket: str, tiny_glue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", f"{s3_bucket}/artifacts")
    tracker = new_tracker()
    run_id = tracker.open_run(NewRun(experiment="in-a-bucket", name="one", params={"a": 1})).run_id
    tracker.log_text(run_id, "hello", "notes/hello.txt")
    tags = dict.fromkeys(LINEAGE_TAGS, "known") | {"collapse": "false"}
    version = register(
        tracker,
        NewVersion(
            folder=tiny_glue.model, name="far-away", run_id=run_id, tags=tags, card_markdown="# Far\n"
        ),
    )
    assert tracker.finish(run_id) == 0
    place = open_location(f"{s3_bucket}/artifacts")
    names = list(place.listing())
    assert place.read(f"{run_id}/artifacts/notes/hello.txt") == b"hello"
    assert any(name.endswith("model/model.safetensors") for name in names), names
    here = resolve(f"models:/far-away/{version.version}", tracker).path
    assert not Path(str(here)).is_relative_to(tiny_glue.model)
    original = (tiny_glue.model / "model.safetensors").read_bytes()
    assert (here / "model.safetensors").read_bytes() == original
    # Another process on this machine need not ask the bucket again.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert resolve(f"models:/far-away/{version.version}", tracker).path == here
