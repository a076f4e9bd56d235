"""Scores of test subsets are results: on the run, on the registered version and in the report, each once."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from d2v_platform.cli import app
from d2v_platform.inference import spread
from d2v_platform.inference.command import infer, infer_each
from d2v_platform.inference.decoding import Search, make_search
from d2v_platform.inference.decoding_scores import decoding_facts
from d2v_platform.inference.options import InferOptions, WorkerOptions, read_options, read_runs
from d2v_platform.inference.recording import owner_of
from d2v_platform.preparation.glue import prepare_glue
from d2v_platform.recipe.audio_components import AudioFinetuningTask
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.sweep_definition import SweepDefinition
from d2v_platform.registry.model_versions import NewVersion, get_version
from d2v_platform.registry.register import register
from d2v_platform.reports.page import run_page, sweep_page
from d2v_platform.reports.panels import run_panels
from d2v_platform.reports.run_history import find_run, load_run
from d2v_platform.reports.sweep_history import load_sweep_history
from d2v_platform.sweeps import ctc_decoding
from d2v_platform.sweeps.capacity import Capacity
from d2v_platform.sweeps.ctc_decoding import decode_winners
from d2v_platform.sweeps.glue_submission import predict_split
from d2v_platform.sweeps.winners import Winner, record_winner_scores
from d2v_platform.tracking.scores import SCORE_TAG, Score, record_scores, stored_scores, with_scores
from d2v_platform.tracking.tracker import MetricPoint, NewRun, Tracker, now_ms
from d2v_platform.tracking.tracker_actor import TrackerService
from d2v_platform.training.ray_session import ClusterInfo, NodeRoom
from data2vec.artifact import read_artifact, save_artifact
from data2vec.config import SentenceHeadConfig
from data2vec.data.indexed import IndexedTokensWriter
from data2vec.errors import Data2VecError
from data2vec.folders import file_sha256
from data2vec.heads import SentenceClassifier

SCORE = Score(
    subset="dev other", metrics={"wer": 12.3456789, "uer": 4.5}, data="d" * 32, weights="w", samples=11,
    decoding={"type": "viterbi"}, update=40,
)  # fmt: skip
LINEAGE = {
    "recipe.name": "tiny", "recipe.digest": "1", "recipe.difference": "none", "data.fingerprint": "f",
    "dictionary.hash": "none", "code.version": "1", "parent.version": "none",
}  # fmt: skip


@pytest.fixture
def run_id(tracker: Tracker) -> str:
    """A training that is over."""
    run = tracker.open_run(NewRun(experiment="x", name="train-1", params={}, resume_key="train-1"))
    tracker.log(run.run_id, [MetricPoint("dev/wer", 40, 30.0, now_ms())])
    tracker.finish(run.run_id)
    return run.run_id


def points(tracker: Tracker, run_id: str) -> dict[str, list[tuple[int, float]]]:
    names = tracker.client.get_run(run_id).data.metrics
    found = {name: tracker.client.get_metric_history(run_id, name) for name in names}
    return {name: [(point.step, point.value) for point in history] for name, history in found.items()}


def test_a_score_is_recorded_once_in_a_run_that_is_over(tracker: Tracker, run_id: str) -> None:
    told = record_scores(tracker, [SCORE, dataclasses.replace(SCORE, subset="test", metrics={})], run_id)
    assert told == ["run train-1: test/dev_other/wer 12.35, test/dev_other/uer 4.5"]
    wanted = {
        "dev/wer": [(40, 30.0)],
        "test/dev_other/wer": [(40, 12.3456789)],
        "test/dev_other/uer": [(40, 4.5)],
    }
    assert points(tracker, run_id) == wanted
    assert record_scores(tracker, [SCORE], run_id) == ["run train-1: 1 of 1 scores are there already"]
    assert points(tracker, run_id) == wanted
    run = tracker.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    (stored,) = stored_scores(run.data.tags)
    assert (stored.id, stored.subset, stored.data, stored.samples) == (SCORE.id, "dev other", "d" * 32, 11)
    assert stored.decoding == {"type": "viterbi"} and stored.metrics["test/dev_other/wer"] == 12.3456789
    with pytest.raises(Data2VecError, match="no run 'ffff"):
        record_scores(tracker, [SCORE], "f" * 32)


@pytest.mark.parametrize(
    "change",
    [{"data": "e" * 32}, {"weights": "v"}, {"samples": 10}, {"decoding": {"type": "viterbi", "min": 1}}],
)
def test_what_was_measured_otherwise_is_another_score(
    change: dict[str, Any], tracker: Tracker, run_id: str
) -> None:
    other = dataclasses.replace(SCORE, metrics={"wer": 20.0}, **change)
    record_scores(tracker, [SCORE], run_id)
    record_scores(tracker, [other], run_id)
    found = points(tracker, run_id)
    assert found["test/dev_other/wer"] == [(40, 12.3456789)], "the first keeps the plain name"
    assert found[f"test/dev_other/wer-{other.id}"] == [(40, 20.0)]
    assert len(stored_scores(tracker.client.get_run(run_id).data.tags)) == 2


def test_a_language_model_has_its_own_name(tmp_path: Path) -> None:
    found = dataclasses.replace(SCORE, decoding={"type": "kenlm", "lm_weight": 2.0}, metrics={"wer": 9.0})
    put: dict[str, Any] = {}
    client = SimpleNamespace(
        get_model_version=lambda *_: SimpleNamespace(name="m", version="1", tags={}, description=""),
        set_model_version_tag=lambda name, number, key, value: put.update({key: value}),
    )
    fake: Any = SimpleNamespace(client=client, home=tmp_path)
    record_scores(fake, [SCORE, found], None, ("m", 1))
    assert {key: put[key] for key in put if key.startswith("test/")} == {
        "test/dev_other/wer": "12.3457", "test/dev_other/uer": "4.5", "test/dev_other/wer_kenlm": "9",
    }  # fmt: skip
    assert stored_scores({**put, SCORE_TAG + "x": "changed by hand", "other": "1"})[0].id in (
        SCORE.id,
        found.id,
    )
    assert len(stored_scores({**put, SCORE_TAG + "x": "[1]"})) == 2


def test_the_card_of_a_version_shows_its_scores_once(tracker: Tracker, run_id: str, ctc_model: Path) -> None:
    weights = file_sha256(ctc_model / "model.safetensors")
    mine = dataclasses.replace(SCORE, weights=weights, decoding={"type": "kenlm", "lm_sha256": "0"})
    record_scores(tracker, [mine, dataclasses.replace(SCORE, subset="unlike")], run_id)
    tracker.client.create_registered_model("speech")
    own = {"run.id": run_id, "weights.sha256": weights}
    whole = "# speech\n\n## Results\n\nNone.\n\n## Lineage\n\n| tag |\n|---|\n| a |\n"
    tracker.client.create_model_version("speech", "runs:/x/model", run_id, tags=own, description=whole)
    for _ in range(2):  # of an earlier try that did not come to the scores
        made = register(
            tracker,
            NewVersion(folder=ctc_model, name="speech", run_id=run_id, tags=LINEAGE, card_markdown="# s"),
        )
        assert made.tags["test/dev_other/wer_kenlm"] == "12.3457" and "test/unlike/wer" not in made.tags
        assert [score.id for score in stored_scores(made.tags)] == [mine.id]
        assert made.description.startswith("# speech\n\n## Results\n\nNone.\n\n## Test scores\n\n| metric |")
    later = dataclasses.replace(SCORE, subset="test", metrics={"wer": 9.0}, samples=7)
    record_scores(tracker, [later], None, ("speech", 1))
    card = get_version(tracker, "speech", 1).description
    rows = card.partition("## Test scores\n\n")[2].splitlines()
    assert rows[2] == f"| `test/dev_other/wer_kenlm` | 12.35 | 11 | `{'d' * 12}` | type kenlm |"
    assert rows[4:7] == [f"| `test/test/wer` | 9 | 7 | `{'d' * 12}` | type viterbi |", "", "## Lineage"]
    assert card.count("## Test scores") == 1 and card.endswith(whole.partition("## Lineage")[2])
    assert with_scores("# s\n", []) == "# s\n"
    alone = with_scores("# s\n", stored_scores(get_version(tracker, "speech", 1).tags))
    assert alone.startswith("# s\n\n## Test scores\n\n| metric |") and alone.endswith("|\n")


@pytest.fixture
def version(tracker: Tracker, run_id: str, ctc_model: Path) -> str:
    """The model, registered by its run."""
    tags = LINEAGE | {"metric.name": "wer", "metric.value": "30", "metric.maximize": "false"}
    made = register(
        tracker, NewVersion(folder=ctc_model, name="speech", run_id=run_id, tags=tags, card_markdown="# s")
    )
    return made.uri


@pytest.fixture
def bare_version(tracker: Tracker, run_id: str) -> str:
    """A version without a model, which takes no time to make."""
    tracker.client.create_registered_model("speech")
    tracker.client.create_model_version("speech", "runs:/x/model", run_id)
    return "models:/speech/1"


def test_infer_scores_a_registered_model_and_its_run(
    tracker: Tracker, run_id: str, version: str, utterances: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    words = [f"task.data={utterances}", f"common_eval.path={version}", "dataset.gen_subset=dev,test",
             f"common_eval.results_path={tmp_path}/out", "platform.device=cpu"]  # fmt: skip
    for _ in range(2):
        infer_each(words, "d2v infer")
    rate = float((tmp_path / "out/dev/wer").read_text().split()[1])
    assert points(tracker, run_id)["test/dev/wer"] == [(0, rate)], (
        "once, and nothing of the unlabelled subset"
    )
    assert set(points(tracker, run_id)) == {"dev/wer", "test/dev/wer"}
    held = get_version(tracker, "speech", 1)
    assert float(held.tags["test/dev/wer"]) == pytest.approx(rate, rel=1e-5)
    (stored,) = stored_scores(held.tags)
    assert stored.samples == 11 and len(stored.data) > 20 and stored.decoding == {"type": "viterbi"}
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "recorded in run train-1: test/dev/wer" in said and "recorded in models:/speech/1" in said
    assert "1 of 1 scores are there already" in said
    (utterances / "dev.ltr").write_text((utterances / "dev.ltr").read_text().replace("T W O", "T O O", 1))
    infer_each(words, "d2v infer")
    assert len(points(tracker, run_id)) == 3, "other labels are another score"
    app_says(["registry", "show", "speech"], capsys, f"dev/wer {rate:.4g}")
    app_says(["registry", "show", "speech", "--version", "1"], capsys, "d2v.score.")


def app_says(words: list[str], capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        app(words)
    assert ended.value.code == 0
    assert text in capsys.readouterr().out


def test_a_folder_is_scored_for_the_run_that_is_named(
    tracker: Tracker, run_id: str, ctc_model: Path, utterances: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    options, _ = read_options(
        [f"task.data={utterances}", f"common_eval.path={ctc_model}", "dataset.gen_subset=dev",
         f"common_eval.results_path={tmp_path}/out", "task.max_sample_size=100000"]
    )  # fmt: skip
    rates = infer(options)
    assert set(points(tracker, run_id)) == {"dev/wer"} and "or --run RUN" in caplog.text
    options.common_eval.run = "train-1"
    infer(options)
    assert points(tracker, run_id)["test/dev/wer"] == [(0, rates["dev"])]
    (stored,) = stored_scores(tracker.client.get_run(run_id).data.tags)
    assert stored.decoding == {"type": "viterbi", "max_sample_size": 100_000}
    with pytest.raises(Data2VecError, match="no run or sweep is called 'train-2'"):
        infer(
            dataclasses.replace(options, common_eval=dataclasses.replace(options.common_eval, run="train-2"))
        )
    config = json.loads((ctc_model / "config.json").read_text())
    config["origin"] = {"run_id": "a" * 32, "update": 7}
    (ctc_model / "config.json").write_text(json.dumps(config))
    with pytest.raises(Data2VecError, match=r"--run train-1: the model .* comes from the run aaaa"):
        infer(options)


def test_the_run_of_a_model(tracker: Tracker, run_id: str, bare_version: str) -> None:
    version = bare_version
    assert owner_of(version, version, {}, None) == owner_of("models:/speech@x", version, {}, "train-1")
    assert owner_of(version, version, {}, None).run_id == run_id
    assert owner_of(version, version, {}, None).version == ("speech", 1)
    by_run = owner_of(f"runs:/{run_id}", "models:/m-1", {}, None)
    assert (by_run.run_id, by_run.version) == (run_id, None)
    other = tracker.open_run(NewRun(experiment="x", name="train-2", params={}, resume_key="train-2"))
    with pytest.raises(Data2VecError, match="--run train-2"):
        owner_of(version, version, {}, "train-2")
    tracker.finish(other.run_id)


def test_the_run_is_an_option_and_a_field() -> None:
    words = ["task.data=/d", "common_eval.path=/m"]
    for given in (["--run", "a b"], ["--run=a b"], ["common_eval.run='a b'"]):
        (options,) = read_runs([*given, *words])[0].values()
        assert options.common_eval.run == "a b"
    (options,) = read_runs(words)[0].values()
    assert options.common_eval.run is None
    assert read_options([*words, "common_eval.run=x"])[0].common_eval.run == "x"
    with pytest.raises(Data2VecError, match="--run"):
        read_runs([*words, "--run"])


def test_a_language_model_counts_by_its_content(tmp_path: Path) -> None:
    def facts(lm: str, words: str, **beam: float) -> dict[str, Any]:
        (tmp_path / "lm").write_text(lm)
        (tmp_path / "lexicon").write_text(words)
        given = [f"decoding.{key}={value}" for key, value in beam.items()]
        options, _ = read_options(
            ["task.data=/d", "common_eval.path=/m", "decoding.type=kenlm", *given,
             f"decoding.lmpath={tmp_path}/lm", f"decoding.lexicon={tmp_path}/lexicon"]
        )  # fmt: skip
        return decoding_facts(options, make_search(options.decoding, "cpu"))

    first = facts("a", "b")
    assert first["lm_weight"] == 2.0 and first["type"] == "kenlm" and first["lmpath"] == f"{tmp_path}/lm"
    assert first == facts("a", "b") != facts("b", "b")
    assert facts("a", "c") != first != facts("a", "b", lmweight=1.5)
    greedy = Search(kind="viterbi", unit=False, lexicon=None, language_model=None, beam=(("beam", 7),))
    options, _ = read_options(["task.data=/d", "common_eval.path=/m", "task.min_sample_size=5"])
    assert decoding_facts(options, greedy) == {"type": "viterbi", "min_sample_size": 5}


def test_the_report_shows_scores_in_a_table_and_not_as_curves(tracker: Tracker, run_id: str) -> None:
    record_scores(tracker, [dataclasses.replace(SCORE, decoding={"type": "kenlm", "lm_sha256": "0"})], run_id)
    history = load_run(tracker.client, find_run(tracker.client, "train-1"))
    panels = run_panels([history])
    assert [panel.name for panel in panels] == ["dev-wer"]
    page = run_page([history], panels, "uri")
    row = page.split("Test scores")[1].split("</tr>")[1]
    for cell in ("test/dev_other/wer_kenlm", "12.35", "type kenlm<", "11", "d" * 12 + "<", "40"):
        assert cell in row, cell
    without = dataclasses.replace(history, tags={})
    assert "Test scores" not in run_page([without], run_panels([without]), "uri")


def test_a_test_split_with_labels_is_scored(tiny_glue: Any, tmp_path: Path) -> None:
    data = tmp_path / "bin"
    prepare_glue(tiny_glue.raw, data, tasks=["CoLA"], dictionary=tiny_glue.model / "tokenizer" / "dict.txt")
    words = [f"task.data={data}/CoLA-bin", f"model.model_path={tiny_glue.model}"]
    recipe = compose("v2/text_finetuning/cola", words).recipe
    artifact = read_artifact(tiny_glue.model)
    head = SentenceHeadConfig(num_classes=2)
    config: Any = artifact.model_config
    network = SentenceClassifier(config, head, vocab_size=artifact.vocab_size)
    folder = save_artifact(
        tmp_path / "model", kind="sentence_classifier", model_config=config, head_config=head,
        state=network.state_dict(), tokenizer=artifact.tokenizer, task={"labels": ["0", "1"]},
        origin={"update": 9},
    )  # fmt: skip
    without = predict_split(recipe.to_dict(), str(folder), "test", threads=1, gpu=False)
    assert without.metrics == {} and len(without.values) == 10
    truth = [int(value) for value in without.values[:7]] + [1 - int(value) for value in without.values[7:]]
    with IndexedTokensWriter(data / "CoLA-bin" / "label" / "test", 6) as writer:
        for value in truth:
            writer.add_line([4 + value, 2])
    found = predict_split(recipe.to_dict(), str(folder), "test", threads=1, gpu=False)
    assert found.values == without.values and found.data != without.data
    assert found.metrics["accuracy"] == 70.0 and "mcc" in found.metrics


def test_decoded_winners_hand_their_scores_on(ctc_model: Path, utterances: Path, tmp_path: Path) -> None:
    task = AudioFinetuningTask(data=str(utterances), labels="ltr")
    recipe = SimpleNamespace(task=task, valid_subsets=lambda: ["dev"])
    stored = SimpleNamespace(trial=SimpleNamespace(recipe=recipe), name="x", lr=1.0)
    choices: Any = {"t": SimpleNamespace(record=SimpleNamespace(stored=stored, model_folder=ctc_model))}
    seen: list[tuple[str, str, dict[str, float]]] = []

    def record(task: str, scores: Any) -> None:
        seen.extend((task, score.subset, dict(score.metrics)) for score in scores)

    paths = decode_winners(SweepDefinition(), choices, tmp_path, record=record)
    ((task_name, subset, metrics),) = seen
    assert (task_name, subset) == ("t", "dev")
    assert f",{round(metrics['wer'], 2)}" in paths["decoding.csv"].read_text()


@pytest.mark.slow  # a killed worker of Ray is among the others
def test_winners_are_decoded_by_the_cluster_as_here_though_a_worker_is_killed(
    ray_cluster: Any, ctc_model: Path, utterances: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = AudioFinetuningTask(data=str(utterances), labels="ltr")
    recipe = SimpleNamespace(task=task, valid_subsets=lambda: ["dev"])
    stored = SimpleNamespace(trial=SimpleNamespace(recipe=recipe), name="x", lr=1.0)
    choices: Any = {"t": SimpleNamespace(record=SimpleNamespace(stored=stored, model_folder=ctc_model))}
    monkeypatch.setattr(spread, "batches", lambda dataset, job: [[0, 5], [1], [2, 7, 10], [3, 4, 6], [8, 9]])
    noted = tmp_path / "processes"
    noted.mkdir()

    class Watched(spread.DecodingWorker):
        def decode(self, indices: list[int]) -> list[dict[str, Any]]:
            first = not any(noted.iterdir())
            (noted / str(os.getpid())).touch()
            if first:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().decode(indices)

    monkeypatch.setattr(spread, "DecodingWorker", Watched)
    room = Capacity(slots=1, workers=1, cpus=1, gpus=0, threads=1, loaders=0)
    texts: list[dict[str, str]] = []
    for place, on_cluster in (("here", False), ("cluster", True)):
        monkeypatch.setattr(ctc_decoding.ray_session, "on_cluster", lambda found=on_cluster: found)
        decode_winners(SweepDefinition(), choices, tmp_path / place, room)
        files = [f for f in (tmp_path / place).rglob("*") if f.name == "decoding.csv" or "hypo" in f.name]
        texts.append({str(f.relative_to(tmp_path / place)): f.read_text() for f in files})
        assert on_cluster == any(noted.iterdir())
    assert texts[0] == texts[1] and len(texts[0]) > 1
    assert len(list(noted.iterdir())) >= 2 and not (noted / str(os.getpid())).exists()


@pytest.mark.parametrize(
    ("on_cluster", "gpus", "workers", "device"),
    [(False, 8, 0, "auto"), (True, 8, 8, "cuda"), (True, 0, 6, "cpu")],
)
def test_winners_are_decoded_where_the_trials_were_trained(
    on_cluster: bool, gpus: int, workers: int, device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = ClusterInfo(14, gpus, 2, rooms=(NodeRoom(7, gpus), NodeRoom(7, 0)))
    monkeypatch.setattr(ctc_decoding.ray_session, "on_cluster", lambda: on_cluster)
    monkeypatch.setattr(ctc_decoding.ray_session, "cluster_info", lambda: cluster)
    recipe = SimpleNamespace(task=AudioFinetuningTask(data="/d", labels="ltr"), valid_subsets=lambda: ["dev"])
    stored = SimpleNamespace(trial=SimpleNamespace(recipe=recipe), name="x", lr=1.0)
    choices: Any = {"t": SimpleNamespace(record=SimpleNamespace(stored=stored, model_folder=tmp_path))}
    asked: list[WorkerOptions] = []

    def scored(options: InferOptions) -> list[Score]:
        asked.append(options.platform)
        return []

    monkeypatch.setattr(ctc_decoding, "score_subsets", scored)
    room = Capacity(slots=1, workers=2, cpus=4, gpus=0, threads=1, loaders=0)
    decode_winners(SweepDefinition(), choices, tmp_path, room)
    assert [(place.num_workers, place.device) for place in asked] == [(workers, device)]


def test_a_sweeps_winner_and_its_version_are_scored(
    tracker: Tracker, bare_version: str, ctc_model: Path
) -> None:
    parent = tracker.open_run(
        NewRun(
            experiment="x",
            name="sweep-1",
            params={},
            tags={"d2v.sweep_name": "sweep-1"},
            resume_key="sweep-1",
        )
    )
    trial = tracker.open_run(
        NewRun(
            experiment="x",
            name="lr 1e-4",
            params={},
            parent_run_id=parent.run_id,
            tags={"task": "t", "lr": "1e-4"},
        )
    )
    for run in (trial, parent):
        tracker.finish(run.run_id)
    winner = Winner(
        task="t", trial="lr 1e-4", lr=1e-4, seed=1, metric="wer", value=30.0, median=30.0, floor=None,
        run_id=trial.run_id, model_folder=ctc_model, model_uri=bare_version,
    )  # fmt: skip
    local = TrackerService(None)
    for _ in range(2):
        record_winner_scores(
            local, [dataclasses.replace(winner, task="u", run_id=None), winner], "t", [SCORE]
        )
    local.close()
    assert points(tracker, trial.run_id)["test/dev_other/wer"] == [(40, 12.3456789)]
    assert get_version(tracker, "speech", 1).tags["test/dev_other/wer"] == "12.3457"
    sweep = load_sweep_history(tracker.client, find_run(tracker.client, "sweep-1"))
    page = sweep_page(sweep, [], "uri")
    assert "<td>lr 1e-4</td><td><code>test/dev_other/wer</code></td>" in page.split("Test scores")[1]
