"""``d2v registry add RUN@UPDATE``: any checkpoint of a run becomes a version, with the run's own lineage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from d2v_platform.cli import app as cli
from d2v_platform.launch import RunResult, launch
from d2v_platform.recipe.compose import compose
from d2v_platform.registry import model_versions
from d2v_platform.registry.commands import app
from d2v_platform.registry.from_run import RunCheckpoint
from d2v_platform.registry.model_source import resolve
from d2v_platform.registry.model_versions import KIND_TAG, ModelVersion, ancestry, get_version
from d2v_platform.tracking.tracker import Tracker
from data2vec.errors import CheckpointError, Data2VecError

SMALL = [
    "platform.num_workers=0", "platform.run_name=small", "optimization.max_update=4", "dataset.batch_size=4",
    "checkpoint.save_interval_updates=2", "checkpoint.keep_interval_updates=-1", "task.tokens_per_sample=32",
    "common.log_interval=1", "optimizer.groups.default.lr_scheduler.warmup_updates=1",
    "model.depth=1", "model.average_top_k_layers=1", "model.embed_dim=32",
    "model.clone_batch=2", "model.modalities.text.decoder.decoder_dim=16",
]  # fmt: skip


@pytest.fixture
def trained(tracker: Tracker, tiny_text: Path) -> RunResult:
    return launch(compose("tiny/text_pretraining", [f"task.data={tiny_text}", *SMALL]))


@pytest.mark.timeout(400)  # the gate loads the model in a clean process: slow beside other work
def test_a_checkpoint_of_a_run_becomes_a_version(
    trained: RunResult, tracker: Tracker, tiny_text: Path, tmp_path: Path
) -> None:
    run = tracker.client.get_run(trained.run_id)
    assert tracker.client.get_experiment(run.info.experiment_id).name == "data2vec-text"
    assert run.data.tags["mlflow.source.name"] == "d2v train tiny/text_pretraining"
    note = run.data.tags["mlflow.note.content"]
    assert (
        f"- data: `{tiny_text}`, subset `train`, " in note
        and " tokens\n- starts from: random weights" in note
    )
    assert "| `model.depth` | `4` | `1` |" in note
    (data,) = run.inputs.dataset_inputs  # named at the start and at the end: one and the same
    assert (data.dataset.name, data.tags[0].value) == (f"{tiny_text.name}/train", "training")
    assert data.dataset.digest == run.data.tags["d2v.data.fingerprint"][:16]
    assert json.loads(data.dataset.source) == {"uri": str(tiny_text)}
    size = json.loads(data.dataset.profile)["size"]
    assert size.endswith(" tokens") and size in note

    call = CliRunner().invoke
    added = call(app, ["add", "small@2", "--name", "tiny-text", "--alias", "champion"])
    assert added.exit_code == 0, added.exception
    assert "models:/tiny-text/1: small at update 2" in added.stdout
    version = get_version(tracker, "tiny-text", 1)
    assert version.aliases == ("champion",)
    assert not version.missing_lineage()
    assert version.run_id == trained.run_id
    assert version.tags["run.update"] == "2"
    assert version.tags["recipe.name"] == "tiny/text_pretraining"
    assert '"model.depth": [4, 1]' in version.tags["recipe.difference"]
    assert version.tags["parent.version"] == "none"
    assert version.tags["collapse"] == "false"
    assert f"| data | `{tiny_text}` |" in version.description
    assert f"| training data | {size} |" in version.description
    about = tracker.client.get_registered_model("tiny-text").description
    assert about.startswith("data2vec 2.0 text encoder, 1 block") and "d2v registry show tiny-text" in about
    # the weights are those of update 2, not the ones that training exported at its end
    weights = load_file(resolve("models:/tiny-text@champion", tracker).path / "model.safetensors")
    checkpoint = load_file(trained.folder / "checkpoints/update_00000002/model.safetensors")
    assert all(torch.equal(weights[name], checkpoint[f"student.{name}"]) for name in weights)
    last = load_file(trained.folder / "model/model.safetensors")
    assert any(not torch.equal(weights[name], last[name]) for name in weights)

    again = call(app, ["add", f"{trained.run_id}@2", "--name", "tiny-text"])
    assert "models:/tiny-text/1" in again.stdout  # the same weights of the same run are registered once
    assert "models:/tiny-text/2" in call(app, ["add", "small@last", "--name", "tiny-text"]).stdout
    assert call(app, ["history", "tiny-text"]).stdout.count("first holder") == 1
    shown = call(app, ["show", "tiny-text", "--version", "1"]).stdout
    data = version.tags["data.fingerprint"][:16]
    assert f"     data {data}\n  -> pretrained models:/tiny-text/1 (run {trained.run_id[:8]}" in shown

    # The mean of the newest checkpoints, as a folder and as a version; it has no figures of its own.
    states = [load_file(trained.folder / f"checkpoints/update_0000000{n}/model.safetensors") for n in (2, 4)]
    averaged = call(cli, ["average", "small", "--last", "2", "--out", str(tmp_path / "mean")])
    assert "mean of the checkpoints of updates 2, 4 written to" in averaged.stdout, averaged.exception
    weights = load_file(tmp_path / "mean/model.safetensors")
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, (states[0][f"student.{name}"] + states[1][f"student.{name}"]) / 2)
    assert "models:/tiny-text/3" in call(app, ["add", "small@last2", "--name", "tiny-text"]).stdout
    version = get_version(tracker, "tiny-text", 3)
    assert version.tags["averaged.updates"] == "2, 4" and version.tags["collapse"] == "unknown"
    assert "it has not been validated" in version.description
    stored = load_file(resolve(version.uri, tracker).path / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in weights.items())

    for wanted, words in (
        ("small@last9", "has 2 checkpoints (2, 4), and a mean is of 2 or more"),
        ("small@3", "no checkpoint of update 3; it has 2, 4"),
        ("small@best", "marked no best checkpoint; there are updates 2, 4"),
        ("smalll@2", "no run is called 'smalll'"),
        ("0" * 32 + "@2", "no run has the id"),
        ("small", "must be RUN@UPDATE"),
    ):
        refused = call(app, ["add", wanted, "--name", "tiny-text"])
        assert isinstance(refused.exception, Data2VecError) and words in str(refused.exception)
    assert len(tracker.client.search_model_versions("name = 'tiny-text'")) == 3

    damaged = trained.folder / "checkpoints/update_00000004/model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    refused = call(app, ["add", "small@4", "--name", "other"])
    assert isinstance(refused.exception, CheckpointError)
    (trained.folder / "recipe.json").unlink()
    refused = call(app, ["add", "small@2", "--name", "other"])
    assert "the state of run 'small' is not here" in str(refused.exception)


@pytest.mark.parametrize(
    ("text", "run", "update"),
    [("x@last5", "x", "last5"), ("a@5", "a", 5), ("a-b.c@last", "a-b.c", "last"), (" x@best ", "x", "best")],
)
def test_forms_of_a_checkpoint(text: str, run: str, update: int | str) -> None:
    assert RunCheckpoint.parse(text) == RunCheckpoint(run, update)


@pytest.mark.parametrize("text", ["a", "a@", "@5", "a@-1", "a@newest", "a@5@6", ""])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(Data2VecError, match="RUN@UPDATE"):
        RunCheckpoint.parse(text)


def test_lineage_from_data_to_fine_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str, kind: str, **tags: str) -> ModelVersion:
        named = {key.replace("__", "."): value for key, value in tags.items()} | {KIND_TAG: kind}
        return ModelVersion(name, 1, (), f"models:/{name}/1", "run" + name, None, named)

    known = {
        "text": version("text", "pretrained", data__fingerprint="books", recipe__name="v2/base",
                        parent__version="none", run__update="900"),
        "cola": version("cola", "sentence_classifier", data__fingerprint="dev",
                        data__train_fingerprint="train",
                        recipe__name="v2/cola", parent__version="models:/text/1"),
    }  # fmt: skip

    def find(tracker: object, name: str, number: str) -> ModelVersion:
        if name not in known:
            raise Data2VecError(name)
        return known[name]

    monkeypatch.setattr(model_versions, "get_version", find)
    steps = ancestry(None, known["cola"])  # type: ignore[arg-type]
    assert steps == [
        "data books",
        "pretrained models:/text/1 (run runtext, recipe v2/base, update 900)",
        "data train",
        "sentence_classifier models:/cola/1 (run runcola, recipe v2/cola)",
    ]
    del known["text"]
    assert ancestry(None, known["cola"])[0] == "model models:/text/1 (not in this registry)"  # type: ignore[arg-type]
