"""The command line itself: quick help, version, completion, where things are, pages and the list of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from d2v_platform import cli
from d2v_platform.cli import app
from d2v_platform.tracking import pages
from d2v_platform.tracking.run_list import list_runs
from d2v_platform.tracking.run_liveness import HEARTBEAT_TAG, Heartbeat
from d2v_platform.tracking.tracker import MetricPoint, NewRun, Tracker
from data2vec.errors import Data2VecError

# Everything that takes a tenth of a second or more to import.
HEAVY = ("torch", "ray", "mlflow", "hydra", "omegaconf", "numpy", "pandas", "requests", "joblib", "boto3")
_EVERY_HELP = """
import contextlib, io, json, sys
import typer
from d2v_platform.cli import app

def said(words):
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        app(words, prog_name="d2v")
    return {"text": text.getvalue(), "imported": [name for name in HEAVY if name in sys.modules],
            "ours": [name for name in sys.modules if name.startswith("d2v_platform.")]}

found = {"": said(["--help"]), "the list": said(["config", "list"]), "--version": said(["--version"])}
def walk(command, words):
    for name in command.list_commands(None):
        _, inner, _ = command.resolve_command(typer.Context(command), [name])
        found[" ".join([*words, name])] = said([*words, name, "--help"])
        if hasattr(inner, "list_commands"):
            walk(inner, [*words, name])
