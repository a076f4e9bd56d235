"""Pretraining data2vec 2.0 and data2vec 1 on audio: cropped clips in, teacher features as targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data2vec.audio_masking import block_masks_1d, mask_set
from data2vec.audio_model import conv_layers
from data2vec.config import Data2VecMultiConfig
from data2vec.conv_spec import frame_count, parse_conv_layers
from data2vec.data.audio import AudioDataset
from data2vec.masking import MaskSet, clone_ids
from data2vec.pretraining import Data2VecPretraining, PretrainOutput
from data2vec.randomness import stable_key
from data2vec.v1.audio import Data2VecAudioPretraining
from data2vec.v1.config import Data2VecAudioConfig

from ..recipe.audio_components import AudioPretrainingTask
from ..recipe.schema import Recipe
from .audio_data import OnAudio, audio_options
from .labelled_probe import both_sides, read_recordings
from .pretraining import PretrainingTask


class AudioPretraining(OnAudio, PretrainingTask):
    """The ``audio_pretraining`` task with the ``data2vec_multi`` or the ``data2vec_audio`` model."""

    read_labelled = staticmethod(read_recordings)

    def __init__(self, recipe: Recipe, model_folder: Path | None = None) -> None:
        assert isinstance(recipe.task, AudioPretrainingTask)
        assert isinstance(recipe.model, Data2VecMultiConfig | Data2VecAudioConfig)
        self.recipe, self.config, self.task = recipe, recipe.model, recipe.task
        self.dataset(recipe.dataset.train_subset)
        self.model: Data2VecPretraining | Data2VecAudioPretraining
        if isinstance(self.config, Data2VecAudioConfig):
            self.model = Data2VecAudioPretraining(self.config, seed=recipe.common.seed)
        else:
            self.model = Data2VecPretraining(self.config, seed=recipe.common.seed)
        self.prepare(self.config.embed_dim)

    @staticmethod
    def open_subset(recipe: Recipe, subset: str) -> AudioDataset:
        """The data set of one subset; nothing is built."""
        return open_recordings(recipe, subset)

    @classmethod
    def check_data(cls, recipe: Recipe, model_folder: Path | None) -> None:
        """Open every subset that training will use, and read the headers of its files."""
        for subset in (recipe.dataset.train_subset, *recipe.valid_subsets()):
            open_recordings(recipe, subset).verify()
        both_sides(recipe, cls.read_labelled)

    def compute(self, batch: Mapping[str, torch.Tensor], update: int) -> PretrainOutput:
        """Losses of one micro-batch; masks are functions of (seed, update, clip, clone)."""
        seed = self.recipe.common.seed
        padding = batch["padding_mask"] if self.task.enable_padding else None
        if isinstance(self.model, Data2VecAudioPretraining):
            return self.model(
                batch["source"], padding, batch["id"], update=update, seed=seed, watch=self.watching
            )
        masks = self.block_masks(batch, seed, update)
        return self.model(
            batch["source"],
            padding,
            batch["id"],
            update=update,
            seed=seed,
            masks=masks,
            watch=self.watching,
            **self.chunked,
        )

    def block_masks(self, batch: Mapping[str, torch.Tensor], seed: int, update: int) -> MaskSet | None:
        """The masks that ``task.precompute_mask_config`` asks for; ``None`` lets the model draw spans.

        They are made after cropping, so that every row masks exactly ``int(frames * mask_prob)`` frames.
        ``task.masks_before_crop`` makes them for the whole clip and crops them at a place of their own, as
        the reference's loader does: rows are then unequal, and the kept length follows row 0.
        """
        given = self.task.precompute_mask_config
        if given is None:
            return None
        assert isinstance(self.config, Data2VecMultiConfig) and self.config.modalities.audio is not None
        audio = self.config.modalities.audio
        value = {name: getattr(audio, name) for name in _OF_THE_MODEL} | given
        layers = parse_conv_layers(value["feature_encoder_spec"])
        clones = int(given.get("clone_batch", self.config.clone_batch))
        ids = batch["id"]
        frames = frame_count(layers, batch["source"].shape[1])

        def draw(row_ids_R: torch.Tensor, length: int) -> torch.Tensor:
            return block_masks_1d(
                row_ids_R,
                length,
                mask_prob=value["mask_prob"],
                mask_length=value["mask_length"],
                mask_prob_adjust=value["mask_prob_adjust"],
                mask_dropout=value["mask_dropout"],
                inverse_mask=value["inverse_mask"],
                key=(seed, update),
            )

        row_ids_R = clone_ids(ids, clones)
        if not self.task.masks_before_crop:
            return mask_set(draw(row_ids_R, frames), row_ids_R, True, seed, update)
        rows = []
        for clip, samples in zip(ids, batch["frames"].tolist(), strict=True):
            whole_MT = draw(clone_ids(clip[None], clones), frame_count(layers, int(samples)))
            extra = whole_MT.shape[1] - frames
            start = stable_key("mask crop", seed, update, int(clip)) % (extra + 1)
            rows.append(whole_MT[:, start : start + frames])
        return mask_set(torch.cat(rows), row_ids_R, False, seed, update)

    def kept(self) -> dict[str, Any]:
        """How recordings are read."""
        return {"task": {"sample_rate": self.task.sample_rate, "normalize": self.task.normalize}}


_OF_THE_MODEL = ("feature_encoder_spec", "mask_prob", "mask_prob_adjust", "mask_length", "inverse_mask",
                 "mask_dropout")  # fmt: skip


def open_recordings(recipe: Recipe, subset: str) -> AudioDataset:
    """The clips of one subset as the recipe asks for them."""
    task = recipe.task
    assert isinstance(task, AudioPretrainingTask)
    options = audio_options(recipe, subset, pad=task.enable_padding, drop_longer=task.enable_padding)
    layers = conv_layers(recipe.model)
    return AudioDataset(task.data, subset, options, convolutions=layers, seed=recipe.common.seed)
