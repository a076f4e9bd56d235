"""What must hold between the values of a language model's recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from data2vec.errors import Problem
from data2vec.lm.config import TransformerLMConfig

from .language_components import AdaptiveLossCriterion, LanguageModelingTask
from .text_checks import block_problems

if TYPE_CHECKING:
    from .schema import Recipe

PERPLEXITY = "ppl"


def language_problems(recipe: Recipe) -> Iterator[Problem]:
    """Problems of language models."""
    yield from block_problems(recipe)
    task, model = recipe.task, recipe.model
    if not isinstance(task, LanguageModelingTask) or not isinstance(model, TransformerLMConfig):
        return
    if task.tokens_per_sample < 2:
        yield Problem("task.tokens_per_sample", task.tokens_per_sample, "must be >= 2")
    if model.decoder_learned_pos and task.tokens_per_sample > model.max_target_positions:
        rule = (
            f"is more than the learned positions, model.max_target_positions = {model.max_target_positions}"
        )
        yield Problem("task.tokens_per_sample", task.tokens_per_sample, rule)
    banded = isinstance(recipe.criterion, AdaptiveLossCriterion)
    if banded and model.adaptive_softmax_cutoff is None:
        rule = "adaptive_loss needs a softmax in bands; give cutoffs, or criterion=cross_entropy"
        yield Problem("model.adaptive_softmax_cutoff", None, rule)
    if not banded and model.adaptive_softmax_cutoff is not None:
        rule = "cross_entropy needs one softmax; use criterion=adaptive_loss"
        yield Problem("model.adaptive_softmax_cutoff", model.adaptive_softmax_cutoff, rule)
    if recipe.platform.checkpoint_activations:
        rule = "is not built for language models; use false"
        yield Problem("platform.checkpoint_activations", True, rule)
