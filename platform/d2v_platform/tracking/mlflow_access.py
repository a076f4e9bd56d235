"""The one door to MLflow: environment set before the import, an explicit client, errors told apart.

``import mlflow`` costs 2.7 seconds of processor time, so it happens on first use and never at import time
of our modules. No fluent call (``mlflow.start_run``, ``set_experiment``) is made anywhere: active runs are
global state that leaks between trials.
"""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any

import filelock

from data2vec.errors import Data2VecError

from ..home import sqlite_path
from ..redaction import redact_text

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What the user has set wins, except for the refusal of pickle.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 7 idle processes, 1.7 GB, for features unused here
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",  # long values are ours to place, never MLflow's to cut
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # we retry ourselves; the default blocks for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # Artifacts through the server, not by signed links to its object store: often it alone can reach that.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PERMANENT = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"}
# Names that MLflow takes, checked before any work: it would refuse them when the training has ended.
REGISTRY_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,199}")
REGISTRY_NAME_RULE = (
    "may have up to 200 letters, digits, '.', '_' and '-' only, and starts with a letter or digit"
)
ALIAS = re.compile(r"(?!v\d+$|latest$)[A-Za-z][A-Za-z0-9_\-]{0,62}", re.IGNORECASE)
ALIAS_RULE = (
    "must start with a letter and hold up to 63 letters, digits, '_' or '-'; 'latest' and 'v1', 'v2', ... "
    "are MLflow's own"
)
_METRIC_KEY = re.compile(r"[\w.\- /:]{1,250}")


class TrackingUnavailableError(Data2VecError):
    """The tracking server does not answer or refuses us."""


def configure_environment() -> None:
    """Environment settings that MLflow reads at import time; call before every ``import mlflow``."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"


def open_client(tracking_uri: str) -> MlflowClient:
    """A client for tracking and registry at ``tracking_uri``.

    A new SQLite file gets its tables here, one process at a time: parallel starts would each run MLflow's
    migrations and fail.

    Raises:
        TrackingUnavailableError: nothing answers there.
    """
    configure_environment()
    from mlflow import MlflowClient

    # Alembic narrates every migration step of a new SQLite file.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").addFilter(_not_a_retry_of_mlflow)
    try:
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        database = sqlite_path(tracking_uri)
        if database is None:
            client.search_experiments(max_results=1)
        else:
            database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not database.exists():
                logger.info("making MLflow's database %s, which takes some seconds", database)
            with filelock.FileLock(f"{database}.lock", timeout=600):
                client.search_experiments(max_results=1)
    except Exception as error:
        raise unavailable(tracking_uri, error) from error
    return client


def _not_a_retry_of_mlflow(record: logging.LogRecord) -> bool:
    """Drop urllib3's line for every attempt at an absent server: the sender says it once."""
    return "/api/2.0/mlflow" not in record.getMessage()


def unavailable(tracking_uri: str, error: BaseException) -> TrackingUnavailableError:
    """The user's message for a tracking server that cannot be used."""
    return TrackingUnavailableError(
        f"MLflow at {redact_text(tracking_uri)} cannot be used: {short_reason(error)}; "
        "check MLFLOW_TRACKING_URI, start the server, or unset it to use SQLite under D2V_HOME"
    )


def is_server(tracking_uri: str) -> bool:
    """Whether a server stands between us and the database."""
    return tracking_uri.startswith(("http://", "https://"))


def is_permanent(error: BaseException) -> bool:
    """Whether sending the same again can never succeed (a deleted run, an invalid value)."""
    return error_code(error) in _PERMANENT


def error_code(error: BaseException) -> str:
    """MLflow's error code, or an empty string for other errors."""
    return str(getattr(error, "error_code", ""))


def short_reason(error: BaseException, limit: int = 200) -> str:
    """The first line of an error, without secrets, short enough for a log line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return redact_text(f"{type(error).__name__}: {first}")[:limit]


def check_metric_key(key: str) -> None:
    """Refuse a metric name that MLflow would refuse: one such point would block all behind it.

    Raises:
        ValueError: naming the key; keys are chosen by our code, so this is a bug and not a user's mistake.
    """
    parts = key.split("/")
    if not _METRIC_KEY.fullmatch(key) or any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"metric name {key!r} is not one MLflow takes: letters, digits, '_', '-', '.', ' ', ':', "
            "and '/' between parts"
        )


def as_steps(run: Any) -> dict[str, int]:
    """The highest step of each metric of a run entity, as the server reported it."""
    return {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
