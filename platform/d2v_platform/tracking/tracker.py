"""MLflow tracking: one tracker per process, explicit run ids, metrics exactly once.

The driver opens a run and owns it; workers get plain ids. Nothing here depends on an active run or any
other global state of MLflow. What is logged is on disk when the call returns and is sent by a thread, so a
server that is away never stops or slows a training (design §5.5).

    with Tracker() as tracker:
        run = tracker.open_run(NewRun(experiment="data2vec", name="text-1", params=recipe))
        tracker.log(run.run_id, [MetricPoint("train/loss", 100, 0.7, now_ms())])
        tracker.finish(run.run_id, "FINISHED")
"""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import filelock

from data2vec.errors import Data2VecError

from ..home import artifact_location, chosen_tracking_uri, d2v_home, home_folder
from ..redaction import SECRET_IN_NAME, redact, redact_file, redact_text
from .metric_queue import MetricPoint, MetricQueue
from .metric_sender import MetricSender
from .mlflow_access import (
    as_steps,
    check_metric_key,
    error_code,
    is_permanent,
    open_client,
    short_reason,
    unavailable,
)
from .run_liveness import HEARTBEAT_TAG, OWNER_TAG, Heartbeat, JobTry
from .run_orphans import close_dead_runs, deliver_leftovers
from .run_outbox import RunOutbox
from .run_params import log_params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["ExistingRun", "MetricPoint", "NewRun", "RunHandle", "Tracker", "now_ms"]

log = logging.getLogger(__name__)

RESUME_TAG = "d2v.resume_key"
FinalStatus = Literal["FINISHED", "FAILED", "KILLED"]
_MAX_TAG = 8000  # characters; MLflow's limit
# Without it MLflow's pages guess from the first runs, and may show an experiment as one of language agents.
_TRAINING_PAGES = {"mlflow.experimentKind": "custom_model_development"}
_NAME = re.compile(r"[\w.\-+=,@:/ ]{1,200}")
_AGAIN_S = 3.0  # to a heartbeat after one that failed: an outage must not look like a death when it is over
_OPEN_HERE: set[str] = set()  # runs that a tracker of this process has open


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """What a run is opened with.

    Attributes:
        experiment: name of the experiment, created when missing.
        name: the run's name in the UI.
        params: nested plain recipe. Flattened into params; a value longer than MLflow allows is kept only in
            the artifact ``recipe/params.json`` and listed in the tag ``d2v.params_in_artifact``.
        tags: further tags, set on resume too.
        parent_run_id: the run under which this one folds (a sweep).
        resume_key: the identity under which a later launch finds this run; ``None`` always makes a new run
            (which can be found by ``name`` later).
        reopen_finished: go on with a finished run too (a sweep that is extended).
    """

    experiment: str
    name: str
    params: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    parent_run_id: str | None = None
    resume_key: str | None = None
    reopen_finished: bool = False


@dataclass(frozen=True)
class RunHandle:
    """A run as :meth:`Tracker.open_run` gives it.

    ``status`` is ``RUNNING``, or ``FINISHED`` for a run of this name that is over; then nothing was opened.
    """

    run_id: str
    name: str
    experiment_id: str
    resumed: bool
    status: str


