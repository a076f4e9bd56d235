"""Audio recipes in the training loop: worker counts, resuming, from pretraining to a recogniser."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

import data2vec
from d2v_platform.recipe.schema import Recipe
from d2v_platform.training.checkpoint import CheckpointStore
from d2v_platform.training.job import Job, ResolvedModels
from d2v_platform.training.loop_state import Worker
from d2v_platform.training.train_loop import train
from data2vec.data.letters import letter_line, released_letters
from data2vec.data.manifest import manifest_text
from tests.platform.process_group import together
from tests.platform.recorder import Recorder

MODEL = {
    "_name": "data2vec_multi", "supported_modality": "AUDIO", "embed_dim": 32, "num_heads": 2, "depth": 2,
    "average_top_k_layers": 2, "clone_batch": 2, "instance_norm_target_layer": True,
    "ema_encoder_only": False, "ema_anneal_end_step": 10, "layerdrop": 0.2,
    "modalities": {"text": None, "audio": {
        "feature_encoder_spec": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] * 2", "prenet_depth": 1,
        "mask_prob": 0.5, "mask_prob_adjust": 0.05, "conv_pos_width": 15, "conv_pos_depth": 3,
        "conv_pos_groups": 2, "use_alibi_encoder": True, "learned_alibi_scale": True,
        "learned_alibi_scale_per_head": True,
        "decoder": {"decoder_dim": 16, "decoder_groups": 2, "decoder_layers": 2}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen clips of 0.4 to 0.7 s: a low tone is "A", a high one "B"."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    entries, texts = [], []
    for index in range(16):
        length = 6400 + 320 * index
        high = index % 2
        wave = np.sin(2 * np.pi * (250, 900)[high] * np.arange(length) / 16_000)
        sf.write(str(folder / f"{index}.wav"), 0.3 * wave + 0.01 * rng.normal(size=length), 16_000)
        entries.append((f"{index}.wav", length))
        texts.append(letter_line("AB"[high]))
    for split in ("train", "valid"):
        (folder / f"{split}.tsv").write_text(manifest_text(str(folder), entries))
        (folder / f"{split}.ltr").write_text("".join(f"{text}\n" for text in texts))
        (folder / f"{split}.lbl").write_text("".join(f"0\t1\t{i % 2}\n" for i in range(16)))
    released_letters().save(folder / "dict.ltr.txt")
    (folder / "label_descriptors.csv").write_text("0,low\n1,high\n")
    return folder


def pretraining(clips: Path, **task: Any) -> dict[str, Any]:
    return {
        "task": {"_name": "audio_pretraining", "data": str(clips), "normalize": True, "max_sample_size": 8000,
                 "precompute_mask_config": {}, **task},
        "model": MODEL,
        "criterion": {"_name": "model"},
        "optimizer": {"_name": "adam", "adam_betas": [0.9, 0.98]},
        "lr_scheduler": {"_name": "cosine", "warmup_updates": 1},
        "common": {"log_interval": 1},
        "dataset": {"max_tokens": 40_000, "required_batch_size_multiple": 1, "num_workers": 0,
                    "disable_validation": True},
        "distributed_training": {"distributed_world_size": 2},
        "optimization": {"max_update": 6, "lr": [1e-3]},
        "checkpoint": {"save_interval_updates": 3, "save_interval": 1000},
    }  # fmt: skip


def run(recipe: dict[str, Any], folder: Path, model_folder: Path | None = None) -> Recorder:
    recorder = Recorder()
    train(Job(Recipe.from_dict(recipe), folder, models=ResolvedModels(model_folder), threads=1), recorder)
    return recorder


def recipes(clips: Path) -> dict[str, dict[str, Any]]:
    """One recipe of every kind, with dropout and masks on."""
    first = pretraining(clips)
    first["task"] = {key: value for key, value in first["task"].items() if key != "precompute_mask_config"}
    first["model"] = {
        "_name": "data2vec_audio", "extractor_mode": "layer_norm", "encoder_layers": 2,
        "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64,
        "encoder_attention_heads": 2, "conv_pos": 15, "conv_pos_groups": 2,
        "conv_feature_layers": MODEL["modalities"]["audio"]["feature_encoder_spec"], "pos_conv_depth": 3,
        "average_top_k_layers": 2, "instance_norm_target_layer": True, "ema_anneal_end_step": 10,
        "encoder_layerdrop": 0.2,
    }  # fmt: skip
    tuned = pretraining(clips) | {
        "task": {"_name": "audio_finetuning", "data": str(clips), "labels": "ltr", "normalize": True},
        "model": {"_name": "wav2vec_ctc", "w2v_path": "given", "feature_grad_mult": 0.5, "apply_mask": True,
                  "mask_prob": 0.3, "mask_length": 2, "mask_channel_prob": 0.2, "mask_channel_length": 4,
                  "dropout": 0.1, "final_dropout": 0.1, "layerdrop": 0.2, "freeze_finetune_updates": 2},
        "criterion": {"_name": "ctc"},
    }  # fmt: skip
    events = tuned | {
        "task": {"_name": "audio_classification", "data": str(clips), "normalize": True},
        "model": {"_name": "audio_classification", "model_path": "given", "source_mixup": 0.5, "dropout": 0.1,
                  "label_mixup": True, "same_mixup": False, "feature_grad_mult": 1.0},
        "criterion": {"_name": "model"},
    }  # fmt: skip
    return {"v2": pretraining(clips), "v1": first, "ctc": tuned, "events": events}


def _as_one_of_two(rank: int, size: int, kinds: dict[str, dict[str, Any]], folder: str, model: str) -> None:
    curves = {}
    for kind, recipe in kinds.items():
        recorder, worker = Recorder(), Worker(rank=rank, size=size, threads=1)
        train(
            Job(Recipe.from_dict(recipe), Path(folder, kind), models=ResolvedModels(Path(model))),
            recorder,
            worker,
        )
        curves[kind] = recorder.curve()
    if rank == 0:
        Path(folder, "curves.json").write_text(json.dumps(curves))


class Killer(Recorder):
    """Kills its own process at an update, as the kernel or a cluster would, once a checkpoint is written."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.store = CheckpointStore(folder)

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        if update == 5:
            while not self.store.updates():  # written in the background
                time.sleep(0.005)
            os.kill(os.getpid(), signal.SIGKILL)


