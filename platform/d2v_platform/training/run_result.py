"""A finished training, and its last words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data2vec.errors import Data2VecError

from ..figures import duration
from .loop_state import Summary
from .run_storage import ended_with

if TYPE_CHECKING:
    from ..tracking.tracker import ExistingRun


@dataclass(frozen=True)
class RunResult:
    """A finished training."""

    run_id: str  # MLflow run
    run_name: str  # its name
    folder: Path  # checkpoints and exported model
    summary: Summary  # how it ended
    registered: str | None  # ``models:/NAME/VERSION`` if it was registered
    before: bool = False  # an earlier launch finished it, and nothing was left to do


def finished_before(existing: ExistingRun, folder: Path, remote: str | None) -> RunResult:
    """The result of a run that an earlier launch finished.

    Raises:
        Data2VecError: what it left is not there.
    """
    end = ended_with(folder, remote)
    if end is None:
        raise Data2VecError(
            f"platform.run_name = {existing.name!r} has finished (run {existing.run_id}), and its state is "
            f"not in {folder}; use another name for a new run"
        )
    return RunResult(existing.run_id, existing.name, folder, *end, before=True)


def result_lines(result: RunResult) -> list[str]:
    """The last words of a training."""
    summary = result.summary
    figures = "  ".join(
        f"{name} {value:.4g}"
        for name, value in sorted(summary.metrics.items())
        if name.startswith(("train/loss", "valid"))
    )
    done = "done"
    if result.before:
        done = (
            f"the run {result.run_name} ({result.run_id}) had finished before, nothing is left to do (a "
            "greater optimization.max_update or max_epoch makes it longer)\ndone before"
        )
    lines = [
        f"{done}: {summary.reason}; {summary.update} updates in {duration(summary.seconds)}",
        f"      {figures}",
    ]
    if summary.best is not None:
        lines.append(f"      best {summary.best:.4g} at update {summary.best_update}")
    lines.append(f"      model folder {result.folder / 'model'}")
    if result.registered:
        lines.append(f"      registered as {result.registered}")
    return lines
