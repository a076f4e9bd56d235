"""The demo's live view and its page: bars on a terminal, lines in a log, and where everything else goes."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from d2v_platform.reports.run_history import Curve, RunHistory
from d2v_platform.reports.sweep_history import Setting, SweepHistory, TrialFacts
from d2v_platform.sweeps.schedule import SweepProgress
from d2v_platform.training import ray_output
from experiments.demo import demo, page, registry_prediction
from experiments.demo.live import Live
from experiments.demo.registry_prediction import Labelled
from experiments.demo.screen import PretrainingFigures, render

UPDATE = "update 30/40  epoch 1.00  loss 3.2"


def view(tmp_path: Path, terminal: bool) -> tuple[Live, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, legacy_windows=False)
    return Live(("read", "pretrain"), tmp_path / "demo.log", console), out


def test_on_a_terminal_there_is_one_line_a_stage_with_percent_and_time_left(tmp_path: Path) -> None:
    live, out = view(tmp_path, terminal=True)
    handlers = logging.getLogger().handlers[:]
    with live.running():
        with live.stage(1):
            pass
        with live.stage(2):
            live.said(UPDATE)
            live.said("update 10/40  epoch 2.00 of an earlier checkpoint")
            live.bars.refresh()
            first, second = (task for task in live.bars.tasks)
            assert (first.percentage, second.percentage) == (100, 75), "never back"
            live.reached(1.0)
            assert live.bars.tasks[1].percentage == 99, "the end is the block's"
            logging.getLogger("experiments.x").warning("a [warning] of ours")
            logging.getLogger("d2v_platform.x").warning("token=%s", "x" * 3)
    text = out.getvalue()
    assert "[1/2] read" in text and "[2/2] pretrain" in text and " 75%" in text and "eta 0:00:0" in text
    assert "a [warning] of ours" in text and UPDATE not in text
    assert logging.getLogger().handlers == handlers
    kept = (tmp_path / "demo.log").read_text()
    assert UPDATE in kept and "a [warning] of ours" in kept


def test_in_a_log_there_are_plain_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    live, out = view(tmp_path, terminal=False)
    with live.running(), live.stage(2):
        live.bars._told = dict.fromkeys(live.bars._told, -1e9)
        live.said(UPDATE)
    assert out.getvalue() == "" and UPDATE not in caplog.text
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "[2/2] pretrain" and said[-1] == "      done in 0 s"
    assert said[1].startswith("[2/2] pretrain, percent: 75 of 100")


def test_lines_of_workers_go_to_who_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[Any] = []
    taken: list[str] = []
    dispatcher = SimpleNamespace(
        handlers=[("ray_print_logs", printed.append)],
        remove_handler=lambda name: None, add_handler=lambda name, f: setattr(dispatcher, "show", f),
    )  # fmt: skip
    import ray._private.ray_logging as logs

    monkeypatch.setattr(logs, "global_worker_stdstream_dispatcher", dispatcher)
    message = {"ip": "1", "pid": 1, "is_err": False}
    with ray_output.filtered():
        with ray_output.taken(taken.append):
            dispatcher.show(
                {**message, "lines": ["one", "Failed to query Ray Train Controller actor state."]}
            )
        assert (taken, printed) == (["one"], [])
        dispatcher.show({**message, "lines": ["two"]})
    assert taken == ["one"] and [m["lines"] for m in printed] == [["two"]]


def test_the_share_of_a_sweep_counts_updates() -> None:
    progress = SweepProgress({"a": 100, "b": 100, "c": 200}, slots=2)
    progress.started = {"a": 0.0, "b": 0.0}
    assert progress.share({}) == 0
    progress.seconds = {"a": 5.0}
    assert progress.share({"b": 50}) == 150 / 400
    assert progress.share({"b": 999}) == 200 / 400
    unknown = SweepProgress({"a": 0, "b": 100}, slots=2, started={"a": 0.0, "b": 0.0}, seconds={"a": 1.0})
    assert unknown.share({"b": 50}) == 0.5


def history(name: str, **curves: tuple[float, ...]) -> RunHistory:
    made = {
        key.replace("__", "/"): Curve(np.arange(len(v)) + 1, np.array(v), np.arange(len(v)) * 1.0)
        for key, v in curves.items()
    }
    return RunHistory(name=name, run_id=name, curves=made)


def sweep_of(value: float) -> SweepHistory:
    trials = [
        TrialFacts(task="cola", setting=(("lr", lr),), seed=1, status="finished", metric="mcc", value=value,
                   run_id="")
        for lr in ("1e-5", "4e-5")
    ]  # fmt: skip
    settings = tuple(Setting(task="cola", setting=t.setting, trials=(t,)) for t in trials)
    return SweepHistory(run=history("s"), settings=settings, protocol=(), complete=True)


def test_the_demo_from_its_stages_to_its_page(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything but Ray: stages in order, what is predicted, and a page that needs nothing beside it."""
    caplog.set_level(logging.INFO)
    done: list[str] = []
    figures = PretrainingFigures(first_loss=9.0, last_loss=3.0, target_var=0.5, workers=2, updates=8,
                                 seconds=1.0, model="m@demo")  # fmt: skip

    def pretrain(*_: Any) -> Any:
        done.append("pretrain")
        return figures, "run", None

    weights = {"models:/data2vec2-text-demo@demo": ("fresh", 5.5), str(demo.SHIPPED): ("longer", 6.0)}

    def sweep(options: Any, material: Any, live: Live, parent: str | None, *, register: bool = False) -> Any:
        name, value = weights.get(parent or "", ("control", 5.0))
        done.append(f"sweep {name}{' registered' * register}")
        live.reached(0.5)
        uri = f"models:/{name}@demo"
        return demo._Best(metric="mcc", value=value, majority=0.0, lr=1e-5, model="m@demo", uri=uri), name

    def predict(uri: str, texts: list[str]) -> list[Labelled]:
        done.append(f"predict {uri}")
        return [Labelled(text, "1", 0.9) for text in texts]

    runs = {"run": history("run", train__loss=(9.0, 3.0), train__target_var=(0.5, 0.6))}
    sweeps = {"fresh": sweep_of(5.5), "longer": sweep_of(6.0), "control": sweep_of(5.0)}
    monkeypatch.setattr(demo, "_pretrain", pretrain)
    monkeypatch.setattr(demo, "_sweep", sweep)
    monkeypatch.setattr(demo.ray_session, "connected", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(registry_prediction, "predict", predict)
    monkeypatch.setattr(page, "open_client", lambda _: None)
    monkeypatch.setattr(page, "find_run", lambda _, name: name)
    monkeypatch.setattr(page, "load_run", lambda _, name: runs[name])
    monkeypatch.setattr(page, "load_sweep_history", lambda _, name: sweeps[name])
    screen = demo.run_demo(demo.DemoOptions(fast=True))
    assert done == [
        "pretrain", "sweep fresh", "sweep longer registered", "sweep control", "predict models:/longer@demo"
    ]  # fmt: skip
    first, second = screen.predictions.shown
    assert [(p.truth, p.right) for p in (first, second)] == [("acceptable", True), ("unacceptable", False)]
    assert len(screen.predictions.held_out) == 40 and screen.predictions.summary()[0].startswith("of 40")
    lines = "\n".join(render(screen))
    assert "just pretrained +0.5: no difference" in lines and "longer pretrained +1.0: no diff" in lines
    assert "this model answers no better" in lines
    text = screen.page.read_text(encoding="utf-8") if screen.page else ""
    assert not re.search(r"<(script|link|img|iframe)\b|(?:src|href)=\"(?!#)", text)
    panels = re.findall(r'<figure id="panel-([^"]+)">', text)
    assert panels == [
        "loss",
        "variance",
        *(f"cola-lr-{w}" for w in ("just-pretrained", "longer-pretrained", "random")),
    ]
    for said in ("▒", "clone 2", "models:/longer@demo", "no difference beyond noise", first.sentence, "0.90"):
        assert said in text, said
    assert (home / "reports" / "demo" / "demo.log").read_text().count("documents") == 4
