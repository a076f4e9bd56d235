"""What a report says and draws of histories made by hand: figures, limits, scales, orders."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from d2v_platform.reports import drawing
from d2v_platform.reports.page import key_figures, run_page, sweep_page
from d2v_platform.reports.panels import Line, Panel, over_cpu, run_panels
from d2v_platform.reports.run_history import Curve, RunHistory, find_run, load_run
from d2v_platform.reports.sweep_history import (
    Setting,
    SweepHistory,
    TrialFacts,
    _covers,
    _group,
    load_sweep_history,
)
from d2v_platform.reports.sweep_panels import sweep_panels
from data2vec.errors import Data2VecError


def curve(*values: float, first: int = 10) -> Curve:
    updates = np.arange(len(values)) * 10 + first
    return Curve(updates, np.array(values), updates / 2.0)


def history(**curves: Curve) -> RunHistory:
    return RunHistory(name="a", curves={key.replace("__", "/"): found for key, found in curves.items()})


def test_figures_are_the_last_the_largest_and_the_median() -> None:
    found = history(
        train__loss=curve(9, 3, 5), valid__loss=curve(8.0), valid__best_wer=curve(30, 20),
        speed__memory_gb=curve(1, 7, 2), speed__s_per_update=curve(1, 2, 9),
        speed__words_per_s=curve(1, 5, 6000),
    )  # fmt: skip
    assert dict(key_figures(found)) == {  # type: ignore[arg-type]
        "updates": "30", "train/loss, first and last": "9 → 5", "valid/loss, first and last": "8 → 8",
        "best wer on valid": "20", "median speed/s_per_update": "2 s", "median speed/words_per_s": "5",
        "peak memory of worker 0": "7.00 GB",
    }  # fmt: skip
    limited = replace(found, params={"optimization.max_update": "50"}, tags={"d2v.bad_updates": "3"})
    said = dict(key_figures(limited))  # type: ignore[arg-type]
    assert said["updates"] == "30 of 50" and said["skipped updates (loss or gradient not finite)"] == "3"


def test_the_page_tells_length_state_and_what_is_missing() -> None:
    run = replace(history(), run_id="r", start_ms=1_000_000, end_ms=1_000_000 + 7_384_000, status="KILLED",
                  tags={"d2v.metrics_dropped": "12"})  # fmt: skip
    page = run_page([run], [], "http://u:secret@host")
    assert ", 2:03:04 h" in page and "secret" not in page
    assert "resumes it" in page and "are missing: 12" in page and "has not ended" not in page
    assert "has not ended" in run_page([replace(run, status="RUNNING")], [], "u")


def test_limits_and_scales_of_panels() -> None:
    params = {"model.min_target_var": "0.1", "model.min_pred_var": "0.01", "optimization.clip_norm": "0"}
    found = replace(
        history(train__target_var=curve(1, 2), train__pred_var=curve(1, 2), train__gnorm=curve(0, 3)),
        params=params,
    )
    variance, norm = run_panels([found])
    assert variance.limits == (
        ("least of targets: model.min_target_var 0.1", 0.1),
        ("least of predictions: model.min_pred_var 0.01", 0.01),
    )  # fmt: skip
    assert norm.limits == () and not norm.log_y, "0 does not clip, and has no logarithm"
    clipped = replace(history(train__gnorm=curve(1, 3)), params={"optimization.clip_norm": "4"})
    (norm,) = run_panels([clipped])
    assert norm.log_y and norm.limits[0][1] == 4.0
    assert [line.markers for line in norm.lines] == [True]
    assert not Line(key="", label="", x=np.arange(41), y=np.arange(41)).markers


def test_metrics_of_unlike_scale_have_axes_of_their_own() -> None:
    found = history(
        speed__tokens_per_s=curve(5000, 6000, 7000), speed__sentences_per_s=curve(50, 60, 70),
        speed__words_per_s=curve(1, 400, 500), train__loss=curve(9, 8, float("nan")), valid__loss=curve(0, 0),
    )  # fmt: skip
    panels = {panel.name: [line.key for line in panel.lines] for panel in run_panels([found])}
    assert panels == {
        "loss": ["train/loss", "valid/loss"],
        "throughput": ["speed/sentences_per_s", "speed/words_per_s"],  # the first decides, by its median
        "throughput-2": ["speed/tokens_per_s"],
    }


def test_curves_over_cpu_time_stand_where_each_run_had_used_it() -> None:
    fast = history(train__loss=curve(9, 5), speed__cpu_minutes=curve(1, 2))
    slow = replace(history(train__loss=curve(9, 5, 4), speed__cpu_minutes=curve(4, first=20)), name="b")
    (panel,) = over_cpu([fast, slow])
    assert panel.x_label == "CPU-minutes of training"
    assert [line.x.tolist() for line in panel.lines] == [[1.0, 2.0], [2.0, 4.0, 4.0]]
    with pytest.raises(Data2VecError, match="--over cpu: a has no speed/cpu_minutes"):
        over_cpu([history(train__loss=curve(9, 5))])


def test_two_runs_show_both_recipes_differences_first() -> None:
    one = replace(
        history(train__loss=curve(9, 5)), name="a", run_id="1",
        params={"model.depth": "2", "common.seed": "1", "platform.run_name": "a"},
        tags={"d2v.recipe": "v2/x", "d2v.recipe_difference": '{"common.seed": [0, 1]}'},
    )  # fmt: skip
    two = replace(
        one, name="b", run_id="2", params={"model.depth": "4", "common.seed": "1", "model.<b>": "x"},
        tags={"d2v.recipe": "v2/y", "d2v.recipe_difference": '{"model.depth": [2, 4]}'},
    )  # fmt: skip
    page = run_page([one, two], [], "u")
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads[:4] == [
        "Recipes: 2 differences",
        "Figures",
        "Recipe v2/x of a, changed",
        "Recipe v2/y of b, changed",
    ]
    first = re.findall(r"<tr>(.*?)</tr>", page)[:3]
    cells = [re.findall(r"<t[dh]>(?:<code>)?(.*?)(?:</code>)?</t[dh]>", row) for row in first]
    assert cells == [
        ["key", "a (v2/x)", "b (v2/y)"],
        ["model.&lt;b&gt;", "-", "x"],
        ["model.depth", "2", "4"],
    ]
    assert re.findall(r"<h2>(.*?)</h2>", run_page([one, history()], [], "u"))[0] == "Figures"
    assert "no difference" in run_page([one, replace(one, name="b", run_id="2")], [], "u")


def test_points_are_in_the_order_of_updates_and_seconds_count_from_the_start() -> None:
    points = [(20, 5.0, 3_000), (10, 7.0, 4_000), (20, 6.0, 2_500), (30, 8.0, 3_500)]
    info = SimpleNamespace(run_id="r", run_name="a", experiment_id="1", status="FINISHED", start_time=1_000,
                           end_time=9_000)  # fmt: skip
    run: Any = SimpleNamespace(info=info, data=SimpleNamespace(metrics={"m": 8.0}, params={}, tags={}))
    client: Any = SimpleNamespace(
        get_metric_history=lambda _, key: [
            SimpleNamespace(step=s, value=v, timestamp=t) for s, v, t in points
        ],
        get_experiment=lambda _: SimpleNamespace(name="e"),
    )
    found = load_run(client, run, ["m", "absent"]).curves
    assert list(found) == ["m"] and found["m"].updates.tolist() == [10, 20, 20, 30]
    assert found["m"].values.tolist() == [7.0, 6.0, 5.0, 8.0]
    assert found["m"].seconds.tolist() == [3.0, 1.5, 2.0, 2.5]


def test_of_runs_with_one_name_the_newest_is_meant(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    runs = [SimpleNamespace(info=SimpleNamespace(run_id=f"{n}", start_time=n)) for n in (3, 9, 5)]
    client: Any = SimpleNamespace(
        search_experiments=lambda: [SimpleNamespace(name="e", experiment_id="1")],
        search_runs=lambda places, text, **_: runs[:2] if "run_name" in text else runs[2:],
    )
    assert find_run(client, "twice").info.run_id == "9"
    assert "3 runs are called 'twice'" in caplog.text and "others by id: 5, 3)" in caplog.text


# ---- sweeps ---------------------------------------------------------------------------------------------


def trial(lr: float, seed: int, value: float | None, status: str = "finished", **more: Any) -> TrialFacts:
    return TrialFacts(task="t", setting=(("lr", f"{lr:g}"),), seed=seed, status=status, metric="wer",
                      value=value, run_id="", **more)  # fmt: skip


def swept(*trials: TrialFacts) -> SweepHistory:
    by_lr = {one.lr: [other for other in trials if other.lr == one.lr] for one in trials}
    settings = [Setting(task="t", setting=found[0].setting, trials=tuple(found)) for found in by_lr.values()]
    return SweepHistory(run=history(), settings=tuple(settings), protocol=(), complete=True)


def test_only_trials_that_ended_by_themselves_count() -> None:
    sweep = swept(trial(1e-4, 1, 30.0), trial(1e-4, 2, 20.0, "stopped"), trial(1e-4, 3, 5.0, "diverged"),
                  trial(1e-4, 4, 4.0, "interrupted"), trial(1e-4, 5, None, "diverged"))  # fmt: skip
    (setting,) = sweep.settings
    assert setting.values == [30.0, 20.0] and setting.median == 25.0
    (panel,) = sweep_panels(sweep)
    assert [(line.label, line.y.tolist()) for line in panel.lines] == [
        ("median over seeds", [25.0]), ("seed 1", [30.0]), ("seed 2", [20.0]),
    ]  # fmt: skip
    page = sweep_page(sweep, [], "u")
    assert re.search(r'<td class="bad">\s*diverged', page), "what went wrong is marked"
    assert "20.00 (stopped)" in page and "4.00 (interrupted)" in page


def test_one_rate_alone_is_drawn_on_a_plain_axis() -> None:
    one, two = (
        sweep_panels(swept(trial(1e-4, 1, 3.0))),
        sweep_panels(swept(trial(1e-4, 1, 3.0), trial(4e-4, 1, 2.0))),
    )
    assert (one[0].log_x, two[0].log_x) == (False, True)
    assert not sweep_panels(swept(trial(0.0, 1, 3.0), trial(1e-4, 1, 3.0)))[0].log_x, "0 has no logarithm"
    assert two[0].x_ticks == (1e-4, 4e-4)


def test_one_number_swept_at_one_rate_is_the_axis() -> None:
    def clones(count: int, value: float, **more: str) -> TrialFacts:
        setting = (("lr", "0.001"), ("model.clone_batch", str(count)), *more.items())
        return TrialFacts(task="t", setting=setting, seed=1, status="finished", metric="knn", value=value,
                          run_id="")  # fmt: skip

    def panel(*trials: TrialFacts) -> Panel:
        settings = tuple(Setting(task="t", setting=one.setting, trials=(one,)) for one in trials)
        return sweep_panels(SweepHistory(run=history(), settings=settings, protocol=(), complete=True))[0]

    found = panel(clones(1, 20.0), clones(16, 30.0))
    assert (found.name, found.x_label) == ("t-clone_batch", "model.clone_batch")
    assert found.title == "t: knn over model.clone_batch" and found.log_x and found.x_ticks == (1.0, 16.0)
    (median, _) = found.lines
    assert median.x.tolist() == [1.0, 16.0] and median.y.tolist() == [20.0, 30.0]
    two = panel(clones(1, 20.0, other="a"), clones(16, 30.0, other="b"))
    assert two.x_label == "learning rate" and [line.label for line in two.lines[::2]] == [
        "median over seeds, clone_batch 1, other a", "median over seeds, clone_batch 16, other b",
    ]  # fmt: skip

    def named(name: str) -> TrialFacts:
        return TrialFacts(task="t", setting=(("lr", "1"), ("k", name)), seed=1, status="finished", metric="m",
                          value=1.0, run_id="")  # fmt: skip

    assert panel(named("x"), named("y")).x_label == "learning rate"


@pytest.mark.parametrize(
    ("maximize", "within", "metric", "wanted"),
    [("true", "best", "null", 9.0), ("false", "best", "null", 3.0), ("false", "last", "null", 5.0),
     ("true", "best", "train_loss", None)],
)  # fmt: skip
def test_a_sweep_without_tables_takes_the_value_of_a_run_by_its_own_rules(
    maximize: str, within: str, metric: str, wanted: float | None
) -> None:
    def run(name: str, params: dict[str, str], tags: dict[str, str]) -> Any:
        info = SimpleNamespace(run_id=name, run_name=name, experiment_id="1", status="RUNNING", start_time=0,
                               end_time=None)  # fmt: skip
        return SimpleNamespace(
            info=info, data=SimpleNamespace(params=params, tags=tags, metrics={"dev/wer": 5.0})
        )

    values = [7.0, 9.0, float("nan"), 3.0, 5.0]
    params = {"checkpoint.best_checkpoint_metric": "wer", "dataset.valid_subset": "dev, other",
              "checkpoint.maximize_best_checkpoint_metric": maximize}  # fmt: skip
    parent = run("sweep", {"sweep.select.metric": metric, "sweep.select.within_run": within}, {})
    child = run(
        "child", params, {"task": "t", "lr": "1e-4", "seed": "2", "grid.lr": "1e-4", "grid.model.x": "7"}
    )
    pages = {None: (["child"], "more"), "more": ([], None)}
    client: Any = SimpleNamespace(
        get_metric_history=lambda *_: [
            SimpleNamespace(step=i, value=v, timestamp=i) for i, v in enumerate(values)
        ],
        get_experiment=lambda _: SimpleNamespace(name="e"),
        list_artifacts=lambda _: [],
        search_runs=lambda *_, page_token=None, **__: Page(
            [child] * len(pages[page_token][0]), pages[page_token][1]
        ),
    )
    sweep = load_sweep_history(client, parent)
    (found,) = sweep.trials
    assert not sweep.complete and found.value == wanted
    assert (found.lr, found.seed, found.beside("lr"), found.status) == (1e-4, 2, "x 7", "running")


def test_settings_stand_in_the_order_of_their_numbers() -> None:
    def one(count: str) -> TrialFacts:
        return TrialFacts(task="t", setting=(("lr", "1"), ("m.c", count)), seed=1, status="finished",
                          metric="m", value=1.0, run_id="")  # fmt: skip

    order = [setting.setting[1][1] for setting in _group([one(c) for c in ("x", "16", "2", "1")], {})]
    assert order == ["1", "2", "16", "x"]


@pytest.mark.parametrize(("runs", "whole"), [("ab", True), ("a", True), ("abc", False), ("c", False)])
def test_tables_that_lack_a_trial_are_not_those_of_the_sweep(runs: str, whole: bool) -> None:
    tables = {"trials.csv": "task,run_id\nt,a\nt,b\n", "summary.csv": "task\n"}
    children: Any = dict.fromkeys(runs)
    assert _covers(tables, children) is whole
    assert not _covers({"trials.csv": tables["trials.csv"]}, children)


class Page(list[Any]):
    """Runs, and where the next ones are."""

    def __init__(self, runs: list[Any], token: str | None) -> None:
        super().__init__(runs)
        self.token = token


# ---- drawings -------------------------------------------------------------------------------------------


def drawn(lines: int) -> Any:
    """Axes with so many lines."""
    made = [
        Line(key=f"k{n}", label=f"line {n}", x=np.arange(3), y=np.arange(3) + n, colour=n)
        for n in range(lines)
    ]
    figure = Figure(layout="constrained")
    drawing._draw(figure.add_subplot(), Panel(name="p", title="t", x_label="update", lines=tuple(made)))
    figure.draw_without_rendering()
    return figure.axes[0]


def test_no_two_lines_look_alike_and_long_legends_hide_nothing() -> None:
    looks = [(line.get_color(), line.get_linestyle()) for line in drawn(20).lines]
    assert len(set(looks)) == 20
    for lines, beside in ((4, False), (5, True)):
        axes = drawn(lines)
        legend = axes.get_legend().get_window_extent()
        assert (legend.x0 >= axes.get_window_extent().x1) == beside, lines


def test_every_panel_is_in_the_picture(tmp_path: Path) -> None:
    panel = Panel(
        name="p",
        title="t",
        x_label="update",
        lines=(Line(key="k", label="l", x=np.arange(2), y=np.arange(2)),),
    )
    sizes = {}
    for count in (1, 2, 3):
        drawing.png([panel] * count, "all", tmp_path / "x.png")
        image = Image.open(tmp_path / "x.png").convert("L")
        sizes[count] = image.size
    assert sizes[2][0] > 1.9 * sizes[1][0] and sizes[2][1] == sizes[1][1]
    assert sizes[3][0] == sizes[2][0] and sizes[3][1] > 1.8 * sizes[1][1]
