"""One trial, in its own process: open the run, train, keep the result. The driver ends the run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from data2vec.errors import Data2VecError

from ..launch import train_on_ray
from ..recipe.compose import Composed
from ..recipe.difference import digest
from ..recipe.sweep_definition import Trial
from ..redaction import RedactingFormatter
from ..registry.model_folders import models_on_this_node
from ..retries import Patience, try_again
from ..tracking.mlflow_access import TrackingUnavailableError, error_code, is_permanent, short_reason
from ..tracking.tracker import NewRun
from ..tracking.tracker_actor import RemoteTracker, TrackingReporter
from ..training.evaluation_log import EvaluationLog
from ..training.forecast import forecast_at_hand, placed
from ..training.job import Job, ResolvedModels
from ..training.loop_state import Summary, TrainingStopped
from ..training.plan import make_plan
from ..training.ray_session import cluster_info
from ..training.run_description import NOTE_TAG, description, recipe_tags
from ..training.train_loop import train
from .results import ChildRun, StoredTrial, TrialResult, evaluation_log

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# A trial waits so long for MLflow before it counts as failed.
_AWAY = Patience(seconds=1800, first_s=2, longest_s=60)


class TrialReporter(TrackingReporter):
    """Also keeps validations in the trial's folder and tells Ray Tune about them."""

    def __init__(self, tracker: RemoteTracker, run_id: str, evaluations: EvaluationLog) -> None:
        super().__init__(tracker, run_id)
        self._evaluations = evaluations

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """One point for each metric; a validation is on disk before its checkpoint is."""
        self._evaluations.add(update, metrics)
        super().log(update, metrics)

    def evaluated(self, update: int, metrics: Mapping[str, float]) -> bool:
        """A scheduler that stops the trial ends this thread here, so everything must be safe before."""
        from ray import tune

        self.flush()
        tune.report({"update": update, **metrics})
        return False


def run_trial(config: dict[str, Any]) -> None:
    """The trainable: train in this actor, or drive a Ray Train run of several workers.

    A user's mistake is kept as the trial's result and not raised: Ray Tune would try again. Anything else is
    raised, and the trial goes on from its newest checkpoint, ``platform.max_failures`` times at most.

    Args:
        config: ``trial`` (name), ``root`` (folder of the trials), ``tracker`` (actor), ``sweep``, ``parent``
            (MLflow run), ``launch`` (distinguishes launches), ``workers``, ``threads``, ``loaders``, ``gpu``.
    """
    from ray import tune

    folder = Path(config["root"]) / config["trial"]
    stored = StoredTrial.read(folder)
    ended = TrialResult.read(folder)
    if ended is not None:  # the process was lost after its last line of work
        tune.report({"update": ended.update, "status": ended.status})
        return
    with _own_log(folder):
        attempts = _note_start(folder, config["launch"])
        tracker = RemoteTracker(config["tracker"])
        run_id = while_away(lambda: open_child(tracker, config, stored, folder))
        begin = time.perf_counter()
        summary: Summary | None = None
        error: str | None = None
        status = "finished"
        try:
            if attempts > stored.trial.recipe.platform.max_failures + 1:
                raise Data2VecError(f"lost its process {attempts - 1} times (platform.max_failures)")
            summary = _train(config, stored, folder, tracker, run_id)
        except TrainingStopped as stop:
            error, status = str(stop), "diverged"
        except Data2VecError as mistake:
            error, status = str(mistake), "failed"
            logger.warning("%s", mistake)
        evaluations = evaluation_log(folder).read()
        result = TrialResult(
            status=status,  # pyright: ignore[reportArgumentType] - one of three literals
            run_id=run_id,
            update=summary.update if summary else max(evaluations, default=0),
            evaluations=evaluations,
            summary=summary,
            seconds=time.perf_counter() - begin,
            error=error,
            attempts=attempts,
        )
        tracker.wait_for_sent()
        result.write(folder)  # the driver ends the run: it does so for stopped and lost trials too
    tune.report({"update": result.update, "status": status})