def _until_killed(kind: str, recipe: dict[str, Any], folder: str, model: str) -> None:
    place = Path(folder, kind)
    train(
        Job(Recipe.from_dict(recipe), place, models=ResolvedModels(Path(model))),
        Killer(place),
        Worker(threads=1),
    )


@pytest.fixture(scope="module")
def alone(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """Every kind of recipe on one worker: folder and loss curves."""
    folder, curves = tmp_path_factory.mktemp("alone"), {}
    for kind, recipe in recipes(clips).items():
        curves[kind] = run(recipe, folder / kind, model_folder=folder / "v2" / "model").curve()
        assert len(curves[kind]) == 6 and all(np.isfinite(curves[kind]))
    return folder, curves


@pytest.mark.timeout(400)  # two processes import PyTorch
def test_the_number_of_workers_changes_nothing(
    clips: Path, alone: tuple[Path, dict[str, list[float]]], tmp_path: Path
) -> None:
    folder, curves = alone
    together(_as_one_of_two, tmp_path, recipes(clips), str(tmp_path), str(folder / "v2" / "model"))
    found = json.loads((tmp_path / "curves.json").read_text())
    for kind, curve in curves.items():
        assert found[kind] == pytest.approx(curve, rel=1e-5), kind


@pytest.mark.timeout(400)
def test_a_killed_run_ends_with_the_same_bits(
    clips: Path, alone: tuple[Path, dict[str, list[float]]], tmp_path: Path
) -> None:
    folder, _ = alone
    model = folder / "v2" / "model"
    for kind in ("v2", "ctc"):
        recipe = recipes(clips)[kind]
        process = mp.get_context("fork").Process(
            target=_until_killed, args=(kind, recipe, str(tmp_path), str(model))
        )
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert (tmp_path / kind / "checkpoints").is_dir() and not (tmp_path / kind / "model").exists()
        resumed = run(recipe, tmp_path / kind, model_folder=model)
        assert len(resumed.curve()) == 3, "from the checkpoint of update 3 on"
        for name in ("model.safetensors", *(["teacher.safetensors"] if kind == "v2" else [])):
            whole, again = (load_file(place / kind / "model" / name) for place in (folder, tmp_path))
            assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)


def test_masks_as_the_references_loader_makes_them(clips: Path, tmp_path: Path) -> None:
    recipe = pretraining(clips, masks_before_crop=True)
    recipe["optimization"] = {"max_update": 2, "lr": [1e-3]}
    assert len(run(recipe, tmp_path).curve()) == 2


def test_from_pretraining_to_a_recogniser(clips: Path, tmp_path: Path) -> None:
    recipe = pretraining(clips)
    recipe["optimization"] = {"max_update": 2, "lr": [1e-3]}
    run(recipe, tmp_path / "pretrained")
    tuned = recipe | {
        "task": {"_name": "audio_finetuning", "data": str(clips), "labels": "ltr", "normalize": True},
        "model": {"_name": "wav2vec_ctc", "w2v_path": "given", "feature_grad_mult": 1.0, "apply_mask": True,
                  "mask_prob": 0.1, "mask_length": 2},
        "criterion": {"_name": "ctc"},
        "dataset": recipe["dataset"] | {"disable_validation": False, "validate_interval": 1000,
                                        "max_tokens": 120_000},
        "distributed_training": {"distributed_world_size": 1},
        "optimization": {"max_update": 60, "lr": [5e-3], "clip_norm": 5.0},
        "checkpoint": {"save_interval": 1000, "best_checkpoint_metric": "uer"},
        "common": {"log_interval": 20},
    }  # fmt: skip
    recorder = run(tuned, tmp_path / "tuned", model_folder=tmp_path / "pretrained" / "model")
    assert recorder.curve()[-1] < 0.5 * recorder.curve()[0]
    assert {"valid/wer", "valid/raw_wer", "valid/uer", "valid/blank_rate", "valid/label_coverage"} <= set(
        recorder.last
    )
    model = data2vec.load(tmp_path / "tuned" / "model")
    assert model.emissions(str(clips / "0.wav")).shape[1] == 32
    assert isinstance(model.transcribe([str(clips / "0.wav")])[0].text, str)
