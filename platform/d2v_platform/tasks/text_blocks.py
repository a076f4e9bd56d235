"""The token blocks of text recipes, whatever is learnt from them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from data2vec.data.dictionary import Dictionary
from data2vec.data.prepared_blocks import PreparedBlocks
from data2vec.errors import Data2VecError, DataError

from ..recipe.language_components import LanguageModelingTask
from ..recipe.schema import Recipe
from ..recipe.text_components import MaskedLMTask

Blocks = TypeVar("Blocks", bound=PreparedBlocks)
PUBLISHED_VOCABULARY = 50265  # of the released text models; where the data's dictionary cannot be read


def open_blocks(kind: type[Blocks], recipe: Recipe, subset: str) -> Blocks:
    """The token blocks of one subset as the recipe asks for them."""
    task, settings = recipe.task, recipe.dataset
    assert isinstance(task, MaskedLMTask | LanguageModelingTask)
    training = subset == settings.train_subset
    return kind(
        task.data,
        subset,
        tokens_per_sample=task.tokens_per_sample,
        sample_break_mode=task.sample_break_mode,
        shorten_method=task.shorten_method,
        shorten_data_split_list=task.shorten_data_split_list,
        seed=recipe.common.seed,
        max_tokens=settings.max_tokens if training else settings.max_tokens_valid,
        skip_invalid=settings.skip_invalid_size_inputs_valid_test,
    )


def check_blocks(kind: type[Blocks], recipe: Recipe) -> Blocks:
    """Open every subset that training will use; returns the training subset.

    Raises:
        DataError: a subset is missing, damaged, or of another dictionary.
    """
    train = open_blocks(kind, recipe, recipe.dataset.train_subset)
    for subset in recipe.valid_subsets():
        if open_blocks(kind, recipe, subset).dictionary.digest() != train.dictionary.digest():
            raise DataError(
                f"task.data = {recipe.task.data!r}: {subset} has another dictionary than training"
            )
    return train


def vocabulary_size(recipe: Recipe, dataset: PreparedBlocks | None) -> int:
    """Symbols of the data's dictionary, for plans; that of the published models where it cannot be read."""
    if dataset is not None:
        return len(dataset.dictionary)
    try:
        return len(Dictionary.load(Path(recipe.task.data.split(":")[0]) / "dict.txt").with_mask())
    except (Data2VecError, OSError):
        return PUBLISHED_VOCABULARY
