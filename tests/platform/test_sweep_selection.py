"""Choosing in a sweep: the value of a run, medians over seeds, ties, stopped runs, and the ideal schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v_platform.figures import clock
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.sweep_definition import Select, Trial
from d2v_platform.sweeps.results import Record, StoredTrial, TrialResult
from d2v_platform.sweeps.schedule import SweepProgress, ideal_seconds
from d2v_platform.sweeps.selection import choose_all, choose_winner, grid_points, score
from d2v_platform.sweeps.table import protocol, result_table
from d2v_platform.training.loop_state import Summary


@lru_cache
def composed_cola() -> Any:
    """A composed CoLA recipe, whose seed and rate the tests' trials change."""
    return compose("v2/text_finetuning/cola", ["task.data=/x", "model.model_path=/m"])


@pytest.fixture
def cola() -> Any:
    """The same as a fixture."""
    return composed_cola()


def run(
    composed: Any, task: str, lr: float, seed: int, curve: dict[int, float], status: Any = "finished"
) -> Record:
    name = f"{task}_lr={lr:g}_seed={seed}"
    recipe = replace(
        composed.recipe,
        optimization=replace(composed.recipe.optimization, lr=[lr]),
        common=replace(composed.recipe.common, seed=seed),
    )
    trial = Trial(
        name=name,
        values={"task": task, "lr": lr, "seed": seed},
        overrides=(),
        named_recipe=composed.named_recipe,
        recipe=recipe,
        base=composed.base,
    )
    evaluations = {
        update: {"valid/mcc": value, "valid/accuracy": 50 + value} for update, value in curve.items()
    }
    result = TrialResult(status=status, run_id=name, update=max(curve, default=0), evaluations=evaluations)
    return Record(stored=StoredTrial(trial=trial), folder=Path(name), result=result)


def points(records: list[Record], **select: Any) -> Any:
    return grid_points(records, {r.stored.name: ("mcc", True) for r in records}, Select(**select))


def test_the_value_of_a_run_is_its_best_or_its_last_validation() -> None:
    curve = {10: {"valid/mcc": 5.0}, 20: {"valid/mcc": 9.0, "valid/accuracy": 70.0}, 30: {"valid/mcc": 7.0}}
    result = TrialResult(status="finished", evaluations=curve)
    best = score(result, "valid", "mcc", True, "best")
    assert best is not None and (best.value, best.update, best.others["valid/accuracy"]) == (9.0, 20, 70.0)
    last = score(result, "valid", "mcc", True, "last")
    assert last is not None and (last.value, last.update) == (7.0, 30)
    least = score(result, "valid", "mcc", False, "best")
    assert least is not None and (least.value, least.update) == (5.0, 10)


def test_the_training_loss_of_a_run_is_that_of_its_end() -> None:
    metrics = {"train/loss": 0.5, "train/target_var": 0.2, "train/pred_var": 0.1, "train/gnorm": 3.0}
    summary = Summary(30, metrics, None, None, "max_update 30 reached", "x", {}, 1.0, 0)
    result = TrialResult(status="finished", update=30, summary=summary)
    found = score(result, None, "train/loss", False, "best")
    assert found is not None and (found.value, found.update) == (0.5, 30)
    assert found.others == {"train/target_var": 0.2, "train/pred_var": 0.1}  # a collapse would show
    assert score(replace(result, summary=None), None, "train/loss", False, "best") is None
    metrics["train/loss"] = float("nan")
    assert score(result, None, "train/loss", False, "best") is None


def test_the_lower_training_loss_wins() -> None:
    pretraining = compose("v2/base_text_only_task", ["task.data=/x"])
    records = []
    for lr, loss in ((1e-3, 0.4321), (2e-3, 0.4319), (3e-3, 0.5)):
        record = run(pretraining, "text", lr, 1, {})
        summary = Summary(9, {"train/loss": loss}, None, None, "", "x", {}, 1.0, 0)
        assert record.result is not None
        records.append(replace(record, result=replace(record.result, summary=summary)))
    select = Select(metric="train/loss")
    found = grid_points(records, {r.stored.name: ("train/loss", False) for r in records}, select)
    table = result_table(found, records, {}, protocol(select, records, "grid", None))
    assert table.choices["text"].point.group["lr"] == 2e-3 and not table.undecided
    assert "train/loss median 0.4319" in table.summary_lines()[0]
    told = "\n".join(table.protocol)
    assert "text train/loss" in told and "validation" not in told and "last logging interval" in told


