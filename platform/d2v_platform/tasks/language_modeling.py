"""Training a transformer language model: the next token out of those before it, judged by perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data2vec.artifact import Artifact, load_strictly, read_artifact, save_artifact
from data2vec.config import Data2VecMultiConfig
from data2vec.data.dictionary import Dictionary
from data2vec.data.next_token import NextTokenDataset
from data2vec.errors import CheckpointError, ConfigError
from data2vec.flops import StepCost, StepShape
from data2vec.lm.config import TransformerLMConfig
from data2vec.lm.flops import language_model_step
from data2vec.lm.loaded import units_of
from data2vec.lm.transformer import TransformerLM
from data2vec.masking import masked_index
from data2vec.placing import moved

from ..recipe.language_components import LanguageModelingTask
from ..recipe.schema import Recipe
from .batches import DECIDES
from .floor import Floor, token_floor
from .statistics import Layout, Sums
from .task import MicroBatch, OneModelTask, data_facts
from .text_blocks import check_blocks, open_blocks, vocabulary_size


class LanguageModeling(OneModelTask[TransformerLM]):
    """The ``language_modeling`` task with the ``transformer_lm`` model."""

    refilled = False
    on_cpu = DECIDES | {"target"}

    def __init__(self, recipe: Recipe, model_folder: Path | None = None) -> None:
        assert isinstance(recipe.model, TransformerLMConfig)
        assert isinstance(recipe.task, LanguageModelingTask)
        self.recipe, self.config, self.task = recipe, recipe.model, recipe.task
        self.dictionary = self.dataset(recipe.dataset.train_subset).dictionary
        _check_vocabulary(recipe, self.dictionary)
        self.model = TransformerLM(recipe.model, len(self.dictionary), seed=recipe.common.seed)
        self.layout = Layout(("loss", "sample_size", "nsentences", "ntokens", "micro_batches"))

    @staticmethod
    def open_subset(recipe: Recipe, subset: str) -> NextTokenDataset:
        """The data set of one subset; nothing is built."""
        return open_blocks(NextTokenDataset, recipe, subset)

    @staticmethod
    def size_in_words(recipe: Recipe, dataset: Any) -> str:
        """Blocks and their tokens."""
        return f"{len(dataset):,} blocks, {int(dataset.sizes.sum()):,} tokens"

    @staticmethod
    def vocabulary(recipe: Recipe, parent: Artifact | None, dataset: Any) -> int:
        """Of the data's dictionary.

        Raises:
            ConfigError: the model's bands do not fit it.
        """
        assert isinstance(recipe.model, TransformerLMConfig)
        size = vocabulary_size(recipe, dataset)
        if found := recipe.model.vocabulary_problems(size):
            raise ConfigError(found)
        return size

    @staticmethod
    def step_cost(  # pyright: ignore[reportIncompatibleMethodOverride]
        recipe: Recipe,
        config: Data2VecMultiConfig,
        shape: StepShape,
        *,
        num_classes: int,
        branch_scales: bool,
        **settings: Any,
    ) -> StepCost:
        """Embeddings, causal layers and softmax."""
        assert isinstance(recipe.model, TransformerLMConfig)
        return language_model_step(recipe.model, shape, **settings)

    @classmethod
    def check_data(cls, recipe: Recipe, model_folder: Path | None) -> None:
        """Open every subset that training will use, and compare dictionaries and bands."""
        _check_vocabulary(recipe, check_blocks(NextTokenDataset, recipe).dictionary)

    def forward(self, batch: Mapping[str, torch.Tensor], update: int) -> MicroBatch:
        """Summed negative log probability of a micro-batch's tokens, in nats."""
        loss, count = self._loss(batch, self.recipe.common.seed, update)
        scalars = {
            "loss": loss.detach(),
            "sample_size": count,
            "nsentences": len(batch["id"]),
            "ntokens": count,
            "micro_batches": 1,
        }
        return MicroBatch(loss, count, scalars)

    def _loss(self, batch: Mapping[str, torch.Tensor], *key: int) -> tuple[torch.Tensor, int]:
        target = batch["target"]
        real = target.ne(Dictionary.pad)
        hidden = self.model(batch["source"], *key).flatten(0, 1)
        target_N, real_N = moved(target[real], hidden.device), moved(masked_index(real), hidden.device)
        return self.model.nll(hidden.index_select(0, real_N), target_N).sum(), len(target_N)

    def initialise_from(self, folder: Path) -> None:
        """The weights of a language model over the same dictionary."""
        artifact = read_artifact(folder)
        if artifact.kind != "language_model":
            raise CheckpointError(f"{folder} holds a {artifact.kind} model, not a language model")
        if artifact.words is not None and artifact.words.digest() != self.dictionary.digest():
            raise CheckpointError(
                f"{folder} was trained with another dictionary than task.data = {self.task.data!r}; prepare "
                f"the data again with --dict {folder}/dict.txt"
            )
        load_strictly(self.model, artifact.state, folder)

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Loss of a token in bits, as the reference logs it, and perplexity."""
        return _figures(sums["loss"], sums["sample_size"])

    def predict(self, batch: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
        """Sums of one validation batch."""
        loss, count = self._loss(batch)
        return [{"id": int(batch["id"][0]), "loss": float(loss), "tokens": count}]

    def score(self, subset: str, results: list[dict[str, Any]]) -> dict[str, float]:
        """Loss of a token in bits, and perplexity, over the whole subset."""
        return _figures(sum(r["loss"] for r in results), sum(r["tokens"] for r in results))

    def export(self, folder: Path, origin: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Path:
        """Weights and dictionary."""
        return save_artifact(
            folder,
            kind="language_model",
            model_config=self.config,
            state=weights,
            task={
                "units": units_of(self.dictionary),
                "metric": self.recipe.checkpoint.best_checkpoint_metric,
                "tokens_per_sample": self.task.tokens_per_sample,
            },
            words=self.dictionary,
            origin=origin,
        )

    def floor(self, subset: str, metric: str) -> Floor | None:
        """The shares of the tokens."""
        data = self.dataset(subset)
        counts_V = np.zeros(len(self.dictionary), dtype=np.int64)
        for index in range(len(data)):
            counts_V += np.bincount(data[index]["target"].numpy(), minlength=len(counts_V))
        return token_floor(counts_V, metric)

    def facts(self) -> dict[str, str]:
        """Fingerprints of what it was judged and trained on, and the dictionary's hash."""
        return data_facts(self) | {"dictionary.hash": self.dictionary.digest()}


def _check_vocabulary(recipe: Recipe, dictionary: Dictionary) -> None:
    assert isinstance(recipe.model, TransformerLMConfig)
    if found := recipe.model.vocabulary_problems(len(dictionary)):
        raise ConfigError(found)


def _figures(nats: float, tokens: float) -> dict[str, float]:
    bits = nats / max(tokens, 1.0) / math.log(2)
    return {"loss": bits, "ppl": 2.0**bits if bits < 1000 else math.inf}
