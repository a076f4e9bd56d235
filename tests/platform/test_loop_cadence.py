"""When a run validates, saves and stops; what counts as best; what a resumed run knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from d2v_platform.training import progress as progress_module
from d2v_platform.training import train_loop
from d2v_platform.training.checkpoint import CheckpointStore
from d2v_platform.training.loop_state import LoopState, TrainingStopped
from data2vec.errors import Data2VecError
from tests.platform.toy_task import Diary, Samples, ToyTask, run_toy, toy_recipe

# An epoch has five updates. Options -> updates with a validation, updates with a checkpoint (all are kept).
ENDS = {"save_interval": 1, "no_epoch_checkpoints": False}
CADENCES: dict[str, tuple[dict[str, Any], list[int], list[int]]] = {
    "epochs": ({"checkpoint": ENDS}, [5, 10, 12], [5, 10, 12]),
    "every second epoch": (
        {"checkpoint": ENDS | {"save_interval": 2}, "dataset": {"validate_interval": 3}},
        [12], [10, 12],
    ),
    "validations every second epoch": (
        {"checkpoint": ENDS | {"save_interval": 100}, "dataset": {"validate_interval": 2}},
        [10, 12], [10, 12],
    ),
    "updates": (
        {"checkpoint": {"save_interval_updates": 4, "save_interval": 100},
         "dataset": {"validate_interval_updates": 3, "validate_interval": 100}},
        [3, 4, 6, 8, 9, 12], [3, 4, 6, 8, 9, 12],
    ),
    "not before": (
        {"checkpoint": {"save_interval_updates": 4, "save_interval": 100},
         "dataset": {"validate_interval_updates": 3, "validate_interval": 1, "validate_after_updates": 6}},
        [6, 8, 9, 10, 12], [6, 8, 9, 12],  # an epoch's end (10) is not kept for long
    ),
    "from the first allowed update": (
        {"checkpoint": {"save_interval_updates": 4, "save_interval": 100},
         "dataset": {"validate_interval": 100, "validate_after_updates": 8}},
        [8, 12], [8, 12],
    ),
    "never validated": (
        {"checkpoint": {"save_interval_updates": 4, "save_interval": 100},
         "dataset": {"disable_validation": True, "validate_interval_updates": 1}},
        [], [4, 8, 12],
    ),
    "never saved": (
        {"checkpoint": {"save_interval_updates": 4, "no_save": True}, "dataset": {"validate_interval": 100}},
        [4, 8, 12], [],
    ),
}  # fmt: skip


def cadence(options: dict[str, Any]) -> dict[str, Any]:
    groups: dict[str, Any] = {"optimization": {"max_update": 12, "lr": [0.02]}, **options}
    groups["dataset"] = {"disable_validation": False, **options.get("dataset", {})}
    return toy_recipe(**groups)


@pytest.mark.parametrize("name", CADENCES)
def test_when_a_run_validates_and_saves(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, validated, saved = CADENCES[name]
    # The loss falls all the way, so each validation is the best so far, and saved.
    summary, diary, _ = run_toy(cadence(options), tmp_path, monkeypatch)
    assert diary.updates("valid") == validated
    assert CheckpointStore(tmp_path).updates() == saved
    assert summary.best_update == (validated[-1] if validated else None)
    if validated:
        assert diary.curve("valid/loss") == sorted(diary.curve("valid/loss"), reverse=True)


def test_what_is_not_better_is_not_saved_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = cadence({
        "optimization": {"max_update": 9, "lr": [3.0]},  # over the goal and back again
        "checkpoint": {"save_interval": 100},
        "dataset": {"validate_interval_updates": 1, "validate_interval": 100},
    })  # fmt: skip
    summary, diary, _ = run_toy(recipe, tmp_path, monkeypatch)
    losses = [diary.points["valid/loss"][update] for update in range(1, 10)]
    records = [n for n, loss in enumerate(losses, 1) if loss == min(losses[:n])]
    assert 1 < len(records) < 8 and losses != sorted(losses)
    assert CheckpointStore(tmp_path).updates() == sorted({*records, 9})
    assert (summary.best, summary.best_update) == (min(losses), records[-1])
    assert CheckpointStore(tmp_path).best_update() == records[-1]
    best = [diary.points["valid/best_loss"][update] for update in range(1, 10)]
    assert best == [min(losses[:n]) for n in range(1, 10)]


def test_a_validation_is_the_whole_subset_in_the_order_of_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(
        dataset={"disable_validation": False, "valid_subset": "other, valid"}, optimization={"max_update": 2}
    )
    summary, diary, task = run_toy(recipe, tmp_path / "whole", monkeypatch)
    assert task.scored == [("other", [0, 1, 2]), ("valid", [0, 1, 2, 3, 4])]
    w = task.exported[1]["w"].numpy() if task.exported else np.zeros(3)
    for subset, data in (("other", Samples(3, 3, 0)), ("valid", Samples(5, 2, 0))):
        wanted = (data.c * ((w - data.x) ** 2).sum(1) / 2).sum() / data.c.sum()
        assert diary.points[f"{subset}/loss"] == {2: pytest.approx(float(wanted), rel=1e-5)}
    assert diary.points["other/best_loss"] == diary.points["other/loss"], "the first subset decides"
    assert "valid/best_loss" not in diary.points
    assert summary.best == summary.metrics["other/loss"] == diary.points["other/loss"][2]
    recipe["dataset"]["max_valid_steps"] = 1
    short = run_toy(recipe, tmp_path / "one", monkeypatch)[2]
    assert short.scored == [("other", [1, 2]), ("valid", [2, 3, 4])]


@pytest.mark.parametrize("maximize", [False, True])
def test_best_and_patience(maximize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties are the best but no gain; what is no number is neither."""
    nan = float("nan")
    scores = iter([nan, 5.0, 4.0, 4.0, nan, 3.0, 3.5, 3.0, 7.0, 1.0])

    def score(self: ToyTask, subset: str, results: list[Any]) -> dict[str, float]:
        value = next(scores)
        return {"loss": 0.0, "mAP": -value if maximize else value}

    monkeypatch.setattr(ToyTask, "score", score)
    recipe = cadence({
        "checkpoint": {"patience": 3, "best_checkpoint_metric": "mAP", "save_interval": 100,
                       "maximize_best_checkpoint_metric": maximize},
        "dataset": {"validate_interval_updates": 1, "validate_interval": 100},
    })  # fmt: skip
    summary, diary, task = run_toy(recipe, tmp_path, monkeypatch)
    assert summary.reason == "no improvement in 3 validations (checkpoint.patience)"
    assert diary.updates("valid")[:9] == list(range(1, 10)) and summary.update == 9
    assert summary.best == (-3.0 if maximize else 3.0) and summary.best_update == 8
    assert set(CheckpointStore(tmp_path).updates()) >= {2, 3, 4, 6, 8, 9}
    origin, weights = task.exported or ({}, {})
    assert origin["update"] == 8 and CheckpointStore(tmp_path).best_update() == 8
    assert np.array_equal(weights["w"], dict(task.begun)[8]), "the best weights are exported"


