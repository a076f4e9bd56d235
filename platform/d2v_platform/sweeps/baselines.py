"""What a table's figures must beat: always saying the most frequent class of the validation set."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from data2vec.metrics import sentence_metrics

from ..recipe.components import SentencePredictionCriterion
from ..recipe.schema import Recipe
from ..tasks.sentence_prediction import open_subset
from .results import Record
from .selection import GridPoint, by_task

logger = logging.getLogger(__name__)


def baselines(points: Sequence[GridPoint]) -> dict[str, float]:
    """Majority class by task, in the metric that decides there; sentence tasks only."""
    found: dict[str, float] = {}
    for task, members in by_task(points).items():
        record: Record = members[0].records[0]
        recipe = record.stored.trial.recipe
        if isinstance(recipe.criterion, SentencePredictionCriterion) and recipe.valid_subsets():
            value = majority(recipe, members[0].metric)
            if value is not None:
                found[task] = value
    return found


def majority(recipe: Recipe, metric: str) -> float | None:
    """The metric of a constant answer: the most frequent label, or the mean score of a regression.

    Args:
        recipe: a sentence task; its first validation subset is read.
        metric: ``None`` comes back for the loss, which an answer alone does not have.
    """
    assert isinstance(recipe.criterion, SentencePredictionCriterion)
    if metric == "loss":
        return None
    regression = recipe.criterion.regression_target
    level, library = logging.WARNING, logging.getLogger("data2vec")
    before = library.level
    library.setLevel(level + 1)  # what the data set drops was said when it was checked
    try:
        data = open_subset(recipe, recipe.valid_subsets()[0])
    finally:
        library.setLevel(before)
    targets = data.targets
    assert targets is not None
    if regression:
        targets = np.asarray(targets, dtype=np.float64)[:, 0]
        answer = np.full_like(targets, targets.mean())
    else:
        answer = np.full_like(targets, np.bincount(targets).argmax())
    return sentence_metrics(answer, targets, data.labels, regression, [metric])[metric]
