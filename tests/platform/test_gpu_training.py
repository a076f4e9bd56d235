"""Training on a CUDA device: mixed precision, the same numbers as the CPU, exact resume, CTC, its figures.

One GPU is enough. The recipes are those of configs/tiny, so this is what a user's first run on a GPU does.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from PIL import Image
from safetensors.torch import load_file

import data2vec
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.schema import Recipe
from d2v_platform.training.job import Job, ResolvedModels
from d2v_platform.training.loop_state import Summary, Worker
from d2v_platform.training.optimizer import choose_precision
from d2v_platform.training.train_loop import train
from data2vec.config import Data2VecMultiConfig
from data2vec.ctc import CTCConfig, CTCModel, CTCOutput
from data2vec.data.letters import letter_line, released_letters
from data2vec.data.manifest import manifest_text
from tests.platform.recorder import Recorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

RECIPES = {  # and where the schedule of the learning rate is
    "text": ("tiny/text_pretraining", "optimizer.groups.default.lr_scheduler"),
    "audio": ("tiny/audio_pretraining", "lr_scheduler"),
    "image": ("tiny/image_pretraining", "optimizer.groups.default.lr_scheduler"),
    "image_v1": ("tiny/image_pretraining_v1", "lr_scheduler"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> dict[str, Path]:
    """A folder for each kind of recipe: a made-up language, tones with letters, coloured images."""
    root, draw = tmp_path_factory.mktemp("gpu_data"), np.random.default_rng(0)
    clips, pictures = root / "clips", root / "pictures"
    clips.mkdir()
    entries, texts = [], []
    for index in range(16):
        length, high = 8000 + 320 * index, index % 2
        wave = np.sin(2 * np.pi * (250, 900)[high] * np.arange(length) / 16_000)
        sf.write(str(clips / f"{index}.wav"), 0.3 * wave + 0.01 * draw.normal(size=length), 16_000)
        entries.append((f"{index}.wav", length))
        texts.append(letter_line("AB"[high]) + "\n")
    for split in ("train", "valid"):
        (clips / f"{split}.tsv").write_text(manifest_text(str(clips), entries))
        (clips / f"{split}.ltr").write_text("".join(texts))
    released_letters().save(clips / "dict.ltr.txt")
    for split in ("train", "val"):
        for channel, name in ((2, "blue"), (0, "red")):
            (pictures / split / name).mkdir(parents=True)
            for index in range(32):
                values = draw.integers(0, 120, (72, 80, 3))
                values[..., channel] += 120
                Image.fromarray(values.astype(np.uint8)).save(pictures / split / name / f"{index}.png")
    return {"text": tiny_text, "audio": clips, "image": pictures, "image_v1": pictures}


def recipe_of(kind: str, data: Mapping[str, Path], *overrides: str) -> Recipe:
    """A tiny recipe of six updates with two checkpoints."""
    name, schedule = RECIPES[kind]
    short = [f"task.data={data[kind]}", "optimization.max_update=6", f"{schedule}.warmup_updates=1"]
    if kind == "audio":
        short.append("task.min_sample_size=3200")
    return compose(
        name, [*short, "common.log_interval=1", "checkpoint.save_interval_updates=3", *overrides]
    ).recipe


def run(
    recipe: Recipe, folder: Path, device: str = "cuda", model_folder: Path | None = None
) -> tuple[Summary, Recorder]:
    recorder = Recorder()
    worker = Worker(threads=2, device=torch.device(device))
    return train(Job(recipe, folder, models=ResolvedModels(model_folder)), recorder, worker), recorder


@pytest.mark.parametrize("kind", RECIPES)
def test_mixed_precision_starts_with_the_losses_of_the_cpu(
    kind: str, data: dict[str, Path], tmp_path: Path
) -> None:
    """Masks, crops and weights are functions of the seed on every device; noise and rounding are small."""
    mixed = recipe_of(kind, data, "common.fp16=true")
    assert choose_precision(mixed, torch.device("cuda")).name == "bf16"
    torch.cuda.reset_peak_memory_stats()
    summary, on_gpu = run(mixed, tmp_path / "gpu")
    assert torch.cuda.max_memory_allocated() > 0
    _, on_cpu = run(recipe_of(kind, data, "optimization.max_update=2"), tmp_path / "cpu", "cpu")
    losses = on_gpu.curve("train/loss")
    assert summary.update == len(losses) == 6 and all(map(math.isfinite, losses))
    assert losses[0] == pytest.approx(on_cpu.curve("train/loss")[0], rel=0.05)
    assert on_gpu.curve("train/target_var")[0] == pytest.approx(on_cpu.curve("train/target_var")[0], rel=0.05)
    assert all(0.0 < share < 100.0 for share in on_gpu.curve("speed/matrix_rate_pct"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", RECIPES)
def test_a_resumed_run_ends_with_the_same_bits(
    kind: str, precision: str, data: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(kind, data, f"platform.precision={precision}", "checkpoint.keep_interval_updates=-1")
    run(recipe, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight" / "checkpoints", tmp_path / "resumed" / "checkpoints")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "update_00000006")
    run(recipe, tmp_path / "resumed")
    for name in ("model.safetensors", "teacher.safetensors"):
        first, second = (load_file(tmp_path / r / "model" / name) for r in ("straight", "resumed"))
        differing = [key for key in first if not torch.equal(first[key], second[key])]
        assert not differing and first.keys() == second.keys()


def test_from_pretraining_to_a_recogniser(data: dict[str, Path], tmp_path: Path) -> None:
    run(recipe_of("audio", data, "common.fp16=true"), tmp_path / "pretrained")
    tuned = compose(
        "tiny/audio_finetuning",
        [f"task.data={data['audio']}", "model.w2v_path=given", "common.fp16=true", "common.log_interval=1",
         "optimization.max_update=60", "dataset.validate_interval_updates=30", "optimization.lr=[2e-3]"],
    ).recipe  # fmt: skip
    summary, recorder = run(tuned, tmp_path / "ctc", model_folder=tmp_path / "pretrained" / "model")
    losses = recorder.curve("train/loss")
    assert summary.update == 60 and all(map(math.isfinite, losses)) and losses[-1] < losses[0] / 2
    assert summary.best is not None and summary.best < 100.0
    model = data2vec.load(tmp_path / "ctc" / "model")  # what a GPU wrote, a CPU reads
    assert np.isfinite(model.emissions(data["audio"] / "0.wav")).all()


def test_fine_tuned_on_the_gpu(data: dict[str, Path], tmp_path: Path) -> None:
    run(recipe_of("image", data, "common.fp16=true"), tmp_path / "pretrained")
    tuned = compose(
        "tiny/image_finetuning",
        [f"task.data={data['image']}", "model.model_path=given", "model.num_classes=2", "common.fp16=true",
         "dataset.batch_size=16", "optimization.max_update=40", "dataset.valid_subset=val"],
    ).recipe  # fmt: skip
    summary, _ = run(tuned, tmp_path / "tuned", model_folder=tmp_path / "pretrained" / "model")
    assert summary.best is not None and summary.best > 90.0  # a colour tells the classes apart


def test_ctc_on_the_gpu_is_that_of_the_cpu() -> None:
    """Loss, gradient, and an utterance that is too short for its labels."""
    config = Data2VecMultiConfig.from_dict({
        "supported_modality": "AUDIO", "embed_dim": 16, "num_heads": 2, "depth": 1, "average_top_k_layers": 1,
        "ema_encoder_only": False,
        "modalities": {"text": None, "audio": {"conv_pos_groups": 2, "prenet_depth": 0}},
    })  # fmt: skip
    model = CTCModel(config, CTCConfig(), num_symbols=7)
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 12, 7, generator=draw)
    targets = torch.tensor([[4, 5, 5, 6], [6, 4, 0, 0], [4, 4, 4, 4]])
    lengths, frames = torch.tensor([4, 2, 4]), torch.tensor([12, 9, 5])  # the last one needs 7 frames
    results = []
    for device in ("cpu", "cuda"):
        given = logits.to(device).requires_grad_()
        sums = model.loss(CTCOutput(given, frames.to(device), None), targets.to(device), lengths.to(device))
        sums.loss.backward()
        assert given.grad is not None
        results.append((float(sums.loss), sums.sentences, sums.too_short, given.grad.cpu()))
    (loss, sentences, too_short, grad), (gpu_loss, *counts, gpu_grad) = results
    assert [sentences, too_short] == counts == [2, 1]
    assert gpu_loss == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(gpu_grad, grad, atol=1e-5)
