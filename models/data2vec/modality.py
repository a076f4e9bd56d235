"""What the objective, the heads and the teacher ask of a modality's front end.

B samples, R rows (samples x clones), T positions, K kept positions, E extra tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from .alibi import alibi_bias, distances
from .attention import attention_bias
from .config import Data2VecMultiConfig, ModalityConfig
from .context import ContextEncoder
from .decoders import Decoder
from .masking import MaskSet, batch_mask_prob, random_masks


class ModalityEncoder(nn.Module):
    """Local features, fixed positions, extra tokens, context encoder and (for pretraining) a decoder.

    A subclass builds the parts, whose names are the reference's, and says how local features are computed.
    """

    config: ModalityConfig
    context_encoder: ContextEncoder
    decoder: Decoder | None
    extra_tokens: nn.Parameter | None

    def __init__(self, config: Data2VecMultiConfig) -> None:
        super().__init__()
        self.config = modality = config.modality
        self.num_heads = config.num_heads
        self.alibi_scale: nn.Parameter | None = None
        if modality.use_alibi_encoder:
            layers = modality.prenet_depth + config.depth if modality.learned_alibi_scale_per_layer else 1
            heads = config.num_heads if modality.learned_alibi_scale_per_head else 1
            self.alibi_scale = nn.Parameter(
                torch.full((layers, 1, heads, 1, 1), float(modality.alibi_scale)),
                requires_grad=modality.learned_alibi_scale,
            )

    def compute_local_features(self, source: torch.Tensor) -> torch.Tensor:
        """Raw input to (B, T, D), before positions and masking."""
        raise NotImplementedError

    def positions(self, length: int) -> torch.Tensor | None:
        """(1, T, D) fixed positions that are added before masking, if the modality has any."""
        return None

    def reset_parameters(self, seed: int, name: str) -> None:
        """What the modality initialises otherwise than :func:`~data2vec.student.initialise`."""
        return None

    def discard_unaveraged(self) -> None:
        """In a teacher: drop the parts of the front end that the configuration does not average."""
        raise NotImplementedError

    @property
    def num_extra_tokens(self) -> int:
        """E."""
        return 0 if self.extra_tokens is None else self.extra_tokens.shape[1]

    def local_features(self, source: torch.Tensor) -> torch.Tensor:
        """Raw input to (B, T, D) features under the front end's gradient multiplier."""
        return with_gradient_times(self.config.local_grad_mult, self.compute_local_features, source)

    def token_padding(self, padding_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
        """Padding of the raw input to (B, T) flags of padded positions; ``None`` where nothing is padded."""
        return None if padding_mask is None or not bool(padding_mask.any()) else padding_mask

    def add_positions(self, x_BTD: torch.Tensor, padding_mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        """Local features with positions added, where there are any."""
        positions = self.positions(x_BTD.shape[1])
        return x_BTD if positions is None else x_BTD + positions

    def kept_features(
        self, x_BTD: torch.Tensor, masks: MaskSet, padding_mask_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the student sees of local features, positions added: (B, T, D) to (R, K, D)."""
        return masks.gather_kept(self.add_positions(x_BTD, padding_mask_BT))

    @property
    def counts_are_known(self) -> bool:
        """How many positions of a row are masked does not depend on the draw: a GPU can make such masks
        without being asked for counts."""
        return True

    def draw_masks(
        self,
        row_ids_R: torch.Tensor,
        length: int,
        padding_mask_BT: torch.Tensor | None,
        first_id: int,
        seed: int,
        update: int,
    ) -> MaskSet:
        """The masks that the configuration asks for, as functions of (seed, update, sample id, clone).

        They are made where the ids are.

        Args:
            row_ids_R: (R,) int64 sample ids of the rows, see :func:`~data2vec.masking.clone_ids`.
            length: T.
            padding_mask_BT: (B, T) bool, true where padded.
            first_id: of the batch; decides its masked share where that varies.
            seed: of the masks.
            update: completed optimizer updates.
        """
        share = self.masked_share(first_id, seed, update)
        return random_masks(row_ids_R, length, share, seed, update)

    def masked_share(self, first_id: int, seed: int, update: int) -> float:
        """The share of positions that is masked in this batch."""
        return batch_mask_prob(self.config.mask_prob, self.config.mask_prob_min, seed, update, first_id)

    def attention_biases(
        self, positions_RK: torch.Tensor, padding_mask_RK: torch.Tensor | None, count: int
    ) -> Sequence[torch.Tensor | None]:
        """The attention bias of each block, prenet blocks first: ALiBi, where asked for, and no padded keys.

        Args:
            positions_RK: (R, K) or (1, K) int64 positions of what the blocks see.
            padding_mask_RK: (R, K) bool, true where padded.
            count: number of prenet and shared blocks.
        """
        padding = attention_bias(padding_mask_RK)
        if self.alibi_scale is None:
            return [padding] * count
        distances_R1KK = distances(positions_RK, torch.float32)
        scale_LH = self.alibi_scale.view(self.alibi_scale.shape[0], -1).expand(-1, self.num_heads)
        biases = [alibi_bias(distances_R1KK, scale_H) for scale_H in scale_LH.unbind(0)]
        if padding is not None:
            biases = [bias + padding for bias in biases]
        return biases * count if len(biases) == 1 else biases

    def prepend_extra_tokens(
        self, x_RKD: torch.Tensor, padding_mask_RK: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Put the extra tokens before each row; they are never padded: (R, E + K, D) and (R, E + K)."""
        if self.extra_tokens is None:
            return x_RKD, padding_mask_RK
        x_RKD = torch.cat([self.extra_tokens.expand(x_RKD.shape[0], -1, -1).to(x_RKD.dtype), x_RKD], dim=1)
        if padding_mask_RK is not None:
            padding_mask_RK = nn.functional.pad(padding_mask_RK, (self.num_extra_tokens, 0), value=False)
        return x_RKD, padding_mask_RK


def with_gradient_times(
    factor: float, compute: Callable[[torch.Tensor], torch.Tensor], source: torch.Tensor
) -> torch.Tensor:
    """``compute(source)``, whose gradient is multiplied; by 0 it has none: not even weight decay moves it."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and factor > 0.0):
        x = compute(source)
    if factor == 1.0 or not x.requires_grad:
        return x
    return x.detach() + (x - x.detach()) * factor
