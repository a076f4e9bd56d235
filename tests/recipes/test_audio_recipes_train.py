"""Every audio recipe takes two updates on small data with a small model, and has a plan."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from d2v_platform.recipe.compose import LoadedFile, compose_loaded, load_file
from d2v_platform.recipe.locate import find_recipe, recipe_names
from d2v_platform.recipe.schema import Recipe
from d2v_platform.training.job import Job, ResolvedModels
from d2v_platform.training.loop_state import Worker
from d2v_platform.training.train_loop import train
from d2v_platform.training.workload import make_workload
from data2vec.artifact import save_artifact
from data2vec.config import Data2VecMultiConfig
from data2vec.data.letters import letter_line, released_letters
from data2vec.data.manifest import manifest_text
from data2vec.flops import Storage
from data2vec.student import Data2VecMulti
from tests.platform.recorder import Recorder

CTC = [name for name in recipe_names() if name.startswith("wav2vec/finetuning/")]
PRETRAINING = ["v2/base_audio_only_task", "v2/large_audio_only_task", "audio/pretraining/base_librispeech",
               "audio/pretraining/large_librilight", "audio/pretraining/audioset"]  # fmt: skip
SPEC = "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8,2,2)] * 2"


@functools.cache
def loaded(name: str) -> LoadedFile:
    return load_file(find_recipe(name))


class TwoUpdates(Exception):
    """Enough was seen."""


class StopsAfterTwo(Recorder):
    """So that schedules keep their length."""

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        super().log(update, metrics)
        if update >= 2:
            raise TwoUpdates


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of at least two seconds, which the recipes want."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    entries = []
    for index in range(4):
        length = 32_000 + 400 * index
        sf.write(str(folder / f"{index}.flac"), 0.1 * rng.normal(size=length), 16_000)
        entries.append((f"{index}.flac", length))
    for split in ("train", "dev_other", "eval"):
        (folder / f"{split}.tsv").write_text(manifest_text(str(folder), entries))
        (folder / f"{split}.ltr").write_text(f"{letter_line('A MAN')}\n" * 4)
        (folder / f"{split}.lbl").write_text("0\t2\t0\n0\t2\t1\n0\t2\t0,1\n0\t2\t1\n")
    released_letters().save(folder / "dict.ltr.txt")
    (folder / "label_descriptors.csv").write_text("0,a\n1,b\n")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Data2VecMultiConfig.from_dict(
        {"supported_modality": "AUDIO", "embed_dim": 16, "num_heads": 2, "depth": 1,
         "average_top_k_layers": 1, "ema_encoder_only": False, "modalities": {"text": None, "audio": {
             "feature_encoder_spec": SPEC, "prenet_depth": 1, "conv_pos_width": 9, "conv_pos_depth": 3,
             "conv_pos_groups": 2, "use_alibi_encoder": True, "learned_alibi_scale": True, "decoder": None}}}
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    state, task = Data2VecMulti(config, with_decoder=False).state_dict(), {"normalize": True}
    return save_artifact(folder, kind="pretrained", model_config=config, state=state, task=task)


def two_updates(recipe: Recipe, folder: Path, model: Path | None = None) -> list[float]:
    recorder = StopsAfterTwo()
    with pytest.raises(TwoUpdates):
        train(Job(recipe, folder, models=ResolvedModels(model)), recorder, Worker(threads=1))
    losses = recorder.curve()
    assert len(losses) == 2 and all(np.isfinite(losses))
    return losses


def one_worker(name: str, clips: Path, *words: str) -> Recipe:
    common = [f"task.data={clips}", "distributed_training.distributed_world_size=1", "common.log_interval=1",
              "optimization.update_freq=[1]", "dataset.required_batch_size_multiple=1"]  # fmt: skip
    return compose_loaded(loaded(name), [*common, *words]).recipe


@pytest.mark.parametrize("name", CTC)
def test_every_ctc_recipe_takes_two_updates(name: str, clips: Path, pretrained: Path, tmp_path: Path) -> None:
    recipe = one_worker(name, clips, "model.w2v_path=/m", "task.normalize=true")
    two_updates(recipe, tmp_path, pretrained)
    workload = make_workload(recipe, pretrained)
    assert workload is not None and workload.epoch_micro_batches == 1, "the data is read for the plan"
    assert workload.mean_flops() > 0 and workload.largest(Storage(), False)[1].peak_bytes > 0


def test_the_audio_event_recipe_takes_two_updates(clips: Path, pretrained: Path, tmp_path: Path) -> None:
    recipe = one_worker("audio/classification/base_classification", clips, "model.model_path=/m")
    two_updates(recipe, tmp_path, pretrained)
    workload = make_workload(recipe, pretrained)
    assert workload is not None and workload.epoch_micro_batches == 1 and workload.mean_flops() > 0


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_pretraining_recipe_takes_two_updates(name: str, clips: Path, tmp_path: Path) -> None:
    published = one_worker(name, clips)
    workload = make_workload(published, None)
    assert workload is not None and workload.epoch_micro_batches is not None
    assert workload.mean_flops() > 1e11 and workload.largest(Storage(), False)[1].peak_bytes > 1e9
    sizes: dict[str, Any] = {
        "encoder_layers": 2, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32, "conv_pos_groups": 2,
        "encoder_attention_heads": 2, "average_top_k_layers": 2, "conv_feature_layers": f"'{SPEC}'",
    }  # fmt: skip
    if name.startswith("v2/"):
        sizes = {
            "depth": 2, "embed_dim": 16, "num_heads": 2, "average_top_k_layers": 2, "clone_batch": 2,
            "modalities.audio.feature_encoder_spec": f"'{SPEC}'", "modalities.audio.prenet_depth": 1,
            "modalities.audio.conv_pos_groups": 2, "modalities.audio.decoder.decoder_dim": 16,
            "modalities.audio.decoder.decoder_groups": 2,
        }  # fmt: skip
    two_updates(one_worker(name, clips, *(f"model.{key}={value}" for key, value in sizes.items())), tmp_path)
