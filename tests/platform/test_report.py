"""``d2v report``: what the page, the drawings and the tables hold, against the points that were logged."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from d2v_platform.cli import app
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.sweep_definition import Select, Trial
from d2v_platform.reports.report import write_report
from d2v_platform.reports.run_history import find_run, read_curves
from d2v_platform.sweeps.results import Record, StoredTrial, TrialResult
from d2v_platform.sweeps.selection import grid_points
from d2v_platform.sweeps.table import result_table, trials_csv
from d2v_platform.tracking.tracker import MetricPoint, NewRun, Tracker
from data2vec.errors import Data2VecError

SVG = "{http://www.w3.org/2000/svg}"
UPDATES = list(range(10, 110, 10))
CURVES: dict[str, list[float]] = {
    "train/loss": [9.0 - 0.5 * i + 0.1 * (i % 3) for i in range(10)],
    "train/target_var": [0.5 + 0.01 * i for i in range(10)],
    "train/pred_var": [0.05 * i for i in range(10)],
    "train/lr": [1e-4 * min(i, 5) for i in range(10)],
    "train/ema_decay": [0.99 + 0.001 * i for i in range(10)],
    "train/gnorm": [3.0 + i for i in range(10)],
    "train/epoch": [0.1 * i for i in range(10)],
    "train/masked_pct": [0.48] * 10,
    "speed/tokens_per_s": [1000.0 + 10 * i for i in range(10)],
    "speed/memory_gb": [2.0] * 10,
    "valid/loss": [8.0 - 0.4 * i for i in range(10)],
    "valid/best_loss": [8.0 - 0.4 * i for i in range(10)],
}
PARAMS = {"model": {"min_target_var": 0.1, "min_pred_var": 0.01}, "optimization": {"max_update": 100}}


def drawings(page: str) -> dict[str, ElementTree.Element]:
    """Panel name -> its SVG."""
    found = re.findall(r'<figure id="panel-([^"]+)">(<svg.*?</svg>)\s*</figure>', page, re.DOTALL)
    return {name: ElementTree.fromstring(text) for name, text in found}


def drawn_line(drawing: ElementTree.Element, identity: str) -> np.ndarray:
    """Vertices of a line, (N, 2), in the drawing's units: y grows downwards."""
    group = drawing.find(f".//{SVG}g[@id='{identity}']")
    assert group is not None, identity
    path = group.find(f"{SVG}path")
    assert path is not None
    return np.array([[float(n) for n in p.split()] for p in re.split("[ML]", path.attrib["d"])[1:]])


def drawn_dots(drawing: ElementTree.Element, identity: str) -> np.ndarray:
    """Places of the dots of a row, (N, 2)."""
    group = drawing.find(f".//{SVG}g[@id='{identity}']")
    assert group is not None, identity
    return np.array([[float(u.attrib["x"]), float(u.attrib["y"])] for u in group.iter(f"{SVG}use")])


def is_linear(drawn: np.ndarray, logged: Any, direction: int) -> bool:
    """Whether places on paper are a linear function of what was logged, in that direction."""
    logged = np.asarray(logged, dtype=np.float64)
    slope, offset = np.polyfit(logged, drawn, 1)
    return np.sign(slope) == direction and np.allclose(slope * logged + offset, drawn, atol=1e-3)


def words_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL))


def log_run(tracker: Tracker, name: str, scale: float = 1.0, **more: Any) -> str:
    tags = {"d2v.recipe": "v2/base", "d2v.recipe_difference": '{"optimization.lr": [[1e-4], ["<b>"]]}'}
    key = more.pop("resume_key", name)
    run = tracker.open_run(
        NewRun(experiment="e", name=name, params=PARAMS, tags=tags, resume_key=key, **more)
    )
    points = [
        MetricPoint(key, update, value * scale, 1_700_000_000_000 + update)
        for key, values in CURVES.items()
        for update, value in zip(UPDATES, values, strict=True)
    ]
    tracker.log(run.run_id, points)
    tracker.finish(run.run_id)
    return run.run_id