def test_a_tie_within_a_run_goes_to_the_later_validation_and_nan_never_counts() -> None:
    curve = {1: {"valid/mcc": 4.0}, 2: {"valid/mcc": 4.0}, 3: {"valid/mcc": float("nan")}}
    for rule in ("best", "last"):
        found = score(TrialResult(status="finished", evaluations=curve), "valid", "mcc", True, rule)
        assert found is not None and found.update == 2
    nothing = TrialResult(status="finished", evaluations={3: {"valid/mcc": float("nan")}})
    assert score(nothing, "valid", "mcc", True, "best") is None


def test_the_rate_is_chosen_by_the_median_and_the_seed_nearest_it_is_registered(cola: Any) -> None:
    values = {1e-5: (50.0, 10.0, 12.0), 2e-5: (20.0, 14.0, 21.0)}
    records = [
        run(cola, "cola", lr, s, {5: v}) for lr, of in values.items() for s, v in enumerate(of, start=1)
    ]
    choice = choose_winner(points(records))
    assert choice is not None
    assert (choice.point.lr, choice.point.value, choice.record.stored.seed) == (2e-5, 20.0, 1)
    choice = choose_winner(points(records, over_seeds="max"))  # the lucky seed wins under the other rule
    assert choice is not None
    assert (choice.point.lr, choice.point.value, choice.record.stored.seed) == (1e-5, 50.0, 1)


def test_of_a_score_that_should_be_low_the_lowest_is_the_lucky_seed(cola: Any) -> None:
    curves = {(1e-5, 1): 30.0, (1e-5, 2): 80.0, (2e-5, 1): 40.0, (2e-5, 2): 50.0}
    records = [run(cola, "cola", lr, seed, {5: value}) for (lr, seed), value in curves.items()]
    metrics = {record.stored.name: ("mcc", False) for record in records}
    for rule, winner in (("max", (1e-5, 30.0, 1)), ("median", (2e-5, 45.0, 1))):
        choice = choose_winner(grid_points(records, metrics, Select(over_seeds=rule)))
        assert choice is not None
        assert (choice.point.lr, choice.point.value, choice.record.stored.seed) == winner


def test_with_two_seeds_the_better_one_is_registered(cola: Any) -> None:
    choice = choose_winner(
        points([run(cola, "cola", 1e-5, 1, {5: 10.0}), run(cola, "cola", 1e-5, 2, {5: 20.0})])
    )
    assert choice is not None
    assert (choice.point.median, choice.record.stored.seed) == (15.0, 2)


def test_stopped_runs_count_but_are_never_registered_and_failed_ones_do_not_count(cola: Any) -> None:
    records = [
        run(cola, "cola", 1e-5, 1, {5: 30.0}, "stopped"), run(cola, "cola", 1e-5, 2, {5: 20.0}),
        run(cola, "cola", 2e-5, 1, {5: 40.0}, "stopped"), run(cola, "cola", 2e-5, 2, {5: 41.0}, "stopped"),
        run(cola, "cola", 4e-5, 1, {5: 99.0}, "failed"), run(cola, "cola", 4e-5, 2, {5: 98.0}, "diverged"),
    ]  # fmt: skip
    found = points(records)
    assert [point.value for point in found] == [25.0, 40.5, None]
    assert [point.complete for point in found] == [False, False, False]
    choice = choose_winner(found)
    assert choice is not None
    assert (choice.point.lr, choice.record.stored.seed) == (1e-5, 2)  # no run of 2e-5 has finished
    assert choose_winner(found[1:]) is None


def test_each_task_has_its_own_winner(cola: Any) -> None:
    records = [
        run(cola, t, lr, 1, {1: v})
        for t, lr, v in (("cola", 1e-5, 1.0), ("cola", 2e-5, 2.0), ("rte", 1e-5, 9.0))
    ]
    assert {task: c.point.lr for task, c in choose_all(points(records)).items()} == {
        "cola": 2e-5,
        "rte": 1e-5,
    }