def test_pretraining_and_runs_without_checkpoints_export_the_last_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = cadence({
        "optimization": {"max_update": 6, "lr": [3.0]},
        "dataset": {"validate_interval_updates": 1, "validate_interval": 100},
        "checkpoint": {"save_interval": 100},
    })  # fmt: skip
    summary, _, task = run_toy(worse, tmp_path / "best", monkeypatch, lineage={"run_id": "r"})
    assert task.exported is not None and summary.best_update is not None and summary.best_update < 6
    assert task.exported[0] == {"run_id": "r", "update": summary.best_update}
    worse["checkpoint"]["no_save"] = True
    _, _, task = run_toy(worse, tmp_path / "unsaved", monkeypatch, lineage={"run_id": "r"})
    assert task.exported is not None and task.exported[0] == {"run_id": "r", "update": 6}
    assert CheckpointStore(tmp_path / "unsaved").updates() == []
    worse["checkpoint"]["no_save"] = False
    monkeypatch.setattr(ToyTask, "exports_best", False)
    summary, _, task = run_toy(worse, tmp_path / "last", monkeypatch)
    assert task.exported is not None and task.exported[0] == {"update": 6}
    last = CheckpointStore(tmp_path / "last").load(6).tensors["model"]["w"]
    assert torch.equal(task.exported[1]["w"], last)
    assert summary.best_update is not None and summary.best_update < 6 and task.closed == 1


def test_a_scheduler_may_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy_recipe(checkpoint={"save_interval_updates": 2})
    summary, diary, _ = run_toy(recipe, tmp_path, monkeypatch, reporter=Diary(stop_at=4))
    assert (summary.update, summary.reason) == (4, "the scheduler stopped it")
    assert CheckpointStore(tmp_path).updates() == [2, 4]
    assert diary.events[-1] == ("flush", -1)


