"""The tasks that recipes can train."""

from __future__ import annotations

from pathlib import Path

from ..recipe import Recipe
from ..recipe.components import MaskedLMTask
from .sentence_prediction import SentencePrediction
from .task import MicroBatch, TrainingTask
from .text_pretraining import TextPretraining

__all__ = ["MicroBatch", "TrainingTask", "make_task"]


def make_task(recipe: Recipe, model_folder: Path | None) -> TrainingTask:
    """The task of a recipe.

    Args:
        recipe: a checked recipe.
        model_folder: the pretrained model's folder or file, resolved from ``model.model_path``.
    """
    if isinstance(recipe.task, MaskedLMTask):
        return TextPretraining(recipe)
    return SentencePrediction(recipe, model_folder)
