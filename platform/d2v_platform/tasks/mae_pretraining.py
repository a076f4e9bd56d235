"""Pretraining a masked autoencoder: image pretraining without a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data2vec.artifact import load_strictly, read_artifact
from data2vec.collapse import STAGES, watched_channels
from data2vec.config import Data2VecMultiConfig
from data2vec.flops import StepCost, StepShape
from data2vec.mae import MaskedAutoencoder
from data2vec.mae_config import MaeConfig
from data2vec.mae_flops import autoencoder_step

from ..recipe.schema import Recipe
from .image_pretraining import ImagePretraining


class MaePretraining(ImagePretraining):
    """``mae_image_pretraining`` with ``mae``."""

    @property
    def deterministic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Its operations are those of data2vec 2.0 for images."""
        return True

    @staticmethod
    def step_cost(  # pyright: ignore[reportIncompatibleMethodOverride]
        recipe: Recipe, config: Data2VecMultiConfig, shape: StepShape, **settings: Any
    ) -> StepCost:
        """Encoder, decoder and pixels."""
        assert isinstance(recipe.model, MaeConfig)
        for name in ("vocab_size", "num_classes", "branch_scales"):
            settings.pop(name)
        return autoencoder_step(recipe.model, shape, **settings)

    def build(self, seed: int) -> None:
        """The model; targets and predictions are pixels of a patch."""
        assert isinstance(self.config, MaeConfig)
        self.model = MaskedAutoencoder(self.config, seed=seed)
        self.prepare(self.config.pixels)

    @property
    def watched(self) -> Mapping[str, int]:
        """All stages: features of the encoder's width, and pixels."""
        width, pixels = self.config.embed_dim, self.config.pixels
        sizes = {"local_features": width, "encoder": width, "targets": pixels, "predictions": pixels}
        return {stage: watched_channels(sizes[stage]) for stage in STAGES}

    def begin_update(self, update: int) -> None:
        """Nothing moves but the weights."""

    def counters(self) -> dict[str, Any]:
        """None: masks follow the update."""
        return {}

    def restore(self, counters: Mapping[str, Any]) -> None:
        """Nothing to take back."""

    def initialise_from(self, folder: Path) -> None:
        """Encoder and decoder."""
        load_strictly(self.model.student, read_artifact(folder).state, folder)

    def teacher_figures(self) -> dict[str, float]:
        """None."""
        return {}

    def guard(self, metrics: Mapping[str, float], update: int) -> None:
        """Pixels do not collapse; the collapse watch looks at the features."""
