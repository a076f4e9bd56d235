"""Audio and labels that are wrong: one message that names them and the fix, nothing lost, no stack trace."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from d2v_platform.cli import app, run
from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks.audio_finetuning import AudioFinetuning
from d2v_platform.training.job import Job, ResolvedModels
from d2v_platform.training.loop_state import Worker
from d2v_platform.training.train_loop import train
from data2vec.artifact import save_artifact
from data2vec.config import Data2VecMultiConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.data.letters import letter_line, released_letters
from data2vec.data.manifest import manifest_text, read_manifest
from data2vec.errors import DataError
from data2vec.student import Data2VecMulti
from tests.platform.recorder import Recorder

MODEL = {
    "supported_modality": "AUDIO", "embed_dim": 16, "num_heads": 2, "depth": 1, "average_top_k_layers": 1,
    "clone_batch": 2, "ema_encoder_only": False, "ema_anneal_end_step": 10,
    "modalities": {"text": None, "audio": {
        "feature_encoder_spec": "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8,2,2)] * 2", "prenet_depth": 0,
        "mask_prob": 0.5, "mask_prob_adjust": 0.05, "conv_pos_width": 9, "conv_pos_depth": 3,
        "conv_pos_groups": 2, "decoder": {"decoder_dim": 16, "decoder_groups": 2, "decoder_layers": 1}}},
}  # fmt: skip


def call(words: list[str]) -> tuple[int, str]:
    """Exit code and everything that a command wrote."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
        try:
            run(lambda: app(words, prog_name="d2v", standalone_mode=False))
        except SystemExit as ended:
            return int(ended.code or 0), shown.getvalue()
    return 0, shown.getvalue()


