"""An outside mark: lightly's masked autoencoder in our task, on our data, masks, optimizer and probes.

d2v train experiments/lightly_mae/image_pretraining.yaml task.data=FOLDER platform.num_workers=0

lightly (MIT) comes with the development packages. The run is a mark beside others, no model to load.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from d2v_platform.recipe.entries import TaskEntry, register_task
from d2v_platform.recipe.image_checks import image_problems
from d2v_platform.recipe.image_components import MaeImagePretrainingTask
from d2v_platform.recipe.pretraining_checks import probe_metrics
from d2v_platform.tasks.mae_pretraining import MaePretraining
from data2vec.collapse import STAGES, watched_channels
from data2vec.families import register_family

from .mae import LightlyMae, LightlyMaeConfig


class LightlyPretraining(MaePretraining):
    """``lightly_image_pretraining`` with ``lightly_mae``."""

    def build(self, seed: int) -> None:
        """The model; targets and predictions are pixels of a patch."""
        assert isinstance(self.config, LightlyMaeConfig)
        self.model = LightlyMae(self.config, seed)
        self.prepare(self.config.pixels)

    @property
    def watched(self) -> dict[str, int]:
        """All stages but lightly's local features."""
        width, pixels = self.config.embed_dim, self.config.pixels
        sizes = {"encoder": width, "targets": pixels, "predictions": pixels}
        return {stage: watched_channels(sizes[stage]) for stage in STAGES if stage in sizes}

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        encoder = self.model.student.encoder
        with torch.no_grad():
            _, layers = encoder.forward_intermediates(images, norm=self.task.probe_layer == -1)
            x_BTD = layers[self.task.probe_layer][:, encoder.vit.num_prefix_tokens :]
        return x_BTD.mean(dim=1).float().cpu()


@dataclass(kw_only=True)
class LightlyImagePretrainingTask(MaeImagePretrainingTask):
    """Images and probes as for our own masked autoencoder."""


register_family("lightly_mae", LightlyMaeConfig, "IMAGE")
register_task(
    "lightly_image_pretraining",
    LightlyImagePretrainingTask,
    TaskEntry(
        models=(LightlyMaeConfig,),
        room=LightlyPretraining,
        data="a folder with train/CLASS/...",
        modality="image",
        problems=image_problems,
        metrics=probe_metrics,
    ),
    models={"lightly_mae": LightlyMaeConfig},
)
