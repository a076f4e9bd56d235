"""MLflow, Ray and object storage: whether they answer, and what dead processes left behind there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlparse

from data2vec.errors import Data2VecError

from ..home import default_tracking_uri, home_folder
from ..recipe.schema import Recipe
from ..redaction import redact_text
from ..storage.locations import Patience, StorageError, check_writable, open_location
from ..tracking.mlflow_access import TrackingUnavailableError
from ..tracking.run_orphans import dead_runs
from ..tracking.tracker import Tracker
from ..training.checkpoint import CheckpointStore, Retention
from ..training.ray_session import LOOPBACK, START_A_HEAD, answers, on_loopback_only, own_address
from ..training.remote_checkpoints import RemoteCheckpoints, upload_model
from ..training.run_storage import remote_of
from .environment import installed
from .findings import Finding

_BRIEF = Patience(seconds=5)
_WAIT_S = 20


def mlflow(mend: bool) -> Iterator[Finding]:
    """The tracking server, runs of dead processes, and metrics that wait for it."""
    uri = redact_text(default_tracking_uri())
    try:
        with Tracker() as tracker:
            tracker.client.search_experiments(max_results=1)
            yield Finding("mlflow", "ok", f"{uri} answers")
            yield from _orphans(tracker, mend)
            yield from _waiting(tracker, mend)
    except TrackingUnavailableError as error:
        yield Finding("mlflow", "bad", str(error).split(";")[0], str(error).partition(";")[2].strip())


def _orphans(tracker: Tracker, mend: bool) -> Iterator[Finding]:
    dead = dead_runs(tracker)
    if not dead:
        yield Finding("runs", "ok", "no run of a dead process is RUNNING")
        return
    names = ", ".join(f"{run.info.run_name} ({beat.owner()})" for run, beat in dead)
    if mend:
        closed = tracker.close_orphans()
        yield Finding("runs", "ok", f"closed as KILLED: {', '.join(closed)}; their names resume them")
    else:
        yield Finding(
            "runs", "bad", f"RUNNING, but their process died: {names}",
            "d2v doctor --mend closes them as KILLED, as the next training does; their names resume them",
        )  # fmt: skip


def _waiting(tracker: Tracker, mend: bool) -> Iterator[Finding]:
    if mend:
        tracker.close_orphans()  # also sends what dead processes left
    count = tracker.queue.num_pending()
    if count:
        yield Finding(
            "metrics", "note", f"{count} metric points wait in {tracker.queue.path}",
            "a live training sends its own; those of dead ones go with d2v doctor --mend",
        )  # fmt: skip
    else:
        yield Finding("metrics", "ok", "none wait on this machine")


def ray(address: str | None = None) -> Iterator[Finding]:
    """The cluster that ``RAY_ADDRESS`` names; without it every command starts its own."""
    given = address or os.environ.get("RAY_ADDRESS", "")
    mine = installed("ray")
    if not given or given in ("auto", "local"):
        yield Finding("ray", "ok", f"Ray {mine}; no RAY_ADDRESS: commands start a cluster on this machine")
        return
    if given.startswith(("http://", "https://")):
        yield from _ray_jobs(given.rstrip("/"), mine)
        return
    where = urlparse(given if "://" in given else f"ray://{given}")
    try:
        host, port = where.hostname or "127.0.0.1", where.port or 6379
        socket.create_connection((host, port), timeout=5).close()
    except (OSError, ValueError) as error:
        yield _no_cluster(given, error)
        return
    if not _ray_status(given, RAY_AUTH_MODE="disabled").returncode:
        yield _without_token(given, host, port)
        return
    done = _ray_status(given)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        yield Finding(
            "ray", "bad", f"{given} does not take us: {last}",
            f"the cluster needs Ray {mine} and, with RAY_AUTH_MODE=token, the same RAY_AUTH_TOKEN",
        )  # fmt: skip
    else:
        yield Finding("ray", "ok", f"{given} answers")


def _ray_status(address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    if on_loopback_only(address):
        environment[LOOPBACK] = "0"  # else Ray looks for it at the machine's own address
    return subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address],
        env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def _without_token(where: str, host: str, *ports: int) -> Finding:
    """A cluster that took us without a token: nobody else's business on the loopback interface, else open."""
    if host in ("127.0.0.1", "localhost", "::1"):
        mine = own_address()
        open_at = [f"{mine}:{port}" for port in ports if mine != "127.0.0.1" and answers(mine, port)]
    else:
        open_at = [where]
    if not open_at:
        return Finding("ray", "ok", f"{where} answers, without a token, on the loopback interface only")
    return Finding(
        "ray", "bad",
        f"{' and '.join(open_at)} takes anybody without a token: whoever reaches it runs code as its user",
        f"start it again with RAY_AUTH_MODE=token; on one machine also {LOOPBACK}=0 (docker/README.md)",
    )  # fmt: skip