def test_figures_are_flushed_before_their_checkpoint_and_the_state_is_told_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = cadence({"optimization": {"max_update": 2}, "checkpoint": {"save_interval_updates": 1}})
    _, diary, _ = run_toy(recipe, tmp_path, monkeypatch)
    once = [("train", 1), ("valid", 1), ("flush", -1), ("evaluated", 1)]
    again = [(kind, update and 2 if update > 0 else -1) for kind, update in once]
    assert diary.events == [*once, *again, ("flush", -1)]


# ---- stopping ------------------------------------------------------------------------------------


def test_a_low_learning_rate_stops_at_an_epochs_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = {"_name": "polynomial_decay", "total_num_update": 20}
    limits = {"max_update": 100, "stop_min_lr": 0.06, "lr": [0.1]}
    recipe = toy_recipe(optimization=limits, lr_scheduler=schedule)
    summary, _, _ = run_toy(recipe, tmp_path / "a", monkeypatch)
    # The rate of the next update is 0.1 (1 - u / 20): 0.05 at 10, an epoch's end; 0.06 at 8, which is none.
    assert (summary.update, summary.reason) == (10, "stop_min_lr 0.06 reached")
    recipe["optimization"] |= {"stop_min_lr": 0.05}
    assert run_toy(recipe, tmp_path / "b", monkeypatch)[0].update == 10
    recipe["optimization"] |= {"stop_min_lr": 0.0499}
    assert run_toy(recipe, tmp_path / "c", monkeypatch)[0].update == 15


