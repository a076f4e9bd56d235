"""Room for trials: what one occupies, how many fit, what is refused and what is said."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest

from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.schema import Recipe
from d2v_platform.recipe.sweep_definition import Resources, SweepDefinition
from d2v_platform.sweeps.capacity import Capacity, capacity
from d2v_platform.training.ray_session import ClusterInfo
from data2vec.errors import ConfigError


@lru_cache
def composed() -> Recipe:
    return compose("v2/text_finetuning/cola", ["task.data=/x", "model.model_path=/m"]).recipe


def recipe(loaders: int = 0, world: int = 4, **platform: Any) -> Recipe:
    """The recipe with other workers."""
    base = composed()
    return replace(
        base,
        dataset=replace(base.dataset, num_workers=loaders),
        distributed_training=replace(base.distributed_training, distributed_world_size=world),
        optimization=replace(base.optimization, update_freq=[1]),
        platform=replace(base.platform, **{"num_workers": None, **platform}),
    )


def room(
    cluster: tuple[float, float],
    *recipes: Recipe,
    cpu: float | None = None,
    gpu: float | None = None,
    most: int | None = None,
) -> Capacity:
    definition = SweepDefinition(resources_per_trial=Resources(cpu=cpu, gpu=gpu), max_concurrent=most)
    return capacity(definition, recipes or [recipe()] * 100, ClusterInfo(*cluster, nodes=1))


@pytest.mark.parametrize(
    ("cluster", "asked", "slots", "gpus"),
    [
        ((8, 0), {}, 8, 0),
        ((8, 0), {"cpu": 3}, 2, 0),
        ((1, 0), {"cpu": 0.25}, 4, 0),
        ((3, 0), {"cpu": 3}, 1, 0),  # exactly one fits
        ((8, 0), {"gpu": 0}, 8, 0),
        ((8, 2), {}, 2, 1),  # not given: one GPU each where there are any
        ((8, 2), {"gpu": 0}, 8, 0),  # none is what was asked for, not what was left out
        ((8, 2), {"gpu": 1}, 2, 1),
        ((8, 5), {"gpu": 2}, 2, 2),
        ((8, 2), {"gpu": 2}, 1, 2),  # exactly one fits
        ((16, 2), {"gpu": 0.4}, 4, 0.4),  # two on each GPU: a fraction never spans two of them
        ((3, 2), {"gpu": 0.4, "cpu": 1}, 3, 0.4),  # CPUs are the bound
        ((16, 3), {"gpu": 0.6}, 3, 0.6),
    ],
)
def test_as_many_trials_as_cpus_and_gpus_hold(
    cluster: tuple[float, float], asked: dict[str, float], slots: int, gpus: float
) -> None:
    found = room(cluster, **asked)  # type: ignore[arg-type]
    assert (found.slots, found.gpus, found.cpus, found.workers) == (slots, gpus, asked.get("cpu", 1.0), 1)
    wanted = {"cpu": found.cpus} | ({"gpu": gpus} if gpus else {})
    assert found.resources == wanted
    assert ("GPU" in found.line()) == (gpus > 0)


def test_no_more_at_a_time_than_asked_for_and_than_there_are_trials() -> None:
    assert room((8, 0), most=3).slots == 3
    assert room((2, 0), most=3).slots == 2
    assert room((8, 0), recipe(), recipe()).slots == 2
    assert room((8, 0), recipe(), recipe(), recipe(), most=2).slots == 2


def test_everything_that_never_fits_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        room((2, 1), cpu=2.5, gpu=2)
    told = {problem.field: (problem.value, problem.rule) for problem in error.value.problems}
    assert told == {
        "resources_per_trial.cpu": (2.5, "the cluster has 1 node of 2 CPUs and 1 GPUs"),
        "resources_per_trial.gpu": (2, "the cluster has 1 node of 2 CPUs and 1 GPUs"),
    }
    with pytest.raises(ConfigError) as error:
        room((2, 0), gpu=0.5)
    assert [problem.field for problem in error.value.problems] == ["resources_per_trial.gpu"]


def test_threads_and_loaders_of_a_trial_in_its_own_process() -> None:
    assert [room((8, 0), cpu=cpu).threads for cpu in (0.5, 1, 2.9, 4)] == [1, 1, 2, 4]
    assert room((8, 0), recipe(threads_per_worker=3)).threads == 3
    small = room((8, 0), recipe(loaders=6))
    assert small.loaders == 0
    assert small.notes == ("dataset.num_workers 6 -> 0: a trial with 1 CPU loads its data itself",)
    for cpu in (2, 4):  # from two CPUs on the loaders stay
        large = room((8, 0), recipe(loaders=6), cpu=cpu)
        assert (large.loaders, large.notes) == (6, ())
    assert room((8, 0), recipe()).notes == ()
    (note,) = room((8, 0), recipe(num_workers=0)).notes
    assert note.startswith("platform.num_workers=0 has no effect")
    assert room((8, 0), recipe(num_workers=1)).workers == 1


def test_a_trial_beside_a_gpu_has_the_nodes_share_of_cpus() -> None:
    found = room((64, 8), recipe(loaders=6))
    assert (found.slots, found.cpus, found.threads, found.loaders) == (1, 7, 1, 6)
    assert room((64, 8)).slots == 8 and room((16, 8), recipe(loaders=6)).loaders == 1
    assert room((16, 2), gpu=0.5, most=9).slots == 4


def test_trials_of_several_workers_run_only_as_many_as_fit_whole() -> None:
    pair = recipe(num_workers=2, cpus_per_worker=2.0, threads_per_worker=5, loaders=3)
    found = room((9, 0), *[pair] * 10)
    assert (found.slots, found.workers, found.cpus, found.gpus) == (2, 2, 4.0, 0.0)
    assert (found.threads, found.loaders) == (5, 3)
    assert found.resources == {"cpu": 0, "memory": 1}  # the driver takes nothing that its workers need
    assert found.line() == "2 at a time, each 2 Ray Train workers (4 CPU in all)"
    assert len(found.notes) == 1 and "resources_per_trial has no effect" in found.notes[0]
    assert room((9, 0), *[pair] * 10, most=1).slots == 1
    assert room((90, 0), *[pair] * 3).slots == 3
    assert room((4, 0), pair, pair).slots == 1  # exactly one

    on_gpus = recipe(num_workers=2, cpus_per_worker=2.0, gpus_per_worker=1.0)
    found = room((64, 7), *[on_gpus] * 10)
    assert (found.slots, found.gpus) == (3, 2.0)
    assert found.line().endswith("(4 CPU, 2 GPU in all)")
    assert room((8, 16), *[on_gpus] * 10).slots == 2  # here CPUs are the bound
    free = recipe(num_workers=2, cpus_per_worker=0.0, gpus_per_worker=1.0)
    assert room((1, 4), *[free] * 10).slots == 2  # workers that reserve no CPU

    # the widest trial decides for all
    four = recipe(num_workers=4, cpus_per_worker=1.0)
    found = room((8, 0), recipe(num_workers=2, cpus_per_worker=1.0), four, recipe())
    assert (found.workers, found.slots, found.cpus) == (4, 2, 4.0)


def test_a_trial_of_several_workers_that_does_not_fit_is_refused() -> None:
    wide = recipe(num_workers=2, cpus_per_worker=3.0, gpus_per_worker=1.0)
    with pytest.raises(ConfigError) as error:
        room((5, 2), wide)
    (problem,) = error.value.problems
    assert (problem.field, problem.value) == ("platform.num_workers", 2)
    assert "1 node of 5 CPUs and 2 GPUs" in problem.rule and "use at most 1, or lower" in problem.rule
    apart = ClusterInfo(4, 0, nodes=2)  # four CPUs, but a process of three fits nowhere
    with pytest.raises(ConfigError, match=r"resources_per_trial.cpu = 3.* 2 nodes of 2 CPUs"):
        capacity(SweepDefinition(resources_per_trial=Resources(cpu=3)), [recipe()], apart)
