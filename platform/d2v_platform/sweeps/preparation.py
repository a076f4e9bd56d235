"""Before the first trial: models brought here once, raw data prepared once, every mistake found at once."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data2vec.errors import ConfigError, Data2VecError, Problem
from data2vec.folders import file_sha256

from ..recipe.checks import metrics as reported_metrics
from ..recipe.components import pretrained_field
from ..recipe.entries import entry_of, imported
from ..recipe.local_data import with_local_data
from ..recipe.schema import Recipe
from ..recipe.sweep_definition import TRAIN_LOSS, Sweep, Trial
from ..registry.model_folders import resolve_models
from ..tasks import open_subset
from ..training.job import ResolvedModels
from ..training.preflight import preflight
from ..training.run_description import code_version
from .results import StoredTrial

logger = logging.getLogger(__name__)


def prepare_trials(sweep: Sweep, trials: Sequence[Trial]) -> list[StoredTrial]:
    """Check every trial against its data and model, without starting anything.

    Args:
        sweep: for its data folders and the metric that decides.
        trials: its trials, without the sweep's name.

    Raises:
        ConfigError: every task whose data or model is missing or does not fit, together.
    """
    problems: list[Problem] = []
    makers: dict[str, Any] = {}
    models = _Models()
    checked: dict[str, dict[str, str]] = {}
    code = code_version()
    ready: list[StoredTrial] = []
    for trial in trials:
        trial = _deciding_metric(sweep, trial)
        try:
            found = models.of(trial.recipe)
            if (maker := entry_of(trial.recipe.task).sweep_data) is not None:
                if maker not in makers:
                    makers[maker] = imported(maker)(sweep.definition.data_folders)
                trial = makers[maker].prepared(trial, found.pretrained)
            key = _data_key(trial.recipe, found)
            if key not in checked:
                checked[key] = {}
                local = with_local_data(trial.recipe)
                preflight(local, found.pretrained)
                checked[key] = _fingerprints(local)
        except ConfigError as error:
            problems += error.problems
            continue
        except Data2VecError as error:
            problems.append(
                Problem(str(trial.values.get("task", trial.named_recipe)), trial.recipe.task.data, str(error))
            )
            continue
        ready.append(
            StoredTrial(
                trial=trial,
                model=str(found.pretrained) if found.pretrained else None,
                model_uri=found.pretrained_uri,
                model_sha256=models.sha256(found.pretrained),
                initial=str(found.initial) if found.initial else None,
                initial_uri=found.initial_uri,
                data=checked[key],
                code=code,
            )
        )
    if problems:
        unique = {(p.field, repr(p.value), p.rule): p for p in problems}
        raise ConfigError(list(unique.values()), f"the sweep {sweep.name}")
    return ready


def _deciding_metric(sweep: Sweep, trial: Trial) -> Trial:
    """``select.metric`` also decides which weights a run keeps: those are registered."""
    wanted, rules = sweep.definition.select.metric, trial.recipe.checkpoint
    if wanted in (None, TRAIN_LOSS, rules.best_checkpoint_metric):
        return trial
    maximize = reported_metrics(trial.recipe)[wanted]
    rules = dataclasses.replace(
        rules, best_checkpoint_metric=wanted, maximize_best_checkpoint_metric=maximize
    )
    overrides = (
        *trial.overrides,
        f"checkpoint.best_checkpoint_metric={wanted}",
        f"checkpoint.maximize_best_checkpoint_metric={str(maximize).lower()}",
    )
    return dataclasses.replace(
        trial, recipe=dataclasses.replace(trial.recipe, checkpoint=rules), overrides=overrides
    )


def _named(recipe: Recipe) -> str:
    """What a recipe calls its pretrained model."""
    group, name = _named_by(recipe).split(".")
    return str(getattr(getattr(recipe, group), name))


def _named_by(recipe: Recipe) -> str:
    return pretrained_field(recipe.model) or "checkpoint.restore_file"


class _Models:
    """Models by their names, each resolved and hashed once."""

    def __init__(self) -> None:
        self._found: dict[str, ResolvedModels | Data2VecError] = {}
        self._hashes: dict[Path, str] = {}

    def of(self, recipe: Recipe) -> ResolvedModels:
        """The models that a recipe names."""
        rules = recipe.checkpoint
        names: list[Any] = [_named(recipe), rules.restore_file, rules.finetune_from_model]
        # A reference .pt is read with the dictionary beside it, or else with the data's.
        names.append(recipe.task.data if any(str(name).endswith(".pt") for name in names) else None)
        key = json.dumps(names)
        if key not in self._found:
            try:
                self._found[key] = resolve_models(recipe)
            except Data2VecError as error:
                if not isinstance(error, ConfigError):
                    error = ConfigError([Problem(_named_by(recipe), _named(recipe), str(error))])
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, Data2VecError):
            raise found
        return found

    def sha256(self, folder: Path | None) -> str | None:
        """Hash of the weights."""
        if folder is None:
            return None
        if folder not in self._hashes:
            self._hashes[folder] = file_sha256(folder / "model.safetensors")
        return self._hashes[folder]


def _data_key(recipe: Recipe, models: ResolvedModels) -> str:
    """Trials that open the same data in the same way need one check."""
    plain = recipe.to_dict()
    return json.dumps(
        [str(models.pretrained), plain["task"], plain["dataset"], plain["criterion"]], sort_keys=True
    )


def _fingerprints(recipe: Recipe) -> dict[str, str]:
    return {
        subset: open_subset(recipe, subset).fingerprint()
        for subset in [recipe.dataset.train_subset, *recipe.valid_subsets()]
    }
