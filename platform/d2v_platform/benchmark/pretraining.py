"""A full data2vec 2.0 pretraining step, as the training loop makes it: teacher, losses, gradients, Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from data2vec.config import Data2VecMultiConfig
from data2vec.flops import StepShape, pretraining_step
from data2vec.optim import scale_and_clip
from data2vec.pretraining import Data2VecPretraining
from data2vec.randomness import seed_dropout

from ..recipe.compose import compose
from ..recipe.schema import Recipe
from ..training.optimizer import make_optimizer
from .measure import Case

TEXT_VOCABULARY = 50265


def text_case(recipe_name: str, samples: int, tokens: int, clones: int) -> Case:
    """The text recipe's step on B sequences of T tokens with M clones."""
    overrides = [f"model.clone_batch={clones}"]
    config = load(recipe_name, overrides).model
    assert isinstance(config, Data2VecMultiConfig)
    kept = int(tokens * (1.0 - config.modality.mask_prob))
    cost = pretraining_step(
        config, StepShape(samples=samples, positions=tokens, kept=kept, clones=clones), vocab_size=TEXT_VOCABULARY
    )
    return Case(
        name=f"v2 text base step, {samples} x {tokens} tokens, {clones} clones",
        build=text_step,
        options={"recipe_name": recipe_name, "overrides": overrides, "samples": samples, "tokens": tokens},
        matrix_flops=cost.flops,
        units=samples * tokens,
        unit="tokens",
    )


def text_step(recipe_name: str, overrides: Sequence[str], samples: int, tokens: int) -> Callable[[int], None]:
    """The step to repeat, on random tokens; dropouts and masks are those of training."""
    recipe = load(recipe_name, overrides)
    source = torch.randint(4, TEXT_VOCABULARY - 1, (samples, tokens))
    source[:, 0] = 0
    assert isinstance(recipe.model, Data2VecMultiConfig)
    model = Data2VecPretraining(recipe.model, vocab_size=TEXT_VOCABULARY)
    return training_step(recipe, model, source)


def training_step(recipe: Recipe, model: Data2VecPretraining, source: torch.Tensor) -> Callable[[int], None]:
    """One update of the loop, without its bookkeeping."""
    model.train()
    optimizer = make_optimizer(recipe, model.student)
    parameters = [p for p in model.student.parameters() if p.requires_grad]

    def step(update: int) -> None:
        model.teacher.step(update)
        for parameter in parameters:
            parameter.grad = None
        seed_dropout("dropout", recipe.common.seed, update, 0)
        output = model(source, update=update)
        output.loss.backward()
        scale_and_clip(parameters, output.sample_size, recipe.optimization.clip_norm)
        optimizer.step(update)

    return step


def load(recipe_name: str, overrides: Sequence[str]) -> Recipe:
    """A recipe without its data."""
    return compose(recipe_name, ["task.data=/none", *overrides], check=False).recipe
