"""What must hold between the values of a text recipe: blocks to pretrain on, sentences to classify."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from data2vec.config import Data2VecMultiConfig
from data2vec.errors import Problem
from data2vec.v1.text_config import Data2VecTextConfig

from .pretraining_checks import pretraining_problems
from .text_components import (
    MaskedLMTask,
    Roberta,
    SentencePredictionCriterion,
    SentencePredictionTask,
    TextClassification,
)

if TYPE_CHECKING:
    from .schema import Recipe


def masked_lm_problems(recipe: Recipe) -> Iterator[Problem]:
    """Problems of text pretraining: blocks that fit the positions, monitors that exist."""
    yield from pretraining_problems(recipe)
    model, task = recipe.model, recipe.task
    assert isinstance(task, MaskedLMTask)
    if isinstance(model, Data2VecTextConfig):
        yield from _masked_text(recipe, task, model)
    if isinstance(model, Data2VecMultiConfig):
        text = model.modalities.text
        if text is None or model.modality_name != "TEXT":
            yield Problem("model.supported_modality", model.supported_modality, "masked_lm needs TEXT")
            return
        if task.tokens_per_sample < 2:
            yield Problem("task.tokens_per_sample", task.tokens_per_sample, "must be >= 2")
        if task.tokens_per_sample > text.max_source_positions:
            rule = f"is more than model.modalities.text.max_source_positions = {text.max_source_positions}"
            yield Problem("task.tokens_per_sample", task.tokens_per_sample, rule)
    yield from block_problems(recipe)


def block_problems(recipe: Recipe) -> Iterator[Problem]:
    """A batch must hold one block of tokens."""
    most, block = recipe.dataset.max_tokens, getattr(recipe.task, "tokens_per_sample", 0)
    if most is not None and most < block:
        yield Problem(
            "dataset.max_tokens", most, f"is less than one block (task.tokens_per_sample = {block})"
        )


def sentence_problems(recipe: Recipe) -> Iterator[Problem]:
    """Problems of sentence classification and regression."""
    if isinstance(recipe.model, TextClassification | Roberta):
        yield from _sentence_model(recipe, recipe.model)
    task, criterion = recipe.task, recipe.criterion
    if not isinstance(task, SentencePredictionTask) or not isinstance(criterion, SentencePredictionCriterion):
        return
    classes = task.num_classes
    if criterion.regression_target and classes != 1:
        yield Problem("task.num_classes", classes, "must be 1 with criterion.regression_target")
    if not criterion.regression_target and classes < 2:
        rule = "must be >= 2, or set criterion.regression_target=true for a score"
        yield Problem("task.num_classes", classes, rule)
    if criterion.report_acc_and_f1 and classes != 2:
        yield Problem(
            "criterion.report_acc_and_f1", True, f"F1 needs two classes, task.num_classes is {classes}"
        )
    if criterion.report_mcc and criterion.regression_target:
        yield Problem("criterion.report_mcc", True, "needs classes, not criterion.regression_target")
    if criterion.report_pearson_and_spearman and not criterion.regression_target:
        yield Problem("criterion.report_pearson_and_spearman", True, "needs criterion.regression_target")
    if task.max_positions < 2:
        yield Problem("task.max_positions", task.max_positions, "must be >= 2")


def reported_sentence_metrics(recipe: Recipe) -> dict[str, bool]:
    """GLUE's metrics that validation reports, with whether larger is better."""
    criterion, reported = recipe.criterion, dict[str, bool]()
    if not isinstance(criterion, SentencePredictionCriterion):
        return reported
    if not criterion.regression_target:
        reported["accuracy"] = True
    if criterion.report_mcc:
        reported["mcc"] = True
    if criterion.report_acc_and_f1:
        reported |= {"f1": True, "acc_and_f1": True}
    if criterion.report_pearson_and_spearman:
        reported |= {"pearson": True, "spearman": True, "pearson_and_spearman": True}
    return reported


def _sentence_model(recipe: Recipe, model: TextClassification | Roberta) -> Iterator[Problem]:
    names = ["pooler_dropout"]
    if isinstance(model, Roberta):
        names += ["dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop"]
        c = recipe.checkpoint
        if c.restore_file == type(c).restore_file and c.finetune_from_model is None:
            rule = "is required: the data2vec 1 text model to fine-tune (a folder, models:/..., a .pt)"
            yield Problem("checkpoint.restore_file", c.restore_file, rule)
    for name in names:
        if not 0 <= getattr(model, name) < 1:
            yield Problem(f"model.{name}", getattr(model, name), "must lie in 0 <= p < 1")


def _masked_text(recipe: Recipe, task: MaskedLMTask, model: Data2VecTextConfig) -> Iterator[Problem]:
    """The data of data2vec 1 text: blocks that fit the positions, masks that hide something."""
    limit = model.transformer.max_source_positions
    if not 2 <= task.tokens_per_sample <= limit:
        rule = f"must lie in 2 ... model.transformer.max_source_positions ({limit})"
        yield Problem("task.tokens_per_sample", task.tokens_per_sample, rule)
    if not 0 < task.mask_prob <= 1:
        yield Problem("task.mask_prob", task.mask_prob, "must lie in 0 < p <= 1")
    if task.mask_multiple_length < 1:
        yield Problem("task.mask_multiple_length", task.mask_multiple_length, "must be >= 1")
