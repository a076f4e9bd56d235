"""The overhead benchmark: what it reads from log lines, what it concludes, and a small real measurement."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from d2v_platform.training import start_times
from experiments.benchmarks.overhead import Overhead, Steps, bare_steps, small_recipe


def test_parts_of_a_start_are_read_from_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "d2v_platform")
    start_times.start_part_over("recipe composed")
    (record,) = caplog.records
    found = start_times.read_start(f"(RayTrainWorker pid=7) {record.getMessage()}")
    assert found is not None and found[0] == "recipe composed"
    assert abs(found[1] - record.created) < 1
    assert start_times.read_start("update 1/20  loss 15.1") is None
    assert start_times.read_start("start: soon") is None


def test_the_figures_in_words() -> None:
    bare, ray = Steps((1.0, 1.0, 4.0), 0.8, ()), Steps((1.02, 1.02), 0.9, ())
    saves = Steps((1.0,), 1.0, ((0.1, 2.0, 5_000_000), (0.3, 4.0, 5_000_000)))
    lines = Overhead(bare, ray, saves, {"here": [("imports", 3.0), ("first update", 1.5)]}).lines()
    assert "+2.0 % wall, +12.5 % CPU" in lines[1]
    assert "0.200 s of the loop, 3.000 s in its thread (5 MB)" in lines[2]
    assert lines[3].startswith("here: 4.5 s")


def test_a_small_measurement(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, updates=3, samples=2, width=64, blocks=1)
    steps = bare_steps(recipe, str(tmp_path / "run"), save_every=2)
    assert len(steps.seconds) == 3 and all(seconds > 0 for seconds in steps.seconds)
    assert steps.cpu_per_update > 0
    assert len(steps.saves) >= 2 and all(size > 100_000 for _, _, size in steps.saves)
