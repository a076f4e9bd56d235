"""The tasks that recipes can train."""

from __future__ import annotations

from pathlib import Path

from ..recipe.audio_components import AudioFinetuningTask, AudioPretrainingTask
from ..recipe.components import MaskedLMTask
from ..recipe.image_components import ImageClassificationData
from ..recipe.image_components import ImagePretraining as ImagePretrainingRecipe
from ..recipe.schema import Recipe
from .audio_finetuning import AudioFinetuning
from .audio_pretraining import AudioPretraining
from .image_classification import ImageClassification
from .image_pretraining import ImagePretraining
from .sentence_prediction import SentencePrediction
from .task import MicroBatch, TrainingTask
from .text_pretraining import TextPretraining

__all__ = ["MicroBatch", "TrainingTask", "check_data", "make_task"]


def make_task(recipe: Recipe, model_folder: Path | None) -> TrainingTask:
    """The task of a recipe.

    Args:
        recipe: a checked recipe.
        model_folder: the pretrained model's folder or file, resolved from ``model.model_path``.
    """
    if isinstance(recipe.task, MaskedLMTask):
        return TextPretraining(recipe)
    if isinstance(recipe.task, AudioPretrainingTask):
        return AudioPretraining(recipe)
    if isinstance(recipe.task, AudioFinetuningTask):
        return AudioFinetuning(recipe, model_folder)
    if isinstance(recipe.task, ImagePretrainingRecipe):
        return ImagePretraining(recipe)
    if isinstance(recipe.task, ImageClassificationData):
        return ImageClassification(recipe, model_folder)
    return SentencePrediction(recipe, model_folder)


def check_data(recipe: Recipe, model_folder: Path | None) -> None:
    """Open a recipe's data sets and compare them with the pretrained model, without building a model.

    Raises:
        Data2VecError: naming the file or field that does not fit.
    """
    if isinstance(recipe.task, MaskedLMTask):
        TextPretraining.check_data(recipe)
    elif isinstance(recipe.task, AudioPretrainingTask):
        AudioPretraining.check_data(recipe)
    elif isinstance(recipe.task, AudioFinetuningTask):
        AudioFinetuning.check_data(recipe, model_folder)
    elif isinstance(recipe.task, ImagePretrainingRecipe):
        ImagePretraining.check_data(recipe)
    elif isinstance(recipe.task, ImageClassificationData):
        ImageClassification.check_data(recipe, model_folder)
    else:
        SentencePrediction.check_data(recipe, model_folder)
