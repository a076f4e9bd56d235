"""Masks over time: blocks with an exact count (pretraining), and spans (v1, fine-tuning, channels).

Every row is a function of its own id and the key. Span masks of a batch are equalised afterwards, so there a
row's mask also depends on how many frames the other rows have masked, as in the reference.

R rows, T frames, N blocks or spans of a row.
"""

from __future__ import annotations

import torch

from .config import AudioModalityConfig
from .masking import MaskSet
from .randomness import hashed_scores, row_keys

_HIGH = 2**62  # scores are below this, so adding it puts a position behind all others


def block_masks_1d(
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
    """Blocks at random centres, then exactly ``int(T * p)`` frames of each row (``compute_block_mask_1d``).

    With ``inverse_mask`` p is ``1 - mask_prob`` and the blocks are what stays visible. Blocks at the border
    collapse onto it, as in the reference.

    Args:
        row_ids_R: (R,) int64.
        length: T.
        mask_prob: masked share.
        mask_length: frames of a block.
        mask_prob_adjust: extra share for the number of blocks, which overlap.
        mask_dropout: extra share of blocks.
        inverse_mask: blocks are visible instead of masked.
        key: further parts of the key.

    Returns:
        (R, T) bool, true where masked.
    """
    share = 1 - mask_prob if inverse_mask else mask_prob
    blocks = int(length * ((share + mask_prob_adjust) / mask_length) * (1 + mask_dropout))
    rows, device = len(row_ids_R), row_ids_R.device
    centre_RN = (hashed_scores(row_keys("blocks", *key, ids_R=row_ids_R), blocks) >> 1).remainder(length)
    offset_M = torch.arange(mask_length, device=device) - mask_length // 2
    frames = (centre_RN[..., None] + offset_M).clamp_(0, length - 1).flatten(1)
    inside_RT = torch.zeros(rows, length, dtype=torch.bool, device=device).scatter_(1, frames, True)
    # The first int(T * p) frames in the order (inside a block, random).
    scores_RT = _scores("block frames", row_ids_R, length, key) + (~inside_RT).long() * _HIGH
    chosen = torch.topk(scores_RT, int(length * share), dim=1, largest=False, sorted=False).indices
    return torch.full_like(inside_RT, inverse_mask).scatter_(1, chosen, not inverse_mask)


def span_masks(
    row_ids_R: torch.Tensor,
    length: int,
    *,
    mask_prob: float,
    mask_length: int,
    valid_R: torch.Tensor | None = None,
    min_spans: int = 1,
    mask_dropout: float = 0.0,
    equal_counts: bool = True,
    add_masks: bool = False,
    key: tuple[int | str, ...] = (),
) -> torch.Tensor:
    """Spans of ``mask_length`` frames that may overlap (``compute_mask_indices``, type "static").

    A row with t frames gets ``int(mask_prob * t / mask_length + U)`` spans, U uniform in [0, 1), whose starts
    are distinct and drawn so that no span reaches the last frame. Where that would mask every frame, which
    the reference refuses, one frame stays visible here.

    Args:
        row_ids_R: (R,) int64.
        length: T.
        mask_prob: masked share if no spans overlapped.
        mask_length: frames of a span.
        valid_R: (R,) frames of each row that are not padding; ``None`` = T.
        min_spans: fewest spans of a row.
        mask_dropout: share of the masked frames that is unmasked again.
        equal_counts: all rows get the same number of masked frames, by dropping some at random.
        add_masks: by adding some at random instead.
        key: further parts of the key.

    Returns:
        (R, T) bool, true where masked.
    """
    device = row_ids_R.device
    valid_R = torch.full_like(row_ids_R, length) if valid_R is None else valid_R.to(device)
    uniform_R = (row_keys("spans", *key, ids_R=row_ids_R) & (_HIGH - 1)).double() / _HIGH
    spans_R = (mask_prob * valid_R.double() / mask_length + uniform_R).floor().long().clamp_min(min_spans)
    range_R = valid_R - mask_length
    range_R = torch.where(range_R <= spans_R, spans_R + 1, range_R)
    columns = max(length, int(range_R.max()))
    position = torch.arange(columns, device=device)[None, :]
    scores = _scores("starts", row_ids_R, columns, key) + (position >= range_R[:, None]).long() * _HIGH
    rank = torch.argsort(torch.argsort(scores, dim=1), dim=1)
    starts_RT = (rank < spans_R[:, None])[:, :length]
    open_RT = starts_RT.long().cumsum(dim=1)
    closed_RT = torch.nn.functional.pad(open_RT, (mask_length, 0))[:, :length]
    mask_RT = (open_RT > closed_RT) & (position[:, :length] < valid_R[:, None])
    # At least one frame of a row stays visible.
    count_R = torch.minimum(mask_RT.sum(dim=1), (valid_R - 1).clamp_min(0))
    target_R = count_R
    if equal_counts:
        target_R = (count_R.max() if add_masks else count_R.min()).expand_as(count_R)
    if mask_dropout > 0:
        target_R = target_R - (target_R * mask_dropout).round().long()
    return _with_counts(mask_RT, torch.minimum(target_R, valid_R), valid_R, row_ids_R, key)


def audio_span_masks(
    row_ids_R: torch.Tensor,
    length: int,
    mask_prob: float,
    config: AudioModalityConfig,
    padding_mask_BT: torch.Tensor | None,
    *key: int | str,
) -> MaskSet:
    """The masks of pretraining without masks from the loader: spans over the real frames of each row."""
    valid_R = None
    if padding_mask_BT is not None:
        clones = len(row_ids_R) // len(padding_mask_BT)
        valid_R = (~padding_mask_BT).sum(dim=1).repeat_interleave(clones)
    mask_RT = span_masks(
        row_ids_R,
        length,
        mask_prob=mask_prob,
        mask_length=config.mask_length,
        valid_R=valid_R,
        mask_dropout=config.mask_dropout,
        add_masks=config.add_masks,
        key=key,
    )
    return mask_set(mask_RT, row_ids_R, True, *key)


def mask_set(mask_RT: torch.Tensor, row_ids_R: torch.Tensor, balance: bool, *key: int | str) -> MaskSet:
    """A mask set; rows of unequal counts are balanced to the smallest count by unmasking frames at random.

    Without balancing the number of kept frames is that of row 0 for all rows, as in the reference: rows with
    more masked frames then show some of them to the student, and rows with fewer lose visible ones.

    Args:
        mask_RT: (R, T) bool.
        row_ids_R: (R,) int64.
        balance: see above.
        key: further parts of the key.
    """
    each = None
    if balance:
        count_R = mask_RT.sum(dim=1)
        each = int(count_R.min())
        valid_R = torch.full_like(count_R, mask_RT.shape[1])
        mask_RT = _with_counts(mask_RT, torch.full_like(count_R, each), valid_R, row_ids_R, (*key, "balance"))
    return MaskSet.from_mask(mask_RT, each=each)


def _with_counts(
    mask_RT: torch.Tensor,
    count_R: torch.Tensor,
    valid_R: torch.Tensor,
    row_ids_R: torch.Tensor,
    key: tuple[int | str, ...],
) -> torch.Tensor:
    """Masks with the wanted number of frames: the first in the order (masked, random), never padded ones."""
    length = mask_RT.shape[1]
    if bool((mask_RT.sum(dim=1) == count_R).all()):
        return mask_RT
    padded_RT = torch.arange(length, device=mask_RT.device)[None, :] >= valid_R[:, None]
    scores_RT = _scores("counts", row_ids_R, length, key) // 2
    scores_RT = scores_RT + (~mask_RT).long() * (_HIGH // 2) + padded_RT.long() * _HIGH
    rank_RT = torch.argsort(torch.argsort(scores_RT, dim=1), dim=1)
    return rank_RT < count_R[:, None]


def _scores(name: str, row_ids_R: torch.Tensor, columns: int, key: tuple[int | str, ...]) -> torch.Tensor:
    """(R, columns) int64 in 0 ... 2 ** 62 - 1."""
    return hashed_scores(row_keys(name, *key, ids_R=row_ids_R), columns) & (_HIGH - 1)
