"""Everything but metrics that waits for the tracking server: tags, data sets, small artifacts, a run's end.

Actions are kept on disk in order, so that a server that is away delays them and loses none. Each of them
may be repeated safely: a tag is set again, a file uploaded again, a status set again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .metric_queue import QueueFile

ActionKind = Literal["tags", "input", "artifact", "finish"]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS actions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, kind TEXT NOT NULL, content TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Action:
    """One thing to do for a run; ``content`` is plain JSON data."""

    row: int
    run_id: str
    kind: ActionKind
    content: dict[str, Any]


class RunOutbox(QueueFile):
    """Ordered actions per run, in the same file as the metrics, with a folder for files to upload."""

    def __init__(self, path: Path, spool: Path) -> None:
        super().__init__(path, _SCHEMA)
        self.spool = spool

    def put(self, run_id: str, kind: ActionKind, content: dict[str, Any]) -> None:
        """Store an action; on return it is on disk."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO actions (run_id, kind, content) VALUES (?, ?, ?)",
                (run_id, kind, json.dumps(content)),
            )

    def pending(self, run_id: str) -> list[Action]:
        """The actions of a run in the order in which they were put."""
        rows = self.rows(
            "SELECT id, run_id, kind, content FROM actions WHERE run_id = ? ORDER BY id", [run_id]
        )
        return [Action(row[0], row[1], row[2], json.loads(row[3])) for row in rows]

    def runs_with_pending(self) -> list[str]:
        """Ids of the runs for which something waits."""
        return [row[0] for row in self.rows("SELECT DISTINCT run_id FROM actions ORDER BY run_id")]

    def done(self, action: Action) -> None:
        """Forget an action and its spooled file."""
        with self.transaction() as db:
            db.execute("DELETE FROM actions WHERE id = ?", (action.row,))
        if action.kind == "artifact":
            shutil.rmtree(Path(action.content["path"]).parent, ignore_errors=True)

    def drop_finish(self, run_id: str) -> None:
        """A resumed run is not finished: forget an end that was never delivered."""
        with self.transaction() as db:
            db.execute("DELETE FROM actions WHERE run_id = ? AND kind = 'finish'", (run_id,))