class Clock:
    """A quarter of an hour passes with every update."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        watch = SimpleNamespace(perf_counter=lambda: self.now, process_time=lambda: 0.0)
        monkeypatch.setattr(progress_module, "time", watch)
        monkeypatch.setattr(train_loop, "time", watch)
        begin = ToyTask.begin_update

        def later(task: ToyTask, update: int) -> None:
            self.now += 900.0
            begin(task, update)

        monkeypatch.setattr(ToyTask, "begin_update", later)


class Cut(Exception):
    """A run that ends before its time."""


class CutShort(Diary):
    """Ends a run after the save of an update, as a kill would."""

    def __init__(self, update: int) -> None:
        super().__init__()
        self.until = update

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        if update > self.until:
            raise Cut
        super().log(update, metrics)


def test_time_is_counted_over_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    recipe = toy_recipe(
        optimization={"max_update": 100, "stop_time_hours": 1.6},
        checkpoint={"save_interval_updates": 2, "save_interval": 100},
        dataset={"validate_interval": 100},
    )
    for cut in (2, 4):
        with pytest.raises(Cut):
            run_toy(recipe, tmp_path, monkeypatch, reporter=CutShort(cut))
        assert CheckpointStore(tmp_path).load(cut).state["elapsed_s"] == pytest.approx(900.0 * cut)
    summary, diary, _ = run_toy(recipe, tmp_path, monkeypatch)
    # 1.5 hours at update 6 are within the limit, and 1.75 at 7 are not looked at: nothing is saved there.
    assert (summary.update, summary.reason) == (8, "stop_time_hours 1.6 reached")
    assert summary.seconds == pytest.approx(8 * 900.0)
    assert diary.updates("train") == [5, 6, 7, 8]
    assert CheckpointStore(tmp_path).load(8).state["elapsed_s"] == pytest.approx(8 * 900.0)


def test_cpu_time_is_counted_over_all_attempts_and_asked_for_at_log_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    minutes = SimpleNamespace(perf_counter=lambda: 0.0, process_time=lambda: clock.now / 15)  # one an update
    monkeypatch.setattr(progress_module, "time", minutes)
    recipe = toy_recipe(
        common={"log_interval": 3},
        optimization={"max_update": 100, "stop_cpu_minutes": 7.0},
        checkpoint={"save_interval_updates": 4, "save_interval": 100},
        dataset={"validate_interval": 100},
    )
    with pytest.raises(Cut):
        run_toy(recipe, tmp_path, monkeypatch, reporter=CutShort(4))
    assert CheckpointStore(tmp_path).load(4).state["cpu_s"] == pytest.approx(4 * 60.0)
    summary, diary, _ = run_toy(recipe, tmp_path, monkeypatch)
    # Update 7 reaches the limit; 8 is the next that is saved, 6 and 9 are logged.
    assert (summary.update, summary.reason) == (8, "stop_cpu_minutes 7 reached")
    assert diary.points["speed/cpu_minutes"][6] == pytest.approx(6.0)
    later = recipe | {"checkpoint": {"save_interval": 100}}
    (tmp_path / "b").mkdir()
    assert run_toy(later, tmp_path / "b", monkeypatch)[0].update == 9, "a log line"


def test_validations_are_no_part_of_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, honest = Clock(monkeypatch), ToyTask.score

    def slow(task: ToyTask, subset: str, results: list[Any]) -> dict[str, float]:
        clock.now += 7200.0
        return honest(task, subset, results)

    monkeypatch.setattr(ToyTask, "score", slow)
    recipe = cadence({
        "common": {"log_interval": 4}, "optimization": {"max_update": 8},
        "dataset": {"validate_interval_updates": 3, "validate_interval": 100},
    })  # fmt: skip
    summary, diary, _ = run_toy(recipe, tmp_path, monkeypatch)
    assert diary.points["speed/s_per_update"] == {4: pytest.approx(900.0), 8: pytest.approx(900.0)}
    assert summary.seconds == pytest.approx(8 * 900.0 + 3 * 7200.0), "but of the time that it took"


# ---- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [3, 5, 6])  # in the middle of an epoch, at its end, after it
def test_a_resumed_run_knows_everything(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interval sums, loss scale, best value, patience, counters: all figures as if nothing had happened."""
    left = [2]

    def spoil(update: int) -> bool:
        bad = update == 1 and left[0] > 0
        left[0] -= bad
        return bad

    options: Any = {
        "common": {"log_interval": 4, "fp16": True, "fp16_init_scale": 32, "fp16_scale_window": 3},
        "optimization": {"max_update": 11, "lr": [3.0, 1.0], "update_freq": [1, 1, 2], "clip_norm": 3.0},
        "platform": {"precision": "fp16", "collapse_after": 0, "collapse_min_rank": 3.0,
                     "collapse_patience": 100},
        "dataset": {"disable_validation": False, "validate_interval_updates": 1, "validate_interval": 100},
        "checkpoint": {"save_interval_updates": 1, "save_interval": 1, "patience": 50,
                       "no_epoch_checkpoints": False},
    }  # fmt: skip
    recipe = toy_recipe(**options)
    straight, points, task = run_toy(recipe, tmp_path / "straight", monkeypatch, spoil=spoil)
    left[0] = 2
    reporter = CutEarlier(cut)
    with pytest.raises(Cut):
        run_toy(recipe, tmp_path / "cut", monkeypatch, reporter=reporter, spoil=spoil)
    assert max(CheckpointStore(tmp_path / "cut").updates()) == cut
    resumed, later, again = run_toy(recipe, tmp_path / "cut", monkeypatch, spoil=spoil)
    assert again.restored == {"seen": [u for u, _ in task.begun if u < cut]}
    assert [u for u, _ in again.begun] == list(range(cut, 11))
    assert again.passed == [p for p in task.passed if p[0] >= cut], "samples and random numbers"
    for (_, w), (_, same) in zip([b for b in task.begun if b[0] >= cut], again.begun, strict=True):
        assert np.array_equal(w, same)
    for name, values in points.points.items():
        if not name.startswith("speed/"):
            assert later.points.get(name, {}) == {u: v for u, v in values.items() if u > cut}, name
    assert resumed.metrics == straight.metrics and resumed.best_update == straight.best_update
    assert (resumed.best, resumed.bad_updates, resumed.reason) == (straight.best, 2, straight.reason)
    a, b = (CheckpointStore(tmp_path / place).load(11).state for place in ("straight", "cut"))
    assert a["validations_without_gain"] > 0 and a["collapse_streaks"] == {"encoder": 2}
    differing = {key for key in a if a[key] != b[key]}
    assert differing <= {"cpu_s", "elapsed_s", "task"} and a.keys() == b.keys()
    assert set(LoopState.__dataclass_fields__) <= a.keys()


class CutEarlier(Diary):
    """Ends a run in the validation after an update: its checkpoint is the newest."""

    def __init__(self, update: int) -> None:
        super().__init__()
        self.until = update

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        if update > self.until and "valid/loss" in metrics:
            raise Cut
        super().log(update, metrics)


