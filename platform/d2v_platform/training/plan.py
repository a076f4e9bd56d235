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
        compiled: the network is compiled.
        elastic: the fewest and the most workers, where their number may change.
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
    compiled: bool = False
    elastic: tuple[int, int] | None = None

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
        share = process_share(recipe, platform.cpus_per_worker, None, gpus)
    else:
        gpus = platform.gpus_per_worker if platform.gpus_per_worker is not None else float(cluster.gpus > 0)
        share = process_share(recipe, platform.cpus_per_worker, cluster, gpus)
        workers = _placed_workers(recipe, cluster, share.cpus, gpus, notes)
    notes += share.notes
    if workers > micro:
        rule = (
            f"an update has {micro} micro-batches (distributed_training.distributed_world_size x "
            f"optimization.update_freq), so at most {micro} workers have work"
        )
        raise ConfigError([Problem("platform.num_workers", workers, rule)])
    elastic = None
    if (
        workers
        and isinstance(platform.num_workers, list)
        and platform.num_workers[0] < platform.num_workers[1]
    ):
        elastic = (platform.num_workers[0], platform.num_workers[1])
    compiled = gpus > 0 if platform.compile == "auto" else platform.compile
    if compiled:
        asked = f"platform.compile={str(platform.compile).lower()}"
        notes.append(f"the network is compiled ({asked}): minutes more before the first update")
    if platform.augment_on_device and not gpus:
        notes.append("platform.augment_on_device: there is no GPU, so each trainer does it on its CPU")
    if platform.sharding == "full" and workers < 2:
        notes.append("platform.sharding full -> none: there is no second worker to share the model with")
    return Plan(
        world_size=recipe.world_size(),
        update_freq=recipe.update_freq_for_epoch(1),
        num_workers=workers,
        cpus_per_worker=share.cpus,
        gpus_per_worker=gpus,
        threads=share.threads,
        loader_processes=share.loaders,
        sharded=platform.sharding == "full" and workers > 1,
        notes=tuple(notes),
        compiled=compiled,
        elastic=elastic,
    )


def size_in_words(cpus: float, gpus: float) -> str:
    """What a worker takes: "2 CPU and 1 GPU"."""
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")


def _placed_workers(recipe: Recipe, cluster: ClusterInfo, cpus: float, gpus: float, notes: list[str]) -> int:
    """How many workers of that size train; each lies on one node.

    Raises:
        ConfigError: they do not fit, with what would.
    """
    platform, room = recipe.platform, cluster.holds(cpus, gpus)
    most, fewest = platform.most_workers, platform.fewest_workers
    if platform.wait_for_resources and fewest and fewest > room:
        notes.append(f"now fit {room} of {fewest} workers: waiting for the others")
        return fewest
    scarce = "gpus" if gpus and cluster.holds(0, gpus) <= cluster.holds(cpus, 0) else "cpus"
    if room < 1:
        rule = f"no node has so many; the cluster has {cluster.line()}, so no worker fits; lower it"
        asked = {"gpus": gpus, "cpus": cpus}[scarce]
        raise ConfigError([Problem(f"platform.{scarce}_per_worker", asked, rule)])
    if gpus % 1:  # NCCL takes one process a GPU
        if (most or 1) > 1:
            rule = "must be whole with several workers: NCCL, which joins them, takes one process a GPU"
            raise ConfigError([Problem("platform.gpus_per_worker", gpus, rule)])
        room = 1
    workers = fewest or min(recipe.micro_batches(1), room)
    if most is None:
        notes.append(f"platform.num_workers is not given: {workers} of {room} that fit the cluster")
    elif fewest != most and fewest:
        workers = max(fewest, min(most, room))
        notes.append(f"{fewest} to {most} workers, as nodes go and come; now {workers}")
    if workers > room:
        rule = (
            f"the cluster has {cluster.line()} and each worker takes {size_in_words(cpus, gpus)}; use at "
            f"most {room}, or lower platform.{scarce}_per_worker"
        )
        raise ConfigError([Problem("platform.num_workers", workers, rule)])
    return workers


@dataclass(frozen=True)
class ProcessShare:
    """What one training process gets of its node.

    Attributes:
        cpus: CPUs that are reserved.
        threads: PyTorch's threads.
        loaders: data-loading processes.
        notes: what of the recipe was changed, in words.
    """

    cpus: float
    threads: int
    loaders: int
    notes: tuple[str, ...] = ()


def process_share(
    recipe: Recipe, cpus: float | None, cluster: ClusterInfo | None, gpus: float, who: str = "a worker"
) -> ProcessShare:
    """CPUs, threads and loaders of a training process.

    Without a number of CPUs a process on a CPU has one; beside a GPU it has the node's CPUs divided by its
    GPUs, as far as its loaders can use them.

    Args:
        recipe: ``dataset.num_workers`` loaders are wanted.
        cpus: as asked for.
        cluster: where it runs; ``None`` is this process.
        gpus: the GPUs of the process.
        who: it, in words.
    """
    loaders, notes, share = recipe.dataset.num_workers, [], cpus
    if share is None:
        share = 1.0
        if gpus and cluster is not None and cluster.gpus:
            beside = cluster.cpus_beside(gpus)
            share = min(float(math.floor(beside)), loaders + 1.0) if beside >= 1 else round(beside, 3)
    fit = loaders
    if share < 2:
        fit = 0
    elif cpus is None:
        fit = min(loaders, math.floor(share) - 1)
    if fit < loaders:
        told = "loads its data itself" if not fit else "has no room for more"
        notes.append(f"dataset.num_workers {loaders} -> {fit}: {who} with {share:g} CPU {told}")
    free = math.floor(share - fit if cpus is None else share)
    threads = recipe.platform.threads_per_worker or max(1, free)
    return ProcessShare(share, threads, fit, tuple(notes))
