"""Registering, loading back, gates and naming, with a real (tiny, random) model on a real registry."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from d2v_platform.registry import register as registry
from d2v_platform.registry.commands import app
from d2v_platform.registry.model_package import LIBRARY_REQUIREMENTS
from d2v_platform.registry.model_versions import NewVersion
from d2v_platform.registry.register import (
    GateRefusedError,
    ModelVersion,
    history,
    list_models,
    promote,
    register,
    resolve,
    rollback,
    show,
)
from d2v_platform.tracking.scores import Score, record_scores, stored_scores
from d2v_platform.tracking.tracker import NewRun, Tracker
from data2vec.artifact import save_artifact
from data2vec.config import Data2VecMultiConfig, SentenceHeadConfig
from data2vec.data.bpe import GPT2BPE
from data2vec.data.dictionary import Dictionary
from data2vec.data.tokenizer import TextTokenizer
from data2vec.errors import CheckpointError, ConfigError, Data2VecError
from data2vec.folders import file_sha256
from data2vec.heads import SentenceClassifier
from data2vec.loading import load
from data2vec.student import Data2VecMulti
from data2vec.text_model import TextModel

LINEAGE = {
    "recipe.name": "tiny/text",
    "recipe.digest": "abc123",
    "recipe.difference": "none",
    "data.fingerprint": "data-1",
    "dictionary.hash": "dict-1",
    "code.version": "0.1.0",
    "parent.version": "none",
}
TEXTS = ["The cat sat on the mat.", "A much longer sentence, with a comma and some words in it.", "Hi"]


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    bpe = GPT2BPE()
    counts: dict[str, int] = {}
    for text in [*TEXTS, "The committee met on Tuesday and agreed to nothing."]:
        for token in bpe.encode(text):
            counts[str(token)] = counts.get(str(token), 0) + 1
    return TextTokenizer(bpe, Dictionary.from_counts(counts).with_mask())


def tiny_config() -> Data2VecMultiConfig:
    text = {"max_source_positions": 64, "mask_length": 1}
    return Data2VecMultiConfig.from_dict(
        {"depth": 2, "num_heads": 2, "embed_dim": 16, "average_top_k_layers": 2, "modalities": {"text": text}}
    )


def make_folder(folder: Path, tokenizer: TextTokenizer, kind: str, labels: list[str]) -> Path:
    torch.manual_seed(0)
    config, size = tiny_config(), len(tokenizer.dictionary)
    if kind == "pretrained":
        model = Data2VecMulti(config, vocab_size=size, with_decoder=False)
        return save_artifact(
            folder, kind="pretrained", model_config=config, state=model.state_dict(), tokenizer=tokenizer
        )
    head = SentenceHeadConfig(num_classes=max(1, len(labels)))
    classifier = SentenceClassifier(config, head, vocab_size=size)
    return save_artifact(
        folder,
        kind="sentence_classifier",
        model_config=config,
        head_config=head,
        state=classifier.state_dict(),
        tokenizer=tokenizer,
        task={"labels": labels, "regression": not labels, "max_positions": 62},
    )


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "pretrained": make_folder(root / "pretrained", tokenizer, "pretrained", []),
        "classifier": make_folder(root / "classifier", tokenizer, "classifier", ["no", "yes", "maybe"]),
        "regression": make_folder(root / "regression", tokenizer, "regression", []),
        "other": make_folder(root / "other", tokenizer, "classifier", ["no", "yes"]),
    }


@pytest.fixture
def run_id(tracker: Tracker) -> str:
    return tracker.open_run(NewRun(experiment="e", name="trained", params={})).run_id


def add(tracker: Tracker, folder: Path, run_id: str, name: str = "tiny", **more: Any) -> ModelVersion:
    tags = LINEAGE | more.pop("tags", {})
    return register(
        tracker,
        NewVersion(folder=folder, name=name, run_id=run_id, tags=tags, card_markdown="# Tiny\n", **more),
    )


def score(value: float, data: str = "data-1") -> dict[str, str]:
    return {
        "metric.name": "mcc",
        "metric.value": str(value),
        "metric.maximize": "true",
        "data.fingerprint": data,
    }


def test_importing_the_registry_imports_neither_mlflow_nor_torch() -> None:
    code = "import sys, d2v_platform.registry.commands; sys.exit(bool({'mlflow', 'torch'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_requirements_are_the_librarys_dependencies() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    import tomllib

    declared = [d.split(">")[0].split("=")[0].strip() for d in tomllib.loads(text)["project"]["dependencies"]]
    assert sorted(LIBRARY_REQUIREMENTS) == sorted(declared)


@pytest.mark.timeout(400)  # clean processes import torch and mlflow: slow beside other work
def test_a_classifier_is_registered_and_predicts_in_a_clean_process(
    tracker: Tracker, run_id: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The whole road of a user: register, load by alias with pyfunc in another process, compare scores."""
    table = tmp_path / "results.csv"
    table.write_text("task,mcc\ncola,50\n")
    weights = file_sha256(folders["classifier"] / "model.safetensors")
    mine = Score(subset="test", metrics={"mcc": 41.5}, data="d", weights=weights, samples=3)
    record_scores(tracker, [mine, dataclasses.replace(mine, subset="other", weights="w")], run_id)
    version = add(
        tracker, folders["classifier"], run_id, alias="champion", tags=score(50), results_table=table
    )
    assert (version.version, version.aliases, version.refusal) == (1, ("champion",), None)
    assert version.tags["run.id"] == version.run_id == run_id
    found = resolve("models:/tiny@champion", tracker)
    assert found.kind == "artifact"
    assert found.uri == "models:/tiny/1"
    assert found.package is not None
    told = (found.package / "model_card.md").read_text()
    for text in (told, version.description):
        assert "| `test/test/mcc` | 41.5 |" in text and "test/other" not in text
    assert [score.id for score in stored_scores(version.tags)] == [mine.id]
    kept = {path.name for path in found.package.iterdir()}
    assert {"model_card.md", "lineage.json", "results.csv", "MLmodel"} <= kept
    assert not [p for p in found.package.rglob("*") if p.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin")]
    script = """
import json, sys, mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/tiny@champion")
texts = json.loads(sys.argv[1])
both = pd.DataFrame({"text": texts, "text_pair": [None, "", "Pair here."]})
print(json.dumps({
    "scores": model.predict(pd.DataFrame({"text": texts})).to_dict("list"),
    "pairs": model.predict(both).to_dict("list"),
    "cls": model.predict(pd.DataFrame({"text": texts}), params={"output": "embedding", "pooling": "cls",
                         "layer": 0})["embedding"].tolist(),
}))
"""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": tracker.tracking_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, json.dumps(TEXTS)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    model = load(folders["classifier"])
    names, expected = model.classify(TEXTS)
    assert list(answer["scores"]) == ["label", "score", *(f"score_{n}" for n in names)]
    got = np.array([answer["scores"][f"score_{n}"] for n in names]).T
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert answer["scores"]["label"] == [names[i] for i in expected.argmax(1)]
    np.testing.assert_allclose(answer["scores"]["score"], expected.max(1), atol=1e-6)
    pair = model.classify([(TEXTS[2], "Pair here.")])[1][0]
    np.testing.assert_allclose([answer["pairs"][f"score_{n}"][2] for n in names], pair, atol=1e-6)
    np.testing.assert_allclose(answer["pairs"]["score_no"][:2], expected[:2, 0], atol=1e-6)
    np.testing.assert_allclose(answer["cls"], model.embed(TEXTS, pooling="cls", layer=0), atol=1e-6)


def test_registering_again_after_a_crash_gives_the_same_version(
    tracker: Tracker, run_id: str, folders: dict[str, Path]
) -> None:
    first = add(tracker, folders["classifier"], run_id)
    again = add(tracker, folders["classifier"], run_id, alias="champion")
    assert (first.version, again.version, again.aliases) == (1, 1, ("champion",))
    assert add(tracker, folders["other"], run_id).version == 2
    tracker.flush(run_id)
    assert tracker.client.get_run(run_id).data.tags["registered.tiny"] == "2"


def test_incomplete_registrations_name_every_problem(
    tracker: Tracker, run_id: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    tags = {k: v for k, v in LINEAGE.items() if k not in ("recipe.digest", "code.version")}
    with pytest.raises(ConfigError) as caught:
        register(
            tracker,
            NewVersion(
                folder=folders["classifier"],
                name="a/b",
                run_id=run_id,
                tags=tags | {"dictionary.hash": " "},
                card_markdown="",
                results_table=tmp_path / "absent.csv",
            ),
        )
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {
        "tags['recipe.digest']",
        "tags['code.version']",
        "tags['dictionary.hash']",
        "name",
        "card_markdown",
        "results_table",
    }
    with pytest.raises(CheckpointError, match=r"no model folder of ours: config\.json and model"):
        add(tracker, tmp_path, run_id)
    assert list_models(tracker) == []


def test_long_lineage_and_cards_are_kept_whole(
    tracker: Tracker, run_id: str, folders: dict[str, Path]
) -> None:
    long, card = "d" * 6000, "# Tiny\n" + "a line of the card\n" * 400
    version = register(
        tracker,
        NewVersion(
            folder=folders["classifier"],
            name="tiny",
            run_id=run_id,
            tags=LINEAGE | {"recipe.difference": long},
            card_markdown=card,
        ),
    )
    assert version.tags["recipe.difference"] == "6000 characters, see lineage.json in the version"
    assert len(version.description) <= 5000
    assert version.description.endswith("goes on in model_card.md of this version.)")
    package = resolve(version.uri, tracker).package
    assert package is not None
    assert json.loads((package / "lineage.json").read_text())["recipe.difference"] == long
    assert (package / "model_card.md").read_text() == card


def test_gate_history_and_rollback_on_the_registry(
    tracker: Tracker, run_id: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    def variant(number: int, value: float, **more: Any) -> ModelVersion:
        folder = tmp_path / str(number)
        shutil.copytree(folders["classifier"], folder)
        state = load_file(folder / "model.safetensors")
        save_file({k: t + number * 1e-3 for k, t in state.items()}, folder / "model.safetensors")
        return add(tracker, folder, run_id, tags=score(value, **more), alias="champion")

    assert variant(1, 50).aliases == ("champion",)
    worse = variant(2, 49)
    assert worse.aliases == ()
    assert "mcc = 49 is not better than 50 of the holder (version 1)" in str(worse.refusal)
    assert variant(3, 60).aliases == ("champion",)
    assert "data.fingerprint" in str(variant(4, 99, data="data-2").refusal)
    with pytest.raises(GateRefusedError, match="version 2 refused"):
        promote(tracker, name="tiny", version=2, alias="champion")
    assert promote(tracker, name="tiny", version=3, alias="champion") is None
    moves = history(tracker, "tiny")
    assert [(m.from_version, m.to_version) for m in moves] == [(None, 1), (1, 3)]
    assert moves[1].reason == "mcc 60 against 50, same data"
    move = rollback(tracker, name="tiny", alias="champion", by="me")
    assert (move.from_version, move.to_version, move.by) == (3, 1, "me")
    assert show(tracker, "tiny").aliases == {"champion": 1}
    with pytest.raises(Data2VecError, match="no earlier holder"):
        rollback(tracker, name="tiny", alias="champion")
    tracker.client.set_registered_model_alias("tiny", "champion", "4")  # by hand, in the UI
    assert rollback(tracker, name="tiny", alias="champion").to_version == 1
    assert [(m.number, m.outside) for m in history(tracker, "tiny")] == [
        (1, False), (2, False), (3, False), (4, True), (5, False)
    ]  # fmt: skip
    for alias in ("latest", "v3", "1st", "a b"):
        with pytest.raises(Data2VecError, match="must start with a letter"):
            promote(tracker, name="tiny", version=3, alias=alias)


# A host that reads who holds the alias, and thinks about it until the other host has read it too.
RACE = """
import sys, time
from pathlib import Path
from d2v_platform.registry import promotion
from d2v_platform.tracking.tracker import Tracker

honest = promotion.gate_reasons
def slowly(*given, **more):
    time.sleep(2.0)
    return honest(*given, **more)
promotion.gate_reasons = slowly
with Tracker() as tracker:
    promotion.show(tracker, "raced")
    (Path(sys.argv[2]) / sys.argv[1]).touch()
    while len(list(Path(sys.argv[2]).iterdir())) < 2:
        time.sleep(0.01)
    try:
        print(promotion.promote(tracker, name="raced", version=sys.argv[1], alias="best").number)
    except promotion.GateRefusedError as refusal:
        print(refusal.line)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hosts_that_promote_at_once_do_not_both_win(
    tracker: Tracker, run_id: str, tmp_path: Path
) -> None:
    tracker.client.create_registered_model("raced")
    for value in (50, 60, 55):
        tags = LINEAGE | {"model.kind": "sentence_classifier", "run.id": run_id} | score(value)
        tracker.client.create_model_version("raced", "runs:/x/m", run_id, tags=tags, description="# card")
    promote(tracker, name="raced", version=1, alias="best")
    ready = tmp_path / "ready"
    ready.mkdir()
    server = os.environ | {"MLFLOW_TRACKING_URI": tracker.tracking_uri}
    hosts = {
        number: subprocess.Popen(
            [sys.executable, "-c", RACE, number, str(ready)], text=True, stdout=subprocess.PIPE,
            env=server | {"D2V_HOME": str(tmp_path / number)},
        )
        for number in ("2", "3")
    }  # fmt: skip
    said = {number: host.communicate(timeout=300)[0].strip() for number, host in hosts.items()}
    moves = [(move.from_version, move.to_version) for move in history(tracker, "raced")]
    assert moves in ([(None, 1), (1, 2)], [(None, 1), (1, 3), (3, 2)]), said
    if len(moves) == 2:
        assert said["2"] == "2" and "mcc = 55 is not better than 60 of the holder (version 2)" in said["3"]
    assert show(tracker, "raced").aliases == {"best": 2}
    assert not [key for key in tracker.client.get_registered_model("raced").tags if "turn" in key]


def test_a_useless_model_gets_no_alias_but_by_force_and_on_the_record(
    tracker: Tracker, run_id: str, folders: dict[str, Path]
) -> None:
    floor = {"floor.metric": "mcc", "floor.value": "52.5", "floor.answer": "always answering 'a'"}
    made = add(tracker, folders["classifier"], run_id, tags=score(52.5) | floor, alias="champion")
    told = "mcc = 52.5 is not better than the 52.5 of always answering 'a' (higher is better)"
    assert (made.aliases, made.refusal) == ((), f"tiny@champion -> version 1 refused: {told}")
    call, words = CliRunner().invoke, ["promote", "tiny", "1", "--alias", "champion"]
    refused = str(call(app, words).exception)
    assert told in refused and "--force 'WHY'" in refused
    assert "needs a reason" in str(call(app, [*words, "--force", " "]).exception)
    assert show(tracker, "tiny").aliases == {} and history(tracker, "tiny") == []
    assert call(app, [*words, "--force", "for a demonstration"]).exit_code == 0
    (move,) = history(tracker, "tiny")
    assert move.reason == f"forced: for a demonstration (although {told})" and "@" in move.by
    better = add(tracker, folders["classifier"], run_id, "good", tags=score(60) | floor, alias="champion")
    assert better.aliases == ("champion",)
    assert history(tracker, "good")[0].reason == (
        "first holder; mcc 60 against the 52.5 of always answering 'a'"
    )
    move = promote(tracker, name="good", version=1, alias="other", force="no need")
    assert move is not None and move.reason.startswith("first holder")  # nothing spoke against it


@pytest.mark.slow
@pytest.mark.timeout(400)  # clean processes import torch and mlflow: slow beside other work
def test_a_pretrained_model_must_reproduce_its_outputs_in_a_clean_process(
    tracker: Tracker, run_id: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    good = add(tracker, folders["pretrained"], run_id, "base", alias="champion", tags={"collapse": "false"})
    assert good.aliases == ("champion",), good.refusal
    # Weights damaged after the outputs were recorded: the shape fits, the numbers do not.
    damaged = tmp_path / "damaged"
    shutil.copytree(folders["pretrained"], damaged)
    registry.record_check(damaged)
    state = load_file(damaged / "model.safetensors")
    name = next(key for key in state if "blocks.1" in key and key.endswith("weight"))
    noise = torch.randn(state[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(state | {name: state[name] + noise}, damaged / "model.safetensors")
    bad = add(tracker, damaged, run_id, "base", alias="champion", tags={"collapse": "false"})
    assert "other outputs than recorded" in str(bad.refusal)
    assert show(tracker, "base").aliases == {"champion": 1}


def test_pyfunc_refuses_what_a_model_cannot_do(
    tracker: Tracker, run_id: str, folders: dict[str, Path]
) -> None:
    import mlflow

    add(tracker, folders["pretrained"], run_id, "base")
    add(tracker, folders["regression"], run_id, "regression")
    table = pd.DataFrame({"text": TEXTS})
    packages = {name: str(resolve(f"models:/{name}/1", tracker).package) for name in ("base", "regression")}
    base = mlflow.pyfunc.load_model(packages["base"])
    for params, words in (
        ({"output": "scores"}, "no head; use output = 'embedding'"),
        ({"output": "logits"}, "must be one of scores, embedding"),
        ({"pooling": "max"}, "must be one of mean, cls"),
        ({"layer": 7}, "the model has 2 blocks"),
    ):
        with pytest.raises(ValueError, match=words):
            base.predict(table, params=params)
    got = base.predict(table.set_index(pd.Index([5, 6, 7])))
    assert list(got.index) == [5, 6, 7]
    np.testing.assert_allclose(got["embedding"].tolist(), load(folders["pretrained"]).embed(TEXTS), atol=1e-6)
    scores = mlflow.pyfunc.load_model(packages["regression"]).predict(table)
    assert list(scores.columns) == ["score"]
    np.testing.assert_allclose(
        scores["score"], load(folders["regression"]).classify(TEXTS)[1][:, 0], atol=1e-6
    )


def test_names_resolve_or_list_what_exists(tracker: Tracker, run_id: str, folders: dict[str, Path]) -> None:
    add(tracker, folders["classifier"], run_id, alias="champion")
    for name in ("models:/tiny@champion", "models:/tiny/1", f"runs:/{run_id}", f"runs:/{run_id}/tiny"):
        found = resolve(name, tracker)
        assert isinstance(load(found.path), TextModel)
    cases = {
        "models:/tinny/1": "no registered model 'tinny'; did you mean 'tiny'",
        "models:/tiny@champoin": "aliases: champion -> 1; did you mean 'champion'",
        "models:/tiny/7": "tiny has the versions 1",
        "models:/tiny/latest": "change under you; choose models:/tiny@champion, models:/tiny/1",
        "models:/tiny": "it names no version; choose",
        "models:tiny": "write models:/NAME@ALIAS",
        "runs:/0123": "MLflow has no run '0123'",
        f"runs:/{run_id}/other": "has no model 'other'; its artifacts are",
        f"runs:/{run_id}/model": f"d2v registry add {run_id}@last --name NAME",
    }
    for name, words in cases.items():
        with pytest.raises(Data2VecError, match=words):
            resolve(name, tracker)


def test_a_version_behind_a_server_is_downloaded_once(
    tracker: Tracker, run_id: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = add(tracker, folders["classifier"], run_id)
    monkeypatch.setattr("d2v_platform.registry.model_source._as_local", lambda location: None)
    found = resolve(version.uri, tracker)
    assert tracker.home / "cache" / "data" in found.path.parents
    assert (found.path / "check.json").is_file()
    (found.path / "mark").touch()
    again = resolve(version.uri, tracker)
    assert (again.path / "mark").exists()
    assert len([p for p in (tracker.home / "cache" / "data").iterdir() if p.is_dir()]) == 1


def test_a_models_artifact_of_a_run_resolves(tracker: Tracker, run_id: str, folders: dict[str, Path]) -> None:
    tracker.client.log_artifacts(run_id, str(folders["classifier"]), "exported/best")
    found = resolve(f"runs:/{run_id}/exported/best", tracker)
    assert found.kind == "artifact"
    assert load(found.path).config["kind"] == "sentence_classifier"


def test_a_run_that_registered_nothing_is_found_where_it_left_its_model(
    tracker: Tracker, folders: dict[str, Path], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    stored: tuple[tuple[str | None, Path], ...] = (
        (None, tracker.home / "runs"), (str(shared), shared), (shared.as_uri(), tmp_path / "shared"),
    )  # fmt: skip
    for number, (storage, root) in enumerate(stored):
        run = tracker.open_run(
            NewRun(experiment="e", name=f"r{number}", params={"platform": {"storage": storage}})
        )
        shutil.copytree(folders["classifier"], root / run.run_id / "model")
        for name in (f"runs:/{run.run_id}", f"runs:/{run.run_id}/model"):
            found = resolve(name, tracker)
            assert (found.uri, found.kind) == (f"runs:/{run.run_id}", "artifact")
            assert load(found.path).config["kind"] == "sentence_classifier"


def test_the_commands_show_all_this(tracker: Tracker, run_id: str, folders: dict[str, Path]) -> None:
    call = CliRunner().invoke
    assert "Nothing is registered yet" in call(app, ["list"]).stdout
    add(tracker, folders["classifier"], run_id, alias="champion", tags=score(51.5))
    add(tracker, folders["other"], run_id, tags=score(52.5))
    listed = call(app, ["list"]).stdout
    assert all(word in listed for word in ("tiny", "champion -> 1", "mcc 52.5", "sentence_classifier")), (
        listed
    )
    assert (
        "version 1 -> version 2 (mcc 52.5 against 51.5"
        in call(app, ["promote", "tiny", "2", "--alias", "champion"]).stdout
    )
    shown = call(app, ["show", "tiny", "--version", "2"]).stdout
    assert all(word in shown for word in ("@champion", "recipe.digest", "abc123", "Tiny"))
    assert (
        "version 2 -> version 1 (rollback)" in call(app, ["rollback", "tiny", "--alias", "champion"]).stdout
    )
    assert call(app, ["history", "tiny"]).stdout.count("champion") == 3
    refused = call(app, ["promote", "tiny", "9", "--alias", "champion"])
    assert isinstance(refused.exception, Data2VecError)
    for command in ("list", "show", "promote", "history", "rollback"):
        assert f"d2v registry {command}" in call(app, [command, "--help"]).stdout
