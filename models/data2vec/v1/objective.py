"""What the three models of data2vec 1 share: regressing the teacher's features of masked positions.

B samples, T positions, N masked positions in all rows, D width.
"""

from __future__ import annotations

import torch

from ..collapse import Scatter, stage_scatters
from ..pretraining import Moments, PretrainOutput, regression_loss


def masked_positions(x_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The masked positions of all rows, row by row: (N, D)."""
    return x_BTD.flatten(0, 1).index_select(0, mask_BT.flatten().nonzero().squeeze(1))


def regression_output(
    name: str,
    prediction_ND: torch.Tensor,
    target_ND: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    beta: float,
    scale: float,
    watched: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None,
) -> PretrainOutput:
    """Losses and figures of one micro-batch.

    Args:
        name: of the loss.
        prediction_ND: predictions at masked positions, in fp32.
        target_ND: targets there.
        mask_BT: (B, T) bool.
        beta: of the smooth L1 loss, 0 for the squared error.
        scale: of the loss.
        watched: for the collapse watch: (B, T, D) local features and encoder output, (B, T) padding.
    """
    stages: dict[str, Scatter] = {}
    if watched is not None:
        local_BTD, encoded_BTD, padding_BT = watched
        stages = stage_scatters({
            "local_features": (local_BTD, padding_BT), "encoder": (encoded_BTD, padding_BT),
            "targets": (target_ND, None), "predictions": (prediction_ND, None),
        })  # fmt: skip
    return PretrainOutput(
        losses={name: regression_loss(prediction_ND, target_ND, beta, scale)},
        sample_size=len(prediction_ND),
        prediction=Moments.of(prediction_ND),
        target=Moments.of(target_ND),
        masked_pct=len(prediction_ND) / mask_BT.numel(),
        stages=stages,
    )