def test_the_first_setting_wins_a_tie(cola: Any) -> None:
    choice = choose_winner(points([run(cola, "cola", lr, 1, {1: 3.0}) for lr in (4e-5, 1e-5)]))
    assert choice is not None and choice.point.lr == 4e-5


@settings(deadline=None)  # the first example composes a recipe
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9))
def test_the_registered_run_is_nearest_the_median(values: list[float]) -> None:
    first = run(composed_cola(), "cola", 1e-5, 1, {1: 0.0}).stored
    records = [
        Record(
            stored=first,
            folder=Path(str(n)),
            result=TrialResult(status="finished", evaluations={1: {"valid/mcc": v}}),
        )
        for n, v in enumerate(values)
    ]
    choice = choose_winner(grid_points(records, {first.name: ("mcc", True)}, Select()))
    assert choice is not None and choice.point.median is not None
    median = choice.point.median
    assert abs(choice.score.value - median) == min(abs(v - median) for v in values)
    assert sum(v < median for v in values) <= len(values) / 2 >= sum(v > median for v in values)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 50), min_size=1, max_size=20), st.integers(1, 5))
def test_the_ideal_schedule_is_between_its_bounds(seconds: list[float], slots: int) -> None:
    ideal = ideal_seconds(seconds, slots)
    assert ideal >= max(max(seconds), sum(seconds) / slots) - 1e-6
    assert ideal <= sum(seconds) / slots + max(seconds) + 1e-6


def test_the_ideal_schedule_keeps_the_order() -> None:
    assert ideal_seconds([3, 1, 1, 1], 2) == 3
    assert ideal_seconds([1, 1, 3], 2) == 4
    assert ideal_seconds([5], 4) == 5
    assert clock(3725) == "1:02:05"


def test_a_trial_waits_for_a_tracking_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from d2v_platform.retries import Patience
    from d2v_platform.sweeps.trial import while_away
    from d2v_platform.tracking.mlflow_access import TrackingUnavailableError

    class ServerError(Exception):
        error_code = "INTERNAL_ERROR"  # what MLflow's client raises when nobody answers

    class RefusedError(Exception):
        error_code = "INVALID_PARAMETER_VALUE"

    def raising(*errors: Exception) -> Callable[[], str]:
        left = list(errors)

        def action() -> str:
            if left:
                raise left.pop(0)
            return "opened"

        return action

    quick = Patience(first_s=0.01)
    away = raising(TrackingUnavailableError("away"), ServerError("no answer"))
    assert while_away(away, quick) == "opened"
    for lasting in (RefusedError("bad name"), RuntimeError("a bug"), ValueError("a mistake")):
        with pytest.raises(type(lasting)):
            while_away(raising(lasting), quick)
    with pytest.raises(ServerError):
        while_away(raising(*[ServerError("no answer")] * 9), Patience(seconds=0.05, first_s=0.03))
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    assert while_away(raising(*[ServerError("no answer")] * 7)) == "opened"
    assert pauses == [2, 4, 8, 16, 32, 60, 60]


def test_what_is_left_of_a_sweep() -> None:
    progress = SweepProgress({"a": 100, "b": 100, "c": 100, "d": 0}, slots=2)
    progress.started, progress.before = {"a": 0.0, "b": 0.0}, {"a": 0, "b": 40}
    assert progress.left_s({}, 10.0) is None  # nobody shows a speed
    # a: 2 s an update; b went on from 40: 2 s too; c and d wait and take the mean of 200 s.
    assert progress.left_s({"a": 10, "b": 50}, 20.0) == pytest.approx((180 + 100 + 2 * 200) / 2)
    progress.seconds = {"a": 200.0, "b": 120.0}
    progress.started |= {"c": 200.0, "d": 200.0}
    progress.before |= {"c": 0, "d": 0}
    # c: 3 s an update, and the last to end; without a speed of its own it takes as long as the others.
    assert progress.left_s({"c": 10, "d": 7}, 230.0) == pytest.approx(270.0)
    assert progress.left_s({"d": 7}, 230.0) == pytest.approx(160 - 30)
