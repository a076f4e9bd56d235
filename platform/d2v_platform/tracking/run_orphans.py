"""Runs whose driver died: send what they left on disk, and close them as KILLED."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .metric_queue import MetricQueue
from .metric_sender import MetricSender
from .mlflow_access import short_reason
from .run_liveness import HEARTBEAT_TAG, Heartbeat
from .run_outbox import RunOutbox

if TYPE_CHECKING:
    from mlflow.entities import Run

    from .tracker import Tracker

log = logging.getLogger(__name__)

_ABANDONED_AFTER_S = 600.0


def close_dead_runs(tracker: Tracker) -> list[str]:
    """Set RUNNING runs of dead processes to KILLED, ended at their last heartbeat; returns their names.

    Runs without our heartbeat tag belong to other programs and are left alone.
    """
    closed: list[str] = []
    for run, beat in dead_runs(tracker):
        tracker.client.set_tag(run.info.run_id, "d2v.closed_because", f"its driver died: {beat.owner()}")
        tracker.client.set_terminated(run.info.run_id, "KILLED", int(beat.time_s * 1000))
        closed.append(run.info.run_name or run.info.run_id)
    return closed


def dead_runs(tracker: Tracker) -> list[tuple[Run, Heartbeat]]:
    """RUNNING runs of ours whose process is gone, with its last heartbeat."""
    found = [(run, Heartbeat.from_tag(run.data.tags.get(HEARTBEAT_TAG))) for run in list(_running(tracker))]
    return [(run, beat) for run, beat in found if beat is not None and not tracker.is_live(run)]


def deliver_leftovers(tracker: Tracker) -> None:
    """Send what waits for runs whose process is gone, from this host's queue and from abandoned ones."""
    _deliver_dead(tracker, tracker.sender)
    folder = tracker.queue.path.parent
    for path in sorted(folder.glob(tracker.queue_pattern)):
        if path == tracker.queue.path or time.time() - path.stat().st_mtime < _ABANDONED_AFTER_S:
            continue  # a live tracker of another host touches its file with every heartbeat
        queue, outbox = MetricQueue(path), RunOutbox(path, tracker.outbox.spool)
        _deliver_dead(tracker, MetricSender(queue, outbox, lambda: tracker.client, tracker.tracking_uri))
        queue.close()
        outbox.close()


def _deliver_dead(tracker: Tracker, sender: MetricSender) -> None:
    for run_id in sorted({*sender.queue.runs_with_pending(), *sender.outbox.runs_with_pending()}):
        try:
            if not tracker.is_live(tracker.client.get_run(run_id)):
                sender.deliver(run_id)
        except Exception as error:  # one deleted run must not keep the others' metrics back
            log.warning("run %s: what it left behind could not be sent: %s", run_id, short_reason(error))


def _running(tracker: Tracker) -> Iterator[Run]:
    experiments = [e.experiment_id for e in tracker.client.search_experiments()]
    token: str | None = None
    while experiments:
        page = tracker.client.search_runs(
            experiments, "attributes.status = 'RUNNING'", max_results=1000, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return