def _ray_jobs(url: str, mine: str | None) -> Iterator[Finding]:
    open_to_all = True
    try:
        try:
            theirs = _ray_version(url, "")
        except urllib.error.HTTPError:
            open_to_all, theirs = False, _ray_version(url, _ray_token())
    except urllib.error.HTTPError as error:
        rule = f"{url} refuses us ({error.code})"
        yield Finding(
            "ray", "bad", rule, "set RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's token"
        )
        return
    except (OSError, ValueError) as error:
        yield _no_cluster(url, error)
        return
    if theirs != mine:
        yield Finding(
            "ray", "bad", f"the cluster at {url} runs Ray {theirs}, this environment {mine}",
            f"use one version on both sides: pip install 'ray[default,train,tune]=={theirs}'",
        )  # fmt: skip
    elif open_to_all:  # a cluster has a token as a whole: its other port asks for none either
        where = urlparse(url)
        yield _without_token(url, where.hostname or "", where.port or 80, 6379)
    else:
        yield Finding("ray", "ok", f"{url} answers, Ray {theirs}")


def _ray_version(url: str, token: str) -> str:
    request = urllib.request.Request(f"{url}/api/version")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=_WAIT_S) as answer:
        return json.load(answer).get("ray_version")


def _ray_token() -> str:
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    return token or (path.read_text(encoding="utf-8").strip() if path.is_file() else "")


def _no_cluster(where: str, error: Exception) -> Finding:
    return Finding(
        "ray", "bad", f"nothing answers at RAY_ADDRESS={where}: {error}",
        f"start it ({START_A_HEAD}), correct RAY_ADDRESS, or unset it to use this machine",
    )  # fmt: skip


def storage(uris: Sequence[str]) -> Iterator[Finding]:
    """Write, read and delete a small file at each URI; say where S3 credentials come from."""
    source = s3_credentials()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if source:
        where = f", endpoint {redact_text(endpoint)}" if endpoint else ""
        yield Finding("storage", "ok", f"S3 credentials from {source}{where}")
    elif any(uri.startswith("s3") for uri in uris):
        yield Finding(
            "storage", "bad", "no S3 credentials",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with ~/.aws/credentials",
        )  # fmt: skip
    for uri in uris:
        try:
            check_writable(open_location(uri), _BRIEF)
            yield Finding("storage", "ok", f"{redact_text(uri)} can be written, read and deleted")
        except StorageError as error:
            what, _, how = str(error).partition("; ")
            yield Finding(
                "storage", "bad", what, how or "check the endpoint (AWS_ENDPOINT_URL) and the network"
            )
    if not uris and not source:
        yield Finding(
            "storage", "ok", "no S3 credentials set, none needed (d2v doctor --storage s3://... tries)"
        )


def s3_credentials() -> str | None:
    """Where boto3 finds credentials ("environment", "shared-credentials-file", ...), never what they are."""
    import boto3

    found = boto3.Session().get_credentials()
    return {"env": "the environment"}.get(found.method, found.method) if found is not None else None


def uploads(mend: bool) -> Iterator[Finding]:
    """Checkpoints and models of runs on this machine that belong to a URI and are not there yet."""
    looked, behind = 0, 0
    for folder in sorted(path.parent for path in home_folder("runs").glob("*/remote.json")):
        uri = remote_of(folder)
        if uri is None:
            continue
        looked += 1
        try:
            left = pending_uploads(folder, uri)
            if left and mend:
                upload_pending(folder, uri)
                yield Finding("uploads", "ok", f"{folder.name}: uploaded {', '.join(left)} to {uri}")
            elif left:
                behind += 1
                yield Finding(
                    "uploads", "bad", f"only on this machine: {', '.join(left)} of {folder}",
                    f"d2v doctor --mend uploads them to {uri} (a live training does so itself)",
                )  # fmt: skip
        except (Data2VecError, OSError) as error:
            behind += 1
            what, _, how = str(error).partition("; ")
            yield Finding("uploads", "bad", f"{folder.name}: {what}", how or "try again when it answers")
    if looked and not behind:
        yield Finding(
            "uploads", "ok", f"{looked} runs with platform.storage at a URI: nothing is missing there"
        )


def pending_uploads(folder: Path, uri: str) -> list[str]:
    """What belongs to a run's URI and is not there, in words.

    Raises:
        StorageError: it cannot be looked at.
    """
    remote = _remote(folder, uri)
    left = [f"checkpoint {update}" for update in remote.missing(_BRIEF)]
    there = remote.run.child("model").listing(_BRIEF)
    if (folder / "model" / "config.json").is_file() and "manifest.json" not in there:
        left.append("model")
    return left


def upload_pending(folder: Path, uri: str) -> None:
    """Copy what is missing."""
    remote = _remote(folder, uri)
    remote.sync(_BRIEF)
    if "model" in pending_uploads(folder, uri):
        upload_model(folder / "model", remote.run, _BRIEF)


def _remote(folder: Path, uri: str) -> RemoteCheckpoints:
    recipe = Recipe.from_dict(json.loads((folder / "recipe.json").read_text(encoding="utf-8")))
    store = CheckpointStore(folder, Retention.of(recipe.checkpoint))
    return RemoteCheckpoints(store, open_location(uri))
