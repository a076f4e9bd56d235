"""``make gpu-check``: it says what is missing, and its tables hold what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.benchmarks import device_check
from experiments.benchmarks.device_check import NO_DEVICE, ROWS, Measured, cost_of, main, markdown, outcome
from experiments.benchmarks.pretraining import load


def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert capsys.readouterr().err == NO_DEVICE + "\n"


def run(out: Path, *words: str) -> list[dict[str, Any]]:
    """The rows of a run on the CPU that has no problem."""
    tiny = ("--tiny", "--device", "cpu", "--no-tests", "--updates", "1", "--out", str(out))
    assert main([*tiny, *words]) == 0
    return json.loads((out / "gpu-check.json").read_text())["rows"]


def test_what_is_measured_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def step(update: int) -> None:
        torch.ones(8, 8).softmax(0).exp().sum().add(update)

    def build(*options: Any) -> Callable[[int], None]:
        asked.append(options)
        return step

    monkeypatch.setattr(device_check, "build_step", build)
    rows = run(tmp_path, "--only", "audio")
    assert [options[-1] for options in asked] == [None, "eager"] * 2 == [
        "eager" if row["compiled"] else None for row in rows
    ]  # fmt: skip
    for row in rows:
        assert row["milliseconds"] > 0 and row["forecast_gb"] > 0 and row["reads"] is None
        assert row["kernels"] and row["kernels"] == sorted(row["kernels"], key=lambda pair: -pair[1])
    assert "v1 audio base, 12 x 5 s | compiled |" in (tmp_path / "gpu-check.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_row_on_a_small_network(tmp_path: Path) -> None:
    torch._dynamo.reset()
    assert len(run(tmp_path)) == 2 * len(ROWS)


def test_a_row_that_fails_is_told_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("too large\nfor the card")

    monkeypatch.setattr(device_check, "build_step", fails)
    assert main(["--tiny", "--device", "cpu", "--no-tests", "--out", str(tmp_path)]) == 1
    rows = json.loads((tmp_path / "gpu-check.json").read_text())["rows"]
    assert [row["problem"] for row in rows] == ["OutOfMemoryError: too large"] * 2 * len(ROWS)


def test_the_plan_prices_every_row() -> None:
    for row in ROWS:
        cost = cost_of(load(row.recipe, ()), row.samples, row.length, "cuda")
        assert cost.flops > 1e12 and 1e9 < cost.peak_bytes < 140e9, row.name


def test_tables_and_other_programs(tmp_path: Path) -> None:
    row = Measured("one", True, 12.34, 0.5, 3.21, 3.0, 1, 20.0, [("kernel", 1.5)])
    ran = [outcome("a program", ["python3", "-c", "print('said'); raise SystemExit(3)"], 60)]
    text = markdown("a card", [row, Measured("two", False, problem="no memory")], ran)
    assert "| one | compiled | 12.3 | 50% | 3.2 | 3.0 | 1 | 20 |" in text and "- 1.50 ms `kernel`" in text
    assert "| two | eager | no memory | | | | | |" in text and "- a program: exit status 3" in text
    assert ran[0]["last_lines"] == ["said"]
