"""Metrics on their way to MLflow: a file on disk that holds each (run, key, step) exactly once.

MLflow appends a second point when a step is logged twice with another time or value, and training repeats
steps after a crash. So every point goes through this queue first: it is on disk when :meth:`MetricQueue.put`
returns, the first value of a step wins, and what was sent is remembered as one *mark* a key - the highest
step the server has - instead of as rows, so a run of weeks stays small.

The mark is enough because training logs each key in ascending steps; a restart repeats steps from its
checkpoint on, in the same order. A step at or below the mark is therefore already at the server.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from data2vec.errors import Data2VecError

from ..storage.local_places import on_local_disk

log = logging.getLogger(__name__)

EXPORT_FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS points (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, key TEXT NOT NULL, step INTEGER NOT NULL,
    value REAL, timestamp_ms INTEGER NOT NULL, UNIQUE (run_id, key, step));
CREATE INDEX IF NOT EXISTS points_by_step ON points (run_id, step, id);
CREATE TABLE IF NOT EXISTS marks (
    run_id TEXT NOT NULL, key TEXT NOT NULL, step INTEGER NOT NULL, PRIMARY KEY (run_id, key));
CREATE TABLE IF NOT EXISTS dropped (run_id TEXT PRIMARY KEY, points INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class MetricPoint:
    """One value of one metric at one step (update)."""

    key: str
    step: int
    value: float
    timestamp_ms: int


@dataclass(frozen=True)
class PendingPoint:
    """A point that the server does not have yet."""

    row: int
    run_id: str
    point: MetricPoint


class QueueFile:
    """A SQLite file shared by threads and processes, with errors in a user's words."""

    def __init__(self, path: Path, schema: str) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Switching a new file to WAL does not wait for a second opener: let one process at a time open it.
        with self._readable_errors(), filelock.FileLock(f"{self.path}.lock", timeout=60):
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
            # WAL, four times as fast, shares memory through a file: a disk of this machine can do that. A
            # rollback journal needs locks and fsync alone, which NFS has.
            journal = "WAL" if on_local_disk(self.path) else "TRUNCATE"
            self._db.execute(f"PRAGMA journal_mode={journal}")
            # FULL: a commit survives a power cut, not only the death of the process.
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(schema)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: committed as a whole or not at all."""
        with self._lock, self._readable_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of one query."""
        with self._lock, self._readable_errors():
            return self._db.execute(sql, values).fetchall()

    def shrink(self) -> None:
        """Give freed pages back to the file system."""
        with self._lock, self._readable_errors():
            self._db.execute("PRAGMA incremental_vacuum").fetchall()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise Data2VecError(f"metric queue {self.path}: {error}; {_advice(error)}") from error


def _advice(error: sqlite3.Error) -> str:
    text = str(error)
    if "full" in text:
        return "free some space on this disk or set D2V_HOME to another one"
    if "not a database" in text or "malformed" in text:
        return "move the file away: what is already in MLflow is safe, only points not yet sent are lost"
    if "locked" in text:
        return "another process has held it for 30 s; look for a stopped d2v process"
    return "check the file and its permissions"


