"""A real MLflow on SQLite for each test, cheap: the tables are made once a session and the file is copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from d2v_platform.tracking.mlflow_access import open_client
from d2v_platform.tracking.tracker import Tracker


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables and no runs; making it takes some 10 s."""
    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def mlflow_home(mlflow_template: Path, home: Path) -> Path:
    """A fresh ``D2V_HOME`` whose default MLflow database is ready."""
    (home / "mlflow").mkdir(parents=True)
    shutil.copyfile(mlflow_template, home / "mlflow" / "mlflow.db")
    return home


@pytest.fixture
def new_tracker(
    mlflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Tracker]]:
    """Makes trackers on the test's database; they are closed at the end.

    The working directory is an empty folder that must stay empty: MLflow's default store would show there.
    """
    made: list[Tracker] = []
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def make(**settings: Any) -> Tracker:
        made.append(Tracker(**{"home": mlflow_home, "send_interval_s": 0.05, **settings}))
        return made[-1]

    yield make
    for tracker in made:
        tracker.close(timeout_s=5)
    assert list(work.iterdir()) == []


@pytest.fixture
def tracker(new_tracker: Callable[..., Tracker]) -> Tracker:
    """One tracker on a database of its own."""
    return new_tracker()
