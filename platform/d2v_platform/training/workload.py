"""What a recipe asks a worker to compute: the model, and the micro-batches that its data makes.

Where the data can be read, real batches are counted; otherwise every micro-batch is taken to be as large as
the recipe allows, and the plan says so.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from data2vec.artifact import read_artifact
from data2vec.config import Data2VecMultiConfig
from data2vec.errors import Data2VecError
from data2vec.families import generation_of
from data2vec.flops import Execution, StepCost, StepShape, Storage
from data2vec.v1.sizes import as_multi

from ..recipe.schema import Recipe
from ..tasks import open_subset, task_class
from ..tasks.task import batches_of

_SAMPLED = 2000  # micro-batches of an epoch whose size is looked at


@dataclass(frozen=True)
class Workload:
    """Micro-batches of a recipe.

    Attributes:
        recipe: the recipe.
        config: the network, or one whose blocks cost the same.
        vocab_size: rows of a token embedding, else 0.
        pretraining: with teacher, clones and decoder.
        sizes: (samples, length) of the epoch's micro-batches, with how often each was seen.
        epoch_micro_batches: micro-batches of an epoch; ``None`` if the data was not read.
        dataset: the opened training data, ``None`` if it was not read.
        sees_all: the student sees masked positions too, as embeddings (data2vec 1).
        branch_scales: each block scales its branches (data2vec 1 for images).
    """

    recipe: Recipe
    config: Data2VecMultiConfig
    vocab_size: int
    pretraining: bool
    sizes: Counter[tuple[int, int]]
    epoch_micro_batches: int | None
    dataset: Any = None
    sees_all: bool = False
    branch_scales: bool = False

    def for_recipe(self, recipe: Recipe) -> Workload:
        """The same model and data under another recipe."""
        sizes, count = _sizes(recipe, self.dataset)
        return dataclasses.replace(self, recipe=recipe, sizes=sizes, epoch_micro_batches=count)

    def shape(self, samples: int, length: int) -> StepShape:
        """A micro-batch as the model sees it."""
        front = self.config.modality
        positions = front.positions(length)
        kept, clones = positions, 1
        if self.pretraining and not self.sees_all:
            clones = self.config.clone_batch
            visible = front.visible(positions)
            kept = visible + round((positions - visible) * front.keep_masked_pct)
        kept, raw = max(kept, 1), front.raw(length)
        return StepShape(samples=samples, positions=positions, kept=kept, clones=clones, raw=raw)

    def cost(self, size: tuple[int, int], storage: Storage, accumulates: bool, workers: int = 1) -> StepCost:
        """What a micro-batch of so many samples and such a length costs one of the workers."""
        recipe = self.recipe
        holder = recipe.task if hasattr(recipe.task, "num_classes") else recipe.model
        listed = len(getattr(self.dataset, "classes", ()))
        return task_class(recipe).step_cost(
            recipe,
            self.config,
            self.shape(*size),
            vocab_size=self.vocab_size,
            num_classes=max(int(getattr(holder, "num_classes", 1)), listed, 1),
            branch_scales=self.branch_scales,
            execution=Execution(
                storage=storage,
                accumulates=accumulates,
                checkpoint_activations=recipe.platform.checkpoint_activations,
                workers=workers,
            ),
        )

    def largest(
        self, storage: Storage, accumulates: bool, workers: int = 1
    ) -> tuple[tuple[int, int], StepCost]:
        """The micro-batch that needs most memory."""
        costs = [(size, self.cost(size, storage, accumulates, workers)) for size in self.sizes]
        return max(costs, key=lambda pair: pair[1].peak_bytes)

    def fingerprint(self) -> str | None:
        """Of the training data; ``None`` if it was not read."""
        held = getattr(self.dataset, "source", self.dataset)
        return None if held is None else held.fingerprint()

    def data_size(self) -> str | None:
        """How much training data it is, in words; ``None`` if it was not read."""
        if self.dataset is None:
            return None
        return task_class(self.recipe).size_in_words(self.recipe, self.dataset)

    def mean_flops(self) -> float:
        """Work of a micro-batch, on average."""
        total = sum(
            self.cost(size, Storage(), False).flops * count for size, count in sorted(self.sizes.items())
        )
        return total / self.sizes.total()


def make_workload(recipe: Recipe, pretrained: Path | None) -> Workload | None:
    """Size a recipe's micro-batches.

    Args:
        recipe: a checked recipe.
        pretrained: model folder that a fine-tuning recipe names.

    Returns:
        ``None`` for a model whose cost is not described here.
    """
    room = task_class(recipe)
    parent = None if pretrained is None else read_artifact(pretrained)
    network = room.network(recipe, parent)
    config = as_multi(network)
    if config is None:
        return None
    dataset = training_data(recipe)
    vocabulary = room.vocabulary(recipe, parent, dataset)
    sizes, count = _sizes(recipe, dataset)
    return Workload(
        recipe=recipe,
        config=config,
        vocab_size=vocabulary,
        pretraining=room.pretraining,
        sizes=sizes,
        epoch_micro_batches=count,
        dataset=dataset,
        sees_all=room.pretraining and generation_of(network) == 1,
        branch_scales=getattr(network, "layer_scale_init_value", 0.0) > 0.0,
    )


def matrix_work(recipe: Recipe, module: nn.Module) -> Callable[[int, int], float] | None:
    """FLOPs of a micro-batch of so many samples of such a length, for the model that is being trained.

    Work that activation checkpointing does twice counts once. ``None`` for a model that we cannot price.
    """
    networks = [found for part in module.modules() if (found := as_multi(getattr(part, "config", None)))]
    if not networks:
        return None
    pretraining = task_class(recipe).pretraining
    once = dataclasses.replace(recipe.platform, checkpoint_activations=False)
    workload = Workload(
        recipe=dataclasses.replace(recipe, platform=once),
        config=networks[0],
        vocab_size=int(getattr(module, "vocab_size", 0)),
        pretraining=pretraining,
        sizes=Counter(),
        epoch_micro_batches=None,
        sees_all=pretraining and generation_of(recipe.model) == 1,
    )

    @functools.cache
    def work(samples: int, length: int) -> float:
        return workload.cost((samples, length), Storage(), False).flops

    return work


def training_data(recipe: Recipe) -> Any:
    """The opened training subset, or ``None`` where it cannot be read (training says why)."""

    try:
        return open_subset(recipe, recipe.dataset.train_subset)
    except (Data2VecError, OSError):
        return None


def smaller_batches(recipe: Recipe, factor: int) -> tuple[Recipe, str] | None:
    """The same update from micro-batches a ``factor``-th as large, and the overrides that ask for it."""
    data, world = recipe.dataset, recipe.distributed_training
    changed: dict[str, int] = {}
    for name in ("batch_size", "max_tokens"):
        value = getattr(data, name)
        if value is not None:
            if value % factor:
                return None
            changed[name] = value // factor
    longest = getattr(recipe.task, "max_sample_size", None)
    if longest is not None and changed.get("max_tokens", longest) < longest:
        return None  # one clip would not fit such a batch
    model: Any = recipe.model
    size = world.distributed_world_size * factor
    words = [f"dataset.{name}={value}" for name, value in changed.items()]
    words.append(f"distributed_training.distributed_world_size={size}")
    if getattr(model, "cls_loss", 0.0) > 0:
        # Its weight grows with the rows of a micro-batch, as in the reference.
        model = dataclasses.replace(model, cls_loss=model.cls_loss * factor)
        words.append(f"model.cls_loss={model.cls_loss:g}")
    made = dataclasses.replace(
        recipe,
        model=model,
        dataset=dataclasses.replace(data, **changed),
        distributed_training=dataclasses.replace(world, distributed_world_size=size),
    )
    return made, " ".join(words)


def _sizes(recipe: Recipe, dataset: Any) -> tuple[Counter[tuple[int, int]], int | None]:
    """How large the first epoch's micro-batches are and how many; full ones where the data was not read."""

    if dataset is None:
        length = task_class(recipe).longest(recipe)
        return Counter({(_full_batch(recipe, length), length): 1}), None
    batches = batches_of(dataset, recipe, 1, True, rebuild=False)
    lengths, step = np.asarray(dataset.sizes), max(1, len(batches) // _SAMPLED)
    seen = (batches[i] for i in range(0, len(batches), step))
    return Counter((len(batch), int(lengths[batch].max())) for batch in seen), len(batches)


def _full_batch(recipe: Recipe, length: int) -> int:
    data = recipe.dataset
    limits = [data.batch_size] if data.batch_size else []
    if data.max_tokens:
        limits.append(max(data.max_tokens // length, 1))
    count, multiple = min(limits, default=1), data.required_batch_size_multiple
    return count if count < multiple else count - count % multiple
