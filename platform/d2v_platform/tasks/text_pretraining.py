"""Pretraining data2vec 1 and 2.0 on text: token blocks in, teacher features as targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data2vec.artifact import Artifact
from data2vec.config import Data2VecMultiConfig
from data2vec.data.masked_lm import TextBlocksDataset
from data2vec.data.prepared import load_tokenizer
from data2vec.data.tokenizer import TextTokenizer
from data2vec.pretraining import Data2VecPretraining
from data2vec.v1.text import Data2VecTextPretraining, SpanMasking
from data2vec.v1.text_config import Data2VecTextConfig

from ..recipe.components import ModelCriterion
from ..recipe.schema import Recipe
from ..recipe.text_components import MaskedLMTask
from .labelled_probe import both_sides, read_texts
from .pretraining import PretrainingTask
from .text_blocks import check_blocks, open_blocks, vocabulary_size


class TextPretraining(PretrainingTask):
    """The ``masked_lm`` task with the ``data2vec_multi`` or ``data2vec_text`` model."""

    refilled = False
    read_labelled = staticmethod(read_texts)

    def __init__(self, recipe: Recipe, model_folder: Path | None = None) -> None:
        assert isinstance(recipe.model, Data2VecMultiConfig | Data2VecTextConfig)
        assert isinstance(recipe.task, MaskedLMTask)
        assert isinstance(recipe.criterion, ModelCriterion)
        self.recipe, self.config, self.task = recipe, recipe.model, recipe.task
        train = self.dataset(recipe.dataset.train_subset)
        self.dictionary = train.dictionary
        self.model = self._build(recipe.model, recipe.task)
        self.prepare(recipe.model.embed_dim)

    def _build(
        self, config: Data2VecMultiConfig | Data2VecTextConfig, task: MaskedLMTask
    ) -> Data2VecPretraining | Data2VecTextPretraining:
        size, seed = len(self.dictionary), self.recipe.common.seed
        if isinstance(config, Data2VecMultiConfig):
            return Data2VecPretraining(config, vocab_size=size, seed=seed)
        masking = SpanMasking(mask_prob=task.mask_prob, mask_multiple_length=task.mask_multiple_length)
        return Data2VecTextPretraining(config, vocab_size=size, masking=masking, seed=seed)

    @staticmethod
    def open_subset(recipe: Recipe, subset: str) -> TextBlocksDataset:
        """The data set of one subset; nothing is built."""
        return open_blocks(TextBlocksDataset, recipe, subset)

    @staticmethod
    def size_in_words(recipe: Recipe, dataset: Any) -> str:
        """Blocks and their tokens."""
        return f"{len(dataset):,} blocks, {int(dataset.sizes.sum()):,} tokens"

    @staticmethod
    def vocabulary(recipe: Recipe, parent: Artifact | None, dataset: Any) -> int:
        """Of the data's dictionary."""
        return vocabulary_size(recipe, dataset)

    @classmethod
    def check_data(cls, recipe: Recipe, model_folder: Path | None) -> None:
        """Open every subset that training will use."""
        _tokenizer(check_blocks(TextBlocksDataset, recipe))
        both_sides(recipe, cls.read_labelled)

    def kept(self) -> dict[str, Any]:
        """The longest text, and the tokenizer."""
        tokenizer = _tokenizer(self.dataset(self.recipe.dataset.train_subset))
        return {"task": {"max_positions": self.task.tokens_per_sample}, "tokenizer": tokenizer}

    def facts(self) -> dict[str, str]:
        """Data fingerprint and dictionary hash."""
        train = self.dataset(self.recipe.dataset.train_subset)
        return {"data.fingerprint": train.fingerprint(), "dictionary.hash": self.dictionary.digest()}


def _tokenizer(train: TextBlocksDataset) -> TextTokenizer:
    """What the folders of the training data were encoded with."""
    first, *_ = (load_tokenizer(folder, train.dictionary) for folder in train.folders)
    return first
