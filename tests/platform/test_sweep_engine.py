"""A sweep without Ray: its checks before the start, its identity, its table, its room on a cluster."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from d2v_platform.cli import train_command
from d2v_platform.recipe.sweep_definition import Select, Sweep, load_sweep
from d2v_platform.sweeps import engine, tune_run
from d2v_platform.sweeps.capacity import Capacity, capacity
from d2v_platform.sweeps.command import plan_lines, read_command, report_failures
from d2v_platform.sweeps.engine import SweepResult
from d2v_platform.sweeps.preparation import prepare_trials
from d2v_platform.sweeps.results import ChildRun, Record, StoredTrial, TrialResult, evaluation_log
from d2v_platform.sweeps.selection import GridPoint, choose_all, floors, grid_points
from d2v_platform.sweeps.sweep_folder import SweepFolder, delete_weights, identity, refuse_changes, sweep_root
from d2v_platform.sweeps.table import protocol, result_table, trials_csv
from d2v_platform.sweeps.winners import delete_losers
from d2v_platform.training.evaluation_log import EvaluationLog
from d2v_platform.training.loop_state import Summary
from d2v_platform.training.ray_session import ClusterInfo
from data2vec.errors import ConfigError, Data2VecError

TWO_WORKERS = ("distributed_training.distributed_world_size=2", "platform.num_workers=2")
SMALL = ["grid.task=[cola,rte]", "grid.lr=[1e-4,1e-3]", "grid.seed=[1]", "max_updates=20"]


def sweep_on(glue: Any, *more: str) -> Sweep:
    return load_sweep("glue", [f"model.model_path={glue.model}", f"task.data={glue.raw}", *SMALL, *more])


def prepared(sweep: Sweep) -> list[StoredTrial]:
    return prepare_trials(sweep, identity(sweep, "x")[1])


def ended(
    root: SweepFolder, stored: StoredTrial, value: float = 1.0, status: Any = "finished", **more: Any
) -> Record:
    """What a trial leaves behind."""
    folder = root.of(stored.name)
    stored.write(folder)
    ChildRun(f"run-{stored.name}").write(folder)
    metric = stored.trial.recipe.checkpoint.best_checkpoint_metric
    facts = {"dictionary.hash": "d" * 64, "floor.metric": metric, "floor.value": "52.0"}
    summary = Summary(20, {}, value, 20, "max_update 20 reached", "x", facts, 3.0, 0)
    evaluations = {20: {"valid/accuracy": 60.0, f"valid/{metric}": value, "valid/loss": 0.5}}
    result = TrialResult(status=status, run_id=f"run-{stored.name}", update=20, evaluations=evaluations,
                         summary=summary if status == "finished" else None, seconds=3.0, **more)  # fmt: skip
    result.write(folder)
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "model.safetensors").write_bytes(b"1" * 1000)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "x").write_bytes(b"1" * 500)
    return Record(stored=stored, folder=folder, result=result)


# ---- before the start ---------------------------------------------------------------------------------


def test_raw_glue_is_prepared_once_with_the_models_dictionary(
    tiny_glue: Any, home: Path, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level("INFO", "d2v_platform")
    first = prepared(sweep_on(tiny_glue))
    assert sum("preparing the raw files" in line for line in caplog.messages) == 2
    again = prepared(sweep_on(tiny_glue))
    assert sum("preparing the raw files" in line for line in caplog.messages) == 2
    assert sum("prepared before" in line for line in caplog.messages) == 2
    data = {stored.task: Path(stored.trial.recipe.task.data) for stored in first}
    assert {path.name for path in data.values()} == {"CoLA-bin", "RTE-bin"}
    assert all(path.is_relative_to(home / "cache" / "glue") for path in data.values())
    assert [s.data for s in again] == [s.data for s in first]
    assert all(set(stored.data) == {"train", "valid"} and stored.model_sha256 for stored in first)
    (shared,) = prepared(sweep_on(tiny_glue, f"platform.storage={tmp_path}/shared", "grid.task=[cola]"))[:1]
    assert shared.data == first[0].data, "the same, where every node of the sweep sees it"
    assert Path(shared.trial.recipe.task.data).is_relative_to(tmp_path / "shared" / "glue")


def test_every_task_without_data_is_reported_at_once(tiny_glue: Any, home: Path) -> None:
    sweep = sweep_on(tiny_glue, "grid.task=[cola,qnli,mrpc]", "max_updates=5")
    with pytest.raises(ConfigError) as caught:
        prepared(sweep)
    rules = [problem.rule for problem in caught.value.problems]
    assert len(rules) == 2 and "QNLI" in rules[0] and "MRPC" in rules[1]


def test_a_missing_model_is_one_problem_and_not_one_a_trial(
    tiny_glue: Any, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(sweep_on(tiny_glue, f"model.model_path={tmp_path / 'none'}"))
    assert [problem.field for problem in caught.value.problems] == ["model.model_path"]


def test_the_metric_that_decides_also_decides_which_weights_are_kept(tiny_glue: Any, home: Path) -> None:
    stored = prepared(sweep_on(tiny_glue, "select.metric=accuracy", "grid.task=[cola]"))[0]
    assert stored.trial.recipe.checkpoint.best_checkpoint_metric == "accuracy"
    stored = prepared(sweep_on(tiny_glue, "select.metric=loss", "grid.task=[cola]"))[0]
    assert stored.trial.recipe.checkpoint.maximize_best_checkpoint_metric is False


# ---- identity and resuming ----------------------------------------------------------------------------


def test_the_run_name_names_the_sweep_and_not_its_trials(tiny_glue: Any, home: Path) -> None:
    name, trials, fresh = identity(sweep_on(tiny_glue, "platform.run_name=first"), None)
    assert (name, fresh) == ("first", False)
    assert {trial.recipe.platform.run_name for trial in trials} == {None}
    assert not any("run_name" in text for trial in trials for text in trial.overrides)
    assert sweep_root(name, trials) == home / "sweeps" / "first"
    one, two = (identity(sweep_on(tiny_glue), None) for _ in range(2))
    assert one[2] and one[0] != two[0] and one[0].startswith("glue-")
    with pytest.raises(ConfigError, match=r"platform\.run_name"):
        identity(sweep_on(tiny_glue, "platform.run_name='a/b'"), None)


def test_trials_are_read_back_as_they_were_written(tiny_glue: Any, home: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s")
    stored = prepared(sweep_on(tiny_glue))
    record = ended(folder, stored[0], 12.5)
    stored[1].write(folder.of(stored[1].name))  # written, but never begun
    found = folder.records()
    assert list(found) == [stored[0].name]
    assert found[stored[0].name] == record
    assert found[stored[0].name].over
    failed = ended(folder, stored[1], status="failed", error="no")
    assert failed.started and not failed.over


def test_a_changed_trial_is_refused_by_its_fields(tiny_glue: Any, home: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s")
    for stored in prepared(sweep_on(tiny_glue)):
        ended(folder, stored)
    refuse_changes(
        folder.records(), prepared(sweep_on(tiny_glue, "common.log_interval=3"))
    )  # not computed with
    with pytest.raises(ConfigError) as caught:
        refuse_changes(folder.records(), prepared(sweep_on(tiny_glue, "optimizer.weight_decay=0.3")))
    assert [(p.field, p.value) for p in caught.value.problems] == [("optimizer.weight_decay", 0.3)]
    assert "was run with 0.1" in caught.value.problems[0].rule


def test_more_seeds_rates_and_tasks_may_come_later_but_not_other_lengths(
    tiny_glue: Any, home: Path, tmp_path: Path
) -> None:
    folder = SweepFolder(tmp_path / "s")
    for stored in prepared(sweep_on(tiny_glue, "grid.task=[cola]")):
        ended(folder, stored)
    refuse_changes(folder.records(), prepared(sweep_on(tiny_glue, "grid.seed=[1,2]", "grid.lr=[1e-4,5e-4]")))
    with pytest.raises(ConfigError) as caught:
        refuse_changes(folder.records(), prepared(sweep_on(tiny_glue, "grid.seed=[2]", "max_updates=10")))
    assert "optimization.max_update" in {problem.field for problem in caught.value.problems}


def test_another_model_or_other_data_under_the_same_name_is_refused(
    tiny_glue: Any, home: Path, tmp_path: Path
) -> None:
    folder = SweepFolder(tmp_path / "s")
    stored = prepared(sweep_on(tiny_glue, "grid.task=[cola]"))
    for each in stored:
        ended(folder, each)
    moved = [replace(each, model_uri="models:/x/7") for each in stored]
    refuse_changes(folder.records(), moved)  # the same weights under another name
    other = [replace(each, model_sha256="f" * 64, data={**each.data, "train": "e" * 64}) for each in stored]
    with pytest.raises(ConfigError) as caught:
        refuse_changes(folder.records(), other)
    assert {problem.field for problem in caught.value.problems} == {"model.model_path", "task.data"}


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    first, second = SweepFolder(tmp_path / "s"), SweepFolder(tmp_path / "s")
    first.acquire()
    with pytest.raises(Data2VecError, match="being run by another process"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_validations_survive_a_cut_line_and_repeats(tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path / "e.jsonl")
    log.add(1, {"train/loss": 1.0, "speed/x": 2.0})
    assert not log.path.exists()
    assert log.newest() == 1
    log.add(2, {"valid/mcc": 5.0})
    with log.path.open("a") as file:
        file.write('{"update": 3, "met')
    log.add(2, {"valid/mcc": 5.0})
    log.add(4, {"valid/mcc": 6.0})
    assert log.read() == {2: {"valid/mcc": 5.0}, 4: {"valid/mcc": 6.0}}
    assert log.newest() == 4 and EvaluationLog(tmp_path / "none.jsonl").newest() == 0


def test_a_silent_sweep_says_how_far_its_trials_are(
    tiny_glue: Any, home: Path, tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    caplog.set_level("INFO", "d2v_platform")
    folder, room = (
        SweepFolder(tmp_path / "s"),
        Capacity(slots=2, workers=1, cpus=1, gpus=0, threads=1, loaders=0),
    )
    todo = {stored.name: stored for stored in prepared(sweep_on(tiny_glue))[:3]}
    launch = SimpleNamespace(folder=folder, capacity=room, quiet=False, reached=None)
    watch = tune_run._Watch(launch, todo, lambda name: None)  # pyright: ignore[reportArgumentType]
    caplog.clear()
    watch.on_step_end(0, [])
    for name in list(todo)[:2]:
        folder.of(name).mkdir(parents=True)
        watch.on_trial_start(0, [], SimpleNamespace(config={"trial": name}))
    assert [line.partition(" ")[2] for line in caplog.messages] == ["started (0/3 done)"] * 2
    evaluation_log(folder.of(next(iter(todo)))).add(5, {"train/loss": 1.0})
    watch.on_step_end(1, [])
    assert len(caplog.messages) == 2  # something was said just now
    monkeypatch.setattr(tune_run, "_STATUS_S", 0.0)
    watch.on_step_end(2, [])
    first, second = list(todo)[:2]
    assert caplog.messages[2].startswith(f"running: {first} 5/20, {second} 0/20; 0/3 done, eta 0:00:0")


# ---- the table ----------------------------------------------------------------------------------------


def records_of(glue: Any, root: Path) -> tuple[Sweep, list[Record]]:
    sweep = sweep_on(glue, "grid.seed=[1,2,3]")
    folder = SweepFolder(root / "s")
    values = {1: 10.0, 2: 30.0, 3: 20.0}
    records = []
    for stored in prepared(sweep):
        value = values[stored.seed] + (5 if stored.lr == 1e-3 and stored.task == "cola" else 0)
        if stored.task == "rte" and stored.seed == 3:
            records.append(ended(folder, stored, value, "failed", error="the disk is full"))
        elif stored.task == "rte" and stored.lr == 1e-3:
            records.append(ended(folder, stored, value, "stopped"))
        else:
            records.append(ended(folder, stored, value))
    return sweep, records


def points_of(sweep: Sweep, records: list[Record]) -> list[GridPoint]:
    metrics = {r.stored.name: sweep.metric(r.stored.trial) for r in records}
    return grid_points(records, metrics, sweep.definition.select)


def test_the_table_holds_every_setting_seed_and_status(tiny_glue: Any, home: Path, tmp_path: Path) -> None:
    sweep, records = records_of(tiny_glue, tmp_path)
    found = points_of(sweep, records)
    words = protocol(sweep.definition.select, records, "asha", 20)
    assert floors(found) == {"cola": 52.0, "rte": 52.0}
    assert floors(grid_points(records, {r.stored.name: ("loss", False) for r in records}, Select())) == {}
    table = result_table(found, records, {"cola": 0.0, "rte": 52.0}, words)
    by = {(row.task, row.lr): row for row in table.rows}
    assert len(by) == 4
    best = by["cola", 1e-3]
    assert (best.median, best.low, best.high, best.chosen) == (25.0, 15.0, 35.0, True)
    assert best.others == {"accuracy": 60.0} and best.floor == 0.0
    assert by["rte", 1e-3].statuses == {1: "stopped@20", 2: "stopped@20", 3: "failed"}
    assert by["rte", 1e-3].values == {1: 10.0, 2: 30.0, 3: None}
    assert by["rte", 1e-4].chosen and table.choices["rte"].record.stored.seed == 2  # nearest 20 are 10 and 30
    assert table.averages() == {"average": (22.5, 2), "average without RTE": (25.0, 1)}
    assert set(table.missing) == {r.stored.name for r in records if r.result and r.result.error}
    text = table.markdown("Sweep s")
    for part in (
        "| cola | lr 0.001 | mcc | 0.00 | 15.00 | 35.00 | 25.00 | 25.00 |",
        "10.00 (stopped@20)",
        "the disk is full",
        "average without RTE over 1 task: 25.00",
        "ASHA within each task stopped 2 of 12",
        "3 seeds",
        "capped at 20",
        "not on a test set",
        "weights sha256",
        "median over its seeds",
    ):
        assert part in text, part
    assert table.rich("x", 80).row_count == 4
    rows = list(csv.DictReader(io.StringIO(trials_csv(records, found))))
    assert len(rows) == 12 and {row["status"] for row in rows} == {"finished", "stopped", "failed"}
    assert float(rows[0]["value"]) == 10.0 and rows[0]["run_id"].startswith("run-")
    assert len(list(csv.DictReader(io.StringIO(table.summary_csv())))) == 4


def test_a_task_without_a_winner_ends_a_sweep_with_an_error(
    tiny_glue: Any, home: Path, tmp_path: Path
) -> None:
    sweep = sweep_on(tiny_glue, "grid.lr=[1e-4]")
    folder = SweepFolder(tmp_path / "s")
    records = [
        ended(folder, stored, float("nan") if stored.task == "rte" else 1.0) for stored in prepared(sweep)
    ]
    table = result_table(points_of(sweep, records), records, {}, [])
    assert (list(table.choices), table.undecided) == (["cola"], ["rte"])
    result = SweepResult(
        name="s", folder=folder.root, rows=table.rows, winners=(), averages={}, protocol=(), tables={},
        parent_run_id="p", failed={}, timing=None, table=table,
    )  # fmt: skip
    with pytest.raises(
        Data2VecError, match=r"rte has no winner: .*value of accuracy.*weights stay in"
    ) as told:
        report_failures(result)
    assert "cola" not in str(told.value) and "no result" not in str(told.value)
    decided = result_table(points_of(sweep, records[:1]), records[:1], {}, [])
    report_failures(replace(result, rows=decided.rows, table=decided))


def test_one_seed_is_called_noise(tiny_glue: Any, home: Path, tmp_path: Path) -> None:
    sweep = sweep_on(tiny_glue, "grid.task=[cola]")
    records = [ended(SweepFolder(tmp_path / "s"), stored) for stored in prepared(sweep)]
    assert any(
        "one seed is noise" in line for line in protocol(sweep.definition.select, records, "grid", None)
    )


def test_only_the_losers_weights_go(tiny_glue: Any, home: Path, tmp_path: Path) -> None:
    sweep, records = records_of(tiny_glue, tmp_path)
    mine = {r.stored.name: r for r in records}
    winner, failed = "cola_lr=0.001_seed=3", "rte_lr=0.0001_seed=3"
    choices = choose_all(points_of(sweep, records))
    assert delete_losers(mine, {}) == 0  # without a winner nobody has lost
    assert delete_losers(mine, {"cola": choices["cola"]}) == 1500 * 5
    assert all(r.has_weights for r in records if r.stored.task == "rte")
    assert delete_losers(mine, choices) == 1500 * 3  # the winner stays, and two failed ones, which may go on
    assert mine[winner].has_weights and mine[failed].has_weights
    assert not mine["cola_lr=0.001_seed=1"].has_weights
    assert (mine["cola_lr=0.001_seed=1"].folder / "result.json").is_file()
    assert delete_weights(mine[winner].folder, model=False) == 500 and mine[winner].has_weights


# ---- room and command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "cluster", "slots", "resources"),
    [
        ((), (2, 0), 2, {"cpu": 1.0}),
        (("max_concurrent=1",), (2, 0), 1, {"cpu": 1.0}),
        (("resources_per_trial.cpu=2",), (7, 0), 3, {"cpu": 2.0}),
        ((), (16, 3), 3, {"cpu": 1.0, "gpu": 1.0}),
        (("resources_per_trial.gpu=0.5",), (16, 1), 2, {"cpu": 1.0, "gpu": 0.5}),
        (("resources_per_trial.gpu=0.4",), (16, 1), 2, {"cpu": 1.0, "gpu": 0.4}),
        ((), (64, 0), 4, {"cpu": 1.0}),  # no more than there are trials
        (TWO_WORKERS, (5, 0), 2, {"cpu": 0, "memory": 1}),
    ],
)  # fmt: skip
def test_how_many_trials_fit(
    more: tuple[str, ...], cluster: tuple[int, int], slots: int, resources: dict[str, float]
) -> None:
    sweep = load_sweep("glue", ["model.model_path=/m", "task.data=/x", *SMALL, *more])
    room = capacity(sweep.definition, [t.recipe for t in sweep.trials], ClusterInfo(*cluster, nodes=1))
    assert (room.slots, room.resources) == (slots, resources)
    assert str(slots) in room.line()


def test_a_trial_that_never_fits_is_refused() -> None:
    sweep = load_sweep("glue", ["model.model_path=/m", "task.data=/x", *SMALL, "resources_per_trial.cpu=4"])
    with pytest.raises(ConfigError, match="the cluster has 1 node of 2 CPUs"):
        capacity(sweep.definition, [sweep.trials[0].recipe], ClusterInfo(2, 0, 1))


def test_the_command_line(tiny_glue: Any, home: Path) -> None:
    words = ["model.model_path=/m", "task.data=/x", *SMALL, "--plan"]
    sweep, plan_only = read_command(["glue", *words], "d2v sweep")
    assert plan_only and len(sweep.trials) == 4
    assert read_command(words, "python experiments/glue_sweep.py", default="glue")[0] == sweep
    lines = "\n".join(plan_lines(sweep))
    assert "4 trials" in lines and "cola_lr=0.001_seed=1" in lines and "to run" in lines
    for wrong, message in (
        ([], "give one sweep"),
        (["glue", "--pla"], "did you mean '--plan'"),
        (["glu"], "'glue'"),
    ):
        with pytest.raises(Data2VecError, match=message):
            read_command(wrong, "d2v sweep")


def test_a_plan_of_many_trainings_trains_nothing(
    tiny_text: Path, home: Path, monkeypatch: Any, caplog: Any
) -> None:
    caplog.set_level("INFO", "d2v_platform")
    monkeypatch.setattr(engine, "run_sweep", None)
    words = ["-m", "tiny/text_pretraining", f"task.data={tiny_text}", "common.seed=1,2", "--plan"]
    train_command([*words, "select.metric=train/loss", "platform.num_workers=0"], "d2v train")
    lines = "\n".join(caplog.messages)
    for part in ("2 trials", "seed=2 ", "train/loss", "the first trial, seed=1", "memory of each worker"):
        assert part in lines, part
    assert "seed=2:" not in lines
