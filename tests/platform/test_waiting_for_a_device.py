"""An update asks its device for numbers once.

PyTorch's "meta" device stands for a GPU here: its tensors have shapes and no numbers, so whatever asks for
one fails where it asks. What reads on purpose goes through ``read``, which is counted.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks import make_task
from d2v_platform.tasks.batches import to_device
from d2v_platform.tasks.statistics import Layout, Sums
from d2v_platform.training.loop_state import Worker
from d2v_platform.training.train_loop import TrainingLoop
from data2vec.audio_events import AudioEventConfig, AudioEventModel
from data2vec.clone_chunks import clone_chunks
from data2vec.config import ImageHeadConfig, SentenceHeadConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.heads import SentenceClassifier
from data2vec.image_heads import ImageClassifier, TrunkRegularisation, finetuning_config
from data2vec.mae import MaskedAutoencoder
from data2vec.pretraining import Data2VecPretraining, PretrainOutput
from tests.models.test_mae import SMALL
from tests.models.test_training_rates import build
from tests.platform.recorder import Recorder

DEVICE = torch.device("meta")
KINDS = ("text", "image", "audio", "v1 text", "v1 audio", "v1 vision")
IDS = torch.tensor([3, 12])


@pytest.fixture(autouse=True)
def without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which does not know the device."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def with_masks(kind: str, **modality: Any) -> tuple[Any, torch.Tensor]:
    """A pretraining model with three clones (v2), and its input."""
    model, source, _ = build(kind, None, 0.0)
    if not kind.startswith("v1"):
        values = model.config.to_dict()
        values["modalities"][kind] |= modality
        values["clone_batch"] = 3
        model = Data2VecPretraining(type(model.config).from_dict(values), vocab_size=20)
    return model.train().to(DEVICE), source.to(DEVICE)


def padding_of(kind: str) -> torch.Tensor | None:
    """Half of the second sample is padding; it stays on the CPU."""
    length = {"text": 9, "v1 text": 9, "audio": 40, "v1 audio": 40}.get(kind)
    return (
        None if length is None else torch.arange(length)[None] >= torch.tensor([[length], [length // 2 + 4]])
    )


def backward(loss: torch.Tensor) -> None:
    assert loss.device == DEVICE
    loss.backward()


@pytest.mark.parametrize(
    ("kind", "modality"),
    [
        *((kind, {}) for kind in KINDS),
        ("image", {"mask_prob": 0.5, "mask_length": 2, "mask_prob_adjust": 0.1, "keep_masked_pct": 0.3}),
        ("image", {"mask_prob": 0.6, "mask_length": 2, "inverse_mask": True}),
        ("audio", {"mask_prob": 0.5, "mask_length": 2, "encoder_zero_mask": False}),
    ],
)
def test_pretraining(kind: str, modality: dict[str, Any]) -> None:
    model, source = with_masks(kind, **modality)
    model.teacher.step(1)
    chunks = (
        [{"chunk": chunk} for chunk in clone_chunks(3, 2)] if isinstance(model, Data2VecPretraining) else []
    )
    for chunk in chunks or [{}]:
        output: PretrainOutput = model(source, padding_of(kind), IDS, update=1, **chunk)
        backward(output.loss)
        sums = Sums(Layout(("loss", "sample_size"), {"target": 16}))
        sums.add({"loss": output.loss.detach(), "sample_size": output.sample_size}, {"target": output.target})
        assert sums.on(DEVICE).device == DEVICE and sums["sample_size"] == output.sample_size


def test_masked_autoencoder() -> None:
    model = MaskedAutoencoder(SMALL).train().to(DEVICE)
    side = SMALL.input_size
    backward(model(torch.empty(2, 3, side, side, device=DEVICE), None, IDS).loss)


@pytest.mark.parametrize("kind", ["text", "v1 text"])
def test_sentences(kind: str) -> None:
    trunk, source = with_masks(kind)
    model = (
        SentenceClassifier(trunk.config, SentenceHeadConfig(num_classes=3), vocab_size=20).train().to(DEVICE)
    )
    logits = model(source, padding_of(kind), 1, 2)
    backward(model.loss(logits, torch.zeros(2, dtype=torch.int64, device=DEVICE), False).loss)


@pytest.mark.parametrize("kind", ["image", "v1 vision"])
def test_images(kind: str) -> None:
    trunk, source = with_masks(kind)
    config = finetuning_config(trunk.config, TrunkRegularisation(drop_path_rate=0.5))
    model = ImageClassifier(config, ImageHeadConfig(num_classes=3)).train().to(DEVICE)
    backward(model.loss(model(source, 1, 2), torch.zeros(2, dtype=torch.int64, device=DEVICE)).loss)


MASKED = {
    "apply_mask": True,
    "zero_mask": True,
    "mask_length": 2,
    "mask_channel_prob": 0.3,
    "mask_channel_length": 2,
}


@pytest.mark.parametrize("kind", ["audio", "v1 audio"])
def test_recognition(kind: str) -> None:
    trunk, source = with_masks(kind)
    model = CTCModel(trunk.config, CTCConfig(**MASKED, blank_weight=0.1), num_symbols=5).train().to(DEVICE)
    output = model(source, padding_of(kind), IDS, update=1)
    # PyTorch has no CTC loss without numbers: what belongs to it is decided before.
    assert output.frames_B.device.type == "cpu" and output.frames_B.tolist() == [9, 5]
    backward(output.logits_BTV.sum())


@pytest.mark.parametrize("kind", ["audio", "v1 audio"])
def test_audio_events(kind: str) -> None:
    trunk, source = with_masks(kind)
    options = AudioEventConfig(num_classes=3, **MASKED)
    model = AudioEventModel(trunk.config, options).train().to(DEVICE)
    backward(model(source, padding_of(kind), IDS, update=1).loss(torch.zeros(2, 3, device=DEVICE)))


def test_what_decides_stays_on_the_cpu() -> None:
    batch = {"id": IDS, "source": torch.zeros(2, 4), "padding_mask": torch.zeros(2, 4, dtype=torch.bool),
             "frames": IDS, "notes": ["none"]}  # fmt: skip
    where = {k: v.device.type for k, v in to_device(batch, DEVICE).items() if isinstance(v, torch.Tensor)}
    assert where == {"id": "cpu", "source": "meta", "padding_mask": "cpu", "frames": "cpu"}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what was read from the device, which gives ones."""
    found: list[int] = []

    def read(x: torch.Tensor) -> torch.Tensor:
        found.append(x.numel())
        return torch.ones(x.shape, dtype=x.dtype)

    monkeypatch.setattr("d2v_platform.training.sharding.read", read)
    module, name = sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices"
    monkeypatch.setattr(module, name, lambda: ["meta"])
    return found


def test_a_whole_update_reads_once(tiny_recipe: dict[str, Any], tmp_path: Path, reads: list[int]) -> None:
    recipe = Recipe.from_dict({**tiny_recipe, "common": {"log_interval": 100}})
    task = make_task(recipe, None)
    loop = TrainingLoop(recipe, task, tmp_path, Recorder(), Worker(device=DEVICE))
    batches = task.batches("train", 1, training=True)
    loader = loop._loader(1, batches, 4)
    for update in range(2):
        loop._update(loader, 4, batches[4 * update : 4 * update + 4])
    assert loop.state.update == 2 and not loop.state.bad_updates
    size = len(Sums(task.layout).vector) + 4  # three answers of rank 0, and the norm
    assert reads == [size, size]
