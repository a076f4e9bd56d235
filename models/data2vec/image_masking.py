"""Masks over a grid of patches: blocks of visible (or masked) squares, all rows at once.

Every row is a function of its own id and the key, so that masks do not depend on the batch they are drawn in.

R rows, L = G * G patches, G grid side, N blocks a row.
"""

from __future__ import annotations

import torch

from .config import ImageModalityConfig
from .masking import MaskSet, random_masks
from .randomness import hashed_scores, row_keys


def image_masks(
    row_ids_R: torch.Tensor, length: int, config: ImageModalityConfig, *key: int | str
) -> MaskSet:
    """The masks that an image configuration asks for.

    Args:
        row_ids_R: (R,) int64, see :func:`~data2vec.masking.clone_ids`.
        length: L, patches of an image.
        config: share, block side, inversion.
        key: further parts of the key, such as the seed and the update.
    """
    if config.mask_length == 1 and config.keep_masked_pct == 0:
        return random_masks(row_ids_R, length, config.mask_prob, *key)
    if config.mask_length == 1:
        masks = random_masks(row_ids_R, length, config.mask_prob, *key)
        mask_RL, each = masks.mask_RT, masks.each
    else:
        mask_RL = block_masks(
            row_ids_R,
            length,
            mask_prob=config.mask_prob,
            mask_length=config.mask_length,
            mask_prob_adjust=config.mask_prob_adjust,
            mask_dropout=config.mask_dropout,
            inverse_mask=config.inverse_mask,
            key=key,
        )
        each = block_count(length, config.mask_prob, config.inverse_mask)
    assert each is not None
    return equal_rows(mask_RL, row_ids_R, each, config.keep_masked_pct, *key)


def block_masks(
    row_ids_R: torch.Tensor,
    length: int,
    *,
    mask_prob: float,
    mask_length: int,
    mask_prob_adjust: float = 0.0,
    mask_dropout: float = 0.0,
    inverse_mask: bool = False,
    key: tuple[int | str, ...] = (),
) -> torch.Tensor:
    """Square blocks at random centres, then exactly ``int(L * p)`` cells of each row (v2 paper, 3.2).

    With ``inverse_mask`` p is ``1 - mask_prob`` and the blocks are what stays *visible*. Blocks at the border
    collapse onto it, as in the reference, which makes border cells a little more likely.

    Args:
        row_ids_R: (R,) int64.
        length: L, a square number.
        mask_prob: masked share of the cells.
        mask_length: side of a block, in cells.
        mask_prob_adjust: extra share for the number of blocks, which overlap.
        mask_dropout: extra share of blocks.
        inverse_mask: blocks are visible instead of masked.
        key: further parts of the key.

    Returns:
        (R, L) bool, true where masked.
    """
    side = int(length**0.5)
    share = 1 - mask_prob if inverse_mask else mask_prob
    blocks = int(length * ((share + mask_prob_adjust) / mask_length**2) * (1 + mask_dropout))
    rows, device = len(row_ids_R), row_ids_R.device
    centre_RN = (hashed_scores(row_keys("blocks", *key, ids_R=row_ids_R), blocks) >> 1).remainder(length)
    offset_M = torch.arange(mask_length, device=device) - mask_length // 2
    row_RNM = (centre_RN.div(side, rounding_mode="floor")[..., None] + offset_M).clamp_(0, side - 1)
    column_RNM = (centre_RN.remainder(side)[..., None] + offset_M).clamp_(0, side - 1)
    cells_RC = (row_RNM[..., :, None] * side + column_RNM[..., None, :]).flatten(1)
    inside_RL = torch.zeros(rows, length, dtype=torch.bool, device=device).scatter_(1, cells_RC, True)
    # The first int(L * p) cells in the order (inside a block, random): surplus cells of blocks are dropped
    # at random, missing ones are taken at random from outside.
    scores_RL = hashed_scores(row_keys("block cells", *key, ids_R=row_ids_R), length)
    scores_RL = (scores_RL & (2**62 - 1)) + (~inside_RL).long() * 2**62
    chosen_RF = torch.topk(scores_RL, int(length * share), dim=1, largest=False, sorted=False).indices
    return torch.full_like(inside_RL, inverse_mask).scatter_(1, chosen_RF, not inverse_mask)


def block_count(length: int, mask_prob: float, inverse_mask: bool) -> int:
    """Masked cells of every row of :func:`block_masks`; the recipe's counts depend on this very rounding."""
    return length - int(length * (1 - mask_prob)) if inverse_mask else int(length * mask_prob)


def equal_rows(
    mask_RL: torch.Tensor, row_ids_R: torch.Tensor, masked: int, keep_masked_pct: float = 0.0, *key: int | str
) -> MaskSet:
    """A mask set of rows with equal counts; a share of the masked cells may still be shown to the student.

    Args:
        mask_RL: (R, L) bool with the same count in every row.
        row_ids_R: (R,) int64.
        masked: that count.
        keep_masked_pct: share of the masked cells that the student sees besides; they stay in the loss.
        key: further parts of the key.
    """
    if keep_masked_pct == 0.0:
        return MaskSet.from_mask(mask_RL, each=masked)
    keep = mask_RL.shape[1] - masked + round(masked * keep_masked_pct)
    scores_RL = hashed_scores(row_keys("shown", *key, ids_R=row_ids_R), mask_RL.shape[1]) & (2**62 - 1)
    order_RL = torch.argsort(scores_RL + mask_RL.long() * 2**62, dim=1)
    return MaskSet.from_mask(mask_RL, order_RL[:, :keep], torch.argsort(order_RL, dim=1), masked)
