"""The thread that carries queued metrics, tags and artifacts to MLflow, and waits when it is away."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data2vec.errors import Data2VecError

from ..redaction import redact_text
from .metric_queue import MetricQueue, PendingPoint
from .mlflow_access import as_steps, is_permanent, short_reason
from .run_outbox import Action, RunOutbox

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

log = logging.getLogger(__name__)

BATCH_SIZE = 1000  # MLflow's limit of metrics in one call


class MetricSender:
    """Sends what waits for the runs given to it.

    Before the first send of a run, and after every send whose answer was lost, the steps that the server
    has are read, so a point is never sent on top of itself.

    Args:
        queue: metrics on disk.
        outbox: tags, artifacts and ends of runs on disk.
        client: gives the MLflow client (made on first use, in this thread).
        tracking_uri: for messages.
        interval_s: pause between rounds while all is well.
        max_delay_s: longest pause between attempts while the server is away.
    """

    def __init__(
        self,
        queue: MetricQueue,
        outbox: RunOutbox,
        client: Callable[[], MlflowClient],
        tracking_uri: str,
        interval_s: float = 2.0,
        max_delay_s: float = 60.0,
    ) -> None:
        self.queue = queue
        self.outbox = outbox
        self._client = client
        self._place = redact_text(tracking_uri)
        self._interval_s = interval_s
        self._max_delay_s = max_delay_s
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._runs: set[str] = set()
        self._marks_known: set[str] = set()
        self._undeliverable: set[str] = set()
        self._wanted = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._failures = 0
        self._away_since = 0.0
        self._said_away = False

    def add_run(self, run_id: str) -> None:
        """Send for this run from now on; starts the thread with the first one."""
        with self._changed:
            self._runs.add(run_id)
            self._marks_known.discard(run_id)
            self._undeliverable.discard(run_id)
            if self._thread is None or not self._thread.is_alive():
                self._stopping = False
                self._thread = threading.Thread(target=self._loop, name="d2v-metric-sender", daemon=True)
                self._thread.start()

    def remove_run(self, run_id: str) -> None:
        """Stop sending for this run; what still waits stays on disk."""
        with self._changed:
            self._runs.discard(run_id)

    def unsent(self, run_id: str) -> int:
        """How many points and actions of this run wait."""
        return self.queue.num_pending(run_id) + len(self.outbox.pending(run_id))

    def flush(self, run_id: str, timeout_s: float) -> int:
        """Send at once and wait, at most ``timeout_s``; returns how many points and actions still wait."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while (waiting := self.unsent(run_id)) and run_id in self._runs - self._undeliverable:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._wanted = True
                self._changed.notify_all()
                self._changed.wait(min(left, 0.5))
        return waiting

    def stop(self, timeout_s: float) -> None:
        """End the thread after the send in progress."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def deliver(self, run_id: str) -> None:
        """Send everything that waits for a run, now, in this thread.

        Raises:
            Exception: whatever MLflow raised; nothing is lost, what was not sent still waits.
        """
        with self._sending:
            client = self._client()
            if run_id not in self._marks_known:
                self.queue.raise_marks(run_id, as_steps(client.get_run(run_id)))
                self._marks_known.add(run_id)
            while batch := self.queue.pending(run_id, BATCH_SIZE):
                self._send(client, run_id, batch)
                self.queue.mark_sent(batch)
            for action in self.outbox.pending(run_id):
                self._perform(client, action)
                self.outbox.done(action)

    def _send(self, client: MlflowClient, run_id: str, batch: list[PendingPoint]) -> None:
        from mlflow.entities import Metric

        points = [item.point for item in batch]
        metrics = [Metric(p.key, p.value, p.timestamp_ms, p.step) for p in points]
        try:
            client.log_batch(run_id, metrics=metrics, synchronous=True)
        except BaseException:
            # The server may have stored the batch although the answer was lost: ask before sending again.
            self._marks_known.discard(run_id)
            raise

    def _perform(self, client: MlflowClient, action: Action) -> None:
        content = action.content
        try:
            if action.kind == "tags":
                for key, value in content.items():
                    client.set_tag(action.run_id, key, value)
            elif action.kind == "input":
                client.log_inputs(action.run_id, [_dataset_input(content)])
            elif action.kind == "artifact":
                path = Path(content["path"])
                if not path.exists():
                    log.error("run %s: artifact %s vanished before it could be uploaded", action.run_id, path)
                elif path.is_dir():
                    # MLflow drops the folder's own name; keep it as for a file.
                    folder = "/".join(part for part in (content["folder"], path.name) if part)
                    client.log_artifacts(action.run_id, str(path), folder)
                else:
                    client.log_artifact(action.run_id, str(path), content["folder"] or None)
            else:
                info = client.get_run(action.run_id).info
                if info.status != content["status"] or not info.end_time:  # told twice: the first was its end
                    client.set_terminated(action.run_id, content["status"], content["end_time_ms"])
        except Exception as error:
            if not is_permanent(error):
                raise
            log.error(
                "run %s: MLflow refuses %s %s for good: %s",
                action.run_id,
                action.kind,
                ", ".join(content) if action.kind == "tags" else content,
                short_reason(error),
            )

    def _loop(self) -> None:
        delay = self._interval_s
        while True:
            with self._changed:
                if not self._wanted and not self._stopping:
                    self._changed.wait(delay)
                if self._stopping:
                    return
                self._wanted = False
                runs = sorted(self._runs - self._undeliverable)
            delay = self._round(runs)
            with self._changed:
                self._changed.notify_all()

    def _round(self, runs: list[str]) -> float:
        """One attempt for every run; returns the pause before the next."""
        for run_id in runs:
            try:
                if self.unsent(run_id):
                    self.deliver(run_id)
                    self._succeeded()
            except Exception as error:  # a thread that dies would stop all logging without a word
                if is_permanent(error):
                    self._undeliverable.add(run_id)
                    log.error(
                        "run %s: MLflow at %s takes no more metrics of it: %s; they stay in %s",
                        run_id,
                        self._place,
                        short_reason(error),
                        self.queue.path,
                    )
                else:
                    return self._failed(error)
        return self._interval_s

    def _failed(self, error: Exception) -> float:
        self._failures += 1
        if self._failures == 1:
            self._away_since = time.monotonic()
        elif not self._said_away:  # one failure alone is noise; the second says that it stays away
            self._said_away = True
            try:
                waiting = str(self.queue.num_pending())
            except Data2VecError:
                waiting = "an unknown number of"
            log.warning(
                "MLflow at %s does not answer (%s); training goes on, %s metric points wait in %s",
                self._place,
                short_reason(error),
                waiting,
                self.queue.path,
            )
        return min(self._max_delay_s, self._interval_s * 2 ** min(self._failures - 1, 16))

    def _succeeded(self) -> None:
        if self._said_away:
            away_s = time.monotonic() - self._away_since
            log.warning("MLflow at %s answers again after %.0f s; sending what waited", self._place, away_s)
        self._failures = 0
        self._said_away = False

    def touch(self) -> None:
        """Mark the queue file as in use, so that no other host takes it for abandoned."""
        os.utime(self.queue.path)


def _dataset_input(content: dict[str, Any]) -> DatasetInput:
    """MLflow keeps one of each name and digest: sending it again changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(
        name=content["name"],
        digest=content["digest"],
        source_type=content["source_type"],
        source=json.dumps(content["source"]),
        profile=json.dumps(content["profile"]),
    )
    return DatasetInput(data, [InputTag("mlflow.data.context", content["context"])])
