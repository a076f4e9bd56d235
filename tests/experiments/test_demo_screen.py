"""The demo's last screen and the proof of a killed worker, from given numbers; the command line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from d2v_platform.recipe.sweep_definition import load_sweep
from data2vec.errors import Data2VecError
from experiments.demo.demo import FAST, DemoOptions, DemoSize, run_demo
from experiments.demo.screen import Prediction, PretrainingFigures, Screen, TaskFigures, render, table
from experiments.demo.worker_kill import Killed, KillProof, proof_from

REPO = Path(__file__).resolve().parents[2]
COLA = TaskFigures(
    task="acceptability, CoLA's layout",
    metric="mcc",
    majority=0.0,
    random=12.34,
    pretrained=20.5,
    lr=6e-5,
    model="data2vec2-text-demo-cola@demo",
    examples=400,
)
RTE = dataclasses.replace(
    COLA, task="same paragraph, RTE's layout", metric="accuracy", majority=50.0, random=None, pretrained=48.0
)
SCREEN = Screen(
    title="prose of python",
    seconds=323.4,
    pretraining=PretrainingFigures(
        first_loss=42.953,
        last_loss=24.881,
        target_var=0.8,
        workers=2,
        updates=240,
        seconds=81.2,
        model="data2vec2-text-demo@demo",
    ),
    tasks=(COLA, RTE),
    rates=4,
    seeds=(1,),
    max_updates=300,
    predictions=(Prediction(model="models:/m@demo", sentence="A text.", label="acceptable", score=0.613),),
    proof=None,
    home="/home/me/.d2v",
    command=".venv/bin/d2v",
)


def test_the_screen_is_about_a_dozen_lines_and_holds_every_figure() -> None:
    lines = render(SCREEN)
    text = "\n".join(lines)
    assert 11 <= len(lines) <= 16
    for wanted in ("5 min 23 s", "42.95 -> 24.88", "target variance 0.80", "2 Ray Train workers",
                   "240 updates in 81 s", "seed 1;", "one seed is noise", "+-2.5 points",
                   "ahead on 1 of 1 tasks", "acceptable (0.61; models:/m@demo)", "make ui",
                   "make demo DATA=", "/home/me/.d2v", ".venv/bin/d2v prepare text"):  # fmt: skip
        assert wanted in text, wanted


def test_the_table_is_aligned_and_admits_a_missing_value() -> None:
    header, first, second = table((COLA, RTE))
    assert header.split("  ")[0] == "task (metric, %)"
    assert header.index("model@alias") == first.index("data2vec2-text-demo-cola@demo")
    for column in ("majority class", "random weights", "pretrained"):
        end = header.index(column) + len(column)
        assert header[:end].rstrip() == header[:end] and first[:end].rstrip() == first[:end]
    assert second.split()[-5:] == ["50.0", "-", "48.0", "6e-05", "data2vec2-text-demo-cola@demo"]


def test_losing_is_reported_as_such() -> None:
    worse = dataclasses.replace(COLA, pretrained=12.0)
    text = "\n".join(render(dataclasses.replace(SCREEN, tasks=(worse,), seeds=(1, 2))))
    assert "ahead on 0 of 1 tasks" in text and "seeds 1, 2;" in text and "one seed" not in text


def _history(steps: list[int]) -> dict[str, list[SimpleNamespace]]:
    return {"train/loss": [SimpleNamespace(step=step) for step in steps]}


def test_the_proof_holds_when_each_step_is_there_once() -> None:
    killed = Killed(pid=4711, rank=0, logged=50, checkpoint=40)
    proof = proof_from(killed, _history([10, 20, 30, 40, 50, 60, 65]), 4, updates=65, log_interval=10)
    assert proof.holds and proof.points == 7 and proof.expected[-1] == 65
    text = " ".join(proof.lines())
    assert "pid 4711" in text and "update 50" in text and "checkpoint 40" in text and "each step once" in text
    assert any("4711" in line for line in render(dataclasses.replace(SCREEN, proof=proof)))


@pytest.mark.parametrize("steps", [[10, 20, 20, 30], [10, 30], [10, 20]])
def test_the_proof_fails_on_a_repeated_or_missing_step(steps: list[int]) -> None:
    killed = Killed(pid=1, rank=0, logged=20, checkpoint=10)
    proof: KillProof = proof_from(killed, _history(steps), 4, updates=30, log_interval=10)
    assert not proof.holds and "NOT exactly once" in proof.lines()[1]


def test_killing_is_refused_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    with pytest.raises(Data2VecError, match="at least"):
        run_demo(DemoOptions(kill=True, updates=20))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(Data2VecError, match="unset RAY_ADDRESS"):
        run_demo(DemoOptions(kill=True))
    assert not (home / "cache").exists()


def test_the_sweep_has_the_readmes_rates_for_both_tasks() -> None:
    plain = ["task.data=/tasks", "model.model_path=/model"]
    sweep = load_sweep("demo", plain)
    rates = sorted({rate for trial in sweep.trials for rate in trial.recipe.optimization.lr})
    assert tuple(rates) == DemoSize().rates == (1e-5, 2e-5, 4e-5, 6e-5)
    assert [trial.values["task"] for trial in sweep.trials] == ["cola"] * 4 + ["rte"] * 4
    assert all(trial.recipe.optimization.max_update == DemoSize().trial_updates for trial in sweep.trials)
    control = load_sweep(
        "demo", [*plain, "model.no_pretrained_weights=true", "register.name=null", "register.alias=null"]
    )
    assert control.definition.register.name is None and len(control.trials) == 8
    assert len(FAST.rates) == 1


def test_the_command_line_says_a_users_mistake_in_one_line() -> None:
    command = [sys.executable, str(REPO / "experiments" / "quickstart.py"), "--data", "/does/not/exist"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr.startswith("error: --data /does/not/exist: no such folder")
        and done.stderr.count("\n") == 1
    )
