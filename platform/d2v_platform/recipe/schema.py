"""The typed recipe: the reference's groups, field names and defaults, plus our ``platform`` group."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data2vec.errors import ConfigError, Problem
from data2vec.typed import to_dict

from . import user_code
from .components import (
    AdamOptions,
    Composite,
    Criterion,
    LRScheduler,
    Model,
    Optimizer,
    PassThrough,
    Schedule,
    Task,
    component_name,
)
from .entries import entry_of
from .groups import (
    GROUPS,
    CheckpointOptions,
    Common,
    CommonEval,
    Dataset,
    DistributedTraining,
    Optimization,
    Platform,
    split_names,
)
from .reading import fill_defaults, read_nodes, resolve_inherited


@dataclass(kw_only=True, frozen=True)
class GroupOptions:
    """Optimizer, schedule and peak rates of one group of parameters, flat and composite optimizers alike."""

    name: str
    peaks: tuple[float, ...]  # by epoch, the last one repeated
    optimizer: AdamOptions
    lr_scheduler: Schedule


@dataclass(kw_only=True)
class Recipe:
    """Everything that one training is made of."""

    task: Task
    model: Model
    criterion: Criterion
    optimizer: Optimizer
    lr_scheduler: LRScheduler
    common: Common = field(default_factory=Common)
    dataset: Dataset = field(default_factory=Dataset)
    optimization: Optimization = field(default_factory=Optimization)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    distributed_training: DistributedTraining = field(default_factory=DistributedTraining)
    common_eval: CommonEval = field(default_factory=CommonEval)
    platform: Platform = field(default_factory=Platform)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Read a plain mapping strictly: any unknown key or wrong type is a problem.

        Fields that are not given take their defaults, or the value of the field they inherit from.

        Raises:
            ConfigError: with all problems. Whether the values fit together is ``checks.problems``' business.
        """
        user_code.load_installed()
        folder = (values.get("common") or {}).get("user_dir")
        if folder:
            user_code.load_where_it_lay(folder)
        found: list[Problem] = []
        recipe = cls.read(resolve_inherited(fill_defaults(values)), found)
        if recipe is None or found:
            raise ConfigError(found)
        return recipe

    @classmethod
    def read(cls, full: Mapping[str, Any], problems: list[Problem]) -> Recipe | None:
        """A recipe from a complete mapping; ``None`` if a component is missing or unknown."""
        nodes = read_nodes(full, problems)
        return None if any(node is None for node in nodes.values()) else cls(**nodes)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary with ``_name`` keys: what crosses into Ray and into stored runs."""
        out: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            out[f.name] = _node_to_dict(getattr(self, f.name))
        return out

    def world_size(self) -> int:
        """W: the number of workers that the recipe is meant for."""
        return self.distributed_training.distributed_world_size

    def update_freq_for_epoch(self, epoch: int) -> int:
        """F: micro-batches that each of the W workers accumulates in this epoch (from 1)."""
        return _of_epoch(self.optimization.update_freq, epoch)

    def micro_batches(self, epoch: int = 1) -> int:
        """W*F: micro-batches of one update in this epoch, however many processes share them."""
        return self.world_size() * self.update_freq_for_epoch(epoch)

    def modality(self) -> str:
        """What the task reads: text, audio, image, or that of a user's task."""
        return entry_of(self.task).modality

    def experiment(self) -> str:
        """The MLflow experiment: one for each modality, or as it is named."""
        return self.platform.experiment or f"data2vec-{self.modality()}"

    def valid_subsets(self) -> list[str]:
        """The validation subsets; the first one decides which checkpoint is best. Empty if disabled."""
        return [] if self.dataset.disable_validation else split_names(self.dataset.valid_subset)

    def parameter_groups(self) -> dict[str, GroupOptions]:
        """What each group of parameters is trained with; a flat optimizer is the one group ``default``."""
        shared = tuple(self.optimization.lr)
        if isinstance(self.optimizer, Composite):
            return {
                name: GroupOptions(
                    name=name,
                    peaks=(g.lr_float,) if g.lr_float is not None else tuple(g.lr or shared),
                    optimizer=g.optimizer,
                    lr_scheduler=g.lr_scheduler,
                )
                for name, g in self.optimizer.groups.items()
            }
        if isinstance(self.lr_scheduler, PassThrough):
            raise ConfigError(
                [Problem("lr_scheduler._name", "pass_through", "needs the composite optimizer")]
            )
        group = GroupOptions(
            name="default", peaks=shared, optimizer=self.optimizer, lr_scheduler=self.lr_scheduler
        )
        return {"default": group}


def _of_epoch(values: Sequence[int], epoch: int) -> int:
    return values[min(max(epoch, 1), len(values)) - 1]


def _node_to_dict(node: Any) -> dict[str, Any]:
    named = {} if type(node) in GROUPS.values() else {"_name": component_name(node)}
    if isinstance(node, Composite):
        groups = {
            name: {
                "lr": to_dict(g.lr),
                "lr_float": g.lr_float,
                "optimizer": _node_to_dict(g.optimizer),
                "lr_scheduler": _node_to_dict(g.lr_scheduler),
            }
            for name, g in node.groups.items()
        }
        return {**named, "groups": groups, "dynamic_groups": node.dynamic_groups}
    return {**named, **to_dict(node)}
