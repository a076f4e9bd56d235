"""A sweep's records, its winners, their scores and decodings: what is kept, and what is passed on."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from d2v_platform.figures import clock, shown
from d2v_platform.recipe.compose import Composed, compose
from d2v_platform.recipe.groups import Optimization
from d2v_platform.recipe.sweep_definition import Evaluate, Register, Select, SweepDefinition, Trial
from d2v_platform.registry.registration import Trained
from d2v_platform.sweeps import ctc_decoding, winners
from d2v_platform.sweeps.ctc_decoding import searches
from d2v_platform.sweeps.results import ChildRun, Record, StoredTrial, TrialResult, replace_json, task_name
from d2v_platform.sweeps.schedule import SweepProgress, ideal_seconds, known_length
from d2v_platform.sweeps.selection import choose_winner, grid_points, score
from d2v_platform.sweeps.table import protocol, result_table, trials_csv
from d2v_platform.sweeps.winners import Winner, record_winner_scores, register_winner
from d2v_platform.tracking.scores import Score as SubsetScore
from d2v_platform.training.loop_state import Summary


@lru_cache
def composed(speech: bool = False) -> Composed:
    if speech:
        return compose("tiny/audio_finetuning", ["task.data=/x", "model.w2v_path=/m"])
    return compose("v2/text_finetuning/cola", ["task.data=/x", "model.model_path=/m"])


def record(seed: int, value: float | None, root: Path = Path("/s"), lr: float = 1e-5, **more: Any) -> Record:
    """A finished run of one seed."""
    speech = more.pop("speech", False)
    base = composed(speech)
    recipe = replace(
        base.recipe,
        optimization=replace(base.recipe.optimization, lr=[lr]),
        common=replace(base.recipe.common, seed=seed),
    )
    name = f"cola_lr={lr:g}_seed={seed}"
    trial = Trial(
        name=name, values={"task": "cola", "lr": lr, "seed": seed}, overrides=(f"optimization.lr=[{lr}]",),
        named_recipe=base.named_recipe, recipe=recipe, base=base.base,
    )  # fmt: skip
    stored = StoredTrial(
        trial=trial, model="/m", model_uri="models:/text/4", model_sha256="5" * 64, data={"valid": "f" * 64}
    )
    summary = Summary(20, {}, value, 20, "end", "x", {"dictionary.hash": "d" * 64}, 3.0, 0)
    evaluations = {} if value is None else {20: {"valid/mcc": value, "valid/accuracy": 60.0 + seed}}
    plain = {"status": "finished", "run_id": f"run{seed}", "update": 20, "evaluations": evaluations,
             "summary": summary, "seconds": 3.25}  # fmt: skip
    return Record(stored=stored, folder=root / name, result=TrialResult(**(plain | more)))


def points(records: list[Record], maximize: bool = True, **select: Any) -> Any:
    return grid_points(records, {r.stored.name: ("mcc", maximize) for r in records}, Select(**select))


# ---- on disk -------------------------------------------------------------------------------------------


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert TrialResult.read(tmp_path) is None
    for result in (
        record(1, 5.0, error="e", attempts=3).result,
        TrialResult(status="stopped", evaluations={5: {"valid/mcc": 1.0}, 10: {"valid/mcc": 2.0}}),
    ):
        assert result is not None
        result.write(tmp_path)
        assert TrialResult.read(tmp_path) == result
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]  # nothing half written beside it


def test_a_trial_is_read_as_it_was_written(tmp_path: Path) -> None:
    stored = replace(record(7, 1.0).stored, initial="/i", code="abc")
    stored.write(tmp_path / "deep/er")
    found = StoredTrial.read(tmp_path / "deep/er")
    assert found == stored
    assert (found.name, found.task, found.lr, found.seed) == ("cola_lr=1e-05_seed=7", "cola", 1e-5, 7)
    assert found.trial.group == {"task": "cola", "lr": 1e-5}
    assert task_name(replace(stored.trial, values={"lr": 1.0}, named_recipe="v2/base_text")) == "base_text"


def test_a_write_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    replace_json(path, {"a": 1})
    with pytest.raises(TypeError):
        replace_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_which_trials_are_over_and_which_have_begun(tmp_path: Path) -> None:
    for status, over in (("finished", True), ("stopped", True), ("diverged", True), ("failed", False)):
        found = record(1, 1.0, tmp_path, status=status)
        assert (found.over, found.started) == (over, True)
    waiting = replace(record(1, 1.0, tmp_path), result=None)
    waiting.folder.mkdir()
    assert (waiting.over, waiting.started, waiting.has_weights) == (False, False, False)
    assert ChildRun.read(waiting.folder) is None
    for run in (ChildRun("r"), ChildRun("r", closed=True)):
        run.write(waiting.folder)
        assert ChildRun.read(waiting.folder) == run
    assert (waiting.over, waiting.started) == (False, True)
    waiting.model_folder.mkdir()
    assert not waiting.has_weights
    (waiting.model_folder / "model.safetensors").touch()
    assert waiting.has_weights


# ---- choosing ------------------------------------------------------------------------------------------


def test_what_was_measured_beside_the_value_of_a_run() -> None:
    metrics = {"valid/mcc": 4.0, "valid/best_mcc": 9.0, "valid/loss": 0.5, "test/mcc": 3.0}
    result = TrialResult(status="finished", evaluations={7: metrics, 9: {"test/mcc": 99.0}})
    found = score(result, "valid", "mcc", True, "last")
    assert found is not None and (found.value, found.update) == (4.0, 7)
    assert found.others == {"valid/mcc": 4.0, "valid/loss": 0.5, "test/mcc": 3.0}
    endless = Summary(9, {"train/loss": float("inf")}, None, None, "", None, {}, 1.0, 0)
    assert score(replace(result, summary=endless), None, "train/loss", False, "best") is None


def test_runs_are_grouped_by_everything_but_the_seed_in_its_order() -> None:
    runs = [record(3, 10.0), record(1, 30.0), record(2, None), record(1, 5.0, lr=2e-5)]
    waiting = replace(record(4, 99.0), result=None)
    first, second = points([*runs, waiting])
    assert [r.stored.seed for r in first.records] == [1, 2, 3]
    assert [s and s.value for s in first.scores] == [30.0, None, 10.0]
    assert (first.value, first.median, first.values, first.complete) == (20.0, 20.0, [30.0, 10.0], True)
    assert (second.lr, second.value) == (2e-5, 5.0)
    assert points(runs, over_seeds="max")[0].value == 30.0
    assert points(runs, maximize=False, over_seeds="max")[0].value == 10.0
    (nothing,) = points([record(1, None)])
    assert (nothing.value, nothing.median, choose_winner([nothing])) == (None, None, None)


def test_of_equally_near_runs_the_first_seed_is_registered_and_signs_do_not_matter() -> None:
    choice = choose_winner(points([record(5, 10.0), record(4, 10.0)]))
    assert choice is not None and choice.record.stored.seed == 4
    for maximize, winner in ((True, 2e-5), (False, 1e-5)):
        for shift in (-30.0, -15.0, 0.0):  # below, around and at zero
            settings = [record(1, 10.0 + shift), record(1, 20.0 + shift, lr=2e-5)]
            choice = choose_winner(points(settings, maximize))
            assert choice is not None and choice.point.lr == winner
    low = choose_winner(points([record(1, 10.0), record(2, 20.0)], maximize=False))
    assert low is not None and low.score.value == 10.0  # the better of two that are equally near


def test_figures_in_words() -> None:
    assert [shown(m, 0.12345) for m in ("mcc", "loss", "train/loss")] == ["0.12", "0.1235", "0.1235"]
    assert shown("mcc", None) == "-" and shown("mcc", 0.0) == "0.00"


def test_the_table_of_trials_says_what_each_gave() -> None:
    runs = [record(1, 10.0), record(2, None, error="e"), record(3, 30.0, status="stopped", update=15)]
    waiting = replace(record(4, None), result=None)
    found = points(runs)
    rows = list(csv.DictReader(trials_csv([*runs, waiting], found).splitlines()))
    assert [(r["seed"], r["status"], r["value"], r["updates"]) for r in rows] == [
        ("1", "finished", "10.0", "20"), ("2", "finished", "", "20"), ("3", "stopped", "30.0", "15"),
        ("4", "unfinished", "", ""),
    ]  # fmt: skip
    first = rows[0]
    assert (first["trial"], first["task"], float(first["lr"])) == ("cola_lr=1e-05_seed=1", "cola", 1e-5)
    assert (first["metric"], first["at_update"], first["seconds"]) == ("mcc", "20", "3.25")
    assert (first["valid/accuracy"], first["run_id"], rows[1]["error"]) == ("61.0", "run1", "e")
    table = result_table(found, [*runs, waiting], {}, ["a rule"])
    assert table.missing == {"cola_lr=1e-05_seed=2": "finished: e", waiting.stored.name: "not run to its end"}
    assert table.averages() == {}  # one task is no average
    (row,) = table.rows
    assert (row.median, row.low, row.high, row.others) == (20.0, 10.0, 30.0, {"accuracy": 62.0})
    assert row.statuses == {1: "finished", 2: "finished", 3: "stopped@15"}
    told = "\n".join(protocol(Select(within_run="last", over_seeds="max"), runs, "grid", 30))
    for part in (
        "its last validation", "its best seed", "3 seeds", "seeds 1, 2, 3", "capped at 30",
        f"pretrained model models:/text/4 (weights sha256 {'5' * 12})", f"(valid {'f' * 12})",
        f"dictionary sha256 {'d' * 12}",
    ):  # fmt: skip
        assert part in told, part
    assert "ASHA" not in told and "random weights" not in told and "stop_" not in told
    limits = replace(runs[0].stored.trial.recipe.optimization, stop_cpu_minutes=10.0, stop_time_hours=0.5)
    trial = replace(runs[0].stored.trial, recipe=replace(runs[0].stored.trial.recipe, optimization=limits))
    told = "\n".join(
        protocol(Select(), [replace(runs[0], stored=replace(runs[0].stored, trial=trial))], "grid", None)
    )
    assert "; stop_cpu_minutes 10; stop_time_hours 0.5\n" in told


# ---- how long it takes ---------------------------------------------------------------------------------


def test_what_is_left_counts_every_trial_once() -> None:
    progress = SweepProgress({"a": 100, "b": 100}, slots=1)
    progress.started = {"a": 100.0}
    # 20 of 100 updates in 10 s: 40 s of its own, and 50 s for the one that waits
    assert progress.left_s({"a": 20}, 110.0) == pytest.approx(90.0)
    assert progress.running == ["a"]
    assert progress.left_s({"a": 120}, 110.0) == pytest.approx(100 / 12)  # past its end: nothing of its own
    progress.before = {"a": 20}
    assert progress.left_s({"a": 20}, 110.0) is None  # it has done nothing yet in this launch
    progress.seconds = {"a": 50.0}
    assert progress.running == [] and progress.left_s({}, 200.0) == pytest.approx(50.0)
    progress.started |= {"b": 150.0}
    assert progress.left_s({}, 160.0) == pytest.approx(40.0)
    assert progress.left_s({}, 500.0) == 0.0  # longer than the others: no negative time


def test_a_trial_that_a_clock_may_end_has_no_known_length() -> None:
    assert known_length(Optimization(max_update=7)) == 7
    assert known_length(Optimization(max_update=1000000, stop_cpu_minutes=15)) == 0
    assert known_length(Optimization(max_update=1000000, stop_time_hours=1)) == 0


def test_clock_and_ideal_schedule() -> None:
    assert [clock(s) for s in (0, 59.4, 59.6, 3599.6, 36_000)] == [
        "0:00:00", "0:00:59", "0:01:00", "1:00:00", "10:00:00",
    ]  # fmt: skip
    assert ideal_seconds([2, 3], 0) == 5 and ideal_seconds([], 3) == 0
    assert ideal_seconds([4, 3, 2, 1], 2) == 5


# ---- winners -------------------------------------------------------------------------------------------


class Tracker:
    """Keeps what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def record_scores(self, *words: Any) -> list[str]:
        self.calls.append(words)
        return ["somewhere"]


