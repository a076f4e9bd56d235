"""Sending to MLflow with a client of our own: what is asked, in which order, and what is tried again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from d2v_platform.tracking import metric_queue, run_orphans
from d2v_platform.tracking.metric_queue import MetricPoint, MetricQueue
from d2v_platform.tracking.metric_sender import MetricSender
from d2v_platform.tracking.mlflow_access import (
    as_steps,
    check_metric_key,
    is_permanent,
    is_server,
    short_reason,
    unavailable,
)
from d2v_platform.tracking.run_liveness import HEARTBEAT_TAG, Heartbeat
from d2v_platform.tracking.run_orphans import close_dead_runs, dead_runs, deliver_leftovers
from d2v_platform.tracking.run_outbox import RunOutbox
from d2v_platform.tracking.run_params import log_params, prepare_params
from data2vec.errors import Data2VecError


class RefusedError(Exception):
    """As MLflow refuses for good."""

    error_code = "INVALID_PARAMETER_VALUE"


class Server:
    """An MLflow client that keeps what it is told.

    Attributes:
        stored: (run, key, step, value) of every point.
        calls: everything else, in order.
        failing: name of a call -> errors that it raises; a batch is stored all the same.
    """

    def __init__(self) -> None:
        self.stored: list[tuple[str, str, int, float]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.batches: list[int] = []
        self.failing: dict[str, list[Exception]] = {}

    def _did(self, name: str, *words: Any) -> None:
        self.calls.append((name, *words))
        if errors := self.failing.get(name):
            raise errors.pop(0)

    def get_run(self, run_id: str) -> Any:
        self._did("get_run", run_id)
        marks: dict[str, int] = {}
        for run, key, step, _ in self.stored:
            if run == run_id:
                marks[key] = max(step, marks.get(key, step))
        metrics = [SimpleNamespace(key=key, step=step) for key, step in marks.items()]
        info = SimpleNamespace(run_id=run_id, status="RUNNING", end_time=None)
        return SimpleNamespace(
            info=info, data=SimpleNamespace(to_proto=lambda: SimpleNamespace(metrics=metrics))
        )

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), synchronous: bool = False) -> None:
        assert synchronous
        assert all(metric.timestamp == 1000 + metric.step for metric in metrics)
        self.stored += [(run_id, metric.key, metric.step, metric.value) for metric in metrics]
        self.batches.append(len(metrics) or len(params))
        self._did("log_batch", run_id, *((p.key, p.value) for p in params))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *words: self._did(name, *words)


def points(*steps: int, key: str = "loss") -> list[MetricPoint]:
    return [MetricPoint(key, step, step / 4, 1000 + step) for step in steps]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def sender(server: Server, tmp_path: Path) -> Iterator[MetricSender]:
    queue, outbox = MetricQueue(tmp_path / "q.db"), RunOutbox(tmp_path / "q.db", tmp_path / "spool")
    made = MetricSender(queue, outbox, lambda: server, "http://me:secret@host", 0.01, 0.05)  # type: ignore[arg-type,return-value]
    yield made
    made.stop(5)
    queue.close()
    outbox.close()


# ---- one delivery ---------------------------------------------------------------------------------------


def test_after_a_lost_answer_the_server_is_asked_before_anything_is_sent_again(
    sender: MetricSender, server: Server
) -> None:
    sender.queue.put("r", points(1, 2))
    server.failing["log_batch"] = [ConnectionError("reset")]
    with pytest.raises(ConnectionError):
        sender.deliver("r")
    assert sender.unsent("r") == 2  # as far as is known here
    sender.queue.put("r", points(3))
    sender.deliver("r")
    assert [step for _, _, step, _ in server.stored] == [1, 2, 3]
    assert [call[0] for call in server.calls] == ["get_run", "log_batch", "get_run", "log_batch"]
    sender.queue.put("r", points(4))
    sender.deliver("r")
    assert server.calls[-2][0] == "log_batch"  # all is well: it is not asked each time
    assert server.stored[-1] == ("r", "loss", 4, 1.0)


def test_a_reopened_run_is_asked_for_its_marks_again(sender: MetricSender, server: Server) -> None:
    sender.queue.put("r", points(1))
    sender.deliver("r")
    sender.queue.forget("r")
    server.stored.append(("r", "loss", 5, 0.0))  # sent from elsewhere
    sender.add_run("r")
    sender.queue.put("r", points(4, 5, 6))
    assert sender.flush("r", 5) == 0
    assert [step for _, _, step, _ in server.stored] == [1, 5, 6]
    assert [call for call in server.calls if call[0] == "get_run"] == [("get_run", "r")] * 2


def test_points_go_in_batches_before_the_end_of_the_run(
    sender: MetricSender, server: Server, tmp_path: Path
) -> None:
    sender.outbox.put("r", "tags", {"a": "1", "b": "2"})
    folder = tmp_path / "x" / "tables"
    folder.mkdir(parents=True)
    for name, below in (("y", "reports"), ("z", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.txt").touch()
        sender.outbox.put("r", "artifact", {"path": str(tmp_path / name / "one.txt"), "folder": below})
    sender.outbox.put("r", "artifact", {"path": str(folder), "folder": "reports"})
    sender.outbox.put("r", "finish", {"status": "FAILED", "end_time_ms": 77})
    sender.outbox.put("other", "tags", {"c": "3"})
    sender.queue.put("r", points(*range(1, 2002)))
    sender.queue.put("other", points(1))
    assert sender.unsent("r") == 2001 + 5
    sender.deliver("r")
    assert server.batches == [1000, 1000, 1]  # MLflow takes no more in one call
    assert server.calls[4:] == [
        ("set_tag", "r", "a", "1"),
        ("set_tag", "r", "b", "2"),
        ("log_artifact", "r", str(tmp_path / "y/one.txt"), "reports"),
        ("log_artifact", "r", str(tmp_path / "z/one.txt"), None),
        ("log_artifacts", "r", str(folder), "reports/tables"),  # a folder keeps its name
        ("get_run", "r"),
        ("set_terminated", "r", "FAILED", 77),
    ]
    assert (sender.unsent("r"), sender.unsent("other")) == (0, 2)
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()  # what was uploaded is not kept


def test_an_action_that_fails_waits_and_one_that_is_refused_does_not(
    sender: MetricSender, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        sender.outbox.put("r", "tags", {f"t{number}": "x"})
    sender.outbox.put("r", "artifact", {"path": str(tmp_path / "away/x.txt"), "folder": ""})
    server.failing["set_tag"] = [ConnectionError("away")]
    with pytest.raises(ConnectionError):
        sender.deliver("r")
    assert sender.unsent("r") == 3
    server.failing["set_tag"] = [RefusedError("bad name")]
    sender.deliver("r")
    assert sender.unsent("r") == 0
    assert [call[2] for call in server.calls if call[0] == "set_tag"] == ["t1", "t1", "t2"]
    told = [record.message for record in caplog.records]
    assert told[0] == "run r: MLflow refuses tags t1 for good: RefusedError: bad name"
    assert "vanished before it could be uploaded" in told[1] and len(told) == 2


# ---- the thread -----------------------------------------------------------------------------------------


def test_pauses_grow_to_their_bound_and_the_second_failure_is_told(
    sender: MetricSender, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    sender.queue.put("r", points(1, 2))
    server.failing["get_run"] = [ConnectionError("refused")] * 5
    pauses = [sender._round(["r"]) for _ in range(5)]
    assert pauses == [0.01, 0.02, 0.04, 0.05, 0.05]
    (told,) = [record.message for record in caplog.records]
    assert "does not answer (ConnectionError: refused); training goes on, 2 metric points wait" in told
    assert "secret" not in told
    assert sender._round(["r"]) == 0.01
    assert "answers again after" in caplog.records[-1].message
    sender.queue.put("r", points(3))
    server.failing["log_batch"] = [ConnectionError("refused")]
    assert sender._round(["r"]) == 0.01  # it starts anew: one failure alone is noise
    assert len(caplog.records) == 2


def test_a_run_that_is_refused_for_good_is_left_alone(
    sender: MetricSender, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.failing["log_batch"] = [RefusedError("deleted")]
    sender.queue.put("a", points(1))
    sender.add_run("a")
    assert sender.flush("a", 5) == 1
    sender.queue.put("b", points(1))
    sender.add_run("b")
    assert sender.flush("b", 5) == 0
    began = time.monotonic()
    assert sender.flush("a", 5) == 1 and time.monotonic() - began < 1  # nothing to wait for
    assert sum("takes no more metrics of it: RefusedError: deleted" in r.message for r in caplog.records) == 1
    sender.remove_run("b")
    sender.queue.put("b", points(2))
    assert sender.flush("b", 5) == 1 and time.monotonic() - began < 2
    sender.add_run("a")  # opened again: it gets another chance
    assert sender.flush("a", 5) == 0


def test_after_its_end_nothing_is_sent_until_a_run_is_opened(sender: MetricSender, server: Server) -> None:
    sender.add_run("r")
    sender.stop(5)
    sender.queue.put("r", points(1))
    assert sender.flush("r", 0.1) == 1
    sender.add_run("s")
    assert sender.flush("r", 5) == 0
    os.utime(sender.queue.path, (0, 0))
    sender.touch()
    assert time.time() - sender.queue.path.stat().st_mtime < 60


# ---- queue and outbox -----------------------------------------------------------------------------------


def test_marks_only_rise_and_belong_to_one_run_and_key(tmp_path: Path) -> None:
    queue = MetricQueue(tmp_path / "q.db")
    assert queue.put("r", [*points(1, 2, 3), *points(1, 2, key="acc")]) == 5
    assert queue.put("s", points(1)) == 1
    sent = queue.pending("r")
    queue.mark_sent([item for item in sent if item.point.key == "loss"][::-1])  # the highest, in any order
    assert queue.high_water("r") == {"loss": 3} and queue.high_water("s") == {}
    assert queue.raise_marks("r", {"loss": 2}) == 0
    assert queue.high_water("r") == {"loss": 3}
    assert queue.put("r", points(3, 4)) == 1
    assert (queue.num_pending("r"), queue.num_pending("s"), queue.num_pending()) == (3, 1, 4)
    assert queue.runs_with_pending() == ["r", "s"]
    assert [(p.run_id, p.point.key, p.point.step) for p in queue.pending()] == [
        ("r", "acc", 1), ("r", "acc", 2), ("r", "loss", 4), ("s", "loss", 1),
    ]  # fmt: skip
    assert len(queue.pending(limit=2)) == 2
    assert queue.raise_marks("r", {"acc": 1}) == 1  # of this key alone
    assert queue.num_pending() == 3
    queue.forget("s")
    assert queue.high_water("r") == {"loss": 3, "acc": 1}
    assert queue.pending("s")[0].point == points(1)[0]  # its points are not forgotten
    negative = MetricQueue(tmp_path / "n.db")
    assert negative.put("r", points(-1, 0)) == 2


def test_a_full_queue_has_room_again_when_others_were_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue, other = (MetricQueue(tmp_path / "q.db", max_pending=4) for _ in range(2))
    assert queue.put("r", points(1, 2, 3, 4)) == 4  # exactly full refuses nothing
    assert (queue.dropped("r"), len(caplog.records)) == (0, 0)
    other.mark_sent(other.pending("r", 3))  # by another process
    assert queue.put("r", points(5, 6)) == 2 and queue.dropped("r") == 0
    assert queue.put("r", points(7, 8, 9)) == 1
    assert queue.put("r", points(10)) == 0
    assert (queue.dropped("r"), queue.dropped("s"), len(caplog.records)) == (3, 0, 1)
    queue.mark_sent(queue.pending("r", 1))
    assert queue.put("r", points(20, 21)) == 1
    assert (queue.dropped("r"), len(caplog.records)) == (4, 2)  # full once more: said once more
    queue.raise_marks("r", {"loss": 7})
    assert queue.put("r", points(30, 31, 32)) == 3
    queue.forget("r")
    assert queue.dropped("r") == 0


def test_a_transaction_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    queue = MetricQueue(tmp_path / "deep" / "q.db")
    insert = "INSERT INTO dropped (run_id, points) VALUES ('r', 1)"
    with pytest.raises(Data2VecError), queue.transaction() as db:
        db.execute(insert) and queue._db.execute("nonsense")
    assert queue.dropped("r") == 0
    assert (tmp_path / "deep").stat().st_mode & 0o777 == 0o700
    queue.put("r", points(1))
    exported = queue.export_unsent("r")
    assert exported == {"format": 1, "run_id": "r", "marks": {}, "points": [["loss", 1, 0.25, 1001]]}
    for text, fix in (
        ("disk is full", "free some space"), ("database is locked", "another process"),
        ("disk image is malformed", "move the file away"), ("?", "permissions"),
    ):  # fmt: skip
        assert fix in metric_queue._advice(metric_queue.sqlite3.OperationalError(text))


def test_actions_keep_their_order_and_a_resumed_run_has_no_end(tmp_path: Path) -> None:
    box = RunOutbox(tmp_path / "q.db", tmp_path)
    kinds: list[Any] = ["tags", "finish", "tags"]
    for number, kind in enumerate(kinds):
        box.put("r", kind, {"n": str(number)})
    box.put("q", "finish", {"n": "9"})
    assert box.runs_with_pending() == ["q", "r"]
    box.drop_finish("r")
    assert [action.content["n"] for action in box.pending("r")] == ["0", "2"]
    assert [action.kind for action in box.pending("q")] == ["finish"]
    box.done(box.pending("r")[0])
    assert [action.content["n"] for action in box.pending("r")] == ["2"]


# ---- owners of runs -------------------------------------------------------------------------------------


def test_a_heartbeat_says_who_owns_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Heartbeat.now()
    assert Heartbeat.from_tag(mine.to_tag()) == mine
    assert [Heartbeat.from_tag(text) for text in (None, "", "x", "{}", "[1]")] == [None] * 5
    assert mine.is_this_process() and mine.is_live(1)
    assert abs(mine.time_s - time.time()) < 10 and mine.pid == os.getpid()
    old = replace(mine, time_s=mine.time_s - 1000)
    assert old.is_live(1)  # on this host the process table knows
    assert "last heard of 1000 s ago" in old.owner() or "1001 s ago" in old.owner()
    assert not replace(mine, started_s=mine.started_s - 5).is_live(1e9)  # the same id, another process
    assert replace(mine, started_s=mine.started_s - 1).is_live(1)
    for other in ({"host": "h"}, {"pid": 1}, {"started_s": 0.0}, {"pid_space": "x"}):
        assert not replace(mine, **other).is_this_process()
    for elsewhere in ({"host": "h"}, {"pid_space": "x"}):
        heard = replace(mine, time_s=time.time() - 50, **elsewhere)
        assert heard.is_live(60) and not heard.is_live(40)
    assert not replace(mine, pid=2**22 + 1).is_live(1e9)

    def denied(pid: int) -> Any:
        raise psutil.AccessDenied(pid)

    zombie = SimpleNamespace(create_time=lambda: mine.started_s, status=lambda: psutil.STATUS_ZOMBIE)
    monkeypatch.setattr(psutil, "Process", denied)
    assert mine.is_live(0)  # it is there: only its owner may look closer
    monkeypatch.setattr(psutil, "Process", lambda pid=None: zombie)
    assert not mine.is_live(1e9)


class Page(list[Any]):
    token: str | None = None


def tracked(server: Server, runs: dict[str, Heartbeat | None], live: set[str], **more: Any) -> Any:
    """A tracker with running runs, two a page."""

    def run(name: str) -> Any:
        beat = runs[name]
        tags = {HEARTBEAT_TAG: beat.to_tag()} if beat else {}
        info = SimpleNamespace(run_id=name, run_name=None if name == "c" else f"name-{name}")
        return SimpleNamespace(info=info, data=SimpleNamespace(tags=tags))

    def search(experiments: list[str], query: str, max_results: int, page_token: str | None) -> Page:
        assert (experiments, query) == (["7"], "attributes.status = 'RUNNING'")
        start = int(page_token or 0)
        page = Page(run(name) for name in list(runs)[start : start + 2])
        page.token = str(start + 2) if start + 2 < len(runs) else None
        return page

    server.search_runs = search  # type: ignore[attr-defined]
    server.search_experiments = lambda: [SimpleNamespace(experiment_id="7")]  # type: ignore[attr-defined]
    return SimpleNamespace(
        client=server, is_live=lambda run: run.info.run_id in live, tracking_uri="file:x", **more
    )


def test_running_runs_of_dead_processes_are_closed_at_their_last_heartbeat(server: Server) -> None:
    beat = Heartbeat(1234.5, "h", "", 5, 1.0)
    runs = {"a": beat, "b": None, "c": replace(beat, time_s=99.0), "d": beat}
    tracker = tracked(server, runs, live={"d"})
    assert [run.info.run_id for run, _ in dead_runs(tracker)] == ["a", "c"]
    assert close_dead_runs(tracker) == ["name-a", "c"]
    ends = [call for call in server.calls if call[0] == "set_terminated"]
    assert ends == [("set_terminated", "a", "KILLED", 1_234_500), ("set_terminated", "c", "KILLED", 99_000)]
    assert [call[:3] for call in server.calls if call[0] == "set_tag"] == [
        ("set_tag", "a", "d2v.closed_because"), ("set_tag", "c", "d2v.closed_because"),
    ]  # fmt: skip


def test_leftovers_are_sent_for_dead_runs_from_here_and_from_abandoned_files(
    server: Server, sender: MetricSender, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for run in ("dead", "alive", "gone"):
        sender.queue.put(run, points(1))
    sender.outbox.put("tagged", "tags", {"a": "b"})
    for name, age in (("q-old.db", 601.0), ("q-fresh.db", 590.0), ("other.db", 9000.0)):
        queue = MetricQueue(tmp_path / name)
        queue.put(name, points(1))
        queue.close()
        os.utime(tmp_path / name, (0, time.time() - age))
    os.utime(sender.queue.path, (0, 0))  # one's own file is never an abandoned one
    real = server.get_run

    def get_run(run_id: str) -> Any:
        if run_id == "gone":
            raise RefusedError("no such run")
        return real(run_id)

    server.get_run = get_run  # type: ignore[method-assign]
    tracker = tracked(server, {}, {"alive"}, sender=sender, queue=sender.queue, outbox=sender.outbox,
                      queue_pattern="q*.db")  # fmt: skip
    deliver_leftovers(tracker)
    assert sorted(run for run, *_ in server.stored) == ["dead", "q-old.db"]
    assert ("set_tag", "tagged", "a", "b") in server.calls
    assert sender.queue.runs_with_pending() == ["alive", "gone"]
    assert [record.message for record in caplog.records] == [
        "run gone: what it left behind could not be sent: RefusedError: no such run"
    ]
    assert run_orphans._ABANDONED_AFTER_S == 600


# ---- params and messages --------------------------------------------------------------------------------


def test_what_fits_into_params_and_what_does_not() -> None:
    found = prepare_params({
        "a": {"text": "x" * 6000, "long": "x" * 6001, "number": 0.5, "none": None, "flag": True, "list": [1]},
        "n" * 251: 1, "ok name/1:2-3.4": "v",
    })  # fmt: skip
    assert sorted(found.unfit) == ["a.long", "n" * 251]
    assert found.values["a.text"] == "x" * 6000
    assert (found.values["a.number"], found.values["a.none"], found.values["a.flag"]) == (
        "0.5",
        "null",
        "true",
    )
    assert found.values["a.list"] == "[1]" and found.values["ok name/1:2-3.4"] == "v"
    assert found.nested["a"]["long"] == "x" * 6001


def test_params_are_logged_once_and_changes_are_noted(server: Server) -> None:
    kept: list[Any] = []
    tracker: Any = SimpleNamespace(
        client=server,
        set_tags=lambda run_id, tags: kept.append(("tags", run_id, tags)),
        log_dict=lambda run_id, values, path: kept.append(("dict", run_id, path, values)),
    )

    def run(**params: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="r"), data=SimpleNamespace(params=params))

    many = {f"p{n:03d}": n for n in range(201)}
    log_params(tracker, run(), many)
    assert server.batches == [100, 100, 1]  # MLflow takes no more in one call
    assert sorted(word for call in server.calls for word in call[2:]) == [
        (key, str(value)) for key, value in many.items()
    ]
    assert kept == [("dict", "r", "recipe/params.json", many)]
    kept.clear()
    server.calls.clear()
    log_params(tracker, run(a="1", b="2"), {"a": 1, "b": 3})
    assert server.calls == []
    assert kept == [("tags", "r", {"d2v.params_changed_on_resume": json.dumps({"b": ["2", "3"]})})]
    kept.clear()
    log_params(tracker, run(a="1"), {"a": 1, "long": "x" * 7000})
    assert kept == [("tags", "r", {"d2v.params_in_artifact": '["long"]'})]


def test_which_errors_of_mlflow_last_and_how_they_are_told() -> None:
    for code, lasts in (
        ("INVALID_PARAMETER_VALUE", True), ("RESOURCE_DOES_NOT_EXIST", True), ("BAD_REQUEST", True),
        ("INVALID_STATE", True), ("INTERNAL_ERROR", False), ("TEMPORARILY_UNAVAILABLE", False),
    ):  # fmt: skip
        error = ValueError("x")
        error.error_code = code  # type: ignore[attr-defined]
        assert is_permanent(error) == lasts
    assert not is_permanent(ConnectionError("x"))
    assert short_reason(ValueError("first\nsecond")) == "ValueError: first"
    assert short_reason(ValueError("")) == "ValueError: "
    assert len(short_reason(ValueError("x" * 999))) == 200
    told = str(unavailable("http://me:secret@host/x", ValueError("no")))
    assert "secret" not in told and "ValueError: no" in told and "MLFLOW_TRACKING_URI" in told
    assert is_server("http://h") and is_server("https://h") and not is_server("sqlite:///x")
    for key in ("a", "a/b", "a.b-c d:1", "x" * 250):
        check_metric_key(key)
    for key in ("", "/a", "a/", "a//b", "a/../b", "./a", "a,b", "x" * 251):
        with pytest.raises(ValueError, match="is not one MLflow takes"):
            check_metric_key(key)
    metrics = [SimpleNamespace(key="a", step="7")]
    run = SimpleNamespace(data=SimpleNamespace(to_proto=lambda: SimpleNamespace(metrics=metrics)))
    assert as_steps(run) == {"a": 7}
