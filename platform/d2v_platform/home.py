"""Where state lives: one absolute folder, ``D2V_HOME`` (default ``~/.d2v``), never the working directory.

Under ``ray job submit`` the working directory is a throw-away copy of the project, so anything kept there is
lost with the job. The folder is private (0700): recipes, paths and run names are nobody else's business.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from data2vec.errors import Data2VecError

HomeFolder = Literal["runs", "sweeps", "queue", "cache", "mlflow", "reports", "inference"]
_SQLITE = "sqlite:///"


def d2v_home() -> Path:
    """The absolute home folder, created on first use.

    Raises:
        Data2VecError: the folder cannot be made or written.
    """
    asked = os.environ.get("D2V_HOME") or "~/.d2v"
    home = Path(os.path.abspath(os.path.expanduser(asked)))
    if odd := sorted(set("%?#") & set(str(home))):
        raise Data2VecError(
            f"D2V_HOME = {str(home)!r}: the address of a database cannot hold {' or '.join(odd)}; "
            "set D2V_HOME to another folder"
        )
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Data2VecError(
            f"D2V_HOME = {str(home)!r} cannot be created ({error.strerror}); "
            "set D2V_HOME to a folder you may write to"
        ) from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise Data2VecError(
            f"D2V_HOME = {str(home)!r} is not writable for this user; "
            "set D2V_HOME to a folder you may write to, or mend its permissions"
        )
    return home


def home_folder(kind: HomeFolder, home: Path | None = None) -> Path:
    """One of the sub-folders of the home, created on first use.

    Args:
        kind: ``runs`` (local checkpoints), ``sweeps`` (tables and state of sweeps), ``queue`` (metrics on
            their way to MLflow), ``cache`` (downloads), ``mlflow`` (database and artifacts of the default
            backend) or ``reports`` (what ``d2v report`` writes).
        home: another home than :func:`d2v_home`, for tests.
    """
    folder = (home or d2v_home()) / kind
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Data2VecError(
            f"{str(folder)!r} cannot be created ({error.strerror}); set D2V_HOME to a folder you may write to"
        ) from error
    return folder


def default_tracking_uri(home: Path | None = None) -> str:
    """``MLFLOW_TRACKING_URI`` where set, else SQLite under the home; SQLite paths come back absolute."""
    asked = os.environ.get("MLFLOW_TRACKING_URI")
    if asked:
        return absolute_tracking_uri(asked)
    return f"{_SQLITE}{home_folder('mlflow', home) / 'mlflow.db'}"


def chosen_tracking_uri(asked: str | None, home: Path | None = None) -> str:
    """The one that was asked for, absolute, or the default."""
    return absolute_tracking_uri(asked) if asked else default_tracking_uri(home)


def absolute_tracking_uri(uri: str) -> str:
    """``sqlite:///mlflow.db`` is relative to the working directory of whoever opens it: make it absolute."""
    database = sqlite_path(uri)
    return uri if database is None else f"{_SQLITE}{database}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite URI as an absolute path; ``None`` for any other backend."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(os.path.abspath(os.path.expanduser(uri.removeprefix(_SQLITE).split("?", 1)[0])))


def artifact_location(tracking_uri: str) -> str | None:
    """Where a new experiment's artifacts go, or ``None``: the server decides.

    With SQLite that is MLflow's own variable ``MLFLOW_DEFAULT_ARTIFACT_ROOT`` (``s3://bucket/folder``), else
    a folder beside the database; MLflow alone would use ``./mlruns`` of the working directory.
    """
    database = sqlite_path(tracking_uri)
    if database is None:
        return None
    return os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or (database.parent / "artifacts").as_uri()
