"""What the three models of data2vec 1 share: regressing the teacher's features of masked positions.

B samples, T positions, N masked positions in all rows, D width.
"""

from __future__ import annotations

import torch

from ..collapse import Scatter, stage_scatters
from ..pretraining import Comparison, PretrainOutput, regression_loss


def masked_positions(x_BTD: torch.Tensor, masked_N: torch.Tensor) -> torch.Tensor:
    """The masked positions of all rows: (N, D), see :func:`~data2vec.masking.masked_index`."""
    return x_BTD.flatten(0, 1).index_select(0, masked_N)


def compared(
    name: str, prediction_ND: torch.Tensor, target_ND: torch.Tensor, *, beta: float, scale: float
) -> Comparison:
    """The loss.

    Args:
        name: of the loss.
        prediction_ND: predictions at masked positions.
        target_ND: targets there.
        beta: of the smooth L1 loss, 0 for the squared error.
        scale: of the loss.
    """
    prediction_ND = prediction_ND.float()
    losses = {name: regression_loss(prediction_ND, target_ND, beta, scale)}
    return Comparison.of(losses, prediction_ND, target_ND)


def regression_output(
    found: Comparison,
    num_positions: int,
    watched: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None,
) -> PretrainOutput:
    """Losses and figures of one micro-batch.

    Args:
        found: predictions against targets.
        num_positions: B T.
        watched: for the collapse watch: (B, T, D) local features and encoder output, (B, T) padding.
    """
    stages: dict[str, Scatter] = {}
    if watched is not None:
        local_BTD, encoded_BTD, padding_BT = watched
        stages = stage_scatters({
            "local_features": (local_BTD, padding_BT), "encoder": (encoded_BTD, padding_BT),
            "targets": (found.target_ND, None), "predictions": (found.prediction_ND, None),
        })  # fmt: skip
    return found.output(len(found.prediction_ND) / num_positions, stages)
