"""What a masked autoencoder is, with the reference's field names (``mae``) and defaults.

The reference's class has further switches (other blocks, relative positions, no class token, noise for the
mask token), which no recipe uses and which are not built here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from .config import Data2VecMultiConfig, ImageModalityConfig, ModalitiesConfig
from .errors import Problem
from .rules import ModelConfig, Rules


@dataclass(kw_only=True)
class MaeConfig(ModelConfig):
    """A masked autoencoder of images: the visible patches, encoded, must tell the pixels of the others."""

    has_teacher: ClassVar[bool] = False
    decay_groups: ClassVar[bool] = True

    input_size: int = 224  # side of the square input, in pixels
    in_chans: int = 3  # colour channels
    patch_size: int = 16  # side of a patch, in pixels
    embed_dim: int = 768  # width of the encoder
    depth: int = 12  # blocks of the encoder
    num_heads: int = 12  # attention heads of the encoder
    decoder_embed_dim: int = 512  # width of the decoder
    decoder_depth: int = 8  # blocks of the decoder
    decoder_num_heads: int = 16  # attention heads of the decoder
    mlp_ratio: int = 4  # feed-forward width / width, of encoder and decoder
    norm_eps: float = 1e-6  # epsilon of the layer norms
    drop_path_rate: float = 0.0  # drop path of the encoder's last block, rising linearly from 0
    mask_ratio: float = 0.75  # share of patches hidden from the encoder
    norm_pix_loss: bool = True  # pixels of each patch are normalised before they are a target

    @property
    def num_patches(self) -> int:
        """T."""
        return (self.input_size // self.patch_size) ** 2

    @property
    def pixels(self) -> int:
        """Numbers in a patch."""
        return self.in_chans * self.patch_size**2

    def encoder(self) -> Data2VecMultiConfig:
        """The encoder, which is a pre-LN image network of data2vec 2.0 without prenet blocks and teacher."""
        image = ImageModalityConfig(
            input_size=self.input_size,
            in_chans=self.in_chans,
            patch_size=self.patch_size,
            embed_dim=self.embed_dim,
            prenet_depth=0,
            num_extra_tokens=1,
            init_extra_token_zero=False,
            mask_prob=self.mask_ratio,
            mask_length=1,
            decoder=None,
        )
        return Data2VecMultiConfig(
            supported_modality="IMAGE",
            modalities=ModalitiesConfig(text=None, image=image),
            layer_norm_first=True,
            mae_init=True,
            depth=self.depth,
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            mlp_ratio=float(self.mlp_ratio),
            norm_eps=self.norm_eps,
            end_drop_path_rate=self.drop_path_rate,
            encoder_dropout=0.0,
            post_mlp_drop=0.0,
            attention_dropout=0.0,
            average_top_k_layers=1,
        )

    def decoder(self) -> Data2VecMultiConfig:
        """Blocks like the encoder's, of the decoder's width and number."""
        return dataclasses.replace(
            self.encoder(),
            depth=self.decoder_depth,
            embed_dim=self.decoder_embed_dim,
            num_heads=self.decoder_num_heads,
            end_drop_path_rate=0.0,
        )

    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible about this configuration, all of it."""
        rule = Rules(self, path)
        sizes = ("input_size", "in_chans", "patch_size", "embed_dim", "depth", "num_heads",
                 "decoder_embed_dim", "decoder_depth", "decoder_num_heads", "mlp_ratio")  # fmt: skip
        rule.at_least(1, *sizes)
        rule.probability("drop_path_rate")
        if rule.found:
            return rule.found
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, f"{prefix}embed_dim"), getattr(self, f"{prefix}num_heads")
            rule(f"{prefix}num_heads", width % heads == 0, f"must divide {prefix}embed_dim {width}")
            rule(f"{prefix}embed_dim", width % 4 == 0, "must be a multiple of 4 for sin-cos positions")
        whole = self.input_size % self.patch_size == 0
        rule("input_size", whole, f"must be a multiple of patch_size {self.patch_size}")
        kept = int(self.num_patches * (1.0 - self.mask_ratio))
        rule("mask_ratio", 0 < kept < self.num_patches,
             f"must leave some of the {self.num_patches} patches visible and hide some")  # fmt: skip
        return rule.found
