"""The folder of a sweep: its name's identity, what is finished, and what may not change under one name.

::

    <D2V_HOME>/sweeps/NAME/
      sweep.lock                    held by the driver
      trials/TRIAL/trial.json       recipe, model, data
                   run.json         MLflow run
                   evaluations.jsonl, workers.jsonl, train.log
                   checkpoints/     while it runs
                   model/           exported; only the winners' stay
                   result.json      once it has ended
      trials.csv summary.csv results.md glue_submission/
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import filelock

from data2vec.errors import ConfigError, Data2VecError, Problem

from ..home import home_folder
from ..recipe.components import pretrained_field
from ..recipe.difference import resume_differences
from ..recipe.sweep_definition import SHORT_NAMES, Sweep, Trial
from ..storage.locations import is_uri, local_path
from .results import Record, StoredTrial, TrialResult

_NAME = re.compile(r"[\w.\-+=]{1,120}")


class SweepFolder:
    """What a sweep has on disk.

    Args:
        root: its folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trials = root / "trials"
        self.trials.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = filelock.FileLock(root / "sweep.lock")

    def acquire(self) -> None:
        """Be the one driver of this sweep.

        Raises:
            Data2VecError: another process runs it.
        """
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise Data2VecError(
                f"the sweep {self.root.name!r} is being run by another process; wait for it, stop it, or "
                "choose another platform.run_name"
            ) from None

    def release(self) -> None:
        """Let another driver take over."""
        self._lock.release()

    def of(self, trial: str) -> Path:
        """A trial's folder."""
        return self.trials / trial

    def records(self) -> dict[str, Record]:
        """Every trial that was ever begun under this name, by name."""
        found: dict[str, Record] = {}
        for path in sorted(self.trials.glob("*/trial.json")):
            folder = path.parent
            record = Record(stored=StoredTrial.read(folder), folder=folder, result=TrialResult.read(folder))
            if record.started:
                found[record.stored.name] = record
        return found


def identity(sweep: Sweep, name: str | None) -> tuple[str, tuple[Trial, ...], bool]:
    """The sweep's name, its trials without it, and whether the name is fresh.

    ``platform.run_name`` on the command line names the sweep, not its trials.

    Raises:
        ConfigError: the name cannot be used.
    """
    asked = {trial.recipe.platform.run_name for trial in sweep.trials} - {None}
    if len(asked) > 1:
        rule = "names the sweep, so all trials must have the same; do not sweep it"
        raise ConfigError(
            [Problem("platform.run_name", sorted(map(str, asked)), rule)], f"the sweep {sweep.name}"
        )
    given = name or (asked.pop() if asked else None)
    if given is not None and not _NAME.fullmatch(given):
        rule = "must be 1 to 120 letters, digits or '_-.+='"
        raise ConfigError([Problem("platform.run_name", given, rule)], f"the sweep {sweep.name}")
    fresh = f"{sweep.name.rpartition('-')[2]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    return given or fresh, tuple(_without_name(trial) for trial in sweep.trials), given is None


def _without_name(trial: Trial) -> Trial:
    platform = dataclasses.replace(trial.recipe.platform, run_name=None, register_as=None, alias=None)
    overrides = tuple(o for o in trial.overrides if not o.lstrip("+").startswith("platform.run_name="))
    recipe = dataclasses.replace(trial.recipe, platform=platform)
    return dataclasses.replace(trial, recipe=recipe, overrides=overrides)


def sweep_root(name: str, trials: Sequence[Trial]) -> Path:
    """``<D2V_HOME>/sweeps/NAME``, or the same below ``platform.storage`` where that is a folder."""
    storage = trials[0].recipe.platform.storage
    if storage is None or is_uri(storage):
        return home_folder("sweeps") / name
    return local_path(storage) / "sweeps" / name


def refuse_changes(known: Mapping[str, Record], trials: Sequence[StoredTrial]) -> None:
    """A trial may not change under its name, nor may new trials differ in more than the grid's fields.

    Args:
        known: what earlier launches began.
        trials: what this launch asks for.

    Raises:
        ConfigError: naming the fields, with both values.
    """
    problems: dict[tuple[str, str, str], Problem] = {}
    for now in trials:
        before, free = _counterpart(now, known.values())
        if before is None:
            continue
        for field, value, old, what in _changes(before.stored, now, free):
            rule = (
                f"{before.stored.name} of this sweep was run with {old}{what}; use that, or another "
                "platform.run_name"
            )
            problems.setdefault((field, repr(value), old), Problem(field, value, rule))
    if problems:
        raise ConfigError(list(problems.values()), "resuming the sweep")


def _counterpart(now: StoredTrial, known: Iterable[Record]) -> tuple[Record | None, frozenset[str]]:
    """The trial to compare with, and the fields in which it may differ: itself, else one of the same task."""
    relative: Record | None = None
    for record in known:
        if record.stored.name == now.name:
            return record, frozenset()
        if record.stored.task == now.task:
            relative = relative or record
    if relative is None:
        return None, frozenset()
    names = {*now.trial.values, *relative.stored.trial.values}
    return relative, frozenset(SHORT_NAMES.get(name, name) for name in names)


def _changes(
    before: StoredTrial, now: StoredTrial, free: frozenset[str]
) -> Iterable[tuple[str, object, str, str]]:
    """Field, value, old value in words, remark."""
    named = pretrained_field(now.trial.recipe.model)
    for field, change in resume_differences(before.trial.recipe, now.trial.recipe).items():
        swept = any(field == name or field.startswith(f"{name}.") for name in free)
        if not swept and field != named:  # its weights decide
            yield field, change.after, repr(change.before), ""
    if before.model_sha256 != now.model_sha256 and named not in free:
        yield (
            named or "checkpoint.restore_file",
            now.model_uri,
            str(before.model_uri),
            f" (weights {str(before.model_sha256)[:12]})",
        )
    if "task.data" not in free:
        for subset, found in now.data.items():
            if before.data.get(subset, found) != found:
                yield (
                    "task.data",
                    now.trial.recipe.task.data,
                    f"other data ({subset}: {before.data[subset][:12]})",
                    "",
                )


def folder_bytes(folder: Path) -> int:
    """Size of everything below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def delete_weights(folder: Path, *, model: bool) -> int:
    """Delete a trial's checkpoints, and its exported model if asked; returns the bytes freed."""
    freed = 0
    for name in ("checkpoints", "ray", *(("model",) if model else ())):
        freed += folder_bytes(folder / name)
        shutil.rmtree(folder / name, ignore_errors=True)
    return freed
