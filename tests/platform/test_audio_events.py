"""Audio events from labels to predictions: prepare, train, decode, embed, serve."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile as sf

import data2vec
from d2v_platform.inference import audio_embeddings
from d2v_platform.inference.audio_embeddings import embed_recordings
from d2v_platform.inference.audio_events import write_events
from d2v_platform.inference.command import infer
from d2v_platform.inference.embedding import embed_command
from d2v_platform.inference.options import read_options
from d2v_platform.preparation.audio import ManifestOptions, prepare_manifests
from d2v_platform.preparation.audio_events import prepare_events
from d2v_platform.recipe.compose import compose_loaded, load_file
from d2v_platform.recipe.locate import find_recipe
from d2v_platform.recipe.schema import Recipe
from d2v_platform.registry.audio_models import audio_check_outputs, audio_signature, check_recordings
from d2v_platform.tasks import check_data
from d2v_platform.training.job import Job, ResolvedModels
from d2v_platform.training.loop_state import Worker
from d2v_platform.training.train_loop import train
from data2vec.artifact import save_artifact
from data2vec.audio_model import AudioModel
from data2vec.config import Data2VecMultiConfig
from data2vec.data.audio import AudioOptions
from data2vec.data.audio_events import EventDataset
from data2vec.data.manifest import manifest_text, read_manifest
from data2vec.errors import CheckpointError, ConfigError, DataError
from data2vec.student import Data2VecMulti
from tests.platform.recorder import Recorder

MODEL = {
    "supported_modality": "AUDIO", "embed_dim": 32, "num_heads": 2, "depth": 2, "average_top_k_layers": 2,
    "ema_encoder_only": False, "modalities": {"text": None, "audio": {
        "feature_encoder_spec": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] * 2", "prenet_depth": 1,
        "conv_pos_width": 15, "conv_pos_depth": 3, "conv_pos_groups": 2, "decoder": None}},
}  # fmt: skip


def run(recipe: dict[str, Any], folder: Path, model_folder: Path) -> Recorder:
    recorder = Recorder()
    train(
        Job(Recipe.from_dict(recipe), folder, models=ResolvedModels(model_folder)),
        recorder,
        Worker(threads=1),
    )
    return recorder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of tones: low, high, both; twelve clips each."""
    root = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for name, pitches in (("low", [250]), ("high", [1500]), ("mid", [700])):
        for index in range(12):
            length = 5000 + 200 * index
            time = np.arange(length) / 16_000
            wave = sum(np.sin(2 * np.pi * pitch * time) for pitch in pitches)
            (root / name).mkdir(exist_ok=True)
            sf.write(str(root / name / f"{index}.wav"), 0.2 * wave + 0.01 * rng.normal(size=length), 16_000)
    out = root / "data"
    prepare_manifests(root, out, ManifestOptions(ext="wav", valid_percent=0.3, seed=3))
    for split in ("train", "valid"):
        prepare_events(out / f"{split}.tsv", out, split)
    return out


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Data2VecMultiConfig.from_dict(MODEL)
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    network = Data2VecMulti(config, with_decoder=False)
    return save_artifact(
        folder, kind="pretrained", model_config=config, state=network.state_dict(), task={"normalize": True}
    )


