"""Every figure of a run, and its weights, computed a second time from the definitions."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d2v_platform.training.loop_state import Summary
from tests.platform.toy_task import DIM, Diary, Samples, ToyTask, run_toy, toy_recipe

FREQ, PEAKS, WARMUP, CLIP, INTERVAL = [1, 2, 3], [0.2, 0.1], 4, 4.0, 3
RECIPE = toy_recipe(
    common={"log_interval": INTERVAL, "seed": 5},
    optimization={"max_update": 0, "max_epoch": 4, "lr": PEAKS, "update_freq": FREQ, "clip_norm": CLIP},
    lr_scheduler={"_name": "fixed", "warmup_updates": WARMUP},
)


@dataclass
class Step:
    """One update by the definitions."""

    epoch: int
    done: float  # of the epoch, after it
    batches: list[list[int]]
    lr: float
    before: np.ndarray
    loss: float
    size: float
    norm: float
    x: np.ndarray


def steps(epochs: int, keep_remainder: bool = True) -> list[Step]:
    """Adam in plain numpy over five micro-batches an epoch, of which F make an update."""
    w, m, v = np.zeros(DIM), np.zeros(DIM), np.zeros(DIM)
    found: list[Step] = []
    for epoch in range(1, epochs + 1):
        data = Samples(9, 1, epoch)
        batches = [part.tolist() for part in np.array_split(np.roll(np.arange(9), epoch), 5)]
        freq = FREQ[min(epoch, 3) - 1]
        groups = [batches[i : i + freq] for i in range(0, 5, freq)]
        if not keep_remainder:
            groups = [group for group in groups if len(group) == freq]
        for number, group in enumerate(groups, 1):
            ids = list(itertools.chain(*group))
            x, c = data.x[ids].astype(float), data.c[ids].astype(float)
            update, size = len(found), c.sum()
            gradient = (c[:, None] * (w - x)).sum(0) / size
            norm = float(np.linalg.norm(gradient))
            lr = PEAKS[min(epoch, 2) - 1] * min(1.0, (update + 1) / WARMUP)
            loss = float((c * ((w - x) ** 2).sum(1) / 2).sum())
            found.append(Step(epoch, number / len(groups), group, lr, w.copy(), loss, size, norm, x))
            gradient *= min(1.0, CLIP / norm)
            m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
            t = update + 1
            w = w - lr * (m / (1 - 0.8**t)) / np.sqrt(v / (1 - 0.9**t))
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, Diary, ToyTask]:
    with pytest.MonkeyPatch.context() as patch:
        return run_toy(RECIPE, tmp_path_factory.mktemp("toy"), patch)


def test_every_update_takes_its_micro_batches_and_steps_adam(ran: tuple[Summary, Diary, ToyTask]) -> None:
    wanted, (summary, _, task) = steps(4), ran
    assert len(wanted) == 5 + 3 + 2 + 2 == summary.update
    assert [update for update, _ in task.begun] == list(range(12))
    seen = [[ids for update, ids, _ in task.passed if update == number] for number in range(12)]
    assert seen == [step.batches for step in wanted]
    for (_, w), step in zip(task.begun, wanted, strict=True):
        assert w == pytest.approx(step.before, rel=1e-4)
    assert any(step.norm > CLIP for step in wanted) and any(step.norm < CLIP for step in wanted)


def test_logged_figures_are_those_of_the_interval(ran: tuple[Summary, Diary, ToyTask]) -> None:
    wanted, (summary, diary, task) = steps(4), ran
    assert list(diary.points["train/loss"]) == [3, 6, 9, 12]
    for update in (3, 6, 9, 12):
        part, last = wanted[update - 3 : update], wanted[update - 1]
        deviation = last.x.std(0, ddof=1).mean()
        figures = {
            "loss": sum(s.loss for s in part) / sum(s.size for s in part),
            "nsentences": sum(len(s.x) for s in part),
            "gnorm": sum(s.norm for s in part) / 3,
            "clip": 100.0 * sum(s.norm > CLIP for s in part) / 3,
            "lr": last.lr,
            "epoch": last.epoch - 1 + last.done,
            "encoder_var": deviation,
        }
        found = {name: diary.points[f"train/{name}"][update] for name in figures}
        assert found == pytest.approx(figures, rel=1e-4), update
    assert {name for name in diary.points if name.startswith("train/")} == {
        f"train/{name}" for name in [*figures, "encoder_rank"]
    }
    assert task.guarded == [(update, diary.points["train/loss"][update]) for update in (3, 6, 9, 12)]
    assert summary.metrics["train/first_loss"] == diary.points["train/loss"][3]
    assert summary.metrics["train/loss"] == diary.points["train/loss"][12]
    assert summary.metrics["train/encoder_var"] == diary.points["train/encoder_var"][12]
    assert summary.reason == "max_epoch 4 reached" and summary.facts == {
        "data.fingerprint": "toy",
        "data.size": "9 samples",
    }


def test_a_short_last_interval_is_logged_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy_recipe(**RECIPE | {"optimization": RECIPE["optimization"] | {"max_update": 7}})
    summary, diary, _ = run_toy(recipe, tmp_path, monkeypatch)
    step = steps(2)[6]
    assert list(diary.points["train/loss"]) == [3, 6, 7]
    assert diary.points["train/loss"][7] == pytest.approx(step.loss / step.size, rel=1e-4)
    assert diary.points["train/gnorm"][7] == pytest.approx(step.norm, rel=1e-4)
    assert summary.update == 7 and summary.reason == "max_update 7 reached"


def test_a_remainder_may_be_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = RECIPE["optimization"] | {"skip_remainder_batch": True}
    summary, diary, task = run_toy(toy_recipe(**RECIPE | {"optimization": options}), tmp_path, monkeypatch)
    wanted = steps(4, keep_remainder=False)
    assert summary.update == len(wanted) == 5 + 2 + 1 + 1
    assert [ids for _, ids, _ in task.passed] == [ids for step in wanted for ids in step.batches]
    assert diary.points["train/epoch"] == {3: 0.6, 6: 1.5, 9: 4.0}


def test_without_a_limit_the_norm_is_only_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"max_update": 2, "update_freq": [5], "lr": [0.1]}
    _, diary, task = run_toy(toy_recipe(optimization=options), tmp_path, monkeypatch)
    data = Samples(9, 1, 1)
    gradient = (data.c[:, None] * data.x).sum(0) / data.c.sum()
    assert diary.points["train/gnorm"][1] == pytest.approx(float(np.linalg.norm(gradient)), rel=1e-5)
    assert "train/clip" not in diary.points
    assert task.begun[1][1] == pytest.approx(0.1 * np.sign(gradient), rel=1e-4)  # Adam's first step


def test_random_numbers_depend_on_seed_update_micro_batch_and_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draws(name: str, seed: int, **more: Any) -> list[float]:
        recipe = toy_recipe(common={"seed": seed}, optimization={"max_update": 3, "update_freq": [2]})
        return [draw for *_, draw in run_toy(recipe, tmp_path / name, monkeypatch, **more)[2].passed]

    first = draws("a", 1)
    assert first == draws("b", 1) and len(first) == 5 and len(set(first)) == 5
    assert not set(first) & set(draws("c", 2))
    halves = draws("d", 1, split=2)
    assert halves[::2] == first and len(set(halves)) == 10


def test_passes_of_a_micro_batch_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy_recipe(optimization={"max_update": 4, "update_freq": [2], "clip_norm": 3.0})
    _, whole, first = run_toy(recipe, tmp_path / "whole", monkeypatch)
    _, halves, second = run_toy(recipe, tmp_path / "halves", monkeypatch, split=2)
    assert len(second.passed) == 2 * len(first.passed)
    names = ("train/loss", "train/gnorm", "train/clip", "train/nsentences", "train/encoder_var")
    for name in names:
        assert halves.curve(name) == pytest.approx(whole.curve(name), rel=1e-5), name


def test_fp16_scales_the_loss_and_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = {"fp16": True, "fp16_init_scale": 64, "fp16_scale_window": 2}
    options = {"max_update": 5, "clip_norm": 3.0, "update_freq": [2]}
    _, exact, first = run_toy(toy_recipe(optimization=options), tmp_path / "fp32", monkeypatch)
    recipe = toy_recipe(optimization=options, common=scaler, platform={"precision": "fp16"})
    _, scaled, second = run_toy(recipe, tmp_path / "fp16", monkeypatch)
    for name in ("train/loss", "train/gnorm", "train/clip"):
        assert scaled.curve(name) == pytest.approx(exact.curve(name), rel=1e-5), name
    for (_, w), (_, again) in zip(first.begun, second.begun, strict=True):
        assert again == pytest.approx(w, rel=1e-5)
    assert scaled.curve("train/loss_scale") == [64, 128, 128, 256, 256]
    assert "train/loss_scale" not in exact.points


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_update_that_is_not_finite_is_skipped_and_told(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = toy_recipe(
        common={"fp16": True, "fp16_init_scale": 64, "log_interval": 1},
        optimization={"max_update": 4, "update_freq": [2]},
        platform={"precision": precision},
        checkpoint={"save_interval_updates": 2, "save_interval": 1000},
        dataset={"validate_interval": 1000},
    )
    kinds = iter(["loss", "gradient"])  # of the attempts at the third update that fail

    def spoil(update: int) -> bool | str:
        return next(kinds, False) if update == 2 else False

    summary, diary, task = run_toy(recipe, tmp_path, monkeypatch, spoil=spoil)
    # Each attempt takes the next micro-batches; of five the third update of the epoch has one.
    attempts = [[ids for u, ids, _ in task.passed if u == update] for update in range(4)]
    roll = lambda epoch: [p.tolist() for p in np.array_split(np.roll(np.arange(9), epoch), 5)]  # noqa: E731
    assert attempts[0] + attempts[1] == roll(1)[:4]
    assert attempts[2] == [roll(1)[4], *roll(2)[:4]]
    assert attempts[3] == roll(2)[4:]
    assert summary.update == 4 and summary.bad_updates == 2
    weights = [w for update, w in task.begun if update == 2]
    assert len(weights) == 3 and all(np.array_equal(weights[0], w) for w in weights)
    assert "train/bad_updates" in diary.points and set(diary.points["train/bad_updates"]) == {3, 4}
    assert diary.points["train/bad_updates"][4] == 2.0
    assert diary.updates("train") == [1, 2, 3, 4]
    assert diary.updates("evaluated") == [2, 4]  # not saved again where nothing has changed
    told = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(told) == 2 and "loss nan" in told[0] and "gradient norm nan" not in told[0]
    assert "loss nan" not in told[1] and "gradient norm inf" in told[1] and "update 2" in told[0]
    assert "(1 in a row)" in told[0] and "(2 in a row)" in told[1]
    assert told[0].endswith(f"sample ids {', '.join(map(str, roll(1)[4]))}")
    if precision == "fp16":
        assert diary.points["train/loss_scale"] == {1: 64, 2: 64, 3: 16, 4: 16}


def test_the_state_goes_to_the_reporter_at_every_save_and_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(checkpoint={"save_interval_updates": 2}, dataset={"disable_validation": False})
    _, diary, _ = run_toy(recipe, tmp_path, monkeypatch)
    assert [update for update, _ in diary.told] == [2, 4, 5, 6]
    for update, metrics in diary.told:
        assert metrics["train/loss"] == diary.points["train/loss"][update]
        assert metrics["valid/loss"] == diary.points["valid/loss"][update]
        assert math.isclose(metrics["valid/best_loss"], min(
            value for at, value in diary.points["valid/loss"].items() if at <= update
        ))  # fmt: skip