def test_a_runs_report_draws_every_point_and_is_one_file(tracker: Tracker, tmp_path: Path) -> None:
    run_id = log_run(tracker, "text-1")
    report = write_report(["text-1"], out=tmp_path / "r")
    assert report.run_id == run_id
    page = report.html.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe)\b|(?:src|href)=\"(?!#)|@import|url\((?!#)", page)
    panels = drawings(page)
    assert list(panels) == ["loss", "variance", "lr", "ema", "throughput", "memory", "gnorm",
                            "train-masked_pct"]  # fmt: skip
    where = {
        "train/loss": "loss",
        "valid/loss": "loss",
        "train/target_var": "variance",
        "train/pred_var": "variance",
        "train/lr": "lr",
        "train/ema_decay": "ema",
        "speed/tokens_per_s": "throughput",
    }
    for key, panel in where.items():
        line = drawn_line(panels[panel], f"{panel}:{key}")
        assert is_linear(line[:, 0], UPDATES, +1) and is_linear(line[:, 1], CURVES[key], -1), key
    # The gradient norm is drawn on a logarithmic scale.
    norm = drawn_line(panels["gnorm"], "gnorm:train/gnorm")
    assert is_linear(norm[:, 1], np.log(CURVES["train/gnorm"]), -1)
    variance = " ".join(panels["variance"].itertext())
    assert "model.min_target_var 0.1" in variance and "model.min_pred_var 0.01" in variance
    words = words_of(page)
    for said in ("FINISHED", run_id, "100 of 100", "9 → 4.5", "best loss on valid 4.4", "1,045", "&lt;b&gt;"):
        assert said in words, said
    assert "<b>" not in page
    assert report.png is not None and report.png.read_bytes().startswith(b"\x89PNG\r\n")


