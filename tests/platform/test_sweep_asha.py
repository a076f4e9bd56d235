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
