"""What a recipe becomes on the cluster at hand: printed before every training, refused when impossible."""

from __future__ import annotations

import math
from dataclasses import dataclass

from data2vec.errors import ConfigError, Problem

from ..recipe.schema import Recipe
from .ray_session import ClusterInfo


@dataclass(frozen=True)
class Plan:
    """How the recipe's micro-batches meet the workers.

    Attributes:
        world_size: W, the workers that the recipe is meant for.
        update_freq: F in the first epoch.
        num_workers: k, physical workers; 0 is this process without Ray.
        cpus_per_worker: CPUs reserved for each.
        gpus_per_worker: GPUs reserved for each.
        threads: PyTorch threads of each.
        loader_processes: data-loading processes of each.
        sharded: each worker holds a part of the model.
        notes: choices that were made, in words.
    """

    world_size: int
    update_freq: int
    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    threads: int
    loader_processes: int
    sharded: bool
    notes: tuple[str, ...]

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one update."""
        return self.world_size * self.update_freq

    @property
    def busy(self) -> float:
        """Share of the workers' time with a micro-batch to compute."""
        workers = max(self.num_workers, 1)
        return self.micro_batches / (workers * math.ceil(self.micro_batches / workers))

    def lines(self) -> list[str]:
        """The plan in words."""
        workers = max(self.num_workers, 1)
        rounds = math.ceil(self.micro_batches / workers)
        where = "this process, without Ray" if self.num_workers == 0 else f"{workers} Ray Train workers"
        if self.num_workers == 1:
            where = "1 Ray Train worker"
        first = (
            f"plan: {self.micro_batches} micro-batches an update (recipe: {self.world_size} workers x "
            f"update_freq "
            f"{self.update_freq}) on {where}: {rounds} each, {100 * self.busy:.0f}% busy"
        )
        device = f"{self.gpus_per_worker:g} GPU" if self.gpus_per_worker else "no GPU"
        second = (
            f"      each worker: {self.cpus_per_worker:g} CPU, {device}, {self.threads} threads, "
            f"{self.loader_processes} loader processes"
        )
        return [first, second, *(f"      {note}" for note in self.notes)]


def make_plan(recipe: Recipe, cluster: ClusterInfo | None, local_gpus: int = 0) -> Plan:
    """Deal a recipe to the workers at hand.

    Args:
        recipe: a checked recipe.
        cluster: resources, or ``None`` in local mode.
        local_gpus: GPUs of this machine, of which local mode takes the first.

    Raises:
        ConfigError: it cannot be placed, with what would help.
    """
    platform, micro = recipe.platform, recipe.micro_batches(1)
    notes: list[str] = []
    if platform.num_workers == 0 or cluster is None:
        asked = platform.gpus_per_worker
        if asked and cluster is None and platform.num_workers == 0 and not local_gpus:
            rule = "this machine has no GPU that PyTorch can use; leave it out to compute on the CPU"
            raise ConfigError([Problem("platform.gpus_per_worker", asked, rule)])
        workers, gpus = 0, float(local_gpus > 0 and asked != 0)
    else:
        gpus = platform.gpus_per_worker if platform.gpus_per_worker is not None else float(cluster.gpus > 0)
        room = math.floor(cluster.gpus / gpus if gpus else cluster.cpus / max(platform.cpus_per_worker, 1e-9))
        have = f"{cluster.gpus:g} GPUs" if gpus else f"{cluster.cpus:g} CPUs"
        kind, each = ("gpus", gpus) if gpus else ("cpus", platform.cpus_per_worker)
        if room < 1:
            rule = f"is more than the cluster's {have}, so no worker fits; lower it"
            raise ConfigError([Problem(f"platform.{kind}_per_worker", each, rule)])
        workers = platform.num_workers or min(micro, room)
        if platform.num_workers is None:
            notes.append(f"platform.num_workers is not given: {workers} of {room} that fit the cluster")
        if workers > room:
            lower = f"lower platform.{kind}_per_worker"
            rule = f"needs more than the cluster's {have}; use at most {room}, or {lower}"
            raise ConfigError([Problem("platform.num_workers", workers, rule)])
    if workers > micro:
        rule = (
            f"an update has {micro} micro-batches (distributed_training.distributed_world_size x "
            f"optimization.update_freq), so at most {micro} workers have work"
        )
        raise ConfigError([Problem("platform.num_workers", workers, rule)])
    threads = platform.threads_per_worker or max(1, math.floor(platform.cpus_per_worker))
    loaders = recipe.dataset.num_workers
    if loaders and platform.cpus_per_worker < 2:
        notes.append(
            f"dataset.num_workers {loaders} -> 0: a worker with {platform.cpus_per_worker:g} CPU "
            "loads its data itself"
        )
        loaders = 0
    if platform.sharding == "full" and workers < 2:
        notes.append("platform.sharding full -> none: there is no second worker to share the model with")
    return Plan(
        world_size=recipe.world_size(),
        update_freq=recipe.update_freq_for_epoch(1),
        num_workers=workers,
        cpus_per_worker=platform.cpus_per_worker,
        gpus_per_worker=gpus,
        threads=threads,
        loader_processes=loaders,
        sharded=platform.sharding == "full" and workers > 1,
        notes=tuple(notes),
    )
