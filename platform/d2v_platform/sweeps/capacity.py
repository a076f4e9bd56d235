"""How many trials at a time, and what each gets: derived from the cluster, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data2vec.errors import ConfigError, Problem

from ..recipe.schema import Recipe
from ..recipe.sweep_definition import SweepDefinition
from ..training.plan import make_plan, process_share
from ..training.ray_session import ClusterInfo


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What one trial occupies, and how many fit."""

    slots: int  # trials at a time
    workers: int  # training workers of a trial; 1 trains in the trial's own process
    cpus: float  # CPUs of a trial, all workers together
    gpus: float  # GPUs of a trial
    threads: int  # PyTorch threads of a one-worker trial
    loaders: int  # data-loading processes of a one-worker trial
    notes: tuple[str, ...] = ()  # choices that were made, in words

    @property
    def resources(self) -> dict[str, float]:
        """What Ray Tune reserves. The driver of a multi-worker trial takes nothing that its workers need; one
        byte of memory, because Ray refuses a request for nothing."""
        if self.workers > 1:
            return {"cpu": 0, "memory": 1}
        return {"cpu": self.cpus, "gpu": self.gpus} if self.gpus else {"cpu": self.cpus}

    def line(self) -> str:
        """In words."""
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        if self.workers > 1:
            workers = f"{self.workers} Ray Train workers"
            return f"{self.slots} at a time, each {workers} ({self.cpus:g} CPU{gpus} in all)"
        return f"{self.slots} at a time, each {self.cpus:g} CPU{gpus}, {self.threads} threads"


def capacity(definition: SweepDefinition, recipes: Sequence[Recipe], cluster: ClusterInfo) -> Capacity:
    """Fit trials to a cluster.

    Args:
        definition: resources of a trial, and a bound on how many run at a time.
        recipes: of the trials that will run.
        cluster: what there is.

    Raises:
        ConfigError: not even one trial fits.
    """
    workers = max(recipe.platform.most_workers or 1 for recipe in recipes)
    if workers > 1:
        return _of_several_workers(definition, recipes, cluster, workers)
    asked, first = definition.resources_per_trial, recipes[0]
    gpus = asked.gpu if asked.gpu is not None else float(cluster.gpus > 0)
    share = process_share(first, asked.cpu, cluster, gpus, "a trial")
    problems: list[Problem] = []
    if not any(node.holds(share.cpus, 0) for node in cluster.by_node()):
        problems.append(Problem("resources_per_trial.cpu", share.cpus, f"the cluster has {cluster.line()}"))
    if gpus and not any(node.holds(0, gpus) for node in cluster.by_node()):
        problems.append(Problem("resources_per_trial.gpu", gpus, f"the cluster has {cluster.line()}"))
    slots = cluster.holds(share.cpus, gpus)
    if not problems and slots < 1:
        rule = f"no node has so many beside {gpus:g} GPU; the cluster has {cluster.line()}"
        problems.append(Problem("resources_per_trial.cpu", share.cpus, rule))
    if problems:
        raise ConfigError(problems, "the sweep")
    notes = list(share.notes)
    if first.platform.num_workers == 0:
        notes.append("platform.num_workers=0 has no effect: trials run in Ray Tune's processes")
    return Capacity(
        slots=_bounded(slots, definition, len(recipes)),
        workers=1,
        cpus=share.cpus,
        gpus=gpus,
        threads=share.threads,
        loaders=share.loaders,
        notes=tuple(notes),
    )


def _of_several_workers(
    definition: SweepDefinition, recipes: Sequence[Recipe], cluster: ClusterInfo, workers: int
) -> Capacity:
    """Half-started trials must not hold what others need, so at most as many run as fit whole."""
    plans = [make_plan(recipe, cluster) for recipe in recipes]
    cpus, gpus = max(plan.cpus_per_worker for plan in plans), max(plan.gpus_per_worker for plan in plans)
    slots = cluster.holds(cpus, gpus) // workers
    if slots < 1:
        rule = f"a trial is {workers} workers of {cpus:g} CPUs and {gpus:g} GPUs; there are {cluster.line()}"
        raise ConfigError([Problem("platform.num_workers", workers, rule)], "the sweep")
    return Capacity(
        slots=_bounded(slots, definition, len(recipes)),
        workers=workers,
        cpus=cpus * workers,
        gpus=gpus * workers,
        threads=plans[0].threads,
        loaders=plans[0].loader_processes,
        notes=(
            "resources_per_trial has no effect: each trial is a Ray Train run with platform.*_per_worker",
        ),
    )


def _bounded(slots: int, definition: SweepDefinition, trials: int) -> int:
    return max(1, min(slots, trials, definition.max_concurrent or slots))
