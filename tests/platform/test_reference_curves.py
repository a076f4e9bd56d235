"""A run against the reference curves of its recipe: the rule point by point, words, files, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from d2v_platform.cli import app
from d2v_platform.recipe.locate import recipe_names
from d2v_platform.reports import reference
from d2v_platform.reports.reference import (
    Reference,
    find_reference,
    judge,
    read_reference,
    reference_root,
    write_reference,
)
from d2v_platform.reports.run_history import Curve, RunHistory
from d2v_platform.tracking.tracker import MetricPoint, NewRun, Tracker
from data2vec.errors import Data2VecError


def curve(**points: float) -> Curve:
    """``u10=3.0``: 3.0 at update 10."""
    updates = np.array([int(name[1:]) for name in points])
    return Curve(updates, np.array(list(points.values())), updates * 1.0)


def run(curves: dict[str, Curve], recipe: str | None = "tiny/x", **changed: Any) -> RunHistory:
    tags = {} if recipe is None else {"d2v.recipe": recipe, "mlflow.source.git.commit": "abc"}
    tags["d2v.recipe_difference"] = json.dumps({key.replace("__", "."): v for key, v in changed.items()})
    params = {"common.seed": "7", "optimization.update_freq": "[2]",
              "distributed_training.distributed_world_size": "1"}  # fmt: skip
    return RunHistory(name="mine", run_id="1", curves=curves, tags=tags, params=params)


def against(metric: str, value: float, wanted: float) -> bool:
    ref = Reference(path=Path("r"), recipe="tiny/x", commit="c", seed=1, updates=10,
                    curves={metric: curve(u10=wanted)})  # fmt: skip
    return judge(run({metric: curve(u10=value)}), ref).healthy


@pytest.mark.parametrize(
    ("metric", "value", "near"),
    [
        ("train/loss", 15.0, True), ("train/loss", 15.1, False), ("train/loss", 6.67, True),
        ("train/loss", 6.6, False), ("train/loss", float("nan"), False),
        ("train/target_var", 5.0, True), ("train/target_var", 4.9, False), ("train/target_var", 900.0, True),
        ("train/targets_rank", 3.2, False), ("train/targets_rank", 3.4, True),
        ("val/knn", 5.0, True), ("val/knn", 4.9, False), ("val/linear_probe", 4.9, False),
        ("val/knn", 99.0, True),
    ],
)  # fmt: skip
def test_what_is_near_ten(metric: str, value: float, near: bool) -> None:
    assert against(metric, value, 10.0) is near


def reference_of(**curves: Curve) -> Reference:
    named = {key.replace("__", "/"): found for key, found in curves.items()}
    return Reference(path=Path("r.csv"), recipe="tiny/x", commit="c", seed=1, updates=100, curves=named)


def test_points_between_those_of_the_reference_are_compared_and_none_beyond_them() -> None:
    ref = reference_of(train__loss=curve(u10=10.0, u30=20.0))
    verdict = judge(run({"train/loss": curve(u5=99.0, u20=15.0, u40=99.0)}), ref)
    (found,) = verdict.comparisons
    assert (found.update, found.value, found.reference, found.points) == (20, 15.0, 15.0, 1)
    assert verdict.healthy


def test_nine_points_of_ten_and_the_last_one_decide() -> None:
    flat = {f"u{10 * n}": 1.0 for n in range(1, 11)}
    ref = reference_of(train__loss=curve(**flat))

    def healthy(**other: float) -> bool:
        return judge(run({"train/loss": curve(**(flat | other))}), ref).healthy

    assert healthy() and healthy(u30=9.0)
    assert not healthy(u30=9.0, u40=9.0)
    assert not healthy(u100=9.0), "the end counts for itself"


def test_the_words_name_what_is_far_from_where_on_and_state_the_rule() -> None:
    ref = reference_of(train__loss=curve(u10=9.0, u20=8.0), train__targets_rank=curve(u10=40.0, u20=30.0))
    good = {"train/loss": curve(u10=9.0, u20=8.0), "train/targets_rank": curve(u10=40.0, u20=30.0)}
    first, rule = judge(run(good), ref).lines()
    assert first == (
        "Healthy as far as update 20: near the reference of tiny/x (seed 1, 100 updates, commit c) in "
        "train/loss, train/targets_rank."
    )
    assert rule == f"Rule: {reference.RULE}." and "1.5" in rule and "90 %" in rule
    bad = judge(run(good | {"train/targets_rank": curve(u10=2.0, u20=3.0)}), ref)
    assert bad.lines()[0] == (
        "Not healthy by the reference of tiny/x (seed 1, 100 updates, commit c): train/targets_rank is 3 at "
        "update 20, the reference 30 (NOT near: 2 of 2 points are not, the first at update 10)."
    )
    assert bad.rows()[0] == ("train/loss", "20", "8", "8", "near")


def test_recipes_that_differ_are_named_and_what_moves_no_curve_is_not() -> None:
    ref = replace(reference_of(train__loss=curve(u10=9.0)), changed={"model.depth": 4, "common.seed": 2})
    mine = run(
        {"train/loss": curve(u10=9.0)}, model__depth=[2, 4], optimization__max_update=[400, 50],
        dataset__valid_subset=["valid", "val"], task__probe_bank=[None, "x"], checkpoint__patience=[-1, 3],
        common__log_interval=[10, 20],
    )  # fmt: skip
    assert judge(mine, ref).differences == [
        "common.seed 7 here, there 2", "optimization.max_update 50 here, there 400",
    ]  # fmt: skip
    assert "so read it with care: common.seed" in judge(mine, ref).lines()[1]
    split = run({"train/loss": curve(u10=9.0)}, distributed_training__distributed_world_size=[1, 2],
                optimization__update_freq=[[2], [1]])  # fmt: skip
    assert judge(split, replace(ref, changed={})).differences == [], "the same update on more workers"
    other = judge(run({"train/loss": curve(u10=9.0)}, recipe="tiny/y"), ref)
    assert other.differences == ["the run's is tiny/y"]


def test_a_run_becomes_a_reference_and_is_read_again(tmp_path: Path) -> None:
    kept = {
        "train/loss": curve(u10=1 / 3, u20=0.25), "train/targets_rank": curve(u20=17.0),
        "val/knn": curve(u15=31.5),
    }  # fmt: skip
    left = {
        "speed/s_per_update": curve(u10=1.0),
        "train/encoder_rank": curve(u10=1.0),
        "train/lr": curve(u10=1.0),
        "val/best_knn": curve(u15=1.0),
    }
    path = tmp_path / "new" / "x.csv"
    write_reference(run(kept | left, model__depth=[2, 4]), path)
    assert path.read_text() == (
        '# {"recipe": "tiny/x", "commit": "abc", "seed": 7, "updates": 20, "changed": {"model.depth": 4}}\n'
        "update,loss,targets_rank,val/knn\n10,0.333333,,\n15,,,31.5\n20,0.25,17,\n"
    )
    found = read_reference(path)
    assert (found.recipe, found.commit, found.seed, found.updates) == ("tiny/x", "abc", 7, 20)
    assert found.changed == {"model.depth": 4} and list(found.curves) == list(kept)
    assert found.curves["val/knn"].updates.tolist() == [15]
    with pytest.raises(Data2VecError, match="no train/loss"):
        write_reference(run({"val/knn": curve(u15=1.0)}), path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("update,loss\n1,2\n", r"line 1 must be # and JSON .* missing: recipe, commit, seed, updates"),
        ('# {"recipe": "a", "seed": 1}\nupdate,loss\n1,2\n', "missing: commit, updates"),
        ("# [1]\n", "missing: recipe"),
        ('# {"recipe": "a", "commit": "", "seed": 1, "updates": 9}\nupdate,loss\n',
         "line 2 must name columns"),
        ('# {"recipe": "a", "commit": "", "seed": 1, "updates": 9}\nupdate,loss\n1,2\n2,x\n',
         "line 4 does not fit the columns: 2,x"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_reference_is_told_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(Data2VecError, match=f"r.csv: .*{said}"):
        read_reference(tmp_path / "r.csv")


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {"train/loss": curve(u10=9.0)}
    (tmp_path / "tiny").mkdir()
    write_reference(run(mine), tmp_path / "tiny" / "x.csv")
    monkeypatch.setattr(reference, "reference_root", lambda: tmp_path)
    assert find_reference(run(mine)).recipe == "tiny/x"
    with pytest.raises(
        Data2VecError, match=r"recipe 'tiny/xx' .*did you mean 'tiny/x'.*there are curves of tiny/x"
    ):
        find_reference(run(mine, recipe="tiny/xx"))
    with pytest.raises(Data2VecError, match=r"no tag d2v.recipe.*--reference-file FILE"):
        find_reference(run(mine, recipe=None))
    with pytest.raises(Data2VecError, match="cannot be read"):
        find_reference(run(mine), tmp_path / "absent.csv")
    with pytest.raises(
        Data2VecError, match=r"the run has train/loss 20\.\.20; the reference train/loss 10\.\.10"
    ):
        judge(run({"train/loss": curve(u20=9.0)}), find_reference(run(mine)))


def test_every_reference_is_of_a_recipe_has_its_watched_curves_and_is_near_itself() -> None:
    paths = sorted(reference_root().rglob("*.csv"))
    assert paths
    for path in paths:
        found = read_reference(path)
        assert found.recipe == path.relative_to(reference_root()).with_suffix("").as_posix()
        assert found.recipe in recipe_names()
        assert found.commit and found.curves["train/loss"].updates[-1] == found.updates
        if "mae" not in found.recipe:
            assert {"train/target_var", "train/targets_rank"} <= set(found.curves), path
        assert judge(run(dict(found.curves)), found).healthy


def test_the_command_says_whether_the_run_is_healthy_and_draws_both(tracker: Tracker, tmp_path: Path) -> None:
    def log(name: str, scale: float) -> None:
        opened = tracker.open_run(
            NewRun(experiment="e", name=name, params={}, tags={"d2v.recipe": "tiny/x"}, resume_key=name)
        )
        points = [MetricPoint("train/loss", u, scale * u, 1_700_000_000_000 + u) for u in (10, 20, 30)]
        tracker.log(opened.run_id, points)
        tracker.finish(opened.run_id)

    log("good", 1.0)
    log("bad", 2.0)
    file = tmp_path / "x.csv"

    def report(*words: str) -> Any:
        return CliRunner().invoke(app, ["report", *words, "--out", str(tmp_path / "out")])

    assert report("good", "--write-reference", str(file)).exit_code == 0
    found = report("bad", "--reference-file", str(file))
    assert found.exit_code == 0 and found.output.startswith(
        "Not healthy by the reference of tiny/x (seed 0, 30"
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Against the reference of tiny/x" in page and "Not healthy by" in page
    assert "loss:train/loss_reference_tiny/x" in page
    missing = report("good", "--reference")
    assert isinstance(missing.exception, Data2VecError) and "'tiny/x'" in str(missing.exception)
