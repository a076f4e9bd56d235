"""What a sweep keeps of each trial on disk: what it is, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from data2vec.folders import write_text

from ..recipe.schema import Recipe
from ..recipe.sweep_definition import Trial
from ..training.evaluation_log import EvaluationLog
from ..training.loop_state import Summary

Status = Literal["finished", "stopped", "diverged", "failed"]
#: These are not run again under the same sweep's name; a failed trial is, since its cause may be mended.
OVER: tuple[Status, ...] = ("finished", "stopped", "diverged")


@dataclass(frozen=True, kw_only=True)
class StoredTrial:
    """``trial.json``: everything that a trial's process must know, and that a later launch compares."""

    trial: Trial  # the recipe with where it came from
    model: str | None = None  # folder of the pretrained model, ``None`` for pretraining
    model_uri: str | None = None  # its exact name
    model_sha256: str | None = None  # of its weights
    initial: str | None = None  # folder of ``checkpoint.restore_file``
    initial_uri: str | None = None  # its exact name
    data: dict[str, str] = field(default_factory=dict)  # fingerprint of each subset
    code: str = ""  # code version

    @property
    def name(self) -> str:
        """Of the trial, unique in the sweep."""
        return self.trial.name

    @property
    def task(self) -> str:
        """The grid's task, or the recipe's own name."""
        return task_name(self.trial)

    @property
    def lr(self) -> float:
        """Peak learning rate of the first parameter group."""
        return next(iter(self.trial.recipe.parameter_groups().values())).peaks[0]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.trial.recipe.common.seed

    def write(self, folder: Path) -> None:
        """Into the trial's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        plain = {key: value for key, value in self.__dict__.items() if key != "trial"}
        plain["trial"] = {**self.trial.__dict__, "recipe": self.trial.recipe.to_dict()}
        replace_json(folder / "trial.json", plain)

    @staticmethod
    def read(folder: Path) -> StoredTrial:
        """From the trial's folder."""
        plain = json.loads((folder / "trial.json").read_text(encoding="utf-8"))
        trial = dict(plain.pop("trial"))
        trial["recipe"] = Recipe.from_dict(trial["recipe"])
        trial["overrides"] = tuple(trial["overrides"])
        return StoredTrial(trial=Trial(**trial), **plain)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """``result.json``: how a trial ended.

    Attributes:
        status: finished; stopped by the scheduler; diverged or collapsed; failed: a mistake, lost workers.
        run_id: MLflow run, if it came so far.
        update: completed updates.
        evaluations: metrics of each validation by update.
        summary: of a finished training.
        seconds: of this trial's own training (model, data, loop, export), in the attempt that ended it.
        error: what went wrong.
        attempts: starts of its process.
    """

    status: Status
    run_id: str | None = None
    update: int = 0
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    summary: Summary | None = None
    seconds: float = 0.0
    error: str | None = None
    attempts: int = 1

    def write(self, folder: Path) -> None:
        """Complete or not at all."""
        replace_json(folder / "result.json", asdict(self))

    @staticmethod
    def read(folder: Path) -> TrialResult | None:
        """The result, if the trial has ended."""
        path = folder / "result.json"
        if not path.is_file():
            return None
        plain = json.loads(path.read_text(encoding="utf-8"))
        plain["evaluations"] = {int(update): found for update, found in plain["evaluations"].items()}
        plain["summary"] = Summary(**plain["summary"]) if plain["summary"] else None
        return TrialResult(**plain)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A trial of a sweep with its folder and, once it has ended, its result."""

    stored: StoredTrial
    folder: Path
    result: TrialResult | None = None

    @property
    def over(self) -> bool:
        """Whether there is nothing left to run."""
        return self.result is not None and self.result.status in OVER

    @property
    def started(self) -> bool:
        """Whether any of its work exists."""
        return self.result is not None or (self.folder / "run.json").is_file()

    @property
    def model_folder(self) -> Path:
        """The exported model of a finished trial."""
        return self.folder / "model"

    @property
    def has_weights(self) -> bool:
        """Whether the exported model is still there."""
        return (self.model_folder / "model.safetensors").is_file()


def task_name(trial: Trial) -> str:
    """The grid's task, or the recipe's own name."""
    return str(trial.values.get("task") or trial.named_recipe.rpartition("/")[2])


def evaluation_log(folder: Path) -> EvaluationLog:
    """The validations of a trial."""
    return EvaluationLog(folder / "evaluations.jsonl")


@dataclass(frozen=True)
class ChildRun:
    """``run.json``: the MLflow run of a trial, and whether its end has been handed to the tracker."""

    run_id: str
    closed: bool = False

    def write(self, folder: Path) -> None:
        """Into the trial's folder."""
        replace_json(folder / "run.json", asdict(self))

    @staticmethod
    def read(folder: Path) -> ChildRun | None:
        """The run, if the trial has opened one."""
        path = folder / "run.json"
        return ChildRun(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def replace_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a file in one step: a kill leaves the old one or the new one."""
    write_text(path, json.dumps(values, indent=1), durable=True)