walk(typer.main.get_command(app), [])
print(json.dumps(found))
"""


def test_no_help_waits_for_a_large_library() -> None:
    code = f"HEAVY = {HEAVY!r}\n{_EVERY_HELP}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert {"train", "sweep", "infer", "config show", "registry promote", "prepare text", "runs"} <= set(
        found
    )
    assert {words: one["imported"] for words, one in found.items() if one["imported"]} == {}
    assert found["the list"]["text"].splitlines()[-1].startswith("sweep ")
    assert "v2/base_text_only_task" in found["the list"]["text"].splitlines()
    assert found["--version"]["text"].startswith("d2v 0.")
    assert sorted(found[""]["ours"]) == [
        "d2v_platform.cli", "d2v_platform.redaction",
        "d2v_platform.storage", "d2v_platform.storage.local_places",
    ]  # fmt: skip
    for words, one in found.items():
        assert len(one["text"].splitlines()) > 5 or words == "--version", words
    assert "--changed" in found["config show"]["text"] and "--plan" not in found["config show"]["text"]
    assert "d2v config show" in found["config show"]["text"]


@pytest.mark.parametrize("name", cli._MODULES)
def test_the_list_of_verbs_says_what_each_says_itself(name: str) -> None:
    command = cli.verb(name)
    assert " ".join((command.help or "").split("\n\n")[0].split()) == cli._MODULES[name][2]
    assert command.help is not None and (command.epilog or "") == cli._MODULES[name][3]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("d2v pr", ["prepare", "probe"]),
        ("d2v train tiny/text_f", ["tiny/text_finetuning"]),
        ("d2v train --plan tiny/language", ["tiny/language_model"]),
        ("d2v config show tiny/language", ["tiny/language_model"]),
        ("d2v sweep gl", ["glue", "glue_v1"]),
        ("d2v embed --po", ["--pooling"]),
        ("d2v registry pro", ["promote"]),
    ],
)
def test_tab(
    line: str, found: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"_D2V_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out.split() == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_script_names_what_main_reads(shell: str) -> None:
    script = CliRunner().invoke(app, ["completion", shell]).output
    assert f"_D2V_COMPLETE=complete_{shell}" in script and "d2v" in script


def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    """The whole way: the script in a shell, which calls the program for the words so far."""
    script = CliRunner().invoke(app, ["completion", "bash"]).output
    program = Path(sys.executable).with_name("d2v")
    lines = [
        script,
        "COMP_WORDS=(d2v config sh); COMP_CWORD=2",
        f"_d2v_completion {program}",
        "echo ${COMPREPLY[@]}",
    ]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "show"


def test_env_makes_a_shell_find_the_store(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D2V_HOME", f"{home} it's")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lines = CliRunner().invoke(app, ["env"]).output
    shown = subprocess.run(
        ["bash", "-c", 'eval "$1"; echo "$D2V_HOME|$MLFLOW_TRACKING_URI"', "-", lines],
        capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert shown.stdout.strip() == f"{home} it's|sqlite:///{home} it's/mlflow/mlflow.db"


def test_env_prints_no_secret(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:hunter22@mlflow.example.com")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefghijkl")
    lines = CliRunner().invoke(app, ["env"]).output.splitlines()
    assert lines[0] == f"export D2V_HOME={home}"
    assert lines[1].startswith("# MLFLOW_TRACKING_URI holds a secret") and len(lines) == 2


def test_ui_serves_the_default_store(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(pages.os, "execv", lambda _, words: started.append((words, dict(os.environ))))
    missing = CliRunner().invoke(app, ["ui"])
    assert isinstance(missing.exception, Data2VecError) and "no " in str(missing.exception)
    database = home / "mlflow" / "mlflow.db"
    database.touch()
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "sqlite:///other.db")
    result = CliRunner().invoke(app, ["ui", "--port", "5077"])
    assert "http://127.0.0.1:5077/#/models" in result.output
    ((words, environment),) = started
    assert words[1:] == ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "5077", "--workers", "1"]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{database}"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_ui_of_a_server_is_the_servers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:hunter22@mlflow.example.com")
    monkeypatch.setattr(pages.os, "execv", lambda *_: pytest.fail("nothing is to be started"))
    output = CliRunner().invoke(app, ["ui"]).output
    assert "mlflow.example.com" in output and "hunter22" not in output


def test_runs(tracker: Tracker, mlflow_home: Path) -> None:
    def add(
        name: str, status: str | None, parent: str | None = None, experiment: str = "e", **tags: str
    ) -> str:
        run = tracker.open_run(NewRun(
            experiment=experiment, name=name, parent_run_id=parent,
            params={"checkpoint": {"best_checkpoint_metric": "accuracy"}, "dataset": {"valid_subset": "dev"}},
            tags={f"d2v.{key}": value for key, value in tags.items()},
        ))  # fmt: skip
        points = [("train/loss", 10, 2.0), ("train/loss", 20, 1.0)]
        points += [("dev/accuracy", 16, 70.0)] if name == "judged" else []
        tracker.log(
            run.run_id, [MetricPoint(key, step, value, 1_700_000_000_000) for key, step, value in points]
        )
        tracker.finish(run.run_id, status) if status else tracker.flush(run.run_id)
        return run.run_id

    add("plain", "FINISHED", recipe="tiny/text_pretraining")
    add("judged", "FAILED", recipe="r")
    parent = add("many", "FINISHED", sweep="glue", experiment="other")
    add("many/cola", "FINISHED", parent, recipe="r", experiment="other")
    add("going", None, recipe="r")
    gone = add("gone", None, recipe="r")
    beat = replace(Heartbeat.now(), started_s=1.0)  # a process of this number that is no more
    tracker.client.set_tag(gone, HEARTBEAT_TAG, beat.to_tag())

    found = list_runs(tracker)
    assert [run.name for run in found] == ["gone", "going", "many", "judged", "plain"]
    assert [run.state for run in found] == ["dead", "running", "finished", "failed", "finished"]
    assert [run.recipe for run in found] == ["r", "r", "sweep glue", "r", "tiny/text_pretraining"]
    judged, plain = found[-2:]
    assert (judged.metric, judged.score, judged.update) == ("dev/accuracy", 70.0, 20)
    assert (plain.metric, plain.score, plain.update) == ("train/loss", 1.0, 20)
    assert [run.name for run in list_runs(tracker, trials=True, limit=3)] == ["gone", "going", "many/cola"]
    assert [run.name for run in list_runs(tracker, "other")] == ["many"]
    with pytest.raises(Data2VecError, match="did you mean 'other'"):
        list_runs(tracker, "othr")

    result = CliRunner().invoke(app, ["runs", "--experiment", "e", "-n", "2", "--json"])
    assert [run["name"] for run in json.loads(result.output)] == ["gone", "going"]
    shown = CliRunner().invoke(app, ["runs", "--experiment", "e"]).output
    for word in ("judged", "failed", "dev/accuracy 70", "tiny/text_pretraining"):
        assert word in shown


def test_runs_of_an_empty_store(mlflow_home: Path) -> None:
    assert "d2v train" in CliRunner().invoke(app, ["runs"]).output
    assert json.loads(CliRunner().invoke(app, ["runs", "--json"]).output) == []
