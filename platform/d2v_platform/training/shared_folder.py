"""Do the driver and all workers mean the same folder? Asked before a run begins in it."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from data2vec.errors import Data2VecError
from data2vec.folders import write_text

from ..tasks.reduction import gather_objects
from .job import Job
from .ray_session import own_address

_TOKEN = "driver.json"
_SEEN_S = 15.0  # a network file system may show a new file late


def leave_token(job: Job, attempt: str) -> None:
    """Write down who drives this attempt, for :func:`see_shared_folder` of every worker."""
    job.folder.mkdir(parents=True, exist_ok=True)
    token = {"attempt": attempt, "node": socket.gethostname()}
    write_text(job.folder / _TOKEN, json.dumps(token))


def see_shared_folder(job: Job, attempt: str) -> None:
    """Look for the driver's token; every worker of the group calls this.

    Raises:
        Data2VecError: some do not see it, with their nodes' names.
    """
    if job.remote is not None:
        return  # each node keeps its own copies, and the truth is at the URI
    seen, deadline = _token(job.folder) == attempt, time.monotonic() + _SEEN_S
    while not seen and time.monotonic() < deadline:
        time.sleep(0.5)
        seen = _token(job.folder) == attempt
    answers = gather_objects((socket.gethostname(), own_address(), seen))
    blind = sorted({f"{host} ({address})" for host, address, sees in answers if not sees})
    if blind:
        storage = job.recipe.platform.storage
        raise Data2VecError(
            f"platform.storage = {storage!r}: what the driver has written into {job.folder} is not there on "
            f"{', '.join(blind)}; it must be a folder that all nodes share (NFS, Lustre), or s3://BUCKET/FOLDER"
        )


def _token(folder: Path) -> str | None:
    try:
        return json.loads((folder / _TOKEN).read_text(encoding="utf-8"))["attempt"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
