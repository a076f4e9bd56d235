"""Fine-tuning a text model on sentences or sentence pairs (GLUE)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data2vec.artifact import Artifact, load_strictly, read_artifact, save_artifact
from data2vec.config import SentenceHeadConfig
from data2vec.data.prepared import load_tokenizer
from data2vec.data.sentences import SentenceDataset
from data2vec.errors import CheckpointError, ConfigError, DataError, Problem
from data2vec.heads import SentenceClassifier, TextConfig, max_text_positions
from data2vec.metrics import sentence_metrics, wanted_metrics
from data2vec.v1.text_config import Data2VecTextConfig

from ..recipe.components import pretrained_field
from ..recipe.schema import Recipe
from ..recipe.text_components import (
    Roberta,
    SentencePredictionCriterion,
    SentencePredictionTask,
    TextClassification,
)
from .floor import Floor, sentence_floor
from .statistics import Layout, Sums
from .task import MicroBatch, OneModelTask


class SentencePrediction(OneModelTask[SentenceClassifier]):
    """The ``sentence_prediction`` task with the ``data2vec_text_classification`` or ``roberta`` model."""

    def __init__(self, recipe: Recipe, model_folder: Path | None) -> None:
        assert isinstance(recipe.model, TextClassification | Roberta)
        assert isinstance(recipe.task, SentencePredictionTask)
        assert isinstance(recipe.criterion, SentencePredictionCriterion)
        self.recipe, self.task, self.criterion = recipe, recipe.task, recipe.criterion
        self.regression = self.criterion.regression_target
        train = self.dataset(recipe.dataset.train_subset)
        self.dictionary = train.dictionary
        if model_folder is None:
            raise ConfigError(
                [Problem(str(pretrained_field(recipe.model)), None, "is required: a pretrained text model")]
            )
        parent = read_artifact(model_folder)
        self.parent = parent.config.get("origin", {})
        _check_fit(recipe, parent, train)
        head = SentenceHeadConfig(
            num_classes=self.task.num_classes,
            pooler_activation_fn=recipe.model.pooler_activation_fn,
            pooler_dropout=recipe.model.pooler_dropout,
        )
        self.model = SentenceClassifier(
            sentence_trunk(recipe, parent), head, vocab_size=parent.vocab_size, seed=recipe.common.seed
        )
        if not getattr(recipe.model, "no_pretrained_weights", False):
            load_strictly(self.model.trunk, parent.trunk_state, parent.folder)
        self.layout = Layout(("loss", "sample_size", "nsentences", "ntokens", "micro_batches", "correct"))

    @staticmethod
    def open_subset(recipe: Recipe, subset: str) -> SentenceDataset:
        """The data set of one subset; nothing is built."""
        return open_sentences(recipe, subset)

    @staticmethod
    def size_in_words(recipe: Recipe, dataset: Any) -> str:
        """Sentences or pairs, and their tokens."""
        return f"{len(dataset):,} sentences, {int(dataset.sizes.sum()):,} tokens"

    @staticmethod
    def network(recipe: Recipe, parent: Artifact | None) -> object:
        """The pretrained network with the recipe's dropouts."""
        if parent is None or not isinstance(parent.model_config, TextConfig):
            return OneModelTask.network(recipe, parent)
        return sentence_trunk(recipe, parent)

    @staticmethod
    def vocabulary(recipe: Recipe, parent: Artifact | None, dataset: Any) -> int:
        """Of the pretrained model."""
        if parent is None or not isinstance(parent.model_config, TextConfig):
            return 0
        return parent.vocab_size

    @classmethod
    def check_data(cls, recipe: Recipe, model_folder: Path | None) -> None:
        """Open every subset that training will use, and compare the data with the model."""
        train = open_sentences(recipe, recipe.dataset.train_subset)
        if model_folder is not None:
            _check_fit(recipe, read_artifact(model_folder), train)
        for subset in recipe.valid_subsets():
            open_sentences(recipe, subset)

    def forward(self, batch: Mapping[str, torch.Tensor], update: int) -> MicroBatch:
        """Summed loss of one micro-batch."""
        key = (self.recipe.common.seed, update, int(batch["id"][0]))
        logits = self.model(batch["source"], batch["padding_mask"], *key)
        output = self.model.loss(logits, batch["target"], self.regression)
        correct = 0.0 if self.regression else (logits.argmax(-1) == batch["target"]).sum()
        scalars = {
            "loss": output.loss.detach(),
            "sample_size": len(batch["id"]),
            "nsentences": len(batch["id"]),
            "ntokens": batch["source"].numel(),
            "micro_batches": 1,
            "correct": correct,
        }
        return MicroBatch(output.loss, len(batch["id"]), scalars)

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Loss per sentence (base 2 for classification, as in the reference) and accuracy in percent."""
        sentences = max(sums["sample_size"], 1.0)
        if self.regression:
            return {"loss": sums["loss"] / sentences}
        return {
            "loss": sums["loss"] / sentences / math.log(2),
            "accuracy": 100.0 * sums["correct"] / sentences,
        }

    def predict(self, batch: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
        """Loss, class (or value) and label of each sentence."""
        logits = self.model(batch["source"], batch["padding_mask"])
        values = logits[:, 0].tolist() if self.regression else logits.argmax(-1).tolist()
        results = [{"id": int(i), "prediction": v} for i, v in zip(batch["id"].tolist(), values, strict=True)]
        if "target" in batch:
            targets = batch["target"].view(len(results), -1)[:, 0]
            for index, (result, target) in enumerate(zip(results, targets.tolist(), strict=True)):
                row = slice(index, index + 1)
                loss = self.model.loss(logits[row], batch["target"][row], self.regression).loss
                result.update(target=target, loss=float(loss))
        return results

    def score(self, subset: str, results: list[dict[str, Any]]) -> dict[str, float]:
        """Loss and the metrics that the criterion asks for, over the whole subset at once."""
        scale = 1.0 if self.regression else math.log(2)
        scores = {"loss": sum(result["loss"] for result in results) / max(len(results), 1) / scale}
        scores |= sentence_metrics(
            np.array([result["prediction"] for result in results]),
            np.array([result["target"] for result in results]),
            labels=self.dataset(subset).labels,
            regression=self.regression,
            wanted=metrics_of(self.criterion),
        )
        return scores

    def export(self, folder: Path, origin: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Path:
        """Network, head, labels and tokenizer: needs no pretrained file to be used."""
        return save_artifact(
            folder,
            kind="sentence_classifier",
            model_config=self.model.trunk.config,
            head_config=self.model.head_config,
            state=weights,
            task={
                "labels": self.dataset(self.recipe.dataset.train_subset).labels,
                "regression": self.regression,
                "max_positions": self.task.max_positions,
                "metric": self.recipe.checkpoint.best_checkpoint_metric,
            },
            tokenizer=load_tokenizer(self.dataset(self.recipe.dataset.train_subset).folder, self.dictionary),
            origin=origin,
        )

    def facts(self) -> dict[str, str]:
        """Fingerprints, the parent's run, and the dictionary's hash."""
        return super().facts() | {"dictionary.hash": self.dictionary.digest()}

    def floor(self, subset: str, metric: str) -> Floor | None:
        """The best constant answer."""
        data = self.dataset(subset)
        if data.targets is None:
            return None
        targets = np.asarray(data.targets).reshape(len(data.targets), -1)[:, 0]
        return sentence_floor(targets, data.labels, self.regression, metric)


def metrics_of(criterion: SentencePredictionCriterion) -> list[str]:
    """Names of the metrics that the criterion asks for."""
    return wanted_metrics(
        regression=criterion.regression_target,
        report_mcc=criterion.report_mcc,
        report_acc_and_f1=criterion.report_acc_and_f1,
        report_pearson_and_spearman=criterion.report_pearson_and_spearman,
    )


def open_sentences(recipe: Recipe, subset: str) -> SentenceDataset:
    """The sentences of one subset as the recipe asks for them."""
    task, criterion, settings = recipe.task, recipe.criterion, recipe.dataset
    assert isinstance(task, SentencePredictionTask)
    assert isinstance(criterion, SentencePredictionCriterion)
    training = subset == settings.train_subset
    return SentenceDataset(
        task.data,
        subset,
        num_classes=task.num_classes,
        regression_target=criterion.regression_target,
        init_token=task.init_token,
        separator_token=task.separator_token,
        max_positions=task.max_positions,
        shorten_method=task.shorten_method,
        shorten_data_split_list=task.shorten_data_split_list,
        seed=recipe.common.seed,
        no_shuffle=task.no_shuffle,
        max_tokens=settings.max_tokens if training else settings.max_tokens_valid,
        skip_invalid=settings.skip_invalid_size_inputs_valid_test,
    )


def sentence_trunk(recipe: Recipe, parent: Artifact) -> TextConfig:
    """The pretrained architecture; ``roberta`` recipes have dropouts of their own."""
    config, model = parent.model_config, recipe.model
    assert isinstance(config, TextConfig), "_check_fit refuses other models"
    if isinstance(model, Roberta):
        assert isinstance(config, Data2VecTextConfig), "_check_fit refuses other models"
        config = copy.deepcopy(config)
        options = config.transformer
        options.dropout, options.attention_dropout = model.dropout, model.attention_dropout
        options.activation_dropout = model.activation_dropout
        options.encoder.layerdrop = model.encoder_layerdrop
    return config


def _check_fit(recipe: Recipe, parent: Artifact, train: SentenceDataset) -> None:
    """The data must be in the model's own vocabulary, and no longer than its positions."""
    task = recipe.task
    assert isinstance(task, SentencePredictionTask)
    if parent.modality != "TEXT":
        raise CheckpointError(f"{parent.folder} holds a model of {parent.modality}, not a text model")
    if parent.kind == "language_model":
        raise CheckpointError(f"{parent.folder} holds a language model, which has no features for a head")
    if isinstance(recipe.model, Roberta) and not isinstance(parent.model_config, Data2VecTextConfig):
        rule = (
            "is a data2vec 2.0 model: fine-tune it with the recipes of v2/text_finetuning (model.model_path)"
        )
        raise ConfigError([Problem(str(pretrained_field(recipe.model)), str(parent.folder), rule)])
    digest = train.dictionary.digest()
    if parent.config.get("dictionary") not in (None, digest) or parent.vocab_size != len(train.dictionary):
        raise DataError(
            f"task.data = {recipe.task.data!r} was prepared with another dictionary (sha256 {digest[:12]}, "
            f"{len(train.dictionary)} symbols) than the model {parent.folder} (sha256 "
            f"{str(parent.config.get('dictionary'))[:12]}, {parent.vocab_size} symbols); prepare it again: "
            f"d2v prepare glue RAW_FOLDER --dict {parent.folder}/tokenizer/dict.txt"
        )
    tokenizer = load_tokenizer(train.folder, train.dictionary)
    if parent.tokenizer is not None and parent.tokenizer.bpe.digest() != tokenizer.bpe.digest():
        there = f"{parent.folder}/tokenizer"
        raise DataError(
            f"task.data = {recipe.task.data!r} was encoded with another vocabulary than the model "
            f"{parent.folder}; prepare it again: d2v prepare glue RAW_FOLDER --dict {there}/dict.txt "
            f"--encoder-json {there}/encoder.json --vocab-bpe {there}/vocab.bpe"
        )
    assert isinstance(parent.model_config, TextConfig)
    limit = max_text_positions(parent.model_config)
    if task.max_positions > limit:
        rule = f"must be at most the model's max_source_positions {limit}"
        raise ConfigError([Problem("task.max_positions", task.max_positions, rule)])