def test_a_checkpoint_at_an_epochs_end_begins_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(
        optimization={"max_update": 0, "max_epoch": 2},
        checkpoint={"save_interval_updates": 2, "no_epoch_checkpoints": False},
    )
    run_toy(recipe, tmp_path, monkeypatch)
    store = CheckpointStore(tmp_path)
    states = {update: store.load(update).state for update in (2, 4, 5, 6, 8)}
    found = {update: (state["epoch"], state["cursor"]) for update, state in states.items()}
    assert found == {2: (1, 2), 4: (1, 4), 5: (2, 0), 6: (2, 1), 8: (2, 3)}
    assert [update for update, it in store.manifests().items() if it["epoch_end"]] == [5]
    again, diary, _ = run_toy(recipe, tmp_path, monkeypatch)
    assert again.reason == "max_epoch 2 reached" and diary.updates("train") == []


def test_the_newest_whole_checkpoint_is_taken_and_the_best_one_stays_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = cadence({"optimization": {"max_update": 5}, "checkpoint": {"save_interval_updates": 1}})
    run_toy(recipe, tmp_path, monkeypatch)
    store = CheckpointStore(tmp_path)
    (store.folder / "update_00000005" / "optimizer.safetensors").write_bytes(b"cut")
    (store.folder / "best.json").unlink()
    recipe["optimization"]["max_update"] = 4
    summary, diary, _ = run_toy(recipe, tmp_path, monkeypatch)
    assert "using an older checkpoint" in caplog.text
    assert diary.updates("train") == [] and summary.update == 4
    assert store.best_update() == summary.best_update == 4


# ---- what cannot be trained ----------------------------------------------------------------------


def test_too_many_bad_updates_in_a_row_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy_recipe(platform={"max_bad_updates": 3})
    bad: list[int] = []

    def spoil(update: int) -> bool:  # two bad attempts, a good one, three bad ones
        bad.append(update)
        return len(bad) in (2, 3, 5, 6, 7)

    with pytest.raises(TrainingStopped, match=r"3 updates in a row .*loss nan"):
        run_toy(recipe, tmp_path / "fp32", monkeypatch, spoil=spoil)
    assert len(bad) == 7
    recipe = toy_recipe(
        common={"fp16": True, "fp16_init_scale": 16, "min_loss_scale": 1.0},
        platform={"max_bad_updates": 3, "precision": "fp16"},
    )
    bad.clear()
    with pytest.raises(TrainingStopped, match="update 0: the loss scale fell to 1 "):
        run_toy(recipe, tmp_path / "fp16", monkeypatch, spoil=lambda update: bad.append(0) is None)
    assert len(bad) == 4, "16, 8, 4, 2: the scale decides, not the number"


def test_the_tasks_own_guard_stops_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyTask, "guard", lambda self, metrics, update: "enough" if update == 3 else None)
    with pytest.raises(TrainingStopped, match="enough"):
        run_toy(toy_recipe(), tmp_path, monkeypatch)
    monkeypatch.setattr(ToyTask, "__init__", _frozen(ToyTask.__init__))
    with pytest.raises(Data2VecError, match="all parameters are frozen"):
        run_toy(toy_recipe(), tmp_path / "frozen", monkeypatch)


def _frozen(honest: Any) -> Any:
    def build(self: ToyTask, *given: Any) -> None:
        honest(self, *given)
        self.model.w.requires_grad_(False)

    return build


class Carrier(CutShort):
    """A reporter whose undelivered figures travel with checkpoints."""

    def __init__(self, update: int) -> None:
        super().__init__(update)
        self.taken: list[Any] = []

    def unsent(self) -> dict[str, Any]:
        return {"points": [self.events[-2]]}

    def take_over(self, unsent: Mapping[str, Any]) -> None:
        self.taken.append(unsent)


def test_undelivered_figures_travel_with_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(checkpoint={"save_interval_updates": 2})
    first, second = Carrier(2), Carrier(100)
    with pytest.raises(Cut):
        run_toy(recipe, tmp_path, monkeypatch, reporter=first)
    run_toy(recipe, tmp_path, monkeypatch, reporter=second)
    assert first.taken == [] and second.taken == [{"points": [["train", 2]]}]
    state = json.loads((CheckpointStore(tmp_path).folder / "update_00000002" / "state.json").read_text())
    assert state["unsent"] == {"points": [["train", 2]]}