def wave(path: Path, samples: int = 8000, rate: int = 16_000, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(samples)
    sf.write(str(path), 0.1 * rng.normal(size=(samples, options.pop("channels", 1))), rate, **options)
    return path


@pytest.fixture
def data(tmp_path: Path, home: Path) -> Path:
    """Eight good clips with labels."""
    folder = tmp_path / "data"
    entries = [(wave(folder / f"{i}.flac", 8000 + 400 * i).name, 8000 + 400 * i) for i in range(8)]
    for split in ("train", "valid"):
        (folder / f"{split}.tsv").write_text(manifest_text(str(folder), entries))
        (folder / f"{split}.ltr").write_text(f"{letter_line('A B')}\n" * 8)
    released_letters().save(folder / "dict.ltr.txt")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Data2VecMultiConfig.from_dict(MODEL)
    state = Data2VecMulti(config, with_decoder=False).state_dict()
    folder = tmp_path_factory.mktemp("model") / "model"
    task = {"normalize": True}
    return save_artifact(folder, kind="pretrained", model_config=config, state=state, task=task)


def pretraining(data: Path, *words: str) -> list[str]:
    own = [f"task.data={data}", "task.min_sample_size=3200", "platform.num_workers=0"]
    return ["train", "tiny/audio_pretraining", *own, *words]


def finetuning(data: Path, model: Path, *words: str) -> list[str]:
    return ["train", "tiny/audio_finetuning", f"task.data={data}", f"model.w2v_path={model}",
            "platform.num_workers=0", *words]  # fmt: skip


def refused(words: list[str], *says: str) -> None:
    code, said = call(words)
    assert code == 2 and "Traceback" not in said and "error: " in said, said
    missing = [part for part in says if part not in said]
    assert not missing, f"{missing} in: {said}"


def test_a_folder_of_everything_becomes_one_report(tmp_path: Path, home: Path) -> None:
    root = tmp_path / "wild"
    good = {wave(root / "mono.flac"), wave(root / "24 bit.flac", subtype="PCM_24"),
            wave(root / "stereo.flac", channels=2), wave(root / "Straße" / "größe 1.flac")}  # fmt: skip
    wave(root / "slow.flac", rate=8000)
    sf.write(str(root / "silent.flac"), np.zeros(8000), 16_000)
    (root / "empty.flac").touch()
    (root / "text.flac").write_text("this is no audio")
    whole = wave(root / "cut.flac", 160_000).read_bytes()
    (root / "cut.flac").write_bytes(whole[: len(whole) // 2])
    words = ["prepare", "audio-manifest", str(root), "--valid-percent", "0", "--decode"]
    code, said = call([*words, "--dest", str(tmp_path / "out")])
    assert code == 0 and "Traceback" not in said
    assert "5 files were left out" in said and "1 files: 2 channels, averaged when read" in said
    manifest = read_manifest(tmp_path / "out/train.tsv")
    assert {Path(manifest.file(i)) for i in range(len(manifest))} == good
    dropped = (tmp_path / "out/dropped.tsv").read_text()
    for name, reason in (("slow", "8000 Hz"), ("silent", "silent"), ("empty", "empty file"),
                         ("text", "not readable as audio"), ("cut", "breaks off")):  # fmt: skip
        assert any(f"{name}.flac" in line and reason in line for line in dropped.splitlines())
    refused([*words, "--dest", str(tmp_path / "strict"), "--strict"], "5 files cannot be used", "cut.flac")
    code, said = call([*words, "--dest", str(tmp_path / "more"), "--resample", str(tmp_path / "converted")])
    assert code == 0 and "1 files were converted" in said
    assert len(read_manifest(tmp_path / "more/train.tsv")) == 5


def test_a_manifest_whose_files_moved_or_whose_lengths_lie(data: Path) -> None:
    (data / "3.flac").rename(data / "elsewhere.flac")
    lines = (data / "train.tsv").read_text().replace("5.flac\t10000", "5.flac\t99999")
    (data / "train.tsv").write_text(lines)
    wave(data / "6.flac", 10400, rate=8000)
    (data / "7.flac").write_text("text")
    refused(
        pretraining(data), "(4 of 8 checked are wrong)", "3.flac: no such file",
        "10000 samples, listed with 99999", "6.flac: 8000 Hz, not 16000",
        "7.flac: not readable as audio", "task.skip_broken=true",
    )  # fmt: skip


def test_labels_that_do_not_fit(data: Path, pretrained: Path) -> None:
    (data / "train.ltr").write_text(f"{letter_line('A B')}\n" * 7)
    refused(finetuning(data, pretrained), "have 7 lines, but the manifest lists 8", "make both again")
    (data / "train.ltr").write_text(f"{letter_line('a b')}\n" * 8)
    refused(finetuning(data, pretrained), "100% of the labels are not in the dictionary", "upper case")
    (data / "train.ltr").write_text(f"{letter_line('A B')}\n" * 8)
    (data / "dict.ltr.txt").write_text("| 1\nA 1\nA 2\n")
    refused(finetuning(data, pretrained), "dict.ltr.txt")
    (data / "dict.ltr.txt").unlink()
    refused(finetuning(data, pretrained), "dict.ltr.txt does not exist")


def test_a_model_of_other_audio_is_refused(data: Path, pretrained: Path) -> None:
    refused(finetuning(data, pretrained, "task.normalize=false"), "task.normalize", "must be true")
    refused(finetuning(data, pretrained, "task.sample_rate=8000"), "task.sample_rate", "must be 16000")


def recipe(data: Path, model: dict[str, Any], task: dict[str, Any], criterion: str) -> dict[str, Any]:
    return {
        "task": {"data": str(data), "normalize": True, **task},
        "model": model, "criterion": {"_name": criterion}, "optimizer": {"_name": "adam"},
        "lr_scheduler": {"_name": "fixed"},
        "common": {"log_interval": 1},
        "dataset": {"max_tokens": 200_000, "required_batch_size_multiple": 1, "disable_validation": True},
        "optimization": {"max_update": 2, "lr": [1e-3]}, "checkpoint": {"save_interval": 1000},
    }  # fmt: skip


def plain(data: Path, **task: Any) -> dict[str, Any]:
    own = {"_name": "audio_pretraining", "precompute_mask_config": {}, **task}
    return recipe(data, {"_name": "data2vec_multi", **MODEL}, own, "model")


@pytest.mark.parametrize("processes", [0, 1])
def test_files_that_break_off_are_all_named_or_skipped(data: Path, tmp_path: Path, processes: int) -> None:
    for name in ("2.flac", "4.flac"):  # the header is whole: only decoding finds it
        content = (data / name).read_bytes()
        (data / name).write_bytes(content[: len(content) // 3])
    worker = Worker(threads=1, loader_processes=processes)
    with pytest.raises(DataError) as caught:
        train(Job(Recipe.from_dict(plain(data)), tmp_path / "stops"), Recorder(), worker)
    text = str(caught.value)
    assert "2.flac" in text and "4.flac" in text and "line 4 of" in text and "Traceback" not in text
    recorder = Recorder()
    train(Job(Recipe.from_dict(plain(data, skip_broken=True)), tmp_path / "skips"), recorder, worker)
    assert np.isfinite(recorder.last["train/loss"])


def test_a_network_that_is_frozen_whole_is_refused(data: Path, pretrained: Path) -> None:
    refused(finetuning(data, pretrained, "model.freeze_regex='.*'"), "nothing is left to learn")


def test_silent_and_stereo_clips_train(data: Path, tmp_path: Path) -> None:
    sf.write(str(data / "2.flac"), np.zeros(8800), 16_000)
    wave(data / "3.flac", 9200, channels=2)
    wave(data / "4.flac", 9600, subtype="PCM_24")
    recorder = Recorder()
    train(Job(Recipe.from_dict(plain(data)), tmp_path / "run"), recorder, Worker(threads=1))
    assert np.isfinite(recorder.last["train/loss"]) and not recorder.last.get("train/bad_updates")


def test_utterances_too_short_for_ctc_are_counted_everywhere(
    data: Path, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [letter_line("A B")] * 8
    lines[1] = letter_line("A" * 40)  # 79 frames of 26
    for split in ("train", "valid"):
        (data / f"{split}.ltr").write_text("".join(f"{line}\n" for line in lines))
    values = recipe(data, {"_name": "wav2vec_ctc", "w2v_path": "given"}, {"_name": "audio_finetuning"}, "ctc")
    values["dataset"] |= {"disable_validation": False, "validate_interval_updates": 2}
    values["checkpoint"] |= {"best_checkpoint_metric": "wer"}
    recorder = Recorder()
    with caplog.at_level(logging.INFO):
        train(
            Job(Recipe.from_dict(values), tmp_path / "run", models=ResolvedModels(pretrained)),
            recorder,
            Worker(threads=1),
        )
    assert "1 of 8 utterances left out: 1 fewer frames than labels need" in caplog.text
    assert recorder.last["valid/too_short"] == 1.0 and np.isfinite(recorder.last["valid/loss"])
    assert {"train/blank_rate", "valid/blank_rate", "valid/label_coverage"} <= recorder.last.keys()


def test_output_that_is_all_blank_gets_one_hint(caplog: pytest.LogCaptureFixture) -> None:
    options = CTCConfig(freeze_finetune_updates=100)
    task: Any = SimpleNamespace(model=SimpleNamespace(options=options), _hinted=False)
    AudioFinetuning.guard(task, {"blank_rate": 100.0}, 599)
    AudioFinetuning.guard(task, {"blank_rate": 99.0}, 700)
    assert "only blanks" not in caplog.text, "usual at the beginning, and not while letters come out"
    AudioFinetuning.guard(task, {"blank_rate": 100.0}, 600)
    AudioFinetuning.guard(task, {"blank_rate": 100.0}, 620)
    assert caplog.text.count("only blanks come out") == 1 and "optimization.lr" in caplog.text


def test_decoding_and_embedding_tell_what_is_wrong(data: Path, tmp_path: Path) -> None:
    config = Data2VecMultiConfig.from_dict(MODEL)
    network = CTCModel(config, CTCConfig(), num_symbols=32)
    model = save_artifact(
        tmp_path / "ctc", kind="ctc", model_config=config, head_config=network.options,
        state=network.state_dict(), letters=released_letters(), task={"normalize": True, "num_symbols": 32},
    )  # fmt: skip
    (data / "valid.ltr").write_text("A |\n" * 7)
    infer = ["infer", f"task.data={data}", f"common_eval.path={model}", "dataset.gen_subset=valid"]
    refused(infer, "have 7 lines, but the manifest lists 8")
    refused([*infer[:-1], "dataset.gen_subset=nothing"], "nothing.tsv does not exist", "has train, valid")
    refused([*infer, "task.labels=ltrr"], "has no valid.ltrr (there is valid.ltr, valid.tsv)")
    (data / "valid.wrd").write_text("AB CD\n" * 8)
    refused([*infer, "task.labels=wrd"], "100% of the labels are not in the dictionary", "'AB' x 8")
    (data / "valid.ltr").write_text(f"{letter_line('A B')}\n" * 8)
    refused(
        [*infer, "task.max_sample_size=9000"], "5 of 8 recordings are longer than task.max_sample_size 9000"
    )
    refused([*infer, "platform.worst=-1", "dataset.batch_size=0", "decoding.beam=0"], "3 problems")
    (data / "1.flac").unlink()
    refused([*infer[:-1], "dataset.gen_subset=train"], "(1 of 8 checked are wrong)", "1.flac: no such file")
    refused(["transcribe", str(data / "none.wav"), "--model", str(model)], "no such file or folder")
    (data / "0.flac").write_text("x")
    code, said = call(["transcribe", str(data), "--model", str(model), "--out", str(tmp_path / "text")])
    assert code == 2 and "1 of 7 recordings could not be read" in said and "Traceback" not in said
    assert len(list((tmp_path / "text").glob("*.json"))) == 6, "the others are done"
    sf.write(str(data / "2.flac").replace("flac", "wav"), np.full(8000, np.nan, dtype=np.float32), 16_000,
             subtype="FLOAT")  # fmt: skip
    code, said = call(["embed", str(data), "--model", str(model), "--dest", str(tmp_path / "e.parquet")])
    assert code == 2 and "2.wav: has samples that are not finite" in said
    assert (tmp_path / "e.parquet").is_file(), "the others are done"