def subset_score(subset: str, metrics: dict[str, float]) -> SubsetScore:
    return SubsetScore(subset=subset, metrics=metrics, data="d", weights="w", samples=9)


def chosen(*values: float, **more: Any) -> Any:
    choice = choose_winner(points([record(n, value, **more) for n, value in enumerate(values, start=1)]))
    assert choice is not None
    return choice


def registered(monkeypatch: pytest.MonkeyPatch, answer: str | None) -> list[Any]:
    calls: list[Any] = []

    def register(*positional: Any, **named: Any) -> str | None:
        calls.append((positional, named))
        return answer

    monkeypatch.setattr(winners, "register_summary", register)
    return calls


@pytest.mark.parametrize(
    ("answer", "uri", "alias"),
    [
        ("models:/tiny-cola/3 (tiny-cola@champion)", "models:/tiny-cola/3", "champion"),
        ("models:/tiny-cola/3 (tiny-cola)", "models:/tiny-cola/3", None),  # refused by the gate
        ("models:/tiny-cola/3", "models:/tiny-cola/3", None),
        (None, None, None),
    ],
)
def test_the_run_that_stands_for_the_winner_is_registered(
    answer: str | None, uri: str | None, alias: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = registered(monkeypatch, answer)
    choice = chosen(10.0, 20.0, 40.0)
    broken = replace(choice.point.records[0], stored=choice.point.records[0].stored)
    point = replace(
        choice.point, records=(*choice.point.records, broken), scores=(*choice.point.scores, None)
    )
    choice = replace(choice, point=point)
    definition = SweepDefinition(register=Register(name="tiny-{task}", alias="champion"))
    tracker: Any = object()
    found = register_winner(tracker, definition, choice, 12.5, ["metric: mcc", "seeds 3"], Path("/table.md"))
    ((positional, named),) = calls
    assert positional[0] is tracker
    assert positional[1].recipe is choice.record.stored.trial.recipe
    assert positional[1].overrides == ("optimization.lr=[1e-05]",)
    model, summary = choice.record.model_folder, choice.record.result.summary
    assert positional[2] == Trained("run2", model, summary, "models:/text/4") and not named
    asked = dict(vars(positional[3]))
    assert asked.pop("protocol") == (
        "Winner of a sweep: learning rate 1e-05, mcc 20.00 with seed 2; median over 3 seed(s) 20.00 "
        "(10.00 to 40.00). Metric: mcc. Seeds 3."
    )
    assert asked == {
        "name": "tiny-cola", "alias": "champion", "seeds": (1, 2, 3),
        "results_table": Path("/table.md"),
    }  # fmt: skip
    assert found == Winner(
        task="cola", trial="cola_lr=1e-05_seed=2", lr=1e-5, seed=2, metric="mcc", value=20.0, median=20.0,
        floor=12.5, run_id="run2", model_folder=choice.record.folder / "model", model_uri=uri, alias=alias,
    )  # fmt: skip


def test_value_and_median_of_a_winner_are_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = registered(monkeypatch, None)
    definition = SweepDefinition(register=Register(name="m"))
    found = register_winner(Tracker(), definition, chosen(10.0, 20.0), None, [], Path("/t"))  # type: ignore[arg-type]
    assert (found.value, found.median, found.seed, found.floor) == (20.0, 15.0, 2, None)
    assert "mcc 20.00 with seed 2; median over 2 seed(s) 15.00 (10.00 to 20.00)" in calls[0][0][3].protocol
    assert (calls[0][0][3].name, calls[0][0][3].alias) == ("m", None)


def test_nothing_is_registered_without_a_name_or_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = registered(monkeypatch, "models:/x/1")
    tracker: Any = Tracker()
    found = register_winner(tracker, SweepDefinition(), chosen(1.0), None, [], Path("/t"))
    assert (found.model_uri, found.alias, found.run_id) == (None, None, "run1")
    named = SweepDefinition(register=Register(name="x"))
    assert register_winner(tracker, named, chosen(1.0, run_id=None), None, [], Path("/t")).model_uri is None
    assert calls == []


def test_scores_go_to_the_run_and_the_version_of_the_task(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    base = Winner(task="rte", trial="t", lr=1.0, seed=1, metric="m", value=1.0, median=1.0, floor=None,
                  run_id="r", model_folder=Path())  # fmt: skip
    won = [base, replace(base, task="cola", run_id="c", model_uri="models:/a/b/12")]
    scores = [subset_score("test", {"wer": 5.0})]
    tracker: Any = Tracker()
    record_winner_scores(tracker, won, "cola", scores)
    record_winner_scores(tracker, won, "rte", scores)
    assert tracker.calls == [
        (scores, "c", ("a/b", 12)), (scores, "r", None),
    ]  # fmt: skip
    assert "cola: recorded in somewhere" in caplog.messages


# ---- decoding of winners -------------------------------------------------------------------------------


def test_every_option_of_the_language_model_reaches_the_search() -> None:
    assert list(searches(Evaluate(beam=9))) == ["greedy"]
    found = searches(
        Evaluate(type="fairseqlm", lexicon="/l", lmpath="/lm", beam=7, lmweight=1.5, wordscore=0.25,
                 silweight=-2.0)
    )  # fmt: skip
    assert list(found) == ["greedy", "LM"]
    lm, greedy = found["LM"], found["greedy"]
    assert (lm.type, lm.lexicon, lm.lmpath, lm.beam) == ("fairseqlm", "/l", "/lm", 7)
    assert (lm.lmweight, lm.wordscore, lm.silweight) == (1.5, 0.25, -2.0)
    assert (greedy.type, greedy.lmpath) == ("viterbi", None)


def test_speech_winners_are_decoded_on_all_subsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech, text = chosen(10.0, root=tmp_path, speech=True), chosen(10.0, root=tmp_path)
    asked: list[Any] = []

    def score_subsets(options: Any) -> list[SubsetScore]:
        asked.append(options)
        rate = {"viterbi": 20.126, "kenlm": 10.5}[options.decoding.type]
        known = {"dev": {"wer": rate}, "test": {}}
        return [subset_score(s, known.get(s, {})) for s in options.subsets()]

    monkeypatch.setattr(ctc_decoding, "score_subsets", score_subsets)
    for name in ("lm", "lexicon"):
        (tmp_path / name).touch()
    evaluate = Evaluate(
        subsets=["dev", "test"], lmpath=str(tmp_path / "lm"), lexicon=str(tmp_path / "lexicon")
    )
    kept: list[Any] = []
    choices = {"ctc": speech, "cola": text}
    room: Any = None

    def use(choices: Any, **of: Any) -> dict[str, Path]:
        record: Any = lambda task, scores: kept.append((task, scores))  # noqa: E731
        return winners.use_winners(SweepDefinition(test_files=False, **of), choices, tmp_path, room, record)

    paths = use(choices, evaluate=evaluate)
    assert set(paths) == {"decoding.csv", "decoding.md"}
    assert [o.decoding.type for o in asked] == ["viterbi", "kenlm"]
    for options, name in zip(asked, ("greedy", "LM"), strict=True):
        assert list(options.subsets()) == ["dev", "test"]
        assert options.common_eval.path == str(speech.record.model_folder)
        assert options.common_eval.results_path == str(tmp_path / "decoding/ctc" / name)
        assert options.platform.num_workers == 0
        recipe = speech.record.stored.trial.recipe
        assert (options.task.data, options.task.labels) == (recipe.task.data, recipe.task.labels)
    assert [task for task, _ in kept] == ["ctc", "ctc"] and kept[0][1][0].value == 20.126
    with paths["decoding.csv"].open() as file:
        (row,) = csv.DictReader(file)
    assert row == {
        "task": "ctc", "trial": speech.record.stored.name, "lr": "1e-05", "dev greedy": "20.13",
        "test greedy": "", "dev LM": "10.5", "test LM": "",
    }  # fmt: skip
    told = paths["decoding.md"].read_text().splitlines()
    assert told[2] == "| task | trial | lr | dev greedy | test greedy | dev LM | test LM |"
    assert told[4] == f"| ctc | {speech.record.stored.name} | 1e-05 | 20.13 | - | 10.5 | - |"

    asked.clear()
    use({"ctc": speech})
    (options,) = asked
    assert list(options.subsets()) == speech.record.stored.trial.recipe.valid_subsets()
    assert use({"cola": text}, evaluate=evaluate) == {} and len(asked) == 1