def _train(
    config: Mapping[str, Any], stored: StoredTrial, folder: Path, tracker: RemoteTracker, run_id: str
) -> Summary:
    recipe = stored.trial.recipe
    job = Job(
        recipe=recipe,
        folder=folder,
        models=models_on_this_node(
            ResolvedModels(
                Path(stored.model) if stored.model else None,
                stored.model_uri,
                Path(stored.initial) if stored.initial else None,
                stored.initial_uri,
            ),
            recipe,
        ),
        run_id=run_id,
        lineage={
            "run_id": run_id,
            "recipe": stored.trial.named_recipe,
            "recipe.digest": digest(recipe),
            "code": stored.code,
            "sweep": config["sweep"],
        },
        evaluations=evaluation_log(folder).path,
        threads=config["threads"],
        loader_processes=config["loaders"],
        # A scheduler may end a trial's only thread at the report that follows a checkpoint.
        wait_for_checkpoints=config["workers"] == 1,
    )
    if config["workers"] > 1:
        from ray.tune.integration.ray_train import TuneReportCallback

        cluster = cluster_info()
        plan = make_plan(recipe, cluster)
        plan = placed(plan, forecast_at_hand(recipe, plan, cluster, job.models.pretrained))
        return train_on_ray(job.planned(plan), plan, tracker, callbacks=[TuneReportCallback()])

    torch.set_deterministic_debug_mode("default")  # a process outlives its trials; the recipe turns it on
    worker = job.worker(device="cuda" if config["gpu"] else "cpu")
    return train(job, TrialReporter(tracker, run_id, evaluation_log(folder)), worker)


def open_child(tracker: RemoteTracker, config: Mapping[str, Any], stored: StoredTrial, folder: Path) -> str:
    """The trial's run under the sweep's; a trial whose process was lost finds it open."""
    recipe, trial = stored.trial.recipe, stored.trial
    key = f"{config['sweep']}/{trial.name}"
    existing = tracker.find_run(recipe.experiment(), key)
    if existing is not None and existing.state == "live":
        run_id = existing.run_id  # the sweep's lock is ours, so it can only be our own earlier attempt
    else:
        handle = tracker.open_run(
            NewRun(
                experiment=recipe.experiment(),
                name=trial.name,
                params={"grid": dict(trial.values), **recipe.to_dict()},
                tags=_tags(config, stored) | dict(recipe.platform.extra_tags),
                parent_run_id=config["parent"],
                resume_key=key,
                reopen_finished=True,
            )
        )
        run_id = handle.run_id
    ChildRun(run_id).write(folder)
    return run_id


def while_away(action: Callable[[], Result], patience: Patience = _AWAY) -> Result:
    """Run ``action``, waiting for a tracking server that does not answer: a restart of it fails no trial."""
    said = False

    def away(error: Exception) -> bool:
        unanswered = isinstance(error, TrackingUnavailableError) or bool(error_code(error))
        return unanswered and not is_permanent(error)

    def waiting(error: Exception, pause: float) -> None:
        nonlocal said
        if not said:
            logger.warning("waiting for MLflow: %s", short_reason(error))
        said = True

    return try_again(action, patience, away, waiting)


def composed_of(trial: Trial) -> Composed:
    """A trial as if it had been composed alone."""
    return Composed(
        recipe=trial.recipe,
        notes=(),
        named_recipe=trial.named_recipe,
        source=Path(trial.named_recipe),
        base=trial.base,
        overrides=trial.overrides,
        sweep=None,
    )


def _tags(config: Mapping[str, Any], stored: StoredTrial) -> dict[str, str]:
    own = {
        "sweep": config["sweep"],
        "task": stored.task,
        "lr": f"{stored.lr:g}",
        "seed": str(stored.seed),
        "status": "running",
        "d2v.code": stored.code,
    }

    composed = composed_of(stored.trial)
    return (
        recipe_tags(composed)
        | {NOTE_TAG: description(composed, stored.model_uri)}
        | own
        | {f"grid.{k}": str(v) for k, v in stored.trial.values.items()}
    )


def _note_start(folder: Path, launch: str) -> int:
    """How many processes of this launch have begun this trial, this one included."""
    path = folder / "workers.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"attempt": launch, "rank": 0, "pid": os.getpid()}) + "\n")
    return sum(f'"{launch}"' in line for line in path.read_text(encoding="utf-8").splitlines())


@contextlib.contextmanager
def _own_log(folder: Path) -> Iterator[None]:
    """The loop's lines go into the trial's ``train.log``; the screen gets warnings only."""
    loggers = [logging.getLogger(name) for name in ("data2vec", "d2v_platform")]
    handler = logging.FileHandler(folder / "train.log", encoding="utf-8")
    handler.setFormatter(RedactingFormatter("%(asctime)s %(message)s"))
    screen = logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    screen.setFormatter(RedactingFormatter(f"{folder.name}: %(message)s"))
    for each in loggers:
        each.setLevel(logging.INFO)
        each.propagate = False
        each.addHandler(handler)
        each.addHandler(screen)
    try:
        yield
    finally:
        for each in loggers:
            each.removeHandler(handler)
            each.removeHandler(screen)
            each.propagate = True
        handler.close()
