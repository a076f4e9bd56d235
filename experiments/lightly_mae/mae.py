"""The network of the mark and its objective, of lightly's parts; data2vec's masks.

B images, T patches, K kept, N masked patches of all images, D encoder width, C decoder width, P pixels of a
patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from data2vec.collapse import Scatter, stage_scatters
from data2vec.image_masking import image_masks
from data2vec.mae_config import MaeConfig
from data2vec.pretraining import Comparison, PretrainingModel, PretrainOutput


@dataclass(kw_only=True)
class LightlyMaeConfig(MaeConfig):
    """Sizes as in ``mae``, built of timm's blocks by lightly."""


class LightlyNetwork(nn.Module):
    """What learns: encoder, decoder and what stands between them in lightly's recipe."""

    def __init__(self, config: MaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = MaskedVisionTransformerTIMM(
            VisionTransformer(
                img_size=config.input_size, patch_size=config.patch_size, in_chans=config.in_chans,
                embed_dim=config.embed_dim, depth=config.depth, num_heads=config.num_heads,
                mlp_ratio=config.mlp_ratio, num_classes=0,
            )
        )  # fmt: skip
        self.between = nn.Linear(config.embed_dim, config.decoder_embed_dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=config.num_patches, embed_dim=config.decoder_embed_dim, depth=config.decoder_depth,
            num_heads=config.decoder_num_heads, mlp_ratio=config.mlp_ratio,
        )  # fmt: skip
        self.pixels = nn.Linear(config.decoder_embed_dim, config.pixels)


class LightlyMae(PretrainingModel[LightlyNetwork]):
    """The network with its objective: normalised pixels of the masked patches."""

    def __init__(self, config: MaeConfig, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # lightly and timm draw weights from PyTorch's own generator
            self.student = LightlyNetwork(config)

    def forward(
        self, source: torch.Tensor, _: None, ids: torch.Tensor, *, update: int, seed: int, watch: bool
    ) -> PretrainOutput:
        """Losses of one micro-batch of (B, C, S, S) images."""
        student, config = self.student, self.student.config
        masks = image_masks(ids, config.num_patches, config.encoder().modality, seed, update)  # pyright: ignore[reportArgumentType]
        index_N, prefix = masks.masked_N.to(source.device), student.encoder.vit.num_prefix_tokens
        # lightly counts the class token as the first position.
        kept_BK = F.pad(masks.ids_keep_RK.to(source.device) + prefix, (prefix, 0))
        x_BKD = student.encoder.encode(source, idx_keep=kept_BK)
        gaps_BTC = utils.repeat_token(
            student.decoder.mask_token, (len(source), student.decoder.sequence_length)
        )
        x_BKC = student.between(x_BKD)
        x_BTC = student.decoder(utils.set_at_index(gaps_BTC, kept_BK, x_BKC.type_as(gaps_BTC)))[:, prefix:]
        prediction_NP = student.pixels(x_BTC.flatten(0, 1)[index_N]).float()
        target_NP = utils.patchify(source.float(), config.patch_size).flatten(0, 1)[index_N]
        if config.norm_pix_loss:
            target_NP = utils.normalize_mean_var(target_NP, dim=-1)
        loss = F.mse_loss(prediction_NP, target_NP, reduction="sum") / config.pixels
        found = Comparison.of({"regression": loss}, prediction_NP, target_NP)
        stages: dict[str, Scatter] = {}
        if watch:
            stages = stage_scatters({
                "encoder": (x_BKD[:, prefix:], None), "targets": (found.target_ND, None),
                "predictions": (found.prediction_ND, None),
            })  # fmt: skip
        return found.output(1.0 - masks.num_kept / config.num_patches, stages)
