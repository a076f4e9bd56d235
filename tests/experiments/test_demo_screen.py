"""The demo's last screen and the proof of a killed worker, from given numbers; the command line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import data2vec
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.sweep_definition import load_sweep
from data2vec.data.tokenizer import TextTokenizer
from data2vec.errors import Data2VecError
from experiments.demo.demo import FAST, SHIPPED, DemoOptions, DemoSize, run_demo
from experiments.demo.page import masks_of
from experiments.demo.screen import (
    Prediction,
    Predictions,
    PretrainingFigures,
    Screen,
    TaskFigures,
    render,
    table,
)
from experiments.demo.worker_kill import Killed, KillProof, proof_from

REPO = Path(__file__).resolve().parents[2]
COLA = TaskFigures(
    task="word order, CoLA's layout",
    metric="mcc",
    majority=0.0,
    random=12.34,
    fresh=None,
    pretrained=20.5,
    lr=6e-5,
    model="data2vec2-text-demo-cola@demo",
    examples=400,
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
    task=COLA,
    rates=4,
    seeds=(1,),
    max_updates=300,
    predictions=Predictions(
        model="models:/m@demo",
        shown=[Prediction(sentence="A text.", label="good", score=0.613, truth="bad")],
    ),
    proof=None,
    home="/home/me/.d2v",
    command=".venv/bin/d2v",
)


def test_the_screen_is_short_and_holds_every_figure() -> None:
    lines = render(dataclasses.replace(SCREEN, page=Path("/home/me/report.html")))
    text = "\n".join(lines)
    assert 11 <= len(lines) <= 20
    for wanted in ("5 min 23 s", "42.95 -> 24.88", "target variance 0.80", "2 Ray Train workers",
                   "240 updates in 81 s", "seed 1;", "seeds come on top",
                   "+8.2: no difference beyond noise",
                   "not compared: a sweep has no result", "models:/m@demo, loaded in a clean process;",
                   '"A text." -> good (0.61), WRONG', "make ui", "file:///home/me/report.html",
                   "make demo DATA=", "/home/me/.d2v", ".venv/bin/d2v prepare text"):  # fmt: skip
        assert wanted in text, wanted


def test_the_table_is_aligned_and_admits_a_missing_value() -> None:
    header, first = table(COLA)
    assert header.split("  ")[0] == "task (metric, %)"
    assert header.index("model@alias") == first.index("data2vec2-text-demo-cola@demo")
    for column in ("majority class", "random weights", "just pretrained", "longer pretrained"):
        end = header.index(column) + len(column)
        assert header[:end].rstrip() == header[:end] and first[:end].rstrip() == first[:end]
    assert first.split()[-6:] == ["0.0", "12.3", "-", "20.5", "6e-05", "data2vec2-text-demo-cola@demo"]


def row(metric: str, random: float, pretrained: float, examples: int = 400) -> TaskFigures:
    return dataclasses.replace(
        COLA, metric=metric, random=random, pretrained=pretrained, examples=examples
    )  # fmt: skip


@pytest.mark.parametrize(
    ("task", "said"),
    [
        # Two standard errors of a difference: 2 * 100 * sqrt(2 * 0.25 / 400) = 7.07 near one half.
        (row("accuracy", 50.0, 57.0), "+7.0: no difference beyond noise (+-7.0)"),
        (row("accuracy", 50.0, 57.2), "+7.2: ahead beyond noise (+-7.0)"),
        (row("accuracy", 57.2, 50.0), "-7.2: BEHIND beyond noise (+-7.0)"),
        (row("accuracy", 50.0, 57.2, examples=300), "+7.2: no difference beyond noise (+-8.1)"),
        (row("accuracy", 90.0, 96.0), "+6.0: ahead beyond noise (+-3.6)"),
        (row("mcc", 0.0, 14.0), "+14.0: no difference beyond noise (+-14.1)"),
        (row("mcc", 0.0, 14.2), "+14.2: ahead beyond noise (+-14.1)"),
        (row("accuracy", 50.0, 99.0, examples=0), "+49.0: no difference beyond noise (+-inf)"),
    ],
)
def test_a_difference_counts_beyond_two_standard_errors(task: TaskFigures, said: str) -> None:
    assert task.verdict(task.pretrained) == said


def answers(right: int, wrong: int, score: float) -> list[Prediction]:
    """Right and wrong ones, alternately of two truths."""
    truths = ["a", "b"] * (right + wrong)
    return [
        Prediction(sentence="s", label=truths[n] if n < right else "c", score=score, truth=truths[n])
        for n in range(right + wrong)
    ]


def test_the_surest_sentence_of_each_answer_is_shown() -> None:
    held_out = [
        Prediction(sentence=name, label=label, score=score, truth="a")
        for name, label, score in (
            ("one", "b", 0.6),
            ("two", "a", 0.7),
            ("three", "b", 0.9),
            ("four", "a", 0.8),
        )
    ]
    found = Predictions(model="m", shown=(), held_out=held_out)
    assert [one.sentence for one in found.surest()] == ["four", "three"]
    text = "\n".join(render(dataclasses.replace(SCREEN, predictions=found)))
    assert (
        '"four" -> a (0.80), right' in text and '"three" -> b (0.90), WRONG' in text and '"two"' not in text
    )


def test_the_surest_answers_are_counted_by_themselves() -> None:
    found = Predictions(model="m", shown=(), held_out=[*answers(120, 70, 0.6), *answers(9, 1, 0.9)])
    first, second = found.summary()
    assert first == (
        "of 200 held-out sentences 64 % right; of the 20 it is most sure of (confidence 0.60 and more) 95 %"
    )
    assert second == "one answer for all gets 50 %, noise is +-7: it has learnt something"
    chance = Predictions(model="m", shown=(), held_out=answers(113, 87, 0.6))
    assert chance.summary()[1].endswith("this model answers no better")
    lone = [dataclasses.replace(p, truth="a", label="a") for p in answers(100, 0, 0.6)]
    assert "one answer for all gets 100 %" in Predictions(model="m", shown=(), held_out=lone).summary()[1]
    assert Predictions(model="m", shown=()).summary() == []


def test_masks_hide_the_share_that_pretraining_hides_in_every_clone_another(tmp_path: Path) -> None:
    sentence = "The old captain wrote a long letter."
    section = masks_of(sentence, TextTokenizer(), 0.5, 3)
    assert "50 %" in section.title and [name for name, _ in section.rows] == ["clone 1", "clone 2", "clone 3"]
    texts = [text for _, text in section.rows]
    assert len(set(texts)) == 3 and all(len(text) == len(sentence) for text in texts)
    for text in texts:
        assert "▒" in text and all(c in ("▒", was) for c, was in zip(text, sentence, strict=True))
    assert str(masks_of("a < b", TextTokenizer(), 0.0, 1).rows[0][1]) == "a &lt; b"


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


def test_the_sweep_has_the_demos_rates_and_seeds() -> None:
    plain = ["task.data=/tasks", "model.model_path=/model"]
    sweep = load_sweep("demo", plain)
    rates = sorted({rate for trial in sweep.trials for rate in trial.recipe.optimization.lr})
    assert tuple(rates) == DemoSize().rates
    assert {trial.values["task"] for trial in sweep.trials} == {"cola"}
    assert tuple(sorted({trial.values["seed"] for trial in sweep.trials})) == DemoSize().seeds
    assert all(trial.recipe.optimization.max_update == DemoSize().trial_updates for trial in sweep.trials)
    control = load_sweep(
        "demo", [*plain, "model.no_pretrained_weights=true", "register.name=null", "register.alias=null"]
    )
    assert control.definition.register.name is None and len(control.trials) == 2
    assert len(FAST.rates) == 1


def test_the_shipped_model_is_of_its_recipe_and_small() -> None:
    model = data2vec.load(SHIPPED)
    recipe: Any = compose("tiny/text_pretraining_alibi", ["task.data=/not/read"], check=False).recipe.model
    found = model.config["model"]
    assert {key: found[key] for key in ("depth", "embed_dim", "num_heads", "clone_batch", "modalities")} == {
        key: recipe.to_dict()[key] for key in ("depth", "embed_dim", "num_heads", "clone_batch", "modalities")
    }
    near, far = model.embed(["The cat sleeps.", "The sleeps cat."])
    assert np.abs(near - far).max() > 1e-3, "the order of words counts"
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 4_000_000


def test_the_command_line_says_a_users_mistake_without_a_trace() -> None:
    command = [sys.executable, str(REPO / "experiments" / "quickstart.py"), "--data", "/does/not/exist"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first == "error: --data /does/not/exist: give a raw GLUE folder, which holds CoLA/"
    assert [line.strip() for line in rest] == [
        f"/does/not/exist/CoLA/{name}.tsv is missing" for name in ("train", "dev")
    ]
