"""The driver of a sweep without Ray: what it keeps of its trials, ends, deletes, counts and tells MLflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from d2v_platform.recipe.compose import Composed, compose
from d2v_platform.recipe.sweep_definition import Register, Scheduler, Select, Sweep, SweepDefinition, Trial
from d2v_platform.sweeps import engine, tune_run
from d2v_platform.sweeps import trial as trial_module
from d2v_platform.sweeps.capacity import Capacity
from d2v_platform.sweeps.results import ChildRun, StoredTrial, TrialResult, evaluation_log
from d2v_platform.sweeps.schedule import SweepProgress
from d2v_platform.sweeps.sweep_folder import SweepFolder
from d2v_platform.sweeps.table import result_table
from d2v_platform.tracking.tracker import NewRun
from d2v_platform.training.loop_state import Summary
from data2vec.errors import Data2VecError

ROOM = Capacity(slots=2, workers=1, cpus=1, gpus=0, threads=1, loaders=0)


@lru_cache
def composed() -> Composed:
    return compose("v2/text_finetuning/cola", ["task.data=/x", "model.model_path=/m"])


def stored(seed: int = 1, lr: float = 1e-5, task: str = "cola", **more: Any) -> StoredTrial:
    base = composed()
    recipe = replace(
        base.recipe,
        optimization=replace(base.recipe.optimization, lr=[lr], max_update=40),
        common=replace(base.recipe.common, seed=seed),
    )
    values = {"task": task, "lr": lr, "seed": seed} | more
    name = "_".join([task, f"{lr:g}", str(seed), *map(str, more.values())])
    trial = Trial(name=name, values=values, overrides=(), named_recipe="cola",
                  recipe=recipe, base=base.base)  # fmt: skip
    return StoredTrial(trial=trial)


def leave(folder: SweepFolder, trial: StoredTrial, status: Any = "finished", value: float = 50.0) -> str:
    """What a trial leaves that has ended; gives its name."""
    place = folder.of(trial.name)
    trial.write(place)
    ChildRun(f"run-{trial.name}").write(place)
    summary = Summary(40, {}, value, 20, "end", "x", {}, 3.0, 0) if status == "finished" else None
    evaluations = {20: {"valid/mcc": value, "valid/best_mcc": value + 1}, 30: {"other/x": 1.0}}
    TrialResult(status=status, run_id=f"run-{trial.name}", update=40, evaluations=evaluations, seconds=3.0,
                summary=summary, error="broken" if status == "failed" else None).write(place)  # fmt: skip
    for name in ("model/model.safetensors", "checkpoints/x"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"1" * 100)
    return trial.name


class Tracker:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.settled = 0

    def __getattr__(self, method: str) -> Callable[..., None]:
        return lambda *words, **named: self.sent.append((method, *words, *named.values()))

    def wait_for_sent(self) -> None:
        self.settled += 1


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path / "s")


def sweep(**definition: Any) -> Any:
    return Sweep(name="glue", definition=SweepDefinition(**definition), trials=(), notes=())


def watch_of(folder: SweepFolder, trials: Sequence[StoredTrial], told: list[str]) -> tune_run._Watch:
    launch: Any = SimpleNamespace(
        folder=folder, capacity=ROOM, quiet=False, tracker=Tracker(), sweep=sweep(), sweep_name="s", name="l"
    )
    for each in trials:
        each.write(folder.of(each.name))
    return tune_run._Watch(launch, {each.name: each for each in trials}, told.append)


def of_tune(name: str, **more: Any) -> Any:
    return SimpleNamespace(config={"trial": name}, num_failures=3, **more)


def test_the_driver_keeps_the_results_of_trials_that_could_not(
    folder: SweepFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    trials = [stored(seed) for seed in (1, 2, 3, 4)]
    stopped, failed, finished, cut = (trial.name for trial in trials)
    told: list[str] = []
    watch = watch_of(folder, trials, told)
    sent = watch.launch.tracker.sent  # type: ignore[attr-defined]
    for name in (stopped, failed, cut):
        ChildRun(f"run-{name}").write(folder.of(name))
        watch.on_trial_start(0, [], of_tune(name))
    for update, value in ((10, 60.0), (20, 40.0)):
        evaluation_log(folder.of(stopped)).add(update, {"valid/mcc": value})
    watch.on_trial_complete(0, [], of_tune(stopped))
    kept = TrialResult.read(folder.of(stopped))
    assert kept is not None and (kept.status, kept.update, kept.run_id) == ("stopped", 20, f"run-{stopped}")
    assert sorted(kept.evaluations) == [10, 20] and kept.seconds >= 0 and kept.error is None
    assert sent == [("finish_soon", f"run-{stopped}", "FINISHED", {"status": "stopped", "updates": "20"})]

    watch.on_trial_error(0, [], of_tune(failed, get_error=lambda: "Traceback\nboom\n"))
    kept = TrialResult.read(folder.of(failed))
    assert kept is not None and kept.status == "failed" and kept.update == 0
    assert str(kept.error).startswith("boom (after 3 attempts; see ") and "train.log" in str(kept.error)
    assert sent[1][:3] == ("finish_soon", f"run-{failed}", "FAILED") and sent[1][3]["error"] == kept.error
    assert "boom" in caplog.text

    watch.on_trial_start(0, [], of_tune(leave(folder, trials[2])))
    caplog.clear()
    watch.on_trial_complete(0, [], of_tune(finished))
    kept = TrialResult.read(folder.of(finished))
    assert kept is not None and (kept.status, kept.update) == ("finished", 40), "its own result stays"
    assert not (folder.of(finished) / "checkpoints").exists() and (folder.of(finished) / "model").exists()
    assert "finished: mcc 50.00 (update 40, 3 s); best of cola 60.00; 3/4 done" in caplog.messages[-1]
    assert told == [stopped, failed, finished] and watch.progress.seconds[finished] == 3.0

    watch.close_interrupted()
    assert sent[-1] == ("finish_soon", f"run-{cut}", "KILLED", {"status": "interrupted"}) and len(sent) == 4
    assert watch.progress.interrupted
    watch.mark_closed()
    closed = [ChildRun.read(folder.of(trial.name)) for trial in trials]
    assert [child.closed for child in closed if child] == [True, True, True, False]


def test_a_lost_process_and_a_second_start_are_no_new_trial(folder: SweepFolder, caplog: Any) -> None:
    caplog.set_level("INFO")
    trial = stored()
    watch = watch_of(folder, [trial], [])
    evaluation_log(folder.of(trial.name)).add(7, {"train/loss": 1.0})
    watch.on_trial_start(0, [], of_tune(trial.name))
    first = dict(watch.progress.started)
    watch.on_trial_recover(0, [], of_tune(trial.name))
    watch.on_trial_start(0, [], of_tune(trial.name))
    assert watch.progress.started == first and watch.progress.before == {trial.name: 7}
    assert "(3 of " in caplog.text and len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("within", "key", "value"), [("best", "valid/best_mcc", 51.0), ("last", "valid/mcc", 50.0)]
)
def test_earlier_runs_that_are_over_race_with_the_new_ones(
    within: Any, key: str, value: float, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Halving:
        def __init__(self, races: Any, settings: Any) -> None:
            self.races, self.curves = races, {}
            made.append(self)

        def remember(self, name: str, curve: Any) -> None:
            self.curves[name] = curve

    monkeypatch.setattr(tune_run, "PerTaskASHA", Halving)
    over = leave(folder, stored(1), "stopped")
    leave(folder, stored(2), "failed")
    launch: Any = SimpleNamespace(
        sweep=sweep(scheduler=Scheduler(name="asha"), select=Select(within_run=within))
    )
    new = stored(3, task="rte")
    tune_run._scheduler(launch, [new], folder.records())
    (asha,) = made
    assert set(asha.races) == {over, new.name} and asha.races[new.name].task == "rte"
    assert {(race.metric, race.maximize, race.updates) for race in asha.races.values()} == {(key, True, 40)}
    assert asha.curves == {over: {20: value}}
    launch.sweep = sweep()
    assert tune_run._scheduler(launch, [new], folder.records()) is None


def driver_of(folder: SweepFolder, **definition: Any) -> Any:
    tracker: Any = Tracker()
    return engine._Driver(sweep(**definition), "s", folder, tracker, "parent", ROOM, True, engine._Stop())


def test_runs_that_a_killed_driver_left_open_are_ended_once(folder: SweepFolder) -> None:
    name = leave(folder, stored(1), "diverged")
    leave(folder, stored(2), "failed")  # is run again
    driver = driver_of(folder)
    driver._close_left_open()
    driver._close_left_open()
    ((method, run_id, status, tags),) = driver.tracker.sent
    assert (method, run_id, status) == ("finish_soon", f"run-{name}", "FAILED") and tags[
        "status"
    ] == "diverged"
    assert driver.tracker.settled == 1, "on disk before it counts as closed"


def test_records_stand_in_the_order_of_the_grid(folder: SweepFolder) -> None:
    ready = [stored(1, 2e-5, "rte"), stored(2, 1e-5, "rte"), stored(1, 1e-5, "rte"), stored(1, 1e-5, "cola")]
    leave(folder, ready[2])
    leave(folder, stored(9, 5e-6, "mrpc"))  # of an earlier launch
    leave(folder, stored(8, 5e-6, "mrpc"), "failed")  # and not in this one
    driver = driver_of(folder)
    found = driver._records(ready)
    assert [record.stored.name for record in found] == [
        "rte_1e-05_1", "rte_1e-05_2", "rte_2e-05_1", "cola_1e-05_1", "mrpc_5e-06_9",
    ]  # fmt: skip
    assert [record.result is None for record in found] == [False, True, True, True, False]


def test_records_of_one_rate_stand_in_the_order_of_their_numbers(folder: SweepFolder) -> None:
    ready = [stored(seed, clones=clones) for clones in (16, 2, "x", 1) for seed in (1, 2)]
    for trial in ready:
        leave(folder, trial)
    found = driver_of(folder)._records(ready)
    assert [(r.stored.trial.values["clones"], r.stored.seed) for r in found] == [
        (1, 1), (1, 2), (2, 1), (2, 2), (16, 1), (16, 2), ("x", 1), ("x", 2),
    ]  # fmt: skip


def test_a_winner_is_trained_again_only_if_its_weights_are_needed(folder: SweepFolder) -> None:
    name = leave(folder, stored(1), value=60.0)
    leave(folder, stored(1, 2e-5), value=50.0)
    needed = driver_of(folder, register=Register(name="m"))
    assert needed._winners_without_weights() == []
    (folder.of(name) / "model" / "model.safetensors").unlink()
    assert [trial.name for trial in needed._winners_without_weights()] == [name]
    assert [trial.name for trial in driver_of(folder, test_files=True)._winners_without_weights()] == [name]
    assert driver_of(folder)._winners_without_weights() == []


def test_weights_go_when_a_task_has_no_trial_left(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {1: 50.0, 2: 70.0, 3: 60.0}
    todo = [stored(1, lr) for lr in (1e-5, 2e-5, 3e-5)] + [stored(1, task="rte")]
    earlier = leave(folder, stored(1, 9e-5), value=10.0)
    there: list[list[bool]] = []

    def run_trials(launch: Any, trials: Any, known: Any, ended: Callable[[str], None]) -> SweepProgress:
        assert list(known) == [earlier] and [trial.name for trial in trials] == [t.name for t in todo]
        assert (launch.parent, launch.sweep_name, launch.quiet) == ("parent", "s", True)
        progress = SweepProgress(
            {trial.name: 40 for trial in trials}, slots=2, begin=10.0, first_start=14.0, end=34.0
        )
        for number, trial in enumerate(trials, start=1):
            ended(leave(folder, trial, value=values.get(number, 5.0)))
            progress.started[trial.name] = 0.0
            progress.seconds[trial.name] = 10.0 * number
            there.append(
                [(folder.of(name) / "model").exists() for name in (earlier, todo[0].name, todo[1].name)]
            )
        return progress

    monkeypatch.setattr(tune_run, "run_trials", run_trials)
    monkeypatch.setattr(tune_run, "set_environment", lambda: None)
    driver = driver_of(folder)
    timing = driver._execute(todo)
    assert there == [[True, True, False], [True, True, True], [False, False, True], [False, False, True]]
    assert driver.freed > 0
    assert (timing.trials, timing.slots, timing.start_s, timing.wall_s, timing.own_s) == (
        4,
        2,
        4.0,
        20.0,
        100.0,
    )
    assert timing.ideal_s == 60.0 and timing.ratio == pytest.approx(1 / 3)
    assert timing.line() == (
        "4 trials in 0:00:20 (start-up 4 s before that); their own seconds 100, ideal on 2 at a time 60 s: "
        "ratio 0.33"
    )
    assert replace(timing, ideal_s=0.0).ratio == 1.0


def test_the_parent_run_gets_winners_averages_and_the_number_of_trials(folder: SweepFolder) -> None:
    for task, values in (("cola", (40.0, 60.0)), ("rte", (70.0, 65.0))):
        for lr, value in zip((1e-5, 2e-5), values, strict=True):
            leave(folder, stored(1, lr, task), value=value)
    leave(folder, stored(2, 2e-5), value=60.0)
    driver = driver_of(folder)
    records = list(folder.records().values())
    table = result_table(driver._points(records), records, {}, ["metric: mcc", "seed 1"])
    timing = engine.Timing(trials=4, slots=2, start_s=1.0, wall_s=30.0, own_s=50.0, ideal_s=20.0)
    driver._log_parent(table, {"results.md": Path("/r"), "trials.csv": Path("/t")}, timing)
    (logged, tagged, *artifacts) = driver.tracker.sent
    assert logged[:2] == ("log", "parent") and {point.step for point in logged[2]} == {5}
    assert {point.key: point.value for point in logged[2]} == {
        "trials": 5.0, "best/cola/mcc": 60.0, "best/rte/mcc": 70.0, "average": 65.0,
        "average_without_RTE": 60.0, "schedule_ratio": 1.5,
    }  # fmt: skip
    assert tagged[:2] == ("set_tags", "parent") and tagged[2] == {
        "best.cola": "lr 2e-05, seed 1, run run-cola_2e-05_1",
        "best.rte": "lr 1e-05, seed 1, run run-rte_1e-05_1",
        "timing": timing.line(), "protocol": "metric: mcc\nseed 1",
    }  # fmt: skip
    assert artifacts == [("log_artifact", "parent", Path("/r")), ("log_artifact", "parent", Path("/t"))]


@pytest.mark.parametrize(
    ("failed", "error", "status"),
    [(False, None, "FINISHED"), (True, None, "FAILED"), (False, ValueError, "FAILED"),
     (False, KeyboardInterrupt, "KILLED"), (False, SystemExit, "KILLED")],
)  # fmt: skip
def test_the_parent_run_ends_as_the_sweep_did(
    failed: bool, error: Any, status: str, folder: SweepFolder
) -> None:
    driver = driver_of(folder)

    with pytest.raises(error) if error else nullcontext(), driver.finishing():
        driver.failed = failed
        if error is not None:
            raise error
    assert driver.tracker.sent == [("finish", "parent", status)] and driver.tracker.settled == 1


def test_the_parent_run_ends_though_what_was_sent_before_failed(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = driver_of(folder)

    def fails() -> None:
        raise Data2VecError("the disk of the queue is full")

    monkeypatch.setattr(driver.tracker, "wait_for_sent", fails)
    with pytest.raises(Data2VecError, match="is full"), driver.finishing():
        pass
    assert driver.tracker.sent == [("finish", "parent", "FINISHED")]


def test_a_sweep_ends_as_it_was_asked_to() -> None:
    stop = engine._Stop()
    stop.check(False)
    with pytest.raises(KeyboardInterrupt):
        stop.check(True)
    with pytest.raises(SystemExit, match="143"):
        stop.on_sigterm()  # outside of Ray Tune at once
    stop.terminated = True
    with pytest.raises(SystemExit, match="143"):
        stop.check(False)


def test_starts_are_counted_by_launch(tmp_path: Path) -> None:
    counts = [trial_module._note_start(tmp_path, launch) for launch in ("a", "a", "b", "a")]
    assert counts == [1, 2, 1, 3]


@pytest.mark.parametrize(("state", "opens"), [("live", False), ("unfinished", True), (None, True)])
def test_a_trial_goes_on_in_its_own_run(state: str | None, opens: bool, tmp_path: Path) -> None:
    asked: list[Any] = []

    def find_run(*words: Any) -> Any:
        asked.append(words)
        return SimpleNamespace(state=state, run_id="old") if state else None

    def open_run(run: NewRun) -> Any:
        asked.append(vars(run))
        return SimpleNamespace(run_id="new")

    trial, tracker = stored(7), SimpleNamespace(find_run=find_run, open_run=open_run)
    config = {"sweep": "s", "parent": "p"}
    run_id = trial_module.open_child(tracker, config, trial, tmp_path)  # type: ignore[arg-type]
    assert run_id == ("new" if opens else "old") and ChildRun.read(tmp_path) == ChildRun(run_id)
    experiment = trial.trial.recipe.experiment()
    assert asked[0] == (experiment, f"s/{trial.name}")
    assert len(asked) == 1 + opens
    if opens:
        named = asked[1]
        assert named["params"]["grid"] == trial.trial.values and named["tags"]["lr"] == "1e-05"
        assert (named["experiment"], named["name"], named["parent_run_id"]) == (experiment, trial.name, "p")
        assert (named["resume_key"], named["reopen_finished"]) == (f"s/{trial.name}", True)
        told = {key: named["tags"][key] for key in ("sweep", "task", "seed", "status", "grid.seed")}
        assert told == {"sweep": "s", "task": "cola", "seed": "7", "status": "running", "grid.seed": "7"}
