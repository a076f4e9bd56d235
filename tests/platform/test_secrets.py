"""With AWS and MLflow credentials in the environment nothing that is stored or shown holds them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from d2v_platform.redaction import RedactingFormatter, redact_logs
from d2v_platform.storage.locations import open_location
from d2v_platform.training.ray_session import worker_environment

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def credentials(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Working S3 keys, and MLflow's."""
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MY_API_KEY"):
        monkeypatch.setenv(name, f"hush{secrets.token_hex(8)}")
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD",
             "MLFLOW_TRACKING_TOKEN", "MY_API_KEY")  # fmt: skip
    return {name: os.environ[name] for name in names}


def places_with(secret: str, *folders: Path) -> Iterator[str]:
    """Files that hold a secret in any part: databases, checkpoints, logs, artifacts alike."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and secret.encode() in path.read_bytes():
                yield str(path)


@pytest.mark.timeout(300)
def test_a_whole_training_leaves_no_secret_anywhere(
    credentials: dict[str, str],
    s3_bucket: str,
    mlflow_home: Path,
    tmp_path: Path,
    tiny_recipe: dict[str, Any],
) -> None:
    recipe = json.loads(json.dumps(tiny_recipe))
    recipe["optimization"]["max_update"] = 6
    recipe["platform"] = {"num_workers": 0, "storage": f"{s3_bucket}/runs", "register_as": "quiet"}
    folder = tmp_path / "recipe"
    folder.mkdir()
    (folder / "quiet.yaml").write_text("# @package _group_\n" + yaml.safe_dump(recipe))
    careless = credentials["MY_API_KEY"]  # somebody puts one on the command line
    command = [sys.executable, str(REPO / "experiments" / "train.py"), "--config-dir", str(folder),
               "--config-name", "quiet", f"+platform.extra_tags.note={careless}"]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"D2V_LOG_LEVEL": "DEBUG", "OMP_NUM_THREADS": "1"}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    assert "registered as models:/quiet/1" in shown and "to resume it" in shown
    held = tmp_path / "held"
    there = open_location(f"{s3_bucket}/runs")
    for name in there.listing():
        (held / name).parent.mkdir(parents=True, exist_ok=True)
        there.download(name, held / name)
    assert len(list(held.rglob("*"))) > 8 and len(list(mlflow_home.rglob("*"))) > 20
    for name, secret in credentials.items():
        assert secret not in shown, name
        assert not list(places_with(secret, mlflow_home, held)), name


def test_the_search_finds_a_planted_secret(credentials: dict[str, str], tmp_path: Path) -> None:
    secret = credentials["AWS_SECRET_ACCESS_KEY"]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file.db").write_bytes(b"\0\1" + secret.encode() + b"\2")
    assert len(list(places_with(secret, tmp_path))) == 1


def test_what_crosses_into_ray_holds_no_secret(credentials: dict[str, str]) -> None:
    """Runtime environments are shown in Ray's dashboard and in the metadata of jobs."""
    passed = worker_environment()
    assert not set(passed) & set(credentials)
    assert not any(secret in value for secret in credentials.values() for value in passed.values())


def test_log_lines_and_traces_are_masked(credentials: dict[str, str]) -> None:
    secret, logger = credentials["MLFLOW_TRACKING_PASSWORD"], logging.getLogger("test_secrets")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    redact_logs(logger)
    redact_logs(logger)  # a second time changes nothing
    with contextlib.suppress(ConnectionError):
        try:
            raise ConnectionError(f"http://me:{secret}@server refused {secret}")
        except ConnectionError:
            logger.exception("no answer, password %s", secret)
            raise
    logger.removeHandler(handler)
    text = stream.getvalue()
    assert secret not in text and text.startswith("ERROR no answer, password ***") and "Traceback" in text
    assert isinstance(handler.formatter, RedactingFormatter)
