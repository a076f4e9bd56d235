"""The disk queue: every (run, key, step) exactly once, first write wins, whatever happens in between."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from d2v_platform.storage.local_places import on_local_disk
from d2v_platform.tracking.metric_queue import MetricPoint, MetricQueue
from data2vec.errors import Data2VecError


def point(step: int, value: float = 0.5, key: str = "loss") -> MetricPoint:
    return MetricPoint(key, step, value, 1_700_000_000_000 + step)


def test_first_write_wins_before_and_after_sending(tmp_path: Path) -> None:
    queue = MetricQueue(tmp_path / "q.db")
    assert queue.put("r", [point(1, 1.0), point(2, 2.0)]) == 2
    assert queue.put("r", [point(2, 9.0), point(3, 3.0)]) == 1
    waiting = queue.pending("r")
    assert [(p.point.step, p.point.value) for p in waiting] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    queue.mark_sent(waiting)
    assert queue.put("r", [point(2, 7.0), point(3, 7.0), point(4, 4.0)]) == 1
    assert [p.point.step for p in queue.pending()] == [4]
    assert queue.high_water("r") == {"loss": 3}
    assert queue.put("r", [point(6), point(5)]) == 2  # a mark above a point that waits would lose it
    assert [p.point.step for p in queue.pending("r")] == [p.point.step for p in queue.pending()] == [4, 5, 6]


def test_points_are_on_disk_when_put_returns(tmp_path: Path) -> None:
    queue = MetricQueue(tmp_path / "q.db")
    queue.put("r", [point(1, 0.25)])
    # A second opener sees what a process killed now would leave behind.
    assert MetricQueue(tmp_path / "q.db").pending("r")[0].point == point(1, 0.25)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e-320, 0.1 + 0.2])
def test_every_float_survives_disk_and_checkpoint(tmp_path: Path, value: float) -> None:
    queue = MetricQueue(tmp_path / "a.db")
    queue.put("r", [point(1, value)])
    exported = json.loads(json.dumps(queue.export_unsent("r"), allow_nan=False))
    other = MetricQueue(tmp_path / "b.db")
    other.import_points(exported)
    for stored in (queue.pending("r"), other.pending("r")):
        got = stored[0].point.value
        assert got == value or (math.isnan(got) and math.isnan(value))


def test_export_carries_marks_and_import_twice_changes_nothing(tmp_path: Path) -> None:
    queue = MetricQueue(tmp_path / "a.db")
    queue.put("r", [point(s) for s in range(1, 6)])
    queue.mark_sent(queue.pending("r", limit=3))
    exported = queue.export_unsent("r")
    other = MetricQueue(tmp_path / "b.db")
    assert other.import_points(exported) == 2
    assert other.import_points(exported) == 0
    assert [p.point.step for p in other.pending("r")] == [4, 5]
    assert other.put("r", [point(3), point(6)]) == 1  # step 3 is at the server, says the export


def test_export_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Data2VecError, match="format = 99"):
        MetricQueue(tmp_path / "q.db").import_points({"format": 99})


def test_server_marks_drop_points_whose_answer_was_lost(tmp_path: Path) -> None:
    queue = MetricQueue(tmp_path / "q.db")
    queue.put("r", [point(s, key=key) for s in (1, 2, 3) for key in ("a", "b")])
    assert queue.raise_marks("r", {"a": 2}) == 2
    left = [(p.point.key, p.point.step) for p in queue.pending("r")]
    assert left == [("b", 1), ("b", 2), ("a", 3), ("b", 3)]


def test_a_long_run_does_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    queue = MetricQueue(path)
    sizes = []
    for start in range(0, 20_000, 1000):
        queue.put("r", [point(start + s, key=f"k{s % 5}") for s in range(1000)])
        queue.mark_sent(queue.pending("r", limit=1000))
        sizes.append(path.stat().st_size)
    assert queue.num_pending() == 0
    assert sizes[-1] <= sizes[2]
    assert sqlite3.connect(path).execute("SELECT COUNT(*) FROM points").fetchone() == (0,)
    queue.forget("r")
    assert queue.high_water("r") == {}


def test_a_full_queue_counts_what_it_refuses_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = MetricQueue(tmp_path / "q.db", max_pending=10)
    assert queue.put("r", [point(s) for s in range(8)]) == 8
    assert queue.put("r", [point(s) for s in range(8, 14)]) == 2
    assert queue.put("r", [point(20)]) == 0
    assert queue.dropped("r") == 5
    assert len([r for r in caplog.records if "is full" in r.message]) == 1
    queue.mark_sent(queue.pending("r"))
    assert queue.put("r", [point(21)]) == 1


def test_a_damaged_file_is_named_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    path.write_bytes(b"this is no database, but long enough to look like one" * 100)
    with pytest.raises(Data2VecError, match=r"q\.db.*not a database; move the file away"):
        MetricQueue(path)


def mounted(monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str) -> None:
    """A file system of this kind holds a folder, on a disk of this machine."""
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(folder), fstype=kind),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)


def test_on_a_network_file_system_locks_and_fsync_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "queue" / "q.db"
    queue = MetricQueue(path)
    assert queue.rows("PRAGMA journal_mode") == [("wal",)]
    queue.close()
    mounted(monkeypatch, tmp_path, "nfs4")  # the folder was moved
    queue = MetricQueue(path)
    queue.put("r", [point(1)])
    assert queue.rows("PRAGMA journal_mode") == [("truncate",)] and queue.rows("PRAGMA synchronous") == [(2,)]
    names = {file.name for file in path.parent.iterdir()}
    assert names <= {"q.db", "q.db-journal", "q.db.lock"}, "no memory is shared through a file"
    mounted(monkeypatch, tmp_path / "queues", "nfs4")
    assert on_local_disk(path), "the mount that holds it, not one of a like name"
    mounted(monkeypatch, tmp_path, "fuse.sshfs")
    assert not on_local_disk(path)


@pytest.mark.parametrize("kind", ["ext4", "nfs4"])
def test_a_writer_killed_inside_a_transaction_leaves_what_was_there_before(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, tmp_path, kind)
    queue = MetricQueue(tmp_path / "q.db")
    queue.put("r", [point(1)])
    queue.close()
    child = os.fork()
    if not child:
        own = MetricQueue(tmp_path / "q.db")
        own._db.execute("PRAGMA cache_size=2")  # pages reach the file before the commit
        own._db.execute("BEGIN IMMEDIATE")
        rows = [("r", "k" * 200, step, 0.0, 0) for step in range(2, 2000)]
        own._db.executemany(
            "INSERT INTO points (run_id, key, step, value, timestamp_ms) VALUES (?, ?, ?, ?, ?)", rows
        )
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    journal = tmp_path / ("q.db-wal" if kind == "ext4" else "q.db-journal")
    assert journal.stat().st_size > 0, "the next opener has something to undo"
    assert [p.point.step for p in MetricQueue(tmp_path / "q.db").pending()] == [1]


def test_threads_and_processes_may_put_the_same_points(tmp_path: Path) -> None:
    queues = [MetricQueue(tmp_path / "q.db") for _ in range(2)]
    stored: list[int] = []

    def work(queue: MetricQueue) -> None:
        for step in range(40):
            stored.append(queue.put("r", [point(step)]))

    threads = [threading.Thread(target=work, args=(queues[i % 2],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(stored) == 40
    assert [p.point.step for p in queues[0].pending("r")] == list(range(40))


class Server:
    """Appends whatever it is sent, as MLflow does: doubles show."""

    def __init__(self) -> None:
        self.points: list[tuple[str, int, float]] = []

    def marks(self) -> dict[str, int]:
        highest: dict[str, int] = {}
        for key, step, _ in self.points:
            highest[key] = max(step, highest.get(key, step))
        return highest


class TrainingWithCrashes(RuleBasedStateMachine):
    """One run that logs ascending steps, checkpoints, crashes, loses its disk and its server's answers."""

    keys = ("train/loss", "valid/loss")

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.disks = 0
        self.server = Server()
        self.first: dict[tuple[str, int], float] = {}
        self.update = 0
        self.checkpoint: tuple[int, dict] = (0, {})
        self.value = 0.0
        self.marks_known = False
        self._open()

    def _open(self) -> None:
        self.queue = MetricQueue(self.folder / f"{self.disks}.db")
        self.marks_known = False

    @rule(num_updates=st.integers(1, 4))
    def train(self, num_updates: int) -> None:
        for _ in range(num_updates):
            self.update += 1
            self.value += 1.0  # another value every time: a repeated step is told from its first write
            keys = self.keys if self.update % 3 == 0 else self.keys[:1]
            self.queue.put("r", [MetricPoint(k, self.update, self.value, 0) for k in keys])
            for key in keys:
                self.first.setdefault((key, self.update), self.value)

    @rule()
    def save(self) -> None:
        self.checkpoint = (self.update, self.queue.export_unsent("r"))

    @rule()
    def driver_killed(self) -> None:
        self._open()
        self.update = self.checkpoint[0]

    @precondition(lambda self: self.checkpoint[1])
    @rule()
    def machine_lost(self) -> None:
        """Goes on elsewhere: the queue's disk is gone, the checkpoint is not."""
        self.disks += 1
        self._open()
        self.update, exported = self.checkpoint
        self.queue.import_points(exported)
        self.queue.raise_marks("r", self.server.marks())
        # What was neither sent nor in the checkpoint is trained and logged anew: that is its first write.
        known = {(p.point.key, p.point.step): p.point.value for p in self.queue.pending("r", 10_000)}
        known |= {(k, s): v for k, s, v in self.server.points}
        self.first = known

    @rule(limit=st.integers(1, 5), answer_lost=st.booleans())
    def send(self, limit: int, answer_lost: bool) -> None:
        if not self.marks_known:
            self.queue.raise_marks("r", self.server.marks())
            self.marks_known = True
        batch = self.queue.pending("r", limit)
        self.server.points += [(p.point.key, p.point.step, p.point.value) for p in batch]
        if answer_lost:
            self.marks_known = False
        else:
            self.queue.mark_sent(batch)

    @invariant()
    def nothing_twice(self) -> None:
        if hasattr(self, "server"):
            names = [(key, step) for key, step, _ in self.server.points]
            assert len(names) == len(set(names))

    def teardown(self) -> None:
        self.queue.raise_marks("r", self.server.marks())
        batch = self.queue.pending("r", 10_000)
        self.server.points += [(p.point.key, p.point.step, p.point.value) for p in batch]
        sent = {(key, step): value for key, step, value in self.server.points}
        assert len(sent) == len(self.server.points)
        assert sent == self.first


TestTrainingWithCrashes = TrainingWithCrashes.TestCase
TestTrainingWithCrashes.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
