"""The validations of a run, and how far it has come, in small files: what a sweep compares its trials by."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from data2vec.folders import write_text

_NOT_EVALUATION = ("train/", "speed/")


class EvaluationLog:
    """Appends validations as JSON lines, each on disk before the checkpoint that follows it.

    A run that resumes may validate an update again; the later line counts, and it is equal.

    Args:
        path: the file; made when the first validation comes. Beside it lies one with the newest update.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._newest = path.with_suffix(".newest")

    def add(self, update: int, metrics: Mapping[str, float]) -> None:
        """Keep the update, and the figures if they are a validation's."""
        write_text(self._newest, str(update))
        kept = {key: value for key, value in metrics.items() if not key.startswith(_NOT_EVALUATION)}
        if not kept:
            return
        with self.path.open("a", encoding="utf-8") as file:
            # A kill may have cut the last line short: begin a new one.
            file.write("\n" + json.dumps({"update": update, "metrics": kept}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def newest(self) -> int:
        """The newest update that anything was logged of; 0 before that."""
        try:
            return int(self._newest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0

    def read(self) -> dict[int, dict[str, float]]:
        """Metrics by update, ascending; a line that a kill cut short is passed over."""
        found: dict[int, dict[str, float]] = {}
        if not self.path.is_file():
            return found
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            found[int(entry["update"])] = entry["metrics"]
        return dict(sorted(found.items()))
