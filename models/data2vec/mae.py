"""Masked autoencoders (He et al. 2021): encode the visible patches of an image, predict the others' pixels.

The encoder is a data2vec 2.0 image network (:meth:`~data2vec.mae_config.MaeConfig.encoder`), so what
pretraining leaves is used and fine-tuned like one.

B images, T patches, K kept, N masked patches of all images, D encoder width, C decoder width, P pixels of a
patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .collapse import Scatter, stage_scatters
from .image import FixedPositions, pixel_targets
from .image_masking import image_masks
from .mae_config import MaeConfig
from .masking import MaskSet
from .placing import moved
from .pretraining import Comparison, PretrainingModel, PretrainOutput
from .randomness import generator
from .student import Data2VecMulti, initialise
from .transformer import make_blocks, make_norm

TOKEN_STD = 0.02  # of class and mask token


class MaeDecoder(nn.Module):
    """A narrow transformer over all patches, a learned vector in the place of each masked one."""

    def __init__(self, config: MaeConfig, seed: int) -> None:
        super().__init__()
        width, self.config = config.decoder_embed_dim, config.decoder()
        self.embed = nn.Linear(config.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.fixed_positional_encoder = FixedPositions(config.input_size // config.patch_size, width)
        self.blocks = make_blocks(self.config)
        self.norm = make_norm(self.config)
        self.pred = nn.Linear(width, config.pixels)
        initialise(self, seed, xavier=True, prefix="decoder")
        nn.init.normal_(self.mask_token, std=TOKEN_STD, generator=generator("init", seed, "mask_token"))

    def forward(self, x_BKD: torch.Tensor, masks: MaskSet) -> torch.Tensor:
        """Predicted pixels of the masked patches.

        Args:
            x_BKD: (B, 1 + K, D) encoder output, class token first.
            masks: which patches it saw.

        Returns:
            (N, P).
        """
        x_BKC = self.embed(x_BKD)
        gaps = masks.mask_RT.shape[1] - masks.num_kept
        hidden_BJC = self.mask_token.expand(len(x_BKC), gaps, -1)
        # The class token has position zero.
        full_BTC = masks.scatter_kept(x_BKC[:, 1:], hidden_BJC) + self.fixed_positional_encoder.positions
        x_BTC = torch.cat([x_BKC[:, :1], full_BTC], dim=1)
        for block in self.blocks:
            x_BTC, _ = block(x_BTC)
        return self.pred(masks.gather_masked(self.norm(x_BTC)[:, 1:]))


class MaskedAutoencoder(PretrainingModel[Data2VecMulti]):
    """Encoder and decoder with the objective; the decoder is a part of ``student``, as in data2vec 2.0.

    Args:
        config: architecture and objective.
        seed: seed of the initial weights.
    """

    regions = ("_compare",)

    def __init__(self, config: MaeConfig, *, seed: int = 1) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.student = Data2VecMulti(config.encoder(), with_decoder=False, seed=seed)
        encoder = self.student.encoder
        assert encoder.extra_tokens is not None
        with torch.no_grad():
            encoder.extra_tokens.mul_(TOKEN_STD)  # data2vec 2.0 starts from N(0, 1)
        encoder.decoder = MaeDecoder(config, seed)  # pyright: ignore[reportAttributeAccessIssue]

    def forward(
        self,
        source: torch.Tensor,
        padding_mask: None = None,
        ids: torch.Tensor | None = None,
        *,
        update: int = 0,
        seed: int = 1,
        masks: MaskSet | None = None,
        watch: bool = False,
    ) -> PretrainOutput:
        """Losses of one micro-batch: the mean squared error over each masked patch's pixels, summed.

        Args:
            source: (B, C, S, S) images.
            padding_mask: images have none.
            ids: (B,) sample ids; masks are functions of (seed, update, id).
            update: completed optimizer updates.
            seed: seed of the masks.
            masks: given masks instead of drawn ones.
            watch: also sum what the collapse watch looks at.
        """
        student, encoder = self.student, self.student.encoder
        local_BTD = encoder.local_features(source)
        length = local_BTD.shape[1]
        if masks is None:
            ids = torch.arange(len(source)) if ids is None else ids
            masks = image_masks(moved(ids, source.device), length, encoder.config, seed, update)  # pyright: ignore[reportArgumentType]
        kept_BKD = encoder.kept_features(local_BTD, masks)
        x_BKD = student.encode(kept_BKD, None, seed, update, positions_RK=masks.ids_keep_RK)
        decoder = encoder.decoder
        assert isinstance(decoder, MaeDecoder)
        found = self._compare(decoder(x_BKD, masks), source, masks)
        stages: dict[str, Scatter] = {}
        if watch:
            stages = stage_scatters({
                "local_features": (local_BTD, None), "encoder": (x_BKD[:, 1:], None),
                "targets": (found.target_ND, None), "predictions": (found.prediction_ND, None),
            })  # fmt: skip
        return found.output(1.0 - masks.num_kept / length, stages)

    def _compare(self, prediction_NP: torch.Tensor, source: torch.Tensor, masks: MaskSet) -> Comparison:
        """Predicted pixels against those of the images."""
        targets_BTP = pixel_targets(source, self.config.patch_size, normalised=self.config.norm_pix_loss)
        target_NP, prediction_NP = masks.gather_masked_targets(targets_BTP), prediction_NP.float()
        loss = F.mse_loss(prediction_NP, target_NP, reduction="sum") / self.config.pixels
        return Comparison.of({"regression": loss}, prediction_NP, target_NP)