@dataclass(frozen=True)
class ExistingRun:
    """What is known of a run with a given name: ``live``, ``unfinished`` (can be resumed) or ``finished``."""

    run_id: str
    name: str
    state: Literal["live", "unfinished", "finished"]
    status: str
    experiment_id: str
    owner: str  # who had it, for messages; empty when unknown
    params: dict[str, str]
    tags: dict[str, str]


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow wants them."""
    return time.time_ns() // 1_000_000


class Tracker:
    """The connection of one process to MLflow.

    Args:
        tracking_uri: default: ``MLFLOW_TRACKING_URI``, else SQLite under the home.
        home: another home than ``D2V_HOME``.
        send_interval_s: pause between sends of queued metrics.
        heartbeat_interval_s: pause between heartbeats of open runs.
        stale_after_s: a run of another host without a heartbeat for so long counts as dead.
        client: an MLflow client to use instead of making one.
        job: the scheduler's job that this process works for; by default the one that it is in.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        home: Path | None = None,
        *,
        send_interval_s: float = 2.0,
        heartbeat_interval_s: float = 30.0,
        stale_after_s: float = 120.0,
        client: Any | None = None,
        job: JobTry | None = None,
    ) -> None:
        self.home = Path(home) if home is not None else d2v_home()
        self.tracking_uri = chosen_tracking_uri(tracking_uri, self.home)
        self.stale_after_s = stale_after_s
        self._client = client
        self._client_lock = threading.Lock()
        folder = home_folder("queue", self.home)
        # One file per server, because run ids belong to one, and per host, because two hosts must not share
        # a SQLite file in a network folder.
        server = hashlib.sha256(self.tracking_uri.encode()).hexdigest()[:12]
        self.queue_pattern = f"metrics-{server}-*.db"
        path = folder / self.queue_pattern.replace("*", re.sub(r"\W", "_", socket.gethostname()))
        self.queue = MetricQueue(path)
        self.outbox = RunOutbox(path, folder / "spool")
        self.sender = MetricSender(
            self.queue, self.outbox, lambda: self.client, self.tracking_uri, send_interval_s
        )
        self._heartbeat_interval_s = heartbeat_interval_s
        self._open: set[str] = set()
        self._job = job or JobTry.own()
        token = secrets.token_hex(8)
        self._token = self._job.as_owner(token) if self._job else token  # as the owner of runs
        self._claimed: set[str] = set()  # runs whose owner this tracker has written down
        self._owning = threading.Lock()
        self._taken: dict[str, str] = {}  # runs that another tracker has opened since, and which
        self._closing = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def client(self) -> MlflowClient:
        """The MLflow client, connected on first use."""
        with self._client_lock:
            if self._client is None:
                self._client = open_client(self.tracking_uri)
            return self._client

    # -- runs ------------------------------------------------------------------------------------------

    def open_run(self, run: NewRun) -> RunHandle:
        """Create a run, or go on with an unfinished one of the same key.

        Raises:
            Data2VecError: the key belongs to a run that is live elsewhere.
            TrackingUnavailableError: MLflow does not answer.
        """
        key = run.resume_key
        named = (("run_name", run.name), ("run_name", key or run.name), ("experiment", run.experiment))
        for what, text in named:
            if not _NAME.fullmatch(text):
                raise Data2VecError(
                    f"platform.{what} = {text!r} must be 1 to 200 letters, digits or ' _-.+=,@:/'"
                )
            if (shown := redact_text(text)) != text:
                raise Data2VecError(f"platform.{what} = {shown!r} {SECRET_IN_NAME}")
        try:
            with filelock.FileLock(home_folder("queue", self.home) / "opening.lock", timeout=120):
                existing = self.find_run(run.experiment, key) if key else None
                if existing is None:
                    made = self._create(run)
                elif existing.state == "live":
                    raise Data2VecError(
                        f"platform.run_name = {key!r} is being trained by {existing.owner}; wait for "
                        "it, stop it, or choose another platform.run_name"
                    )
                elif existing.state == "finished" and not run.reopen_finished:
                    return RunHandle(
                        existing.run_id, existing.name, existing.experiment_id, False, "FINISHED"
                    )
                else:
                    made = self._reopen(existing.run_id, run.tags)
                    # Steps that the server has are refused from now on, even if the disk queue was lost.
                    self.queue.raise_marks(existing.run_id, as_steps(made))
                run_id = made.info.run_id
                _OPEN_HERE.add(run_id)
            self._claimed.add(run_id)
            self._taken.pop(run_id, None)
            self._open.add(run_id)
            log_params(self, made, run.params)
        except Data2VecError:
            raise
        except Exception as error:
            if is_permanent(error):
                raise
            raise unavailable(self.tracking_uri, error) from error
        self.sender.add_run(run_id)
        self._start_heart()
        return RunHandle(run_id, run.name, made.info.experiment_id, existing is not None, "RUNNING")

    def adopt(self, run_id: str) -> None:
        """Take up a run that a process whose place this one took had open."""
        if run_id in self._open:
            return
        self._open.add(run_id)
        _OPEN_HERE.add(run_id)
        self.sender.add_run(run_id)
        self._start_heart(at_once=True)

    def find_run(self, experiment: str, name: str) -> ExistingRun | None:
        """The newest run of an experiment that was opened under this name or resume key."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None or not _NAME.fullmatch(name):
            return None
        runs = self.client.search_runs(
            [found.experiment_id],
            f"tags.`{RESUME_TAG}` = '{name}'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        if not runs:
            return None
        existing = self._describe(runs[0])
        run_id = existing.run_id
        if existing.state == "unfinished" and run_id in self.outbox.runs_with_pending():
            # Its end may still wait here: a run that finished while the server was away is finished.
            self.sender.deliver(run_id)
            existing = self._describe(self.client.get_run(run_id))
        return existing

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> int:
        """Store metric points; on return they are on disk and will reach MLflow exactly once.

        Returns:
            How many were new: repeated steps after a restart are not stored again.

        Raises:
            Data2VecError: another process has taken the run over.
        """
        self._refuse_taken(run_id)
        for point in points:
            check_metric_key(point.key)
        return self.queue.put(run_id, points)

    def flush(self, run_id: str, timeout_s: float = 30.0) -> int:
        """Wait until everything logged so far has reached MLflow; returns how much has not."""
        return self.sender.flush(run_id, timeout_s)

    def finish(
        self,
        run_id: str,
        status: FinalStatus = "FINISHED",
        timeout_s: float = 30.0,
        tags: Mapping[str, str] | None = None,
    ) -> int:
        """End a run; what the server does not take within ``timeout_s`` is sent by a later start of d2v.

        Args:
            run_id: the run.
            status: its last one.
            timeout_s: how long to wait for the server.
            tags: set before it ends.

        Returns:
            How many points and actions still wait.
        """
        if status not in ("FINISHED", "FAILED", "KILLED"):
            raise ValueError(f"status = {status!r} must be FINISHED, FAILED or KILLED")
        if run_id in self._taken:
            return self._let_go(run_id)  # its end is the other's to tell
        if tags:
            self.set_tags(run_id, tags)
        dropped = self.queue.dropped(run_id)
        if dropped:
            self.set_tags(run_id, {"d2v.metrics_dropped": str(dropped)})
        with self._owning:
            ours = run_id in self._open
            self._open.discard(run_id)
            _OPEN_HERE.discard(run_id)
        self.outbox.put(run_id, "finish", {"status": status, "end_time_ms": now_ms()})
        if not ours:  # a run that another process left open
            self.sender.add_run(run_id)
        waiting = self.flush(run_id, timeout_s)
        self.sender.remove_run(run_id)
        if waiting:
            log.warning(
                "run %s: %d metric points and other items are not at MLflow yet; they wait in %s and are "
                "sent by the next start of d2v",
                run_id,
                waiting,
                self.queue.path,
            )
        else:
            self.queue.forget(run_id)
        return waiting

    def close(self, timeout_s: float = 10.0) -> None:
        """Flush the open runs and end the threads; runs that were not finished stay resumable."""
        self._closing.set()
        for run_id in sorted(self._open):
            self.flush(run_id, timeout_s)
        _OPEN_HERE.difference_update(self._open)
        self._open.clear()
        self.sender.stop(timeout_s)
        if self._heart is not None:
            self._heart.join(timeout_s)
        self.queue.close()
        self.outbox.close()

    # -- tags and artifacts ----------------------------------------------------------------------------

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags, redacted; one too long for MLflow becomes the artifact ``tags/NAME.txt``."""
        short: dict[str, str] = {}
        for key, value in redact(dict(tags)).items():
            text = str(value)
            if len(text) > _MAX_TAG:
                self.log_text(run_id, text, f"tags/{key}.txt")
                text = f"{len(text)} characters, see artifact tags/{key}.txt"
            short[key] = text
        self.outbox.put(run_id, "tags", short)

    def log_input(self, run_id: str, data: Mapping[str, Any], context: str) -> None:
        """Name a data set that a run uses.

        Args:
            run_id: the run.
            data: name, digest, source_type, source and profile, plain values.
            context: what for: "training" or "validation".
        """
        self.outbox.put(run_id, "input", {**data, "context": context})

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """Store ``text``, redacted, as the artifact ``file`` (a relative path)."""
        folder, _, name = file.rpartition("/")
        path = self._spool(name)
        path.write_text(redact_text(text), encoding="utf-8")
        self._queue_artifact(run_id, path, folder)

    def log_dict(self, run_id: str, values: Mapping[str, Any], file: str) -> None:
        """Store a plain dictionary, redacted, as a JSON artifact."""
        self.log_text(run_id, json.dumps(redact(values), indent=2, sort_keys=True, default=str), file)

    def log_artifact(self, run_id: str, path: Path | str, folder: str = "") -> None:
        """Store a copy of a small file or folder as an artifact; text files are redacted.

        Model weights do not go this way: see :func:`d2v_platform.registry.register.register`.
        """
        path = Path(path)
        if not path.exists():
            raise Data2VecError(f"artifact {str(path)!r} does not exist")
        copy = self._spool(path.name)
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copyfile(path, copy)
        for file in [copy] if copy.is_file() else [p for p in copy.rglob("*") if p.is_file()]:
            redact_file(file)
        self._queue_artifact(run_id, copy, folder)

    # -- owners of runs --------------------------------------------------------------------------------

    def heartbeat(self, run_id: str) -> None:
        """Say that this process is alive and owns the run."""
        if run_id not in self._claimed:
            self.client.set_tag(run_id, OWNER_TAG, self._token)
            self._claimed.add(run_id)
        self.client.set_tag(run_id, HEARTBEAT_TAG, Heartbeat.now().to_tag())

    def _still_own(self, run_id: str) -> bool:
        """Whether nobody else has opened the run; one that was taken for dead meanwhile is running again."""
        run = self.client.get_run(run_id)
        owner, beat = run.data.tags.get(OWNER_TAG), Heartbeat.from_tag(run.data.tags.get(HEARTBEAT_TAG))
        if run_id in self._claimed and owner not in (None, self._token):
            self._taken[run_id] = beat.owner() if beat else "another process"
            log.error("run %s was taken over by %s", run_id, self._taken[run_id])
            return False
        if run.info.status == "KILLED":
            self.client.update_run(run_id, status="RUNNING")
            self.client.set_tag(run_id, "d2v.closed_because", "taken for dead, but alive: running again")
        return True

    def _refuse_taken(self, run_id: str) -> None:
        if run_id in self._taken:
            raise Data2VecError(
                f"the run {run_id} was taken over by {self._taken[run_id]}, under the same "
                "platform.run_name; this process stops, so that two do not write one run"
            )

    def _let_go(self, run_id: str) -> int:
        self._open.discard(run_id)
        _OPEN_HERE.discard(run_id)
        self.sender.remove_run(run_id)
        return 0

    def close_orphans(self) -> list[str]:
        """Send what dead processes left behind and set their RUNNING runs to KILLED.

        Only runs with our heartbeat tag are touched. Returns the names of the runs that were closed.
        """
        with filelock.FileLock(home_folder("queue", self.home) / "orphans.lock", timeout=120):
            deliver_leftovers(self)
            return close_dead_runs(self)

    def is_live(self, run: Run) -> bool:
        """Whether some process, this one included, has the run open."""
        if run.info.status not in ("RUNNING", "SCHEDULED"):
            return False
        beat = Heartbeat.from_tag(run.data.tags.get(HEARTBEAT_TAG))
        if beat is None:
            return False
        if beat.is_this_process():
            return run.info.run_id in _OPEN_HERE
        if self._job and beat.is_elsewhere() and self._job.replaces(run.data.tags.get(OWNER_TAG)):
            return False
        return beat.is_live(self.stale_after_s)

    # -- inside ----------------------------------------------------------------------------------------

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(
                    name, artifact_location=artifact_location(self.tracking_uri), tags=_TRAINING_PAGES
                )
            except Exception as error:
                if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)  # somebody else was faster
        if found is None or found.lifecycle_stage != "active":
            raise Data2VecError(
                f"platform.experiment = {name!r} was deleted in MLflow; choose another name, or bring it "
                "back with 'mlflow experiments restore'"
            )
        return found.experiment_id

    def _create(self, run: NewRun) -> Run:
        own = {
            RESUME_TAG: run.resume_key or run.name,
            HEARTBEAT_TAG: Heartbeat.now().to_tag(),
            OWNER_TAG: self._token,
        }
        if run.parent_run_id:
            own["mlflow.parentRunId"] = run.parent_run_id
        user = _user_name()
        if user:
            own["mlflow.user"] = user
        made = self.client.create_run(self._experiment(run.experiment), run_name=run.name, tags=own)
        if run.tags:
            self.set_tags(made.info.run_id, run.tags)
        return made

    def _reopen(self, run_id: str, tags: Mapping[str, str]) -> Run:
        self.outbox.drop_finish(run_id)
        self.client.update_run(run_id, status="RUNNING")
        self._claimed.discard(run_id)
        self.heartbeat(run_id)
        self.client.set_tag(run_id, "d2v.resumed_at_ms", str(now_ms()))
        if tags:
            self.set_tags(run_id, tags)
        return self.client.get_run(run_id)

    def _describe(self, run: Run) -> ExistingRun:
        beat = Heartbeat.from_tag(run.data.tags.get(HEARTBEAT_TAG))
        if run.info.status == "FINISHED":
            state: Literal["live", "unfinished", "finished"] = "finished"
        else:
            state = "live" if self.is_live(run) else "unfinished"
        return ExistingRun(
            run_id=run.info.run_id,
            name=run.info.run_name or run.info.run_id,
            state=state,
            status=run.info.status,
            experiment_id=run.info.experiment_id,
            owner=beat.owner() if beat else "",
            params=dict(run.data.params),
            tags=dict(run.data.tags),
        )

    def _spool(self, name: str) -> Path:
        """A fresh place in the spool folder; one file or folder each."""
        self.outbox.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self.outbox.spool)) / name

    def _queue_artifact(self, run_id: str, path: Path, folder: str) -> None:
        self.outbox.put(run_id, "artifact", {"path": str(path), "folder": folder})

    def _start_heart(self, at_once: bool = False) -> None:
        if self._heart is None or not self._heart.is_alive():
            first = 0.0 if at_once else self._heartbeat_interval_s
            self._heart = threading.Thread(target=self._beat, args=[first], name="d2v-heartbeat", daemon=True)
            self._heart.start()

    def _beat(self, first_pause_s: float) -> None:
        pause = first_pause_s
        while not self._closing.wait(pause):
            pause = self._heartbeat_interval_s
            try:
                self.sender.touch()
                for run_id in sorted(self._open):
                    with self._owning:  # a run that ends meanwhile is not brought back
                        if run_id in self._open and run_id not in self._taken and self._still_own(run_id):
                            self.heartbeat(run_id)
            except Exception as error:  # the sender is the one to say that the server is away
                pause = min(pause, _AGAIN_S)
                log.debug("no heartbeat: %s", short_reason(error))


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under an id that has no name
        return ""
