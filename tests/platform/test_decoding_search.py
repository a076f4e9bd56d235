"""Tuning a decoder, without Ray and without a decoder: the searcher, patience, what is kept and shown."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from d2v_platform.sweeps import decoding_search
from d2v_platform.sweeps.decoding_search import WeightTrial, best_trial, read_trials, run_search, write_table
from d2v_platform.sweeps.decoding_sweep import SearchOptions
from d2v_platform.sweeps.improvement import ExpectedImprovement, next_point, spread_points

BOUNDS = {"lmweight": (0.0, 5.0), "wordscore": (-5.0, 5.0)}


def trial(number: int, wer: float, **more: Any) -> WeightTrial:
    plain = {"lmweight": 1.5, "wordscore": -2.0, "silweight": 0.25, "errors": 3, "words": 40, "seconds": 0.5}
    return WeightTrial(number=number, wer=wer, **{**plain, **more})


def tuning(root: Path, **search: Any) -> Any:
    """A sweep as the search sees it."""
    decoding = SimpleNamespace(type="kenlm", beam=7)
    return SimpleNamespace(
        root=root,
        search=SearchOptions(**search),
        infer=SimpleNamespace(decoding=decoding),
        job=SimpleNamespace(subset="dev"),
        model="models:/m/1",
        overrides=("task.data=/x", "decoding.lmweight=9", "decoding.beam=7"),
    )


# ---- what is kept and shown -------------------------------------------------------------------------------


def test_the_lowest_rate_is_best_and_of_equal_ones_the_earliest() -> None:
    trials = [trial(4, 20.0), trial(3, 10.0), trial(1, 10.0), trial(0, 30.0)]
    assert best_trial(trials).number == 1
    assert trials[0].values == {"lmweight": 1.5, "wordscore": -2.0, "silweight": 0.25}


def test_the_table_is_ordered_and_says_how_to_decode(tmp_path: Path) -> None:
    trials = [trial(n, 50.0 - n, errors=100 + n) for n in range(20)]
    trials[5] = trial(5, 12.375, lmweight=0.5, wordscore=1.25, silweight=-0.75, errors=77)
    lines = write_table(tuning(tmp_path), trials)
    assert lines[0] == "20 trials on dev, 40 words, kenlm, beam 7"
    rows = [line for line in lines if line.startswith("| ") and "trial" not in line]
    assert len(rows) == 15  # the best ones
    assert rows[0] == "| 5 | 0.5 | 1.25 | -0.75 | 12.38 | 77 |"
    assert rows[1].startswith("| 19 | 1.5 | -2 | 0.25 | 31.00 | 119 |")
    assert any(
        line.startswith("best: WER 12.38 %") and "on dev, the subset tuned on" in line for line in lines
    )
    (command,) = [line for line in lines if line.startswith("python experiments/infer.py")]
    assert command.split()[2:] == [
        "task.data=/x", "decoding.beam=7", "decoding.lmweight=0.5", "decoding.wordscore=1.25",
        "decoding.silweight=-0.75",
    ]  # fmt: skip
    (command,) = [line for line in lines if line.startswith("d2v transcribe RECORDINGS --model ")]
    assert command.split()[5:] == [
        "decoding.beam=7", "decoding.lmweight=0.5", "decoding.wordscore=1.25", "decoding.silweight=-0.75",
    ]  # fmt: skip
    assert (tmp_path / "results.md").read_text() == "\n".join(lines) + "\n"
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["number"], best["wer"], best["errors"]) == (5, 12.375, 77)
    with (tmp_path / "trials.csv").open() as file:
        kept = list(csv.DictReader(file))
    assert [int(row["number"]) for row in kept] == [5, *range(19, 5, -1), 4, 3, 2, 1, 0]
    assert lines[-1].endswith("trials.csv")


def stored(root: Path, *trials: WeightTrial) -> None:
    text = "".join(json.dumps(one.__dict__) + "\n" for one in trials)
    (root / "trials.jsonl").write_text(text + '{"number": 9, "lmw')


@pytest.mark.parametrize(
    ("rates", "search", "runs"),
    [
        ([9.0, 8.0], {"trials": 3}, True),
        ([9.0, 8.0, 7.0], {"trials": 3}, False),
        ([9.0, 8.0, 7.0, 6.0], {"trials": 3}, False),  # more than are wanted now
        ([9.0, 9.0, 9.0], {"trials": 9, "patience": 2}, False),
        ([9.0, 9.0, 9.0], {"trials": 9, "patience": 3}, True),
        ([9.0, 9.0, 9.0, 9.0], {"trials": 9, "patience": 3}, False),
        ([9.0, 9.0, 8.0, 8.0], {"trials": 9, "patience": 2}, True),  # an improvement starts it anew
        ([9.0, 9.0, 8.0, 8.5, 8.5], {"trials": 9, "patience": 2}, False),
        ([9.0] * 8, {"trials": 9, "patience": 0}, True),  # 0: never
        ([9.0, 8.5, 8.0], {"trials": 9, "patience": 2, "epsilon": 0.5}, False),  # too small, each of them
        ([9.0, 8.25, 7.5], {"trials": 9, "patience": 2, "epsilon": 0.5}, True),
    ],
)
def test_a_search_runs_what_is_missing_unless_patience_is_spent(
    rates: list[float],
    search: dict[str, Any],
    runs: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    before = [trial(n, wer) for n, wer in enumerate(rates)]
    stored(tmp_path, *before)
    asked: list[Any] = []

    def run(sweep: Any, emissions: Path, known: list[WeightTrial]) -> None:
        asked.append((emissions, known))
        with (tmp_path / "trials.jsonl").open("a") as file:
            file.write(json.dumps(trial(8, 1.0).__dict__) + "\n")

    monkeypatch.setattr(decoding_search, "_run", run)
    best = run_search(tuning(tmp_path, **search), Path("/emissions"))
    assert asked == ([(Path("/emissions"), before)] if runs else [])
    # the half line is gone, so the next one stands alone
    assert read_trials(tmp_path) == [*before, *([trial(8, 1.0)] if runs else [])]
    assert best.wer == (1.0 if runs else min(rates))
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == len(rates) + runs
    assert ("nothing is left to run" in caplog.text) == (not runs)
    assert f"best: WER {best.wer:.2f} %" in caplog.text


def test_each_result_is_kept_at_once_and_patience_stops_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    known = [trial(0, 9.0)]
    tune = SimpleNamespace(Callback=object, Stopper=object)
    watch = decoding_search._watch(tune, tuning(tmp_path, trials=6, patience=2), known)
    result = {
        "number": 1, "lmweight": 0.125, "wordscore": 2.5, "silweight": -4.0, "wer": 7.0, "errors": 5,
        "words": 60, "trial_s": 0.75,
    }  # fmt: skip
    watch.on_trial_result(1, [], None, {"done": True})  # no result: Ray's own last word
    assert not (tmp_path / "trials.jsonl").exists()
    watch.on_trial_result(1, [], None, result)
    (kept,) = read_trials(tmp_path)
    assert kept == WeightTrial(
        number=1, lmweight=0.125, wordscore=2.5, silweight=-4.0, wer=7.0, errors=5, words=60, seconds=0.75
    )
    line = caplog.messages[-1]
    assert line.startswith(
        "trial 2/6  lmweight 0.125  wordscore 2.500  silweight -4.000  WER 7.00  best 7.00"
    )
    watch.on_trial_result(2, [], None, result | {"number": 2, "wer": 8.0})
    assert "WER 8.00  best 7.00" in caplog.messages[-1]
    assert not watch.stopper.stop_all()
    watch.on_trial_result(3, [], None, result | {"number": 3, "wer": 7.0})
    assert watch.stopper.stop_all() and not watch.stopper("any", result)
    assert caplog.messages[-1] == "no improvement in 2 trials (search.patience)"
    assert [one.number for one in read_trials(tmp_path)] == [1, 2, 3]


def test_a_part_of_the_utterances_is_the_same_in_every_trial() -> None:
    store: Any = SimpleNamespace(utterances=list(range(50)))
    chosen = decoding_search._chosen
    some = chosen(store, 10, 3)
    assert len(set(some)) == 10 and some == sorted(some)  # type: ignore[type-var]
    assert some == chosen(store, 10, 3) != chosen(store, 10, 4)
    for everything in (None, 50, 51):
        assert chosen(store, everything, 3) == store.utterances
    assert len(chosen(store, 49, 3)) == 49


def test_bounds_without_room_are_fixed_values() -> None:
    search = SearchOptions(lmweight=[2.0, 2.0], wordscore=[-1.0, 1.0], silweight=[0.0, 0.0])
    assert search.bounds() == {"wordscore": (-1.0, 1.0)}
    assert search.fixed() == {"lmweight": 2.0, "silweight": 0.0}
    assert search.problems() == []
    wrong = SearchOptions(trials=0, patience=-1, epsilon=-0.1, seed=-1, utterances=0,
                          lmweight=[2.0, 1.0], wordscore=[1.0])  # fmt: skip
    assert [p.field.removeprefix("search.") for p in wrong.problems()] == [
        "trials", "patience", "epsilon", "seed", "utterances", "lmweight", "wordscore",
    ]  # fmt: skip
    assert SearchOptions(trials=1, patience=0, epsilon=0, seed=0, utterances=1).problems() == []
    fixed = SearchOptions(lmweight=[1.0, 1.0], wordscore=[1.0, 1.0], silweight=[1.0, 1.0])
    assert [p.rule for p in fixed.problems()] == ["every value is fixed: there is nothing to search"]


# ---- the searcher -----------------------------------------------------------------------------------------


def hill(point: dict[str, float]) -> float:
    """Error rate that falls towards (4, 3)."""
    return (point["lmweight"] - 4) ** 2 + (point["wordscore"] - 3) ** 2


def test_spread_points_are_inside_and_rounded() -> None:
    points = spread_points(BOUNDS, 16, 4)
    assert len(points) == 16 and len({tuple(p.values()) for p in points}) == 16
    for name, (low, high) in BOUNDS.items():
        values = [point[name] for point in points]
        assert all(low <= v <= high and v == round(v, 3) for v in values)
        assert min(values) < low + (high - low) / 8 and max(values) > high - (high - low) / 8


def test_the_next_point_is_near_what_was_low_and_never_depends_on_chance() -> None:
    tried = [(point, hill(point)) for point in spread_points(BOUNDS, 12, 1)]
    for number in range(4):
        point = next_point(BOUNDS, tried, [], number)
        assert point == next_point(BOUNDS, tried, [], number)
        assert all(low <= point[n] <= high for n, (low, high) in BOUNDS.items())
        tried.append((point, hill(point)))
    assert min(value for _, value in tried[12:]) < 0.5 < min(value for _, value in tried[:12])
    same = [(point, 5.0) for point, _ in tried]  # no difference at all is no division by zero
    assert all(low <= next_point(BOUNDS, same, [], 1)[n] <= high for n, (low, high) in BOUNDS.items())


def test_hopeless_points_weigh_no_more_the_worse_they_are() -> None:
    points = spread_points(BOUNDS, 8, 1)
    good = [(point, hill(point)) for point in points[2:]]
    found = [next_point(BOUNDS, [(point, bad) for point in points[:2]] + good, [], 3) for bad in (500, 1e6)]
    assert found[0] == found[1] != next_point(BOUNDS, [(point, 20.0) for point in points[:2]] + good, [], 3)
    assert hill(found[0]) < 2, "the good ones are told apart"


def finish(search: ExpectedImprovement, name: str, wer: float | None, error: bool = False) -> None:
    search.on_trial_complete(name, None if wer is None else {"wer": wer}, error)


def test_the_searcher_spreads_first_then_improves_and_ends() -> None:
    search = ExpectedImprovement(BOUNDS, 8, 7)
    spread = spread_points(BOUNDS, 4, 7)  # a quarter of the trials, at least two a value
    first = [search.suggest(f"t{n}") for n in range(4)]
    assert first == [{"number": n, **point} for n, point in enumerate(spread)]
    assert search.suggest("t4") is None  # nothing has ended: wait, and this was no trial
    for number, point in enumerate(first):
        finish(search, f"t{number}", hill(point))
    assert [search.suggest(f"u{n}")["number"] for n in range(4)] == list(range(4, 8))
    assert search.suggest("w") == "FINISHED"

    lengths = {}
    for trials in (2, 3, 6, 40):
        search = ExpectedImprovement(BOUNDS, trials, 7)
        asked = [search.suggest(str(n)) for n in range(trials)]
        lengths[trials] = sum(isinstance(point, dict) for point in asked)
    assert lengths == {2: 2, 3: 3, 6: 4, 40: 10}


def test_only_results_are_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[Any], list[Any], int]] = []

    def spy(bounds: Any, tried: Any, running: Any, seed: int) -> dict[str, float]:
        seen.append((list(tried), list(running), seed))
        return {"lmweight": 1.0, "wordscore": float(len(seen))}

    monkeypatch.setattr("d2v_platform.sweeps.improvement.next_point", spy)
    search = ExpectedImprovement(BOUNDS, 9, 2)
    points = [search.suggest(f"t{n}") for n in range(4)]
    finish(search, "t0", 5.0)
    finish(search, "t1", float("nan"))
    finish(search, "t2", None)
    finish(search, "unknown", 1.0)
    search.suggest("u")
    plain = [{name: point[name] for name in BOUNDS} for point in points]
    tried, running, seed = seen[0]
    assert tried == [(plain[0], 5.0)]  # a trial that gave nothing teaches nothing
    assert running == [plain[3]]
    finish(search, "t3", 6.0, error=True)
    search.suggest("v")
    assert seen[1][0] == tried and seen[1][1] == [{"lmweight": 1.0, "wordscore": 1.0}]
    assert seen[1][2] == seed + 1  # other candidates in each trial


def test_points_of_an_earlier_launch_count_and_are_not_asked_again() -> None:
    spread = spread_points(BOUNDS, 4, 7)
    known = [(spread[0], 3.0), (spread[2], 4.0)]
    search = ExpectedImprovement(BOUNDS, 16, 7, known)
    assert search.suggest("a") == {"number": 2, **spread[1]}
    assert search.suggest("b") == {"number": 3, **spread[3]}
    assert search.suggest("c")["number"] == 4  # from what is known
    done = ExpectedImprovement(BOUNDS, 2, 7, known)
    assert done.suggest("a") == "FINISHED"
