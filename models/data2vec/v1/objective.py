"""What the three models of data2vec 1 share: regressing the teacher's features of masked positions.

B samples, T positions, N masked positions in all rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from ..collapse import Scatter, stage_scatters
from ..config import RegressionConfig
from ..pretraining import Comparison, PretrainingModel, PretrainOutput, Student, regression_loss

Config = TypeVar("Config", bound=RegressionConfig)


def masked_positions(x_BTD: torch.Tensor, masked_N: torch.Tensor) -> torch.Tensor:
    """The masked positions of all rows: (N, D), see :func:`~data2vec.masking.masked_index`."""
    return x_BTD.flatten(0, 1).index_select(0, masked_N)


@dataclass(frozen=True)
class Seen:
    """What one micro-batch was made of."""

    local_BTD: torch.Tensor  # local features
    x_BTD: torch.Tensor  # the encoder's output
    padding_BT: torch.Tensor | None  # true where padded
    found: Comparison


class RegressionPretraining(PretrainingModel[Student], Generic[Student, Config]):
    """Student, head and teacher with the objective of data2vec 1."""

    regions = ("_compare",)
    config: Config

    def forward(
        self,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        ids: torch.Tensor | None = None,
        *,
        update: int = 0,
        seed: int | None = None,
        mask_BT: torch.Tensor | None = None,
        watch: bool = False,
    ) -> PretrainOutput:
        """Losses of one micro-batch.

        Args:
            source: (B, T) token ids before masking, (B, S) samples at 16 kHz, (B, C, S, S) images.
            padding_mask: (B, T) or (B, S) bool, true where padded; best on the CPU, as are ``ids`` and
                ``mask_BT``: then a GPU is asked for nothing. Images have none.
            ids: (B,) sample ids; masks are functions of (seed, update, id), in audio also of the other rows'
                counts.
            update: completed optimizer updates.
            seed: seed of the masks; by default the configuration's.
            mask_BT: given mask instead of a drawn one.
            watch: also sum what the collapse watch looks at.
        """
        ids = torch.arange(len(source)) if ids is None else ids
        seed = self.config.seed if seed is None else seed
        seen = self.see(source, padding_mask, ids, mask_BT, seed, update)
        found, stages = seen.found, dict[str, Scatter]()
        if watch:
            stages = stage_scatters({
                "local_features": (seen.local_BTD, seen.padding_BT), "encoder": (seen.x_BTD, seen.padding_BT),
                "targets": (found.target_ND, None), "predictions": (found.prediction_ND, None),
            })  # fmt: skip
        return found.output(len(found.prediction_ND) / seen.x_BTD[..., 0].numel(), stages)

    def see(
        self,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None,
        ids: torch.Tensor,
        mask_BT: torch.Tensor | None,
        *key: int,
    ) -> Seen:
        """Masks, features of both networks and their comparison; ``key`` is (seed, update)."""
        raise NotImplementedError

    def predict(self, x_ND: torch.Tensor) -> torch.Tensor:
        """The head's predictions of the targets."""
        raise NotImplementedError

    def loss_factor(self) -> float:
        """What the sum over positions and channels is multiplied by."""
        scale = self.config.loss_scale
        return self.config.embed_dim**-0.5 if scale is None else scale  # pyright: ignore[reportAttributeAccessIssue]

    def _compare(self, x_BTD: torch.Tensor, targets_BTD: torch.Tensor, masked_N: torch.Tensor) -> Comparison:
        prediction_ND = self.predict(masked_positions(x_BTD, masked_N)).float()
        target_ND, (name,) = masked_positions(targets_BTD, masked_N), self.config.loss_names()
        loss = regression_loss(prediction_ND, target_ND, self.config.loss_beta, self.loss_factor())
        return Comparison.of({name: loss}, prediction_ND, target_ND)
