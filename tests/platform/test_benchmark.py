"""The speed benchmark: what it measures in a process of its own, its input case, its table and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import numpy as np
import pytest
from typer.testing import CliRunner

from d2v_platform.benchmark import command, text_input
from d2v_platform.benchmark.measure import Case, Timing, measure
from d2v_platform.training.ray_session import MEMORY_SWITCHES, worker_environment


def fill(megabytes: int) -> Callable[[int], None]:
    """A step that holds so much memory, in a process with the workers' switches."""
    assert all(os.environ[name] for name in MEMORY_SWITCHES)

    def step(index: int) -> None:
        assert np.ones(megabytes * 1_000_000, dtype=np.uint8).sum() > index

    return step


def test_a_case_is_measured_in_a_fresh_process() -> None:
    case = Case("filling", fill, {"megabytes": 700}, matrix_flops=1e9, units=10, unit="things")
    timing = measure(case, steps=2, threads=1)
    assert isinstance(timing, Timing)
    assert 0.9 < timing.peak_gb < 3.0
    assert timing.units_per_second == pytest.approx(10 / timing.seconds)
    assert timing.share == pytest.approx(1 / timing.seconds / timing.matrix_rate, rel=0.5)
    assert timing.cpu_seconds > 0


def test_the_input_case_reads_every_token_in_another_order_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_input, "_BATCHES", 6)
    read = text_input.build_epoch("v2/base_text_only_task", samples=3, length=16)
    read(0)  # asserts the number of tokens
    read(1)
    case = text_input.case("v2/base_text_only_task", 3, 16)
    assert (case.units, case.unit) == (6 * 3 * 16, "tokens")


def timing(name: str, rate: float, seconds: float = 2.0, cpu: float = 4.0, gflops: float = 0.0) -> Timing:
    return Timing(name, seconds, cpu, rate, "tokens", gflops, 100.0, gflops / 100.0, 1.5)


def test_table_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [timing("step", 100.0, gflops=88.0), timing("input pipeline", 5000.0, seconds=1.0, cpu=0.5)]
    assert command.margin(found) == "input: 1e+04 tokens a CPU-second, 100 x the fastest step"
    assert command.margin(found[:1]) is None
    answers = {one.name: one for one in found}
    cases = [Case(one.name, fill, {}, 0.0, 1.0, "tokens") for one in found]
    monkeypatch.setattr(command, "measure", lambda case, steps, threads: answers[case.name])
    monkeypatch.setattr(command, "case", lambda *_, **__: cases[0])
    monkeypatch.setattr(command, "peer", lambda *_: [])
    monkeypatch.setattr(text_input, "case", lambda *_: cases[1])
    shown = CliRunner().invoke(command.app, ["text"])
    assert shown.exit_code == 0, shown.output
    assert "88%" in shown.output and "100 x the fastest step" in shown.output
    printed = CliRunner().invoke(command.app, ["text", "--json"])
    rows = json.loads(printed.stdout)
    assert [row["name"] for row in rows] == ["step", "step", "input pipeline"]  # 2 and 8 clones
    assert rows[0]["share"] == pytest.approx(0.88)


def test_workers_get_the_switches_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = MEMORY_SWITCHES
    monkeypatch.delenv(name, raising=False)
    assert worker_environment()[name] == "1"
    monkeypatch.setenv(name, "0")
    assert worker_environment()[name] == "0"