def recipe(clips: Path, **model: Any) -> dict[str, Any]:
    values = {"_name": "audio_classification", "model_path": "given", "feature_grad_mult": 1.0,
              "source_mixup": 0.5, "label_mixup": True, **model}  # fmt: skip
    return {
        "task": {"_name": "audio_classification", "data": str(clips), "normalize": True},
        "model": values,
        "criterion": {"_name": "model"},
        "optimizer": {"_name": "adam", "adam_betas": [0.9, 0.98]},
        "lr_scheduler": {"_name": "cosine", "warmup_updates": 1},
        "common": {"log_interval": 10},
        "dataset": {"max_tokens": 120_000, "required_batch_size_multiple": 1, "num_workers": 0,
                    "validate_interval": 1000},
        "optimization": {"max_update": 40, "lr": [5e-3], "clip_norm": 5.0},
        "checkpoint": {"save_interval": 1000, "best_checkpoint_metric": "mAP",
                       "maximize_best_checkpoint_metric": True},
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(clips: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    recorder = run(recipe(clips), folder, model_folder=pretrained)
    assert recorder.curve()[-1] < 0.9 * recorder.curve()[0]
    assert recorder.last["valid/mAP"] > 60, "three tones: a third would be chance"
    assert {"valid/mAUC", "valid/top1", "valid/loss"} <= recorder.last.keys()
    return folder / "model"


def test_a_trained_model_is_complete_and_tells_tones(trained: Path, clips: Path) -> None:
    model = data2vec.load(trained)
    assert isinstance(model, AudioModel) and model.classes == ["high", "low", "mid"]
    manifest = read_manifest(clips / "valid.tsv")
    names, scores = model.classify([manifest.file(i) for i in range(len(manifest))])
    truth = [Path(manifest.file(i)).parent.name for i in range(len(manifest))]
    right = np.mean([names[row.argmax()] == name for row, name in zip(scores, truth, strict=True)])
    assert right > 0.6 and scores.min() >= 0 and scores.max() <= 1
    with pytest.raises(CheckpointError, match="without letters"):
        model.emissions(manifest.file(0))
    long = np.tile(sf.read(manifest.file(0))[0], 100)[: 35 * 16_000]
    assert model.classify([long])[1].shape == (1, 3), "long recordings go through in pieces"


def test_one_seed_one_run_and_pretrained_weights_are_used(
    clips: Path, pretrained: Path, tmp_path: Path
) -> None:
    short = recipe(clips) | {"optimization": {"max_update": 2, "lr": [1e-3]}}
    short["dataset"] = short["dataset"] | {"disable_validation": True}
    short["common"] = {"log_interval": 1}
    first = run(short, tmp_path / "a", model_folder=pretrained)
    again = run(short, tmp_path / "b", model_folder=pretrained)
    assert first.curve() == again.curve() and len(first.curve()) == 2
    random = short | {"model": short["model"] | {"no_pretrained_weights": True, "source_mixup": -1.0}}
    assert run(random, tmp_path / "c", model_folder=pretrained).curve() != first.curve()


def test_subsets_are_classified_with_tables(trained: Path, clips: Path, tmp_path: Path) -> None:
    options, _ = read_options(
        [f"task.data={clips}", f"common_eval.path={trained}", "dataset.gen_subset=train,valid",
         f"common_eval.results_path={tmp_path}", "dataset.max_tokens=30000"]
    )  # fmt: skip
    rates = infer(options)
    summary = json.loads((tmp_path / "valid/summary.json").read_text())
    assert (
        rates["valid"] == summary["mAP"]
        and summary["clips"] + len(pd.read_csv(tmp_path / "train/predictions.csv")) == 36
    )
    table: Any = pd.read_parquet(tmp_path / "valid/predictions.parquet")
    scores = table[["score_high", "score_low", "score_mid"]].to_numpy()
    assert np.allclose(scores.max(1), table["score"]) and list(table["labels"][0]) == [
        Path(table["file"][0]).parent.name
    ]
    by_class: Any = pd.read_csv(tmp_path / "valid/per_class.csv")
    assert by_class["ap_pct"].mean() == pytest.approx(summary["mAP"])
    single = data2vec.load(trained).classify([clips.parent / table["file"][0]])[1]
    assert np.allclose(scores[0], single[0], atol=1e-5), "alone as in a padded batch"


def test_what_is_written_of_clips_with_several_events(tmp_path: Path) -> None:
    entries = [("a.wav", 16_000), ("b.wav", 8_000), ("c.wav", 32_000)]
    (tmp_path / "valid.tsv").write_text(manifest_text(str(tmp_path), entries))
    (tmp_path / "valid.lbl").write_text("0\t1\t0,2\n0\t1\t1\n0\t1\t2\n")
    dataset = EventDataset(tmp_path, "valid", AudioOptions(pad=True), "lbl", ["dog", "cat", "cow"])
    scores_NC = np.array([[0.3, 0.1, 0.9], [0.2, 0.8, 0.5], [0.6, 0.7, 0.1]])
    summary = write_events(tmp_path / "out", dataset.classes, dataset, scores_NC)
    assert summary["clips"] == 3 and summary["hours"] == pytest.approx(3.5 / 3600)
    table: Any = pd.read_parquet(tmp_path / "out/predictions.parquet")
    assert table["seconds"].tolist() == [1.0, 0.5, 2.0]
    assert [list(row) for row in table["labels"]] == [["dog", "cow"], ["cat"], ["cow"]]
    assert table["predicted"].tolist() == ["cow", "cat", "cat"] and table["score"].tolist() == [0.9, 0.8, 0.7]
    assert list(table["top5"][0]) == ["cow", "dog", "cat"]
    flat: Any = pd.read_csv(tmp_path / "out/predictions.csv")
    assert flat["labels"].tolist() == ["dog; cow", "cat", "cow"]
    by_class: Any = pd.read_csv(tmp_path / "out/per_class.csv")
    assert by_class["class"].tolist() == ["dog", "cat", "cow"] and by_class["clips"].tolist() == [1, 1, 2]


def test_labels_of_another_model_are_refused(trained: Path, clips: Path, tmp_path: Path) -> None:
    for name in ("valid.tsv", "valid.lbl"):
        (tmp_path / name).write_bytes((clips / name).read_bytes())
    (tmp_path / "label_descriptors.csv").write_text("0,low\n1,high\n2,mid\n")
    options, _ = read_options(
        [f"task.data={tmp_path}", f"common_eval.path={trained}", "dataset.gen_subset=valid"]
    )
    with pytest.raises(DataError, match="'low' where the model has 'high'"):
        infer(options)
    (tmp_path / "valid.lbl").unlink()
    options, _ = read_options(
        [f"task.data={tmp_path}", f"common_eval.path={trained}", "dataset.gen_subset=valid",
         f"common_eval.results_path={tmp_path / 'out'}"]
    )  # fmt: skip
    assert infer(options) == {"valid": None}, "unlabelled clips are classified too"


def test_the_registry_serves_scores(trained: Path, clips: Path) -> None:
    model = data2vec.load(trained)
    output, expected = audio_check_outputs(model)
    assert output == "scores" and np.array(expected).shape == (2, 3)
    signature = audio_signature(model.config)
    assert [c.name for c in signature.outputs] == ["label", "score", "score_high", "score_low", "score_mid"]
    entry = importlib.import_module("d2v_platform.registry.pyfunc_audio_entry").AudioPyfunc()
    entry.load_context(SimpleNamespace(artifacts={"model": str(trained)}))
    table = pd.DataFrame({"audio": [np.array(x) for x in check_recordings()], "rate": [16_000, 16_000]})
    served = entry.predict(None, table)
    assert np.allclose(served[["score_high", "score_low", "score_mid"]], expected)
    assert served["label"][0] == model.classes[int(np.argmax(expected[0]))]
    content = pd.DataFrame({"file": [(clips.parent / "low/0.wav").read_bytes()]})
    assert len(entry.predict(None, content, {"output": "embedding"})["embedding"][0]) == 32
    with pytest.raises(DataError, match="this model gives scores, embedding"):
        entry.predict(None, content, {"output": "transcript"})
    with pytest.raises(DataError, match="there is neither"):
        entry.predict(None, pd.DataFrame())  # what MLflow makes of columns that it does not know


def test_the_references_recipe_with_its_own_keys(tmp_path: Path) -> None:
    loaded = load_file(find_recipe("base_classification", "examples/data2vec/config/audio/classification"))
    words = ["task.data=/d", "model.model_path=/m", "+criterion.can_sum=false"]
    made = compose_loaded(loaded, [*words, "criterion.log_keys=[_predictions,_targets]"]).recipe
    assert (made.world_size(), made.dataset.max_tokens, made.optimization.lr) == (8, 2_560_000, [6e-5])
    assert (made.optimization.max_update, made.dataset.valid_subset) == (30_000, "eval")
    model: Any = made.model
    assert (model.mask_prob, model.mask_length, model.attention_dropout) == (0.6, 5, 0.2)
    assert (model.source_mixup, model.label_mixup, model.gain_mode) == (0.5, True, "none")
    assert made.checkpoint.best_checkpoint_metric == "mAP"
    wrong = [
        "model.conv_kernel=3",
        "model.prediction_mode=cls",
        "model.mixup_prob=3",
        "criterion.log_keys=[x]",
    ]
    with pytest.raises(ConfigError) as caught:
        compose_loaded(loaded, [*words, *wrong])
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"model.prediction_mode", "model.mixup_prob", "criterion.log_keys"}


def test_data_is_checked_before_training(clips: Path, pretrained: Path, tmp_path: Path) -> None:
    for path in clips.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = (tmp_path / "train.lbl").read_text().splitlines()
    (tmp_path / "train.lbl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match="line by line the same"):
        check_data(Recipe.from_dict(recipe(tmp_path)), pretrained)
    values = recipe(clips)
    values["task"] = values["task"] | {"normalize": False}
    with pytest.raises(ConfigError, match=r"task\.normalize"):
        check_data(Recipe.from_dict(values), pretrained)


def test_the_folder_that_is_the_class_and_the_end_of_each_clip(tmp_path: Path) -> None:
    for name in ("dog/1/a.wav", "cat/1/b.wav", "cat/2/c.wav"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        sf.write(str(tmp_path / "in" / name), 0.1 * np.ones(4000), 8000)
    options = ManifestOptions(ext="wav", valid_percent=0.0, sample_rate=8000)
    prepare_manifests(tmp_path / "in", tmp_path, options)
    for level, names, labels in ((2, "0,cat\n1,dog\n", "001"), (1, "0,1\n1,2\n", "010")):
        out = tmp_path / f"level{level}"
        report = prepare_events(tmp_path / "train.tsv", out, "train", level=level, sample_rate=8000)
        assert (out / "label_descriptors.csv").read_text() == names and report.classes == 2
        assert (out / "train.lbl").read_text() == "".join(f"0.0\t0.500\t{label}\n" for label in labels)
    (tmp_path / "in/cow/1").mkdir(parents=True)
    (tmp_path / "in/cat/2/c.wav").rename(tmp_path / "in/cow/1/d.wav")
    prepare_manifests(tmp_path / "in", tmp_path, options)
    with pytest.raises(DataError, match=r"line 3: class 'cow' is not in .*label_descriptors\.csv"):
        prepare_events(tmp_path / "train.tsv", tmp_path / "level2", "valid", level=2)


def test_audiosets_tables(tmp_path: Path) -> None:
    for name in ("-abc_30.wav", "d_e_0.wav", "x.wav"):
        sf.write(str(tmp_path / name), 0.1 * np.ones(1600), 16_000)
    prepare_manifests(tmp_path, tmp_path, ManifestOptions(ext="wav", valid_percent=0.0))
    classes, segments = tmp_path / "class_labels_indices.csv", tmp_path / "eval_segments.csv"
    classes.write_text('index,mid,display_name\n0,/m/1,"Dog, bark"\n1,/t/2,Cat\n')
    segments.write_text('# YTID, start\n-abc, 30.000, 40.000, "/m/1,/t/2"\nd_e, 0.0, 10.0, "/t/2"\n')
    given: Any = {"segments": segments, "classes": classes}
    with pytest.raises(DataError, match=r"x has no labels"):
        prepare_events(tmp_path / "train.tsv", tmp_path / "out", "train", **given)
    (tmp_path / "x.wav").unlink()
    prepare_manifests(tmp_path, tmp_path, ManifestOptions(ext="wav", valid_percent=0.0))
    report = prepare_events(tmp_path / "train.tsv", tmp_path / "out", "train", **given)
    assert (report.clips, report.labels, report.classes) == (2, 3, 2)
    assert (tmp_path / "out/train.lbl").read_text() == "0.0\t0.100\t0,1\n0.0\t0.100\t1\n"
    with pytest.raises(DataError, match="needs --classes"):
        prepare_events(tmp_path / "train.tsv", tmp_path / "new", "train", segments=segments)
    with pytest.raises(DataError, match="--level 0"):
        prepare_events(tmp_path / "train.tsv", tmp_path / "new", "train", level=0)


# ---- embeddings ----------------------------------------------------------------------------------------


def test_recordings_are_embedded_by_layer_and_by_frame(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_embeddings, "_ROWS", 20)
    folder = tmp_path / "talks ü"
    folder.mkdir()
    sf.write(str(folder / "stereo 8k.wav"), 0.1 * np.random.default_rng(1).normal(size=(4000, 2)), 8000)
    sf.write(str(folder / "b.flac"), 0.1 * np.random.default_rng(2).normal(size=9000), 16_000)
    (folder / "bad.flac").write_text("no audio")
    with pytest.raises(SystemExit) as stopped:
        embed_command(str(folder), str(trained), tmp_path / "frames.parquet", None, 0, "none")
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "bad.flac" in captured.err and "2 recordings" in captured.out and "Traceback" not in captured.err
    frames = pd.read_parquet(tmp_path / "frames.parquet")
    assert pq.ParquetFile(tmp_path / "frames.parquet").num_row_groups == 2, "written as they come"
    model = data2vec.load(trained)
    wanted = model.embed([folder / "b.flac"], pooling="none", layer=0)[0]
    found = frames[frames["file"].str.endswith("b.flac")]
    assert np.allclose(np.stack(found["embedding"].tolist()), wanted)
    assert found["start_s"].tolist()[:3] == [0.0, 0.02, 0.04]
    (folder / "bad.flac").unlink()
    embed_command(str(folder), str(trained), tmp_path / "mean.parquet", None, -1, "mean")
    table = pd.read_parquet(tmp_path / "mean.parquet")
    assert table["seconds"].tolist() == pytest.approx([9000 / 16_000, 0.5])
    assert np.allclose(table["embedding"][1], model.embed([folder / "stereo 8k.wav"])[0])
    with pytest.raises(DataError, match="layer = 9 must lie in -2"):
        embed_command(str(folder), str(trained), tmp_path / "no.parquet", None, 9, "mean")
    with pytest.raises(DataError, match="--pooling cls is for images"):
        embed_command(str(folder), str(trained), tmp_path / "no.parquet", None, -1, "cls")
    (folder / "b.flac").write_text("gone")
    with pytest.raises(DataError, match="none of the recordings"):
        embed_recordings(model, [folder / "b.flac"], tmp_path / "no.parquet")
    assert not list(tmp_path.glob("*no.parquet*"))


def test_long_recordings_are_embedded_in_pieces_that_fit(trained: Path) -> None:
    model = data2vec.load(trained)
    long = np.random.default_rng(0).normal(size=70 * 16_000).astype(np.float32)
    frames = model.embed([long], pooling="none")[0]
    whole = model.embed([long[: 25 * 16_000]], pooling="none")[0]
    assert len(frames) == (70 * 16_000 - 400) // 320 + 1
    # Far from seams, only the normalisation over another stretch of noise differs.
    assert np.abs(frames[100:1000] - whole[100:1000]).mean() < 0.05 * np.abs(whole).mean()