class MetricQueue(QueueFile):
    """The queue of all runs that log to one tracking server from this machine.

    Args:
        path: the SQLite file, made when missing.
        max_pending: bound on unsent points (about 120 bytes each on disk). Points beyond it are not
            stored; they are counted per run (:meth:`dropped`) and an error is logged once.
    """

    def __init__(self, path: Path, max_pending: int = 5_000_000) -> None:
        super().__init__(path, _SCHEMA)
        self.max_pending = max_pending
        self._num_pending = self.num_pending()
        self._said_full = False

    def put(self, run_id: str, points: Iterable[MetricPoint]) -> int:
        """Store points; on return they are on disk.

        Returns:
            How many were new. A (run, key, step) that is here already or at the server is refused, whatever
            its value: the first write wins.
        """
        wanted = list(points)
        with self.transaction() as db:
            marks = self._marks(db, run_id)
            fresh = [p for p in wanted if p.step > marks.get(p.key, -math.inf)]
            # Another process may have sent in the meantime: count anew before refusing anything.
            if self._num_pending + len(fresh) > self.max_pending:
                self._num_pending = int(db.execute("SELECT COUNT(*) FROM points").fetchone()[0])
            room = max(0, self.max_pending - self._num_pending)
            if len(fresh) > room:
                self._count_dropped(db, run_id, len(fresh) - room)
                fresh = fresh[:room]
            before = db.total_changes
            db.executemany(
                "INSERT OR IGNORE INTO points (run_id, key, step, value, timestamp_ms) "
                "VALUES (?, ?, ?, ?, ?)",
                [(run_id, p.key, p.step, _to_column(p.value), p.timestamp_ms) for p in fresh],
            )
            stored = db.total_changes - before
        self._num_pending += stored
        return stored

    def pending(self, run_id: str | None = None, limit: int = 1000) -> list[PendingPoint]:
        """Unsent points, each key in ascending steps, of one run or of all."""
        condition, values = ("WHERE run_id = ?", [run_id]) if run_id is not None else ("", [])
        rows = self.rows(
            f"SELECT id, run_id, key, step, value, timestamp_ms FROM points {condition} "
            "ORDER BY run_id, step, id LIMIT ?",
            [*values, limit],
        )
        return [PendingPoint(r[0], r[1], MetricPoint(r[2], r[3], _from_column(r[4]), r[5])) for r in rows]

    def mark_sent(self, sent: Iterable[PendingPoint]) -> None:
        """The server has these: forget their rows, remember the highest step of each key."""
        sent = list(sent)
        highest: dict[tuple[str, str], int] = {}
        for item in sent:
            name = (item.run_id, item.point.key)
            highest[name] = max(item.point.step, highest.get(name, item.point.step))
        with self.transaction() as db:
            for (run_id, key), step in highest.items():
                self._raise_mark(db, run_id, key, step)
            before = db.total_changes
            db.executemany("DELETE FROM points WHERE id = ?", [(item.row,) for item in sent])
            self._num_pending -= db.total_changes - before
        self._said_full = False

    def raise_marks(self, run_id: str, marks: Mapping[str, int]) -> int:
        """Take over what the server says it has: the highest step of each key.

        Returns:
            Unsent points that turned out to be at the server (a send whose answer was lost) and were
            dropped here.
        """
        removed = 0
        with self.transaction() as db:
            for key, step in marks.items():
                self._raise_mark(db, run_id, key, step)
                cursor = db.execute(
                    "DELETE FROM points WHERE run_id = ? AND key = ? AND step <= ?", (run_id, key, step)
                )
                removed += cursor.rowcount
        self._num_pending -= removed
        return removed

    def high_water(self, run_id: str) -> dict[str, int]:
        """The highest step of each key that the server has, as far as is known here."""
        return dict(self.rows("SELECT key, step FROM marks WHERE run_id = ?", [run_id]))

    def num_pending(self, run_id: str | None = None) -> int:
        """How many points wait."""
        if run_id is None:
            return int(self.rows("SELECT COUNT(*) FROM points")[0][0])
        return int(self.rows("SELECT COUNT(*) FROM points WHERE run_id = ?", [run_id])[0][0])

    def runs_with_pending(self) -> list[str]:
        """Ids of the runs that have unsent points."""
        return [row[0] for row in self.rows("SELECT DISTINCT run_id FROM points ORDER BY run_id")]

    def dropped(self, run_id: str) -> int:
        """Points of this run that were refused because the queue was full."""
        rows = self.rows("SELECT points FROM dropped WHERE run_id = ?", [run_id])
        return int(rows[0][0]) if rows else 0

    def export_unsent(self, run_id: str) -> dict[str, Any]:
        """What must travel with a checkpoint so that the run can go on elsewhere; plain JSON data."""
        with self._lock:
            points = self.pending(run_id, limit=self.max_pending)
            return {
                "format": EXPORT_FORMAT,
                "run_id": run_id,
                "marks": self.high_water(run_id),
                # JSON has no NaN: values that are not finite travel as words.
                "points": [
                    [p.key, p.step, p.value if math.isfinite(p.value) else str(p.value), p.timestamp_ms]
                    for p in (item.point for item in points)
                ],
            }

    def import_points(self, exported: Mapping[str, Any]) -> int:
        """Take over what :meth:`export_unsent` gave; doing it twice changes nothing.

        Returns:
            How many points were new here.
        """
        if exported.get("format") != EXPORT_FORMAT:
            raise Data2VecError(
                f"unsent metrics of a checkpoint: format = {exported.get('format')!r}, this version reads "
                f"{EXPORT_FORMAT}; use the version of d2v that wrote the checkpoint"
            )
        run_id = str(exported["run_id"])
        self.raise_marks(run_id, {str(k): int(v) for k, v in exported["marks"].items()})
        return self.put(
            run_id, [MetricPoint(str(k), int(s), float(v), int(t)) for k, s, v, t in exported["points"]]
        )

    def forget(self, run_id: str) -> None:
        """Drop the marks of a run that is over and delivered; reopening it reads them from the server."""
        with self.transaction() as db:
            db.execute("DELETE FROM marks WHERE run_id = ?", (run_id,))
            db.execute("DELETE FROM dropped WHERE run_id = ?", (run_id,))
        self.shrink()

    def _marks(self, db: sqlite3.Connection, run_id: str) -> dict[str, int]:
        return dict(db.execute("SELECT key, step FROM marks WHERE run_id = ?", (run_id,)))

    def _raise_mark(self, db: sqlite3.Connection, run_id: str, key: str, step: int) -> None:
        db.execute(
            "INSERT INTO marks (run_id, key, step) VALUES (?, ?, ?) "
            "ON CONFLICT (run_id, key) DO UPDATE SET step = MAX(step, excluded.step)",
            (run_id, key, step),
        )

    def _count_dropped(self, db: sqlite3.Connection, run_id: str, points: int) -> None:
        db.execute(
            "INSERT INTO dropped (run_id, points) VALUES (?, ?) "
            "ON CONFLICT (run_id) DO UPDATE SET points = points + excluded.points",
            (run_id, points),
        )
        if not self._said_full:
            self._said_full = True
            log.error(
                "metric queue %s is full (%d points unsent): new points are not kept until the tracking "
                "server answers again; training goes on",
                self.path,
                self.max_pending,
            )


def _to_column(value: float) -> float | None:
    return None if math.isnan(value) else float(value)  # SQLite stores NaN as NULL; say so ourselves


def _from_column(value: float | None) -> float:
    return math.nan if value is None else float(value)
