"""A run of a known name: made longer as if it had been so long from the start, finished, or refused."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from d2v_platform.launch import launch
from d2v_platform.recipe.compose import Composed, compose
from d2v_platform.recipe.schema import Recipe
from d2v_platform.redaction import redact
from d2v_platform.registry.model_source import resolve
from d2v_platform.tracking.tracker import ExistingRun, Tracker
from d2v_platform.training.continuation import Continuation, continue_run
from d2v_platform.training.job import Job
from d2v_platform.training.loop_state import Summary, Worker
from d2v_platform.training.run_result import result_lines
from d2v_platform.training.train_loop import train
from data2vec.errors import ConfigError, Data2VecError
from tests.platform.recorder import Recorder

# ---- the loop -----------------------------------------------------------------------------------------


def trained(plain: dict[str, Any], folder: Path, recorder: Recorder, **limits: int) -> Summary:
    plain = copy.deepcopy(plain)
    plain["optimization"] = plain["optimization"] | {"max_update": 0} | limits
    plain["lr_scheduler"] = {"_name": "fixed", "warmup_updates": 4}  # nothing depends on the length
    plain["dataset"] |= {"batch_size": 32, "disable_validation": False, "validate_interval_updates": 2}
    plain["distributed_training"] = {"distributed_world_size": 2}
    return train(Job(Recipe.from_dict(plain), folder), recorder, Worker(threads=1))


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"max_update": 4}, {"max_update": 8}),
        ({"max_epoch": 1}, {"max_epoch": 2}),  # ends with the last micro-batch of an epoch
        ({"max_epoch": 1, "max_update": 99}, {"max_epoch": 0, "max_update": 7}),
    ],
)
def test_a_longer_run_is_the_run_of_that_length(
    tiny_recipe: dict[str, Any], tmp_path: Path, short: dict[str, int], long: dict[str, int]
) -> None:
    whole, parts = Recorder(), Recorder()
    undisturbed = trained(tiny_recipe, tmp_path / "whole", whole, **long)
    first = trained(tiny_recipe, tmp_path / "parts", parts, **short)
    logged = {name: dict(points) for name, points in parts.points.items()}
    parts.points.clear()
    second = trained(tiny_recipe, tmp_path / "parts", parts, **long)
    assert 0 < first.update < second.update == undisturbed.update
    assert (second.reason, second.best, second.best_update) == (
        undisturbed.reason, undisturbed.best, undisturbed.best_update
    )  # fmt: skip
    assert min(parts.points["train/loss"]) == first.update + 1  # nothing is computed or logged twice
    for name in ("train/loss", "valid/loss"):
        joined = {**logged[name], **parts.points[name]}
        assert whole.points[name].items() <= joined.items(), name
    for name in ("model/model.safetensors", f"checkpoints/update_{second.update:08d}/optimizer.safetensors"):
        one, two = (load_file(tmp_path / which / name) for which in ("whole", "parts"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), name


# ---- through MLflow -----------------------------------------------------------------------------------


def test_a_finished_run_is_left_alone_made_longer_and_registered_anew(
    tracker: Tracker, tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    caplog.set_level("INFO", "d2v_platform")
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    platform = {"num_workers": 0, "run_name": "text", "register_as": "tiny"}
    (recipe / "tiny_run.yaml").write_text(
        "# @package _group_\n" + yaml.safe_dump(tiny_recipe | {"platform": platform})
    )

    def again(**changed: int) -> Any:
        return launch(compose("tiny_run", [f"optimization.{k}={v}" for k, v in changed.items()], str(recipe)))

    first = again(max_update=6)
    assert first.registered == "models:/tiny/1" and not first.before
    with monkeypatch.context() as patch:
        patch.setattr("d2v_platform.launch.train", None)
        same = again(max_update=6)
    assert replace(same, before=False) == first and same.before
    assert tracker.client.get_run(first.run_id).info.status == "FINISHED"
    assert "had finished before" in result_lines(same)[0] and "had finished" not in result_lines(first)[0]

    caplog.clear()
    second = again(max_update=9)
    assert (second.run_id, second.summary.update) == (first.run_id, 9)
    assert second.registered == "models:/tiny/2"
    assert any("max_update 6 -> 9" in line and "cosine" in line for line in caplog.messages), caplog.messages
    assert any("resumed at update 6" in line for line in caplog.messages)
    points = tracker.client.get_metric_history(first.run_id, "train/loss")
    assert sorted(point.step for point in points) == list(range(1, 10))
    run = tracker.client.get_run(first.run_id)
    assert (run.info.status, run.data.tags["d2v.longer"]) == ("FINISHED", "optimization.max_update 6 -> 9")
    old, new = (load_file(resolve(f"models:/tiny/{v}", tracker).path / "model.safetensors") for v in (1, 2))
    assert any(not torch.equal(old[key], new[key]) for key in old)  # the first version still is what it was
    with pytest.raises(ConfigError, match="started with 9, which can be raised but not lowered"):
        again(max_update=6)


# ---- what may change ----------------------------------------------------------------------------------


def asked(
    tmp_path: Path, before: list[str], now: list[str], ended: str | None = "max_update 100 reached",
    recipe: str = "tiny/text_pretraining", *, checkpoint: bool = True, unknown: str = "",
) -> Continuation:  # fmt: skip
    """A run was started with ``before``, without a field ``unknown``; what does a launch with ``now`` do?"""
    given = ["task.data=/x", "optimization.max_update=100"]
    composed: list[Composed] = [compose(recipe, [*given, *words]) for words in (before, now)]
    kept = redact(composed[0].recipe.to_dict())
    if unknown:
        section, _, name = unknown.partition(".")
        del kept[section][name]
    (tmp_path / "recipe.json").write_text(json.dumps(kept))
    if checkpoint:
        place = tmp_path / "checkpoints" / "update_00000100"
        place.mkdir(parents=True, exist_ok=True)
        (place / "manifest.json").touch()
    state = "finished" if ended is not None else "unfinished"
    run = ExistingRun("1" * 32, "r", state, "FINISHED", "0", "", {}, {"d2v.ended": ended or ""})
    return continue_run(composed[1], run, tmp_path, None, None)


LR = "optimizer.groups.default.lr_scheduler"


def test_only_a_greater_length_is_a_longer_run(tmp_path: Path) -> None:
    assert asked(tmp_path, [], []) == Continuation(nothing_left=True)
    assert asked(tmp_path, [], ["common.log_interval=3", "platform.max_failures=2"]).nothing_left
    assert asked(tmp_path, [], [], None) == Continuation()  # killed: it goes on as it is
    longer = asked(tmp_path, [], ["optimization.max_update=200"])
    assert longer.reopen and [*longer.raised] == ["optimization.max_update"]
    killed = asked(tmp_path, [], ["optimization.max_update=200"], None)
    assert killed.raised and not killed.reopen
    with pytest.raises(ConfigError) as caught:
        asked(tmp_path, [], ["optimization.max_update=50", "model.clone_batch=3"])
    assert [p.field for p in caught.value.problems] == ["model.clone_batch", "optimization.max_update"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(ConfigError, match=f"checkpoint.restore_file={tmp_path}/model") as caught:
        asked(tmp_path, [], ["optimization.max_update=200", "optimization.clip_norm=9"])
    assert [p.field for p in caught.value.problems] == ["optimization.clip_norm"]  # not what is longer
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(Data2VecError, match=r"left no checkpoint in .*restore_file"):
        asked(tmp_path, [], ["optimization.max_update=200"], checkpoint=False)


def test_a_field_that_came_after_a_run_was_started_had_its_default(tmp_path: Path) -> None:
    assert asked(tmp_path, [], [], None, unknown="task.probe_layer") == Continuation()
    with pytest.raises(ConfigError) as caught:
        asked(tmp_path, [], ["task.probe_layer=1"], None, unknown="task.probe_layer")
    assert [p.field for p in caught.value.problems] == ["task.probe_layer"]


EPOCHS = ["optimization.max_epoch=2"]


@pytest.mark.parametrize(
    ("ended", "before", "now", "goes_on"),
    [
        ("max_epoch 2 reached", EPOCHS, ["optimization.max_epoch=3"], True),
        ("max_epoch 2 reached", EPOCHS, [], True),  # no limit but the updates
        ("max_epoch 2 reached", EPOCHS, [*EPOCHS, "optimization.max_update=200"], None),
        ("max_update 100 reached", EPOCHS, ["optimization.max_epoch=9"], None),
        ("no improvement in 3 validations (checkpoint.patience)", ["checkpoint.patience=3"],
         ["checkpoint.patience=5"], True),
        ("no improvement in 3 validations (checkpoint.patience)", ["checkpoint.patience=3"],
         ["checkpoint.patience=2"], False),
        ("stop_time_hours 1 reached", ["optimization.stop_time_hours=1"], ["optimization.stop_time_hours=2"],
         True),
        ("max_update 100 reached", ["optimization.stop_time_hours=1"], ["optimization.stop_time_hours=2"],
         False),
    ],
)  # fmt: skip
def test_what_ended_a_run_must_grow(
    tmp_path: Path, ended: str, before: list[str], now: list[str], goes_on: bool | None
) -> None:
    more = ["dataset.disable_validation=false"]
    if goes_on is None:
        with pytest.raises(Data2VecError, match=r"ended because of another limit .* raise optimization"):
            asked(tmp_path, before + more, now + more, ended)
    else:
        assert asked(tmp_path, before + more, now + more, ended).reopen is goes_on


@pytest.mark.parametrize(
    ("recipe", "words", "told"),
    [
        ("tiny/text_pretraining", [], ["cosine learning rate (at update 100 from 3.43e-07 to "]),
        ("tiny/text_pretraining", ["model.ema_anneal_end_step=null"],
         ["cosine", "end of the teacher's annealing (100 -> 200)"]),
        ("tiny/text_pretraining", [f"{LR}.lr_period_updates=60"], ["length: nothing"]),
        ("tiny/text_pretraining", [f"{LR}=tri_stage", f"{LR}.phase_ratio=[0.1,0.4,0.5]"], ["tri_stage"]),
        ("tiny/text_pretraining", [f"{LR}=polynomial_decay"], ["polynomial_decay"]),
        ("tiny/text_pretraining", [f"{LR}=polynomial_decay", f"{LR}.total_num_update=90"],
         ["length: nothing", "polynomial_decay learning rate does not follow: 0 from update 100 on"]),
        ("tiny/text_pretraining", [f"{LR}=fixed"], ["length: nothing"]),
    ],
)  # fmt: skip
def test_what_depends_on_the_length_is_named(
    tmp_path: Path, recipe: str, words: list[str], told: list[str]
) -> None:
    lines = asked(tmp_path, words, [*words, "optimization.max_update=200"], recipe=recipe).lines
    assert lines[0].startswith(
        "a longer run: optimization.max_update 100 -> 200; what depends on the length: "
    )
    text = "\n".join(lines)
    assert all(part in text for part in told), text
    assert len(lines) == 1 + any("does not follow" in part for part in told)
