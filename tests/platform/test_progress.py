"""The line that a person watches: share of the matrix rate, data wait, memory, time to the end."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks.statistics import Layout, Sums
from d2v_platform.training import progress as progress_module
from d2v_platform.training.job import Job
from d2v_platform.training.loop_state import LoopState, Worker
from d2v_platform.training.progress import Progress
from d2v_platform.training.train_loop import train


def test_line_of_a_known_interval(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    made = Progress(Recipe.from_dict(tiny_recipe), Worker(), lambda samples, length: 1e9 * samples, 4e9)
    made.start(LoopState(update=4))
    for _ in range(4):
        made.micro_batch({"source": torch.zeros(2, 32)})
    made.data_wait_s, made.checkpoint_s = 1.0, 0.25
    now[0] = 110.0
    sums = Sums(Layout(("ntokens",)))
    sums.add({"ntokens": 5000})
    state = LoopState(update=9)
    made.line(state, {"loss": 0.5, "lr": 1e-3, "epoch": 1.25}, sums)
    # 8 GFLOP in 10 s on 4 GFLOP/s; 2 s an update, 11 updates to go
    wanted = (
        r"update 9/20  epoch 1.25  loss 0.5  lr 0.001  500 tokens/s  20% of the CPU's matrix rate"
        r"  wait 10%  mem .* eta 0:00:22"
    )
    assert re.search(wanted, caplog.text)
    speed = made.speed_metrics()
    assert speed["speed/matrix_rate_pct"] == pytest.approx(20.0)
    assert speed["speed/s_per_update"] == pytest.approx(2.0)
    assert speed["speed/checkpoint_stall_s"] == 0.25
    made.reset_interval(state)
    assert (made.flops, made.data_wait_s, made.checkpoint_s) == (0.0, 0.0, 0.0)
    before = made.clock()
    now[0] += 30.0
    made.leave_out(before)  # a validation
    now[0] += 4.0
    made.line(LoopState(update=11), {"loss": 0.5, "lr": 1e-3, "epoch": 1.5}, sums)
    assert made.speed_metrics()["speed/s_per_update"] == pytest.approx(2.0)


def test_figures_of_each_modality_have_their_unit(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    sums = Sums(Layout(("ntokens",)))
    sums.add({"ntokens": 80_000})
    metrics = {"loss": 0.5, "model_norm": 26.0, "ema_norm": 25.0, "lr": 1e-3, "epoch": 1.0}
    audio = {"_name": "audio_pretraining", "data": "/x"}
    for task, log_keys, key, told in (
        (audio, [], "speed/audio_s_per_s", "loss 0.5  lr 0.001  1.0 s of audio/s  "),
        (tiny_recipe["task"], ["model_norm"], "speed/tokens_per_s",
         "loss 0.5  model_norm 26  lr 0.001  16000 tokens/s  "),
        ({"_name": "image_pretraining", "data": "/x"}, [], "speed/images_per_s", "  16000 images/s  "),
    ):  # fmt: skip
        recipe = Recipe.from_dict(
            {**tiny_recipe, "task": task, "criterion": {"_name": "model", "log_keys": log_keys}}
        )
        made = Progress(recipe, Worker())
        now[0] = 0.0
        made.start(LoopState())
        now[0] = 5.0
        made.line(LoopState(update=1), metrics, sums)
        assert told in caplog.text and key in made.speed_metrics()
        caplog.clear()


def test_a_cpu_that_is_faster_than_measured_reaches_all_of_its_rate(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rate was measured while others were busy."""
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    made = Progress(Recipe.from_dict(tiny_recipe), Worker(), lambda samples, length: 1e9 * samples, 1e9)
    made.start(LoopState())
    for samples, share in ((4, 100), (1, 25)):
        made.micro_batch({"source": torch.zeros(samples, 32)})
        now[0] += 2.0
        made.line(LoopState(update=1), {"loss": 1.0, "lr": 1e-3, "epoch": 1.0}, Sums(Layout(("ntokens",))))
        assert f"  {share}% of the CPU's matrix rate  " in caplog.text
        made.reset_interval(LoopState(update=1))


@pytest.mark.parametrize(
    ("limits", "eta"),
    [
        # The attempt before took 10 minutes and 3 CPU-minutes, this one 20 and 6.
        ({"max_update": 0, "stop_time_hours": 1.0}, "0:30:00"),
        ({"max_update": 0, "stop_cpu_minutes": 15.0}, "0:20:00"),
        ({"max_update": 1000000, "stop_cpu_minutes": 15.0}, "0:20:00"),
        ({"max_update": 8, "stop_cpu_minutes": 15.0}, "0:02:51"),  # the last update comes first
        ({"max_update": 0, "stop_cpu_minutes": 5.0}, "0:00:00"),
    ],
)
def test_a_run_that_a_clock_ends_has_an_eta(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], eta: str
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(progress_module.time, "process_time", lambda: 0.3 * now[0])
    values = tiny_recipe | {"optimization": tiny_recipe["optimization"] | limits}
    made = Progress(Recipe.from_dict(values), Worker())
    state = LoopState(elapsed_s=600.0, cpu_s=180.0)  # of earlier attempts
    made.start(state)
    now[0], state.update = 1200.0, 7
    assert made._eta(state) == eta


def test_an_unknown_rate_is_left_out(tiny_recipe: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = Progress(Recipe.from_dict(tiny_recipe), Worker(), None, None)
    made.start(LoopState())
    made.micro_batch({"source": torch.zeros(2, 32)})
    made.line(LoopState(update=1), {"loss": 1.0, "lr": 1e-3, "epoch": 1.0}, Sums(Layout(("ntokens",))))
    assert "matrix" not in caplog.text and "speed/matrix_rate_pct" not in made.speed_metrics()


def test_a_real_run_tells_its_share_of_the_matrix_rate(
    tiny_recipe: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    points: dict[str, float] = {}

    class Keep:
        def log(self, update: int, metrics: Any) -> None:
            points.update(metrics)

        def flush(self) -> None: ...

        def evaluated(self, update: int, metrics: Any) -> bool:
            return False

    values = tiny_recipe | {"optimization": tiny_recipe["optimization"] | {"max_update": 2}}
    train(Job(Recipe.from_dict(values), tmp_path), Keep(), Worker(threads=1))
    assert 0.0 < points["speed/matrix_rate_pct"] <= 100.0
    assert re.search(r"tokens/s  \d+% of the CPU's matrix rate  wait \d+%  mem [\d.]+ GB  eta", caplog.text)
