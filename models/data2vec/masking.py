"""Which positions the student does not see.

A *mask set* is the mask of every row together with the order in which the kept positions enter the student
and the way back. Rows of a cloned batch are ordered sample by sample: sample 0 clone 0, sample 0 clone 1, ...

B samples, M clones, R = B * M rows, T positions, K kept positions, N masked positions in all rows together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .placing import moved
from .randomness import hashed_scores, row_keys, stable_key


@dataclass(frozen=True)
class MaskSet:
    """Masks of R rows.

    Attributes:
        mask_RT: (R, T) bool, true where masked.
        ids_keep_RK: (R, K) int64, positions that the student sees, in its order.
        ids_restore_RT: (R, T) int64: position ``t`` takes entry ``ids_restore[t]`` of (kept ++ noise)
        vectors.
        masked_N: (N,) int64, flat indices ``row * T + position`` of the masked positions, row by row.
        each: masked positions of every row, where that is known without looking.
    """

    mask_RT: torch.Tensor
    ids_keep_RK: torch.Tensor
    ids_restore_RT: torch.Tensor
    masked_N: torch.Tensor
    each: int | None = None

    @classmethod
    def from_mask(
        cls,
        mask_RT: torch.Tensor,
        ids_keep_RK: torch.Tensor | None = None,
        ids_restore_RT: torch.Tensor | None = None,
        each: int | None = None,
    ) -> MaskSet:
        """Complete a given mask; the number of kept positions is that of the first row.

        Args:
            mask_RT: (R, T) bool.
            ids_keep_RK: recorded order of the kept positions; ``None`` keeps them in ascending order.
            ids_restore_RT: the way back that belongs to ``ids_keep_RK``.
            each: masked positions of every row, if all have equally many; without it a GPU is asked.
        """
        mask_RT = mask_RT.bool()
        if ids_keep_RK is None or ids_restore_RT is None:
            order_RT = torch.argsort(mask_RT.to(torch.uint8), dim=1, stable=True)
            keep = int((~mask_RT[0]).sum()) if each is None else mask_RT.shape[1] - each
            ids_keep_RK, ids_restore_RT = order_RT[:, :keep], torch.argsort(order_RT, dim=1)
        return cls(mask_RT, ids_keep_RK, ids_restore_RT, masked_index(mask_RT, each), each)

    def to(self, device: torch.device) -> MaskSet:
        """The same on a device; nothing waits for the copies."""
        return MaskSet(
            moved(self.mask_RT, device),
            moved(self.ids_keep_RK, device),
            moved(self.ids_restore_RT, device),
            moved(self.masked_N, device),
            self.each,
        )

    def rows(self, index_N: torch.Tensor) -> MaskSet:
        """The masks of some rows, ascending."""
        mask_NT, masked_N = self.mask_RT[index_N], masked_index(self.mask_RT[index_N], self.each)
        return MaskSet(mask_NT, self.ids_keep_RK[index_N], self.ids_restore_RT[index_N], masked_N, self.each)

    @property
    def num_kept(self) -> int:
        """K."""
        return self.ids_keep_RK.shape[1]

    def gather_kept(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """The kept positions of each clone, straight from the samples: (B, T, D) to (R, K, D)."""
        samples, length, dim = x_BTD.shape
        rows, kept = self.ids_keep_RK.shape
        sample_R1 = torch.arange(samples, device=x_BTD.device).repeat_interleave(rows // samples)[:, None]
        flat = (sample_R1 * length + self.ids_keep_RK).flatten()
        return x_BTD.reshape(samples * length, dim).index_select(0, flat).view(rows, kept, dim)

    def gather_kept_rows(self, x_RTD: torch.Tensor) -> torch.Tensor:
        """The kept positions of each row: (R, T, D) to (R, K, D)."""
        rows, length, dim = x_RTD.shape
        row_R1 = torch.arange(rows, device=x_RTD.device)[:, None] * length
        flat = (row_R1 + self.ids_keep_RK).flatten()
        return x_RTD.reshape(rows * length, dim).index_select(0, flat).view(rows, -1, dim)

    def gather_kept_flags(self, flags_BT: torch.Tensor) -> torch.Tensor:
        """The same for a (B, T) tensor of flags: (R, K)."""
        return self.gather_kept(flags_BT[..., None])[..., 0]

    def scatter_kept(self, kept_RKD: torch.Tensor, noise_RJD: torch.Tensor) -> torch.Tensor:
        """Put kept vectors back to their positions and noise vectors everywhere else: (R, T, D)."""
        rows, length = self.ids_restore_RT.shape
        full_RTD = torch.cat([kept_RKD, noise_RJD.to(kept_RKD.dtype)], dim=1)
        row_R1 = torch.arange(rows, device=kept_RKD.device)[:, None] * length
        flat = (row_R1 + self.ids_restore_RT).flatten()
        return full_RTD.view(rows * length, -1).index_select(0, flat).view(rows, length, -1)

    def gather_masked(self, x_RTD: torch.Tensor) -> torch.Tensor:
        """The masked positions of all rows, row by row: (R, T, D) to (N, D)."""
        return x_RTD.reshape(-1, x_RTD.shape[-1]).index_select(0, self.masked_N)

    def gather_masked_targets(self, targets_BTD: torch.Tensor) -> torch.Tensor:
        """Targets at the masked positions; clones share their sample's targets: (B, T, D) to (N, D)."""
        samples, length, dim = targets_BTD.shape
        clones = self.mask_RT.shape[0] // samples
        row_N, position_N = self.masked_N // length, self.masked_N % length
        flat = (row_N // clones) * length + position_N
        return targets_BTD.reshape(samples * length, dim).index_select(0, flat)


def masked_index(mask_RT: torch.Tensor, each: int | None = None) -> torch.Tensor:
    """(N,) int64: flat indices ``row * T + position`` of the masked positions, row by row.

    Args:
        mask_RT: (R, T) bool.
        each: masked positions of every row, if all have equally many; without it a GPU is asked.
    """
    if each is None:
        return mask_RT.flatten().nonzero().squeeze(1)
    return mask_RT.flatten().nonzero_static(size=each * len(mask_RT)).squeeze(1)


def clone_ids(ids_B: torch.Tensor, clones: int) -> torch.Tensor:
    """An id for each row of a cloned batch, a function of the sample's id and the clone's index alone.

    Args:
        ids_B: (B,) int64 sample ids.
        clones: M.

    Returns:
        (B * M,) int64; the first clone keeps its sample's id.
    """
    offsets = [0] + [stable_key("clone", index) for index in range(1, clones)]
    offsets_M = torch.tensor(offsets, dtype=torch.int64, device=ids_B.device)
    return (ids_B.long()[:, None] + offsets_M[None, :]).flatten()


def random_masks(row_ids_R: torch.Tensor, length: int, mask_prob: float, *key: int | str) -> MaskSet:
    """Independent masking (``mask_length`` 1): exactly ``int(T * (1 - mask_prob))`` positions are kept in
    each row.

    Padding plays no part, as in the reference: padded positions may be masked and count in the loss.

    Args:
        row_ids_R: (R,) int64, see :func:`clone_ids`.
        length: T.
        mask_prob: masked share.
        key: further parts of the key, such as the seed and the update.
    """
    keep = int(length * (1.0 - mask_prob))
    scores_RT = hashed_scores(row_keys("mask", *key, ids_R=row_ids_R), length)
    order_RT = torch.argsort(scores_RT, dim=1)
    ids_keep = torch.sort(order_RT[:, :keep], dim=1).values
    ids_masked = torch.sort(order_RT[:, keep:], dim=1).values
    ids_restore = torch.argsort(torch.cat([ids_keep, ids_masked], dim=1), dim=1)
    mask_RT = torch.ones_like(order_RT, dtype=torch.bool).scatter_(1, ids_keep, False)
    row_R1 = torch.arange(len(row_ids_R), device=row_ids_R.device)[:, None] * length
    return MaskSet(mask_RT, ids_keep, ids_restore, (row_R1 + ids_masked).flatten(), length - keep)


def batch_mask_prob(mask_prob: float, mask_prob_min: float | None, *key: int | str) -> float:
    """The masked share of one batch: ``mask_prob``, or uniform between ``mask_prob_min`` and it."""
    if mask_prob_min is None or not 0.0 <= mask_prob_min < mask_prob:
        return mask_prob
    return mask_prob_min + (mask_prob - mask_prob_min) * stable_key("mask_prob", *key) / 2**63


def row_noise(row_ids_R: torch.Tensor, positions: int, dim: int, std: float, *key: int | str) -> torch.Tensor:
    """Gaussian noise for the decoder's masked positions, one generator a row: (R, positions, D)."""
    noise, draw = torch.empty(len(row_ids_R), positions, dim), torch.Generator()
    for row, row_id in enumerate(row_ids_R.tolist()):
        noise[row].normal_(0.0, std, generator=draw.manual_seed(stable_key("noise", *key, row_id)))
    return noise
