"""Early stopping within each task, without Ray: trials are stand-ins that report."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from d2v_platform.recipe.sweep_definition import Scheduler
from d2v_platform.sweeps.asha import PerTaskASHA, Race

HALVING = Scheduler(name="asha", grace_fraction=0.1, reduction_factor=2)


def scheduler(
    maximize: bool = True, updates: int = 100, tasks: tuple[str, ...] = ("cola", "rte")
) -> PerTaskASHA:
    races = {
        f"{task}{n}": Race(task=task, metric="valid/best_m", maximize=maximize, updates=updates)
        for task in tasks
        for n in range(6)
    }
    return PerTaskASHA(races, HALVING)


def report(asha: PerTaskASHA, name: str, update: int, value: float | None) -> str:
    trial = SimpleNamespace(trial_id=name, config={"trial": name})
    if not hasattr(asha, "seen"):
        asha.seen = set()  # type: ignore[attr-defined]
    if name not in asha.seen:  # type: ignore[attr-defined]
        asha.on_trial_add(None, trial)
        asha.seen.add(name)  # type: ignore[attr-defined]
    result: dict[str, Any] = {"update": update} | ({} if value is None else {"valid/best_m": value})
    return asha.on_trial_result(None, trial, result)


@pytest.mark.parametrize("maximize", [True, False])
def test_the_worse_half_of_a_task_is_stopped(maximize: bool) -> None:
    asha, sign = scheduler(maximize), 1 if maximize else -1
    assert report(asha, "cola0", 10, sign * 50.0) == "CONTINUE"
    assert report(asha, "cola1", 10, sign * 10.0) == "STOP"
    assert report(asha, "cola2", 10, sign * 60.0) == "CONTINUE"


def test_tasks_are_never_compared_with_each_other() -> None:
    asha = scheduler()
    assert report(asha, "cola0", 10, 90.0) == "CONTINUE"
    assert report(asha, "rte0", 10, 1.0) == "CONTINUE"
    assert report(asha, "rte1", 10, 2.0) == "CONTINUE"
    assert report(asha, "rte2", 10, 0.5) == "STOP"


def test_nothing_is_stopped_before_the_grace_period_or_at_the_end() -> None:
    asha = scheduler()
    assert report(asha, "cola0", 9, 90.0) == "CONTINUE"
    assert report(asha, "cola1", 9, 1.0) == "CONTINUE"
    assert report(asha, "cola0", 100, 90.0) == "CONTINUE"
    assert report(asha, "cola1", 100, 1.0) == "CONTINUE"  # it has done all of its updates


def test_a_report_without_a_validation_decides_nothing() -> None:
    asha = scheduler()
    assert report(asha, "cola0", 10, 90.0) == "CONTINUE"
    assert report(asha, "cola1", 50, None) == "CONTINUE"


def test_runs_of_an_earlier_launch_stand_in_the_rungs() -> None:
    asha = scheduler()
    asha.remember("cola0", {10: 50.0, 20: 70.0})
    assert report(asha, "cola1", 10, 40.0) == "STOP"
    assert report(scheduler(), "cola1", 10, 40.0) == "CONTINUE"


def test_a_stopped_trial_leaves_the_others_in_order() -> None:
    asha = scheduler()
    report(asha, "cola0", 10, 50.0)
    report(asha, "cola1", 10, 10.0)
    trial = SimpleNamespace(trial_id="cola1", config={"trial": "cola1"})
    asha.on_trial_complete(None, trial, {"update": 10, "valid/best_m": 10.0})
    assert report(asha, "cola2", 10, 60.0) == "CONTINUE"
    assert "cola" in asha.debug_string()


def race(updates: int, **more: Any) -> Race:
    return Race(**{"task": "cola", "metric": "valid/best_m", "maximize": True, "updates": updates, **more})


def test_the_longest_run_of_a_task_sets_its_rungs() -> None:
    races = {"short": race(100), "long": race(200), "other": race(200), "rte": race(900, task="rte")}
    asha = PerTaskASHA(races, HALVING)
    assert report(asha, "long", 15, 50.0) == "CONTINUE"
    assert report(asha, "short", 15, 1.0) == "CONTINUE"  # the first rung is at 20, not at 10 and not at 90
    assert report(asha, "long", 20, 50.0) == "CONTINUE"
    assert report(asha, "other", 20, 1.0) == "STOP"
    # whoever has done all of its own updates is over anyway
    asha = PerTaskASHA(races, HALVING)
    report(asha, "long", 20, 50.0)
    assert report(asha, "short", 100, 1.0) == "CONTINUE"


def test_a_run_of_a_few_updates_is_looked_at_from_the_first_on() -> None:
    asha = scheduler(updates=3)
    assert report(asha, "cola0", 1, 9.0) == "CONTINUE"
    assert report(asha, "cola1", 1, 8.0) == "STOP"
    rounded = PerTaskASHA({n: race(16) for n in "ab"}, HALVING)  # a tenth of 16 is nearest 2
    report(rounded, "a", 1, 9.0)
    assert report(rounded, "b", 1, 1.0) == "CONTINUE"
    report(rounded, "a", 2, 9.0)
    assert report(rounded, "b", 2, 1.0) == "STOP"


@pytest.mark.parametrize(("factor", "goes_on"), [(2, "CONTINUE"), (4, "STOP")])
def test_the_reduction_factor_says_how_many_go_on(factor: float, goes_on: str) -> None:
    settings = Scheduler(name="asha", grace_fraction=0.5, reduction_factor=factor)
    asha = PerTaskASHA({f"t{n}": race(100) for n in range(4)}, settings)
    for number, value in enumerate((10.0, 20.0, 30.0)):
        report(asha, f"t{number}", 50, value)
    assert report(asha, "t3", 49, 0.0) == "CONTINUE"  # half of the updates are the grace
    assert report(asha, "t3", 50, 23.0) == goes_on


def test_an_earlier_curve_is_taken_in_the_order_of_its_updates() -> None:
    asha = scheduler()
    asha.remember("cola0", {12: 1.0, 10: 50.0})
    assert report(asha, "cola1", 10, 40.0) == "STOP"
    asha.remember("rte0", {10: 50.0})
    assert report(asha, "rte1", 10, 60.0) == "CONTINUE"  # and in its own task


def test_the_last_value_of_a_run_stands_in_its_rung() -> None:
    asha = scheduler()
    assert report(asha, "cola0", 5, 70.0) == "CONTINUE"
    done = SimpleNamespace(trial_id="cola0", config={"trial": "cola0"})
    asha.on_trial_complete(None, done, {"update": 10, "valid/best_m": 50.0})
    assert report(asha, "rte0", 10, 40.0) == "CONTINUE"
    assert report(asha, "cola1", 10, 40.0) == "STOP"
    given_up = SimpleNamespace(trial_id="cola2", config={"trial": "cola2"})
    asha.on_trial_add(None, given_up)
    asha.on_trial_remove(None, given_up)
    assert report(asha, "cola3", 10, 60.0) == "CONTINUE"
    told = asha.debug_string().splitlines()
    assert told[0].startswith("cola: ") and any(line.startswith("rte: ") for line in told)
