"""The image front end of data2vec 2.0: patches, two-dimensional sin-cos positions, a class token.

B images, S side in pixels, P patch side, G grid side, T = G * G patches, D width.
"""

from __future__ import annotations

import torch
from torch import nn

from .config import Data2VecMultiConfig
from .context import ContextEncoder
from .decoders import Decoder, Decoder2d
from .errors import DataError
from .image_masking import image_masks
from .masking import MaskSet
from .modality import ModalityEncoder
from .randomness import generator


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel: one vector a patch."""

    def __init__(self, channels: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=patch_size)

    def forward(self, image_BCSS: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) to (B, T, D), patches row by row."""
        return self.proj(image_BCSS).flatten(2).transpose(1, 2)


def patchify(image_BCSS: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(B, C, S, S) to (B, T, C * P * P): patches row by row, each as (channel, row, column).

    Pixels beyond the last whole patch are left out, as a strided convolution does.
    """
    batch, channels, height, width = image_BCSS.shape
    rows, columns = height // patch_size, width // patch_size
    image_BCSS = image_BCSS[..., : rows * patch_size, : columns * patch_size]
    x = image_BCSS.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch_size**2)


def pixel_targets(image_BCSS: torch.Tensor, patch_size: int, *, normalised: bool = True) -> torch.Tensor:
    """The pixels of each patch as (row, column, channel), normalised within the patch: (B, T, P * P * C)."""
    pixels_BTCPP = patchify(image_BCSS.float(), patch_size).unflatten(-1, (-1, patch_size, patch_size))
    pixels_BTN = pixels_BTCPP.permute(0, 1, 3, 4, 2).flatten(2)
    if not normalised:
        return pixels_BTN
    variance, mean = torch.var_mean(pixels_BTN, dim=-1, keepdim=True)
    return (pixels_BTN - mean) * torch.rsqrt(variance + 1e-6)


class FixedPositions(nn.Module):
    """Frozen sin-cos positions of a square grid."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(sincos_positions(side, dim), requires_grad=False)


def sincos_positions(side: int, dim: int) -> torch.Tensor:
    """Sine and cosine of column and row numbers at geometrically spaced frequencies (MAE's, column first).

    Args:
        side: G.
        dim: D, a multiple of 4.

    Returns:
        (1, G * G, D) float32: a quarter sin(column), a quarter cos(column), then the same for the row.
    """
    table_1TD = torch.empty(1, side * side, dim)
    if table_1TD.is_meta:  # its shape is all that is asked for
        return table_1TD
    quarter = dim // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    angles_GQ = torch.arange(side, dtype=torch.float64, device="cpu")[:, None] * frequencies
    wave_GH = torch.cat([angles_GQ.sin(), angles_GQ.cos()], dim=1)
    column_TH = wave_GH.repeat(side, 1)
    row_TH = wave_GH.repeat_interleave(side, dim=0)
    return torch.cat([column_TH, row_TH], dim=1).float()[None]


class ImageEncoder(ModalityEncoder):
    """Local features, context encoder and decoder of the image modality."""

    def __init__(self, config: Data2VecMultiConfig, with_decoder: bool) -> None:
        super().__init__(config)
        image = config.modalities.image
        assert image is not None
        self.image = image
        dim = config.embed_dim
        patches = PatchEmbedding(image.in_chans, image.patch_size, image.embed_dim)
        self.local_encoder: nn.Module | None = (
            patches if image.embed_dim == dim else nn.Sequential(patches, nn.Linear(image.embed_dim, dim))
        )
        extra = image.num_extra_tokens
        self.extra_tokens = nn.Parameter(torch.zeros(1, extra, dim)) if extra else None
        self.fixed_positional_encoder = FixedPositions(self.side, dim) if image.fixed_positions else None
        self.context_encoder = ContextEncoder(config, image, final_norm=True)
        self.decoder: Decoder | None = None
        if with_decoder and image.decoder is not None:
            self.decoder = Decoder2d(image.decoder, dim)

    @property
    def side(self) -> int:
        """G: patches along each side of the configured input."""
        return self.image.input_size // self.image.patch_size

    def compute_local_features(self, source: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) images to (B, T, D)."""
        if source.ndim != 4 or source.shape[1] != self.image.in_chans or source.shape[2] != source.shape[3]:
            raise DataError(
                f"images are {tuple(source.shape)}, the model takes (B, {self.image.in_chans}, side, side)"
            )
        assert self.local_encoder is not None, "a teacher without a front end of its own"
        return self.local_encoder(source)

    def discard_unaveraged(self) -> None:
        """Without ``ema_local_encoder`` the teacher's patches are the student's."""
        if not self.config.ema_local_encoder:
            self.local_encoder = None

    def positions(self, length: int) -> torch.Tensor | None:
        """(1, T, D) positions; for another input size than the configured one they are interpolated.

        Bicubic over the grid, so that a position goes on meaning the same place in the image. (The reference
        looks for a table that no checkpoint has, so its own interpolation never runs.)
        """
        if self.fixed_positional_encoder is None:
            return None
        own = self.fixed_positional_encoder.positions
        if own.shape[1] == length:
            return own
        return interpolate_positions(own, length)

    @torch.no_grad()
    def draw_masks(
        self,
        row_ids_R: torch.Tensor,
        length: int,
        padding_mask_BT: torch.Tensor | None,
        first_id: int,
        seed: int,
        update: int,
    ) -> MaskSet:
        """Random patches, or blocks of the grid."""
        return image_masks(row_ids_R, length, self.image, seed, update)

    def reset_parameters(self, seed: int, name: str) -> None:
        """Xavier patches, N(0, 1) extra tokens (the first zero on request), PyTorch's decoder projection."""
        patches = next(m for m in self.modules() if isinstance(m, PatchEmbedding))
        weight = patches.proj.weight
        bound = (6.0 / (weight.shape[0] + weight[0].numel())) ** 0.5
        weight.uniform_(-bound, bound, generator=generator("init", seed, name, "patches"))
        if self.extra_tokens is not None:
            self.extra_tokens.normal_(generator=generator("init", seed, name, "extra_tokens"))
            if self.config.init_extra_token_zero:
                self.extra_tokens[:, 0].zero_()
        if self.decoder is not None:
            projection = self.decoder.proj
            assert isinstance(projection, nn.Linear)
            bound = projection.in_features**-0.5
            for key, parameter in (("weight", projection.weight), ("bias", projection.bias)):
                parameter.uniform_(-bound, bound, generator=generator("init", seed, name, "proj", key))


def interpolate_positions(positions_1TD: torch.Tensor, length: int) -> torch.Tensor:
    """Positions for another square grid, by bicubic interpolation over the grid.

    Args:
        positions_1TD: (1, G * G, D).
        length: a square number.

    Returns:
        (1, length, D).
    """
    old, new = round(positions_1TD.shape[1] ** 0.5), round(length**0.5)
    if new * new != length:
        raise DataError(f"{length} patches are no square grid")
    grid = positions_1TD.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, length, -1).to(positions_1TD.dtype)
