"""Asynchronous successive halving within each task: a CoLA run is never compared with an RTE run.

ASHA stops weak runs and does not pause or resume them. A run is looked at when it validates; the first
rung is ``grace_fraction`` of its updates, each further one ``reduction_factor`` times higher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from ..recipe.sweep_definition import Scheduler


@dataclass(frozen=True, kw_only=True)
class Race:
    """What one trial is compared by."""

    task: str  # its competitors are the trials of this task
    metric: str  # key in the reported results
    maximize: bool  # larger is better
    updates: int  # length of the run


class PerTaskASHA(FIFOScheduler):
    """Hands each trial to the ASHA of its task.

    Args:
        races: trial name -> its race.
        settings: grace and reduction.
    """

    def __init__(self, races: Mapping[str, Race], settings: Scheduler) -> None:
        super().__init__()
        self._races = dict(races)
        self._schedulers: dict[str, ASHAScheduler] = {}
        for race in self._races.values():
            if race.task not in self._schedulers:
                longest = max(other.updates for other in self._races.values() if other.task == race.task)
                self._schedulers[race.task] = ASHAScheduler(
                    time_attr="update",
                    metric=race.metric,
                    mode="max" if race.maximize else "min",
                    max_t=longest,
                    grace_period=max(1, round(settings.grace_fraction * longest)),
                    reduction_factor=settings.reduction_factor,
                    stop_last_trials=False,  # the loop ends a run itself
                )

    def remember(self, name: str, curve: Mapping[int, float]) -> None:
        """Let a run of an earlier launch stand in the rungs that it reached.

        Args:
            name: of the trial.
            curve: update -> value that it was compared by.
        """
        race, scheduler, trial = self._races[name], self._of(name), _trial(name)
        scheduler.on_trial_add(_no_controller(), trial)
        for update, value in sorted(curve.items()):
            scheduler.on_trial_result(_no_controller(), trial, {"update": update, race.metric: value})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial of this launch."""
        self._of(trial.config["trial"]).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Go on or stop; a run that has done all of its updates is over anyway."""
        race = self._races[trial.config["trial"]]
        action = self._of(trial.config["trial"]).on_trial_result(tune_controller, trial, result)
        if result.get("update", 0) >= race.updates:
            return TrialScheduler.CONTINUE
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Its last value counts for those that come later."""
        self._of(trial.config["trial"]).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """It was given up before it ran."""
        self._of(trial.config["trial"]).on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        """The rungs of every task."""
        return "\n".join(f"{task}: {s.debug_string()}" for task, s in self._schedulers.items())

    def _of(self, name: str) -> ASHAScheduler:
        return self._schedulers[self._races[name].task]


def _trial(name: str) -> Any:
    return SimpleNamespace(trial_id=f"earlier-{name}", config={"trial": name})


def _no_controller() -> Any:
    return None  # ASHA decides from the result alone