def test_all_points_are_in_the_table_unrounded(tracker: Tracker, tmp_path: Path) -> None:
    run_id = log_run(tracker, "text-1", scale=1 / 3)
    report = write_report([run_id], out=tmp_path)
    with report.tables[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(CURVES) * len(UPDATES)
    for key, values in CURVES.items():
        assert [float(r["value"]) for r in rows if r["metric"] == key] == [v * (1 / 3) for v in values]
    (again,) = read_curves(report.tables[0])
    assert again.name == "text-1" and list(again.curves["train/loss"].updates) == UPDATES


def test_other_runs_and_earlier_tables_are_laid_over(tracker: Tracker, tmp_path: Path) -> None:
    log_run(tracker, "first")
    log_run(tracker, "second", scale=0.5)
    earlier = write_report(["first"], out=tmp_path / "a").tables[0]
    page = write_report(["second", "first"], out=tmp_path / "b", curves=[earlier]).html.read_text()
    loss = drawings(page)["loss"]
    whole = [drawn_line(loss, f"loss:train/loss_{name}") for name in ("second", "first_1_", "first_2_")]
    np.testing.assert_array_equal(whole[1], whole[2])
    assert (whole[0][:, 1] > whole[1][:, 1]).all()  # half the loss lies lower on paper
    broken = tmp_path / "broken.csv"
    broken.write_text(earlier.read_text() + "first,train/loss,soon,1,1\n")
    with pytest.raises(Data2VecError, match=r"broken\.csv: line 122 is not a point"):
        write_report(["first"], curves=[broken])


def test_trials_of_one_name_are_told_apart_by_their_sweeps(tracker: Tracker, tmp_path: Path) -> None:
    for name in ("a/lr=1", "b/lr=1"):
        log_run(tracker, "lr=1", resume_key=name)
    report = write_report(["a/lr=1", "b/lr=1"], out=tmp_path)
    assert [history.name for history in read_curves(report.tables[0])] == ["a/lr=1", "b/lr=1"]
    drawn_line(drawings(report.html.read_text())["loss"], "loss:train/loss_b/lr=1")


def test_only_the_curves_asked_for_are_drawn(tracker: Tracker, tmp_path: Path) -> None:
    log_run(tracker, "text-1")
    page = write_report(["text-1"], out=tmp_path, only=["lr", "loss"]).html.read_text()
    assert list(drawings(page)) == ["lr", "loss"]
    with pytest.raises(Data2VecError, match="--only = los, var: no such curves; there are loss, variance"):
        write_report(["text-1"], out=tmp_path, only=["los", "loss", "var"])


def test_names_that_are_not_there_are_answered_with_those_that_are(tracker: Tracker) -> None:
    with pytest.raises(Data2VecError, match="MLflow holds none"):
        write_report(["text-1"])
    log_run(tracker, "text-1")
    with pytest.raises(Data2VecError, match="did you mean 'text-1'"):
        write_report(["texd-1"])
    with pytest.raises(Data2VecError, match="--experiment 'f' does not exist"):
        write_report(["text-1"], experiment="f")
    with pytest.raises(Data2VecError, match="no run or sweep"):
        write_report(["a' OR '1' = '1"])


def test_the_command_writes_under_the_home_and_prints_where(tracker: Tracker, mlflow_home: Path) -> None:
    log_run(tracker, "text 1")
    result = CliRunner().invoke(app, ["report", "text 1"])
    assert result.exit_code == 0, result.output
    folder = mlflow_home / "reports" / "text_1"
    expected = [folder / name for name in ("report.html", "report.png", "curves.csv")]
    assert [Path(line) for line in result.output.split("\n") if line] == expected
    assert all(path.stat().st_size > 500 for path in expected)


# ---- sweeps ---------------------------------------------------------------------------------------------

SCORES = {1e-5: {1: [1.0, 4.0], 2: [2.0, 6.0], 3: [0.0, 5.0]}, 4e-5: {1: [8.0, 7.0], 2: [9.0, 3.0], 3: []}}


@pytest.fixture
def sweep(tracker: Tracker) -> Callable[..., Any]:
    """Logs a sweep as its driver and its trials do: runs, then the tables that the sweep's code writes."""

    def make(ended: bool, cpu_minutes: bool = False) -> str:
        composed = compose("v2/text_finetuning/cola", ["task.data=/x", "model.model_path=/m"])
        parent = tracker.open_run(
            NewRun(
                experiment="e",
                name="first",
                params={"sweep": {"select": {"metric": None, "within_run": "best"}}},
                tags={"d2v.sweep_name": "first", "protocol": "value of a run: its best validation\n3 seeds"},
                resume_key="first",
            )
        ).run_id
        records = []
        for lr, runs in SCORES.items():
            for seed, values in runs.items():
                recipe = replace(
                    composed.recipe,
                    optimization=replace(composed.recipe.optimization, lr=[lr]),
                    common=replace(composed.recipe.common, seed=seed),
                )
                name = f"cola_lr={lr:g}_seed={seed}"
                grid = {"task": "cola", "lr": lr, "seed": seed}
                status: Any = "finished" if values else "failed"
                tags = {"task": "cola", "lr": f"{lr:g}", "seed": str(seed), "status": status}
                child = tracker.open_run(NewRun(
                    experiment="e", name=name, params=recipe.to_dict(), resume_key=f"first/{name}",
                    tags=tags | {f"grid.{key}": str(value) for key, value in grid.items()},
                    parent_run_id=parent,
                )).run_id  # fmt: skip
                curve = {100 * (i + 1): {"valid/mcc": value} for i, value in enumerate(values)}
                points = [
                    MetricPoint("valid/mcc", u, m["valid/mcc"], 1_700_000_000_000) for u, m in curve.items()
                ]
                if cpu_minutes:  # the second seed takes twice as long as the first
                    points += [
                        MetricPoint("speed/cpu_minutes", u, seed * u / 100, 1_700_000_000_000) for u in curve
                    ]
                tracker.log(child, points)
                tracker.finish(child, "FINISHED" if values else "FAILED")
                trial = Trial(name=name, values=grid, overrides=(), named_recipe=composed.named_recipe,
                              recipe=recipe, base=composed.base)  # fmt: skip
                result = TrialResult(status=status, run_id=child, update=200, evaluations=curve,
                                     error=None if values else "lost <its> process")  # fmt: skip
                records.append(Record(stored=StoredTrial(trial=trial), folder=Path(name), result=result))
        if ended:
            points = grid_points(records, {r.stored.name: ("mcc", True) for r in records}, Select())
            table = result_table(points, records, {"cola": 0.0}, [])
            for name, text in (
                ("trials.csv", trials_csv(records, points)),
                ("summary.csv", table.summary_csv()),
            ):
                tracker.log_text(parent, text, name)
            tracker.finish(parent)
        else:
            tracker.flush(parent)
        return parent

    return make


def table_rows(page: str) -> list[list[str]]:
    table = re.search(r'<table id="results">.*?</table>', page, re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table.group(), re.DOTALL)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_a_sweeps_report_has_its_table_and_every_seed_over_the_rate(
    sweep: Callable[..., str], tmp_path: Path
) -> None:
    parent = sweep(ended=True)
    report = write_report(["first"], out=tmp_path)
    page = report.html.read_text()
    assert report.run_id == parent
    assert table_rows(page) == [
        ["task", "setting", "metric", "floor", "seed 1", "seed 2", "seed 3", "median", "min", "max", ""],
        ["cola", "lr 1e-05", "mcc", "0.00", "4.00", "6.00", "5.00", "5.00", "4.00", "6.00", ""],
        ["cola", "lr 4e-05", "mcc", "0.00", "8.00", "9.00", "failed", "8.50", "8.00", "9.00", "best"],
    ]
    panels = drawings(page)
    assert list(panels) == ["cola-lr", "cola-validations"]
    over_lr = panels["cola-lr"]
    medians = drawn_line(over_lr, "cola-lr:cola_median")
    one = drawn_dots(over_lr, "cola-lr:cola_seed_1")
    two = drawn_dots(over_lr, "cola-lr:cola_seed_2")
    three = drawn_dots(over_lr, "cola-lr:cola_seed_3")
    assert [len(d) for d in (medians, one, two, three)] == [2, 2, 2, 1]  # the failed run has no dot
    np.testing.assert_allclose(one[:, 0], medians[:, 0], atol=1e-3)
    heights = np.concatenate([one[:, 1], two[:, 1], three[:, 1], medians[:, 1]])
    assert is_linear(heights, [4, 8, 6, 9, 5, 5, 8.5], -1)
    star = drawn_dots(over_lr, "cola-lr:cola_winner")
    np.testing.assert_allclose(star, medians[1:], atol=1e-3)
    curve = drawn_line(panels["cola-validations"], "cola-validations:cola_lr_4e-05_seed_2")
    assert len(curve) == 2 and curve[1, 1] > curve[0, 1]
    words = words_of(page)
    for said in ("lr 4e-05 wins, mcc median 8.50 (8.00 .. 9.00, 2 seeds)", "failed: lost &lt;its&gt; process",
                 "value of a run: its best validation"):  # fmt: skip
        assert said in words
    assert {path.name for path in report.tables} == {"trials.csv", "summary.csv", "validations.csv"}


@pytest.mark.parametrize("ended", [True, False])
def test_validations_of_a_sweep_over_cpu_time(sweep: Callable[..., str], tmp_path: Path, ended: bool) -> None:
    sweep(ended=ended, cpu_minutes=True)
    report = write_report(["first"], out=tmp_path, over="cpu")
    page = report.html.read_text()
    assert "CPU-minutes of training" in words_of(page)
    panel = drawings(page)["cola-validations"]
    places = [
        drawn_line(panel, f"cola-validations:cola_lr_{lr}_seed_{seed}")[:, 0]
        for lr, seed in (("1e-05", 1), ("1e-05", 2), ("1e-05", 3), ("4e-05", 2))
    ]
    assert is_linear(np.concatenate(places), [1, 2, 2, 4, 3, 6, 2, 4], 1)
    written = list(csv.DictReader((tmp_path / "validations.csv").open()))
    assert {row["update"] for row in written} == {"100", "200"}, "the table keeps the updates"


def test_a_sweep_without_cpu_time_is_not_drawn_over_it(sweep: Callable[..., str], tmp_path: Path) -> None:
    sweep(ended=True)
    with pytest.raises(Data2VecError, match="--over cpu: lr 1e-05 seed 1 has no speed/cpu_minutes"):
        write_report(["first"], out=tmp_path, over="cpu")


def test_a_sweep_that_has_not_ended_is_shown_as_far_as_its_runs_are(
    sweep: Callable[..., str], tmp_path: Path
) -> None:
    sweep(ended=False)
    report = write_report(["first"], out=tmp_path)
    page = report.html.read_text()
    rows = table_rows(page)
    assert rows[1] == ["cola", "lr 1e-05", "mcc", "-", "4.00", "6.00", "5.00", "5.00", "4.00", "6.00", ""]
    assert rows[2][6:] == ["failed", "8.50", "8.00", "9.00", ""]
    assert "its 6 trials so far" in words_of(page)
    with pytest.raises(Data2VecError, match="is a sweep"):
        write_report(["first", "first/cola_lr=1e-05_seed=1"])
    with pytest.raises(Data2VecError, match="is a sweep"):
        write_report(["first"], curves=[tmp_path / "validations.csv"])
    trial = write_report(["first/cola_lr=1e-05_seed=1"], out=tmp_path / "trial")
    assert "panel-valid-mcc" in trial.html.read_text()


def test_an_interrupted_trial_shows_its_value_so_far_and_does_not_count(
    sweep: Callable[..., str], tracker: Tracker, tmp_path: Path
) -> None:
    sweep(ended=False)
    trial = find_run(tracker.client, "first/cola_lr=1e-05_seed=2")
    tracker.client.set_tag(trial.info.run_id, "status", "interrupted")
    page = write_report(["first"], out=tmp_path).html.read_text()
    assert table_rows(page)[1][4:10] == ["4.00", "6.00 (interrupted)", "5.00", "4.50", "4.00", "5.00"]
    over_lr = drawings(page)["cola-lr"]
    assert len(drawn_dots(over_lr, "cola-lr:cola_seed_1")) == 2
    assert len(drawn_dots(over_lr, "cola-lr:cola_seed_2")) == 1
