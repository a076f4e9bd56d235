"""The tasks that recipes can train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data2vec.data.masked_lm import TextBlocksDataset
from data2vec.data.next_token import NextTokenDataset
from data2vec.mae_config import MaeConfig

from ..recipe.audio_components import AudioClassificationTask, AudioFinetuningTask, AudioPretrainingTask
from ..recipe.components import MaskedLMTask
from ..recipe.image_components import ImageClassificationData
from ..recipe.image_components import ImagePretraining as ImagePretrainingRecipe
from ..recipe.language_components import LanguageModelingTask
from ..recipe.schema import Recipe
from . import (
    audio_classification,
    audio_finetuning,
    audio_pretraining,
    image_data,
    sentence_prediction,
)
from .audio_classification import AudioClassification
from .audio_finetuning import AudioFinetuning
from .audio_pretraining import AudioPretraining
from .image_classification import ImageClassification
from .image_pretraining import ImagePretraining
from .language_modeling import LanguageModeling
from .mae_pretraining import MaePretraining
from .sentence_prediction import SentencePrediction
from .task import MicroBatch, TrainingTask
from .text_blocks import open_blocks
from .text_pretraining import TextPretraining

__all__ = ["MicroBatch", "TrainingTask", "check_data", "make_task", "open_subset"]


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
    if isinstance(recipe.task, AudioClassificationTask):
        return AudioClassification(recipe, model_folder)
    if isinstance(recipe.task, ImagePretrainingRecipe):
        return (MaePretraining if isinstance(recipe.model, MaeConfig) else ImagePretraining)(recipe)
    if isinstance(recipe.task, ImageClassificationData):
        return ImageClassification(recipe, model_folder)
    if isinstance(recipe.task, LanguageModelingTask):
        return LanguageModeling(recipe)
    return SentencePrediction(recipe, model_folder)


def open_subset(recipe: Recipe, subset: str) -> Any:
    """The data set of one subset as a recipe asks for it, with its ``fingerprint()``; nothing is built."""
    task, training = recipe.task, subset == recipe.dataset.train_subset
    if isinstance(task, MaskedLMTask):
        return open_blocks(TextBlocksDataset, recipe, subset)
    if isinstance(task, AudioPretrainingTask):
        return audio_pretraining.open_subset(recipe, subset)
    if isinstance(task, AudioFinetuningTask):
        return audio_finetuning.open_subset(recipe, subset, audio_finetuning.load_letters(task), None)
    if isinstance(task, AudioClassificationTask):
        return audio_classification.open_subset(recipe, subset, audio_classification.load_classes(task))
    if isinstance(task, ImagePretrainingRecipe | ImageClassificationData):
        return image_data.open_subset(recipe, subset, training=training, augmented=False)
    if isinstance(task, LanguageModelingTask):
        return open_blocks(NextTokenDataset, recipe, subset)
    return sentence_prediction.open_subset(recipe, subset)


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
    elif isinstance(recipe.task, AudioClassificationTask):
        AudioClassification.check_data(recipe, model_folder)
    elif isinstance(recipe.task, ImagePretrainingRecipe):
        ImagePretraining.check_data(recipe)
    elif isinstance(recipe.task, ImageClassificationData):
        ImageClassification.check_data(recipe, model_folder)
    elif isinstance(recipe.task, LanguageModelingTask):
        LanguageModeling.check_data(recipe)
    else:
        SentencePrediction.check_data(recipe, model_folder)
