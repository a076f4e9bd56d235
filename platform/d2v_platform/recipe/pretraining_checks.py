"""What must hold between the values of a pretraining recipe of any modality."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from data2vec.config import NO_TEACHER
from data2vec.errors import Problem, nearest_names
from data2vec.rules import ModelConfig

from .components import ModelCriterion
from .groups import LabelledProbe

if TYPE_CHECKING:
    from .schema import Recipe

# Values of the model that can be logged: data2vec2's monitors (spec: data2vec 2.0, section 10).
_MODEL_LOGS = ("ema_decay", "target_var", "pred_var", "masked_pct")
_NORM_LOGS = ("model_norm", "ema_norm")
PROBE_METRICS = ("knn", "linear_probe")


def probe_metrics(recipe: Recipe) -> dict[str, bool]:
    """What validation of pretraining reports besides the loss where it probes features; larger is better."""
    probed = any(getattr(recipe.task, name, None) is not None for name in ("probe_bank", "probe_data"))
    return dict.fromkeys(PROBE_METRICS if probed else (), True)


def pretraining_problems(recipe: Recipe) -> Iterator[Problem]:
    """A teacher that there is none of, monitors and losses that the model does not have."""
    if getattr(recipe.model, "skip_ema", False):
        yield NO_TEACHER
    if isinstance(recipe.model, ModelConfig) and isinstance(recipe.criterion, ModelCriterion):
        yield from _logged(recipe.model, recipe.criterion)
    if isinstance(recipe.task, LabelledProbe):
        yield from _probed(recipe, recipe.task)


def _probed(recipe: Recipe, task: LabelledProbe) -> Iterator[Problem]:
    if task.probe_data is not None and recipe.dataset.disable_validation:
        rule = "probes run at validations; set dataset.disable_validation=false"
        yield Problem("task.probe_data", task.probe_data, rule)
    depth = getattr(recipe.model, "depth", None)
    if depth is not None and not -depth <= task.probe_layer < depth:
        yield Problem("task.probe_layer", task.probe_layer, f"must lie in {-depth} ... {depth - 1}")


def _logged(model: ModelConfig, criterion: ModelCriterion) -> Iterator[Problem]:
    """Names of monitors and losses that the model has."""
    losses = model.loss_names()
    reported = _MODEL_LOGS + (_NORM_LOGS if getattr(model, "log_norms", False) else ())
    if not model.has_teacher:
        reported = tuple(key for key in reported if key != "ema_decay")
    for key in criterion.log_keys:
        if key in _NORM_LOGS and key not in reported:
            yield Problem("criterion.log_keys", key, "needs model.log_norms=true of a data2vec 2.0 model")
        elif key not in reported:
            rule = f"the model reports {', '.join(reported)}{nearest_names(key, reported)}"
            yield Problem("criterion.log_keys", key, rule)
    for key in criterion.loss_weights:
        if key not in losses:
            rule = f"the model's losses are {', '.join(losses)}{nearest_names(key, losses)}"
            yield Problem("criterion.loss_weights", key, rule)
