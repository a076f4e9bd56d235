"""What the training loop needs from a modality or a fine-tuning task; everything else is one loop for all."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from data2vec.artifact import Artifact, load_strictly, read_artifact
from data2vec.collapse import Scatter
from data2vec.config import Data2VecMultiConfig
from data2vec.data.batching import epoch_batches
from data2vec.flops import StepCost, StepShape, finetuning_step
from data2vec.pretraining import Moments

from ..recipe.schema import Recipe
from .batches import DECIDES
from .floor import Floor
from .statistics import Layout, Sums

Network = TypeVar("Network", bound=nn.Module)
_PARENT = {"run": "run_id", "update": "update"}  # tag -> key of a model's origin


@dataclass(frozen=True)
class MicroBatch:
    """Result of the forward pass of one micro-batch.

    Attributes:
        loss: summed loss, differentiable.
        sample_size: what the gradient is divided by, summed over the update.
        scalars: further sums by name.
        moments: vector moments by name.
        stages: sums for the collapse watch, where the task is ``watching``.
    """

    loss: torch.Tensor
    sample_size: int | torch.Tensor
    scalars: Mapping[str, float | torch.Tensor] = field(default_factory=dict)
    moments: Mapping[str, Moments] = field(default_factory=dict)
    stages: Mapping[str, Scatter] = field(default_factory=dict)


class TrainingTask(ABC):
    """Data, model, loss and metrics of one recipe.

    Args of a task's class: a checked recipe, and the pretrained model's folder or ``None``.

    Attributes:
        recipe: the recipe.
        layout: names of the sums that its micro-batches report.
        watching: the loop asks for the sums of the collapse watch.
        exports_best: the model that a run leaves is the best one by validation, not the last one.
        on_cpu: tensors of its batches that stay there.
        sizes_change: its batches have ever new lengths.
        deterministic: CUDA is known to have a deterministic kernel for everything that it does.
        refilled: every epoch fills its batches anew; otherwise they are the same ones in another order.
        pretraining: it leaves an encoder, which features judge and not a metric of its own; while it trains
            there are clones, a decoder and a teacher beside it.
        speed_unit: what its speed counts: the name in the line and in MLflow, and how many of ``ntokens`` are
            one.
    """

    recipe: Recipe
    layout: Layout
    watching: bool = False
    on_cpu: ClassVar[frozenset[str]] = DECIDES
    sizes_change: ClassVar[bool] = True
    exports_best: bool = True
    deterministic: bool = False
    refilled: ClassVar[bool] = True
    pretraining: ClassVar[bool] = False
    speed_unit: ClassVar[tuple[str, str, int]] = ("tokens", "tokens", 1)

    @property
    def watched(self) -> Mapping[str, int]:
        """Stages that can collapse, with their number of watched channels."""
        return {}

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """Everything with state: what checkpoints hold."""

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """The part that the optimizer steps."""

    @property
    def lr_scales(self) -> Mapping[str, float] | None:
        """Learning-rate factors by parameter name (layer decay), 1 where absent; ``None`` for none."""
        return None

    @staticmethod
    @abstractmethod
    def open_subset(recipe: Recipe, subset: str) -> Any:
        """The data set of one subset, with its ``fingerprint()``; nothing is built."""

    @staticmethod
    def size_in_words(recipe: Recipe, dataset: Any) -> str:
        """How much a subset holds, such as "512 recordings, 1.5 hours"."""
        return f"{len(dataset):,} samples"

    @staticmethod
    def longest(recipe: Recipe) -> int:
        """The longest sample that the recipe lets through, in the data's units; for plans without data."""
        for name in ("tokens_per_sample", "max_positions", "max_sample_size"):
            value = getattr(recipe.task, name, None)
            if isinstance(value, int) and value > 0:
                return value
        return recipe.dataset.max_tokens or 1

    @staticmethod
    def network(recipe: Recipe, parent: Artifact | None) -> object:
        """The configuration of the network that is trained, for plans; an unfit parent as it is."""
        return recipe.model if parent is None else parent.model_config

    @staticmethod
    def vocabulary(recipe: Recipe, parent: Artifact | None, dataset: Any) -> int:
        """Rows of the network's token embedding, for plans; 0 without one.

        Args:
            recipe: a checked recipe.
            parent: the pretrained model.
            dataset: the training subset, ``None`` where it cannot be read.
        """
        return 0

    @staticmethod
    def step_cost(
        recipe: Recipe,
        config: Data2VecMultiConfig,
        shape: StepShape,
        *,
        vocab_size: int,
        num_classes: int,
        branch_scales: bool,
        **settings: Any,
    ) -> StepCost:
        """What a micro-batch costs.

        Args:
            recipe: a checked recipe.
            config: the network, in the terms of data2vec 2.0.
            shape: of the micro-batch.
            vocab_size: rows of the token embedding.
            num_classes: outputs of a head.
            branch_scales: each block scales its branches.
            settings: further ones of :func:`~data2vec.flops.finetuning_step` and its like.
        """
        more = {"vocab_size": vocab_size, "num_classes": num_classes, "branch_scales": branch_scales}
        return finetuning_step(config, shape, **more, **settings)

    @classmethod
    def check_data(cls, recipe: Recipe, model_folder: Path | None) -> None:
        """Open a recipe's data sets and compare them with the pretrained model, without building a model.

        Raises:
            Data2VecError: naming the file or field that does not fit.
        """
        for subset in dict.fromkeys((recipe.dataset.train_subset, *recipe.valid_subsets())):
            cls.open_subset(recipe, subset)

    def opened(self, subset: str) -> Any:
        """A subset as the loop reads it, which asks once: a map-style data set.

        It has ``sizes``, ``order``, ``collate``, items by index and ``for_epoch``; and ``finish`` where
        something is left to do to a batch on its device.
        """
        return self.open_subset(self.recipe, subset)

    @functools.cached_property
    def _datasets(self) -> dict[str, Any]:
        return {}

    def dataset(self, subset: str, epoch: int = 1) -> Any:
        """A subset as it is in an epoch."""
        if subset not in self._datasets:
            self._datasets[subset] = self.opened(subset)
        self._datasets[subset] = self._datasets[subset].for_epoch(epoch)
        return self._datasets[subset]

    def batches(self, subset: str, epoch: int, training: bool) -> Sequence[np.ndarray]:
        """All micro-batches of an epoch, the same list on every worker; validation loses no sample."""
        return batches_of(self.dataset(subset, epoch), self.recipe, epoch, training, rebuild=self.refilled)

    @abstractmethod
    def forward(self, batch: Mapping[str, torch.Tensor], update: int) -> MicroBatch:
        """Loss of one micro-batch of training."""

    def passes(self, batch: Mapping[str, torch.Tensor], update: int) -> Sequence[Callable[[], MicroBatch]]:
        """What computes a micro-batch: one forward pass, or several, each followed by a backward pass."""
        return [lambda: self.forward(batch, update)]

    def begin_update(self, update: int) -> None:
        """Called before the first micro-batch of an update; ``update`` updates are complete."""
        return None

    def counters(self) -> dict[str, Any]:
        """Plain state beside the tensors (the teacher's update), for checkpoints."""
        return {}

    def restore(self, counters: Mapping[str, Any]) -> None:
        """Take back what :meth:`counters` gave."""
        return None

    @abstractmethod
    def initialise_from(self, folder: Path) -> None:
        """Start a new run from the weights of a model folder (``checkpoint.restore_file``)."""

    @abstractmethod
    def metrics(self, sums: Sums) -> dict[str, float]:
        """Figures of a logging interval from its sums."""

    def guard(self, metrics: Mapping[str, float], update: int) -> str | None:
        """A reason to stop (collapse), or ``None``."""
        return None

    @abstractmethod
    def predict(self, batch: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
        """Evaluation results of each sample, as plain values with its ``id``."""

    @abstractmethod
    def score(self, subset: str, results: list[dict[str, Any]]) -> dict[str, float]:
        """Metrics of a subset from the results of all its samples, ordered by id."""

    @staticmethod
    def pictures(recipe: Recipe, model_folder: Path, folder: Path) -> list[Path]:
        """Draw what a model card shows of the data; titles of the files are ``card_pictures.TITLES``.

        Args:
            recipe: with its data on this machine or at a URI.
            model_folder: the exported model.
            folder: where they go.
        """
        return []

    def close(self) -> None:
        """Called on every worker when training is over, before the export: what is left to be said."""
        return None

    @abstractmethod
    def export(self, folder: Path, origin: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Path:
        """Write the model folder that is registered and served.

        Args:
            folder: where.
            origin: lineage.
            weights: the complete state of :attr:`module`, of which this worker may hold a part only.
        """

    def floor(self, subset: str, metric: str) -> Floor | None:
        """What an answer that knows nothing scores on a subset; every worker asks.

        Args:
            subset: of validation.
            metric: the one that decides; a task may tell of another one instead.
        """
        return None

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """Lineage: data fingerprint, dictionary hash, parent model."""


class OneModelTask(TrainingTask, Generic[Network]):
    """A task whose ``model`` is at once what checkpoints hold and what the optimizer steps: no teacher."""

    model: Network
    parent: Mapping[str, Any] = MappingProxyType({})
    """Where the pretrained model came from."""

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self.model

    @property
    def trained(self) -> nn.Module:
        """The model."""
        return self.model

    def initialise_from(self, folder: Path) -> None:
        """The weights of a model of this task."""
        load_strictly(self.model, read_artifact(folder).state, folder)

    def facts(self) -> dict[str, str]:
        """Fingerprints of what it was judged and trained on, and the parent's run."""
        parent = {f"parent.{key}": str(self.parent.get(name, "none")) for key, name in _PARENT.items()}
        return data_facts(self) | parent


def floor_facts(task: TrainingTask) -> dict[str, str]:
    """The floor of the metric that decides, on the first validation subset; empty where there is none."""
    subsets = task.recipe.valid_subsets()
    metric = task.recipe.checkpoint.best_checkpoint_metric
    found = task.floor(subsets[0], metric) if subsets else None
    return {} if found is None else found.facts()


def size_facts(task: TrainingTask) -> dict[str, str]:
    """How much data it is trained on."""
    recipe = task.recipe
    return {"data.size": task.size_in_words(recipe, task.dataset(recipe.dataset.train_subset))}


def data_facts(task: TrainingTask) -> dict[str, str]:
    """Fingerprints of the data that judges a model and of the data that it is trained on.

    Without a validation subset the training subset judges.
    """
    train = task.recipe.dataset.train_subset
    judging = (task.recipe.valid_subsets() or [train])[0]
    found = {"data.fingerprint": judging, "data.train_fingerprint": train}
    known = {key: task.dataset(subset).fingerprint() for key, subset in found.items()}
    return known | {"dictionary.hash": "none"}  # tasks with a dictionary say otherwise


def part_of(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a submodule, under its own names."""
    return {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}


def batches_of(
    dataset: Any, recipe: Recipe, epoch: int, training: bool, *, rebuild: bool
) -> Sequence[np.ndarray]:
    """The batches of one epoch under the recipe's ``dataset`` group.

    Args:
        dataset: has ``sizes`` and ``order``.
        recipe: limits and seed.
        epoch: from 1.
        training: shuffle; otherwise a fixed order that loses no sample.
        rebuild: fill batches anew every epoch.
    """
    settings = recipe.dataset
    return epoch_batches(
        dataset.sizes,
        seed=recipe.common.seed,
        epoch=epoch,
        max_tokens=settings.max_tokens if training else settings.max_tokens_valid,
        batch_size=settings.batch_size if training else settings.batch_size_valid,
        required_batch_size_multiple=settings.required_batch_size_multiple if training else 1,
        shuffle=training,
        rebuild=training and rebuild,
        order=dataset.order if training else "size",
        curriculum=settings.curriculum,
    )
