"""Convolutional decoders: light networks that predict teacher features from the student's output.

R rows, T positions, D student width, C decoder width, N selected positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .config import DecoderConfig


class Decoder1d(nn.Module):
    """Convolutions over time with layer norm and GELU, then a projection back to the student's width.

    Convolution and projection are separate verbs because the loss needs predictions at masked positions only:
    ``decoder.project(mask.gather_masked(decoder.convolve(x)))``.
    """

    def __init__(self, config: DecoderConfig, dim: int) -> None:
        super().__init__()
        self.residual = config.decoder_residual
        self.add_positions_masked, self.add_positions_all = (
            config.add_positions_masked,
            config.add_positions_all,
        )
        self.input_dropout = nn.Dropout(config.input_dropout)
        width, kernel = config.decoder_dim, config.decoder_kernel
        # Key names follow the reference: blocks.<j>.0 is the convolution.
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.Conv1d(
                        dim if j == 0 else width,
                        width,
                        kernel,
                        padding=kernel // 2,
                        groups=config.decoder_groups,
                    )
                ]
            )
            for j in range(config.decoder_layers)
        )
        layers: list[nn.Module] = []
        current = width
        for index in range(config.projection_layers - 1):
            following = int(current * config.projection_ratio) if index == 0 else current
            layers += [nn.Linear(current, following), nn.GELU()]
            current = following
        layers.append(nn.Linear(current, dim))
        self.proj = layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def convolve(self, x_RTD: torch.Tensor) -> torch.Tensor:
        """All convolutions: (R, T, D) to (R, T, C)."""
        x_RCT = x_RTD.transpose(1, 2)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            residual = x_RCT
            x_RCT = block[0](x_RCT)[..., : residual.shape[-1]]  # an even kernel yields one frame too many
            x_RTC = F.layer_norm(x_RCT.transpose(1, 2), (x_RCT.shape[1],), eps=1e-5)
            x_RCT = F.gelu(x_RTC).transpose(1, 2)
            if self.residual and residual.shape == x_RCT.shape:
                x_RCT = x_RCT + residual
        return x_RCT.transpose(1, 2)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., D)."""
        return self.proj(x)


class Decoder2d(nn.Module):
    """Convolutions over a square grid with layer norm and GELU, then one linear projection.

    The grid stays channels-last throughout: patches come as (T, D) rows, which is that layout already, and
    the layer norm wants it too, so nothing is transposed between layers.
    """

    def __init__(self, config: DecoderConfig, dim: int) -> None:
        super().__init__()
        self.residual = config.decoder_residual
        self.add_positions_masked, self.add_positions_all = (
            config.add_positions_masked,
            config.add_positions_all,
        )
        self.input_dropout = nn.Dropout(config.input_dropout)
        width, kernel = config.decoder_dim, config.decoder_kernel
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.Conv2d(
                        dim if j == 0 else width,
                        width,
                        kernel,
                        padding=kernel // 2,
                        groups=config.decoder_groups,
                    )
                ]
            )
            for j in range(config.decoder_layers)
        )
        self.proj = nn.Linear(width if config.decoder_layers else dim, dim)

    def convolve(self, x_RTD: torch.Tensor) -> torch.Tensor:
        """All convolutions: (R, T, D) to (R, T, C), T a square number."""
        rows, length, _ = x_RTD.shape
        side = round(length**0.5)
        x = x_RTD.reshape(rows, side, side, -1)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            residual = x
            # An even kernel yields one row and one column too many.
            convolved = block[0](x.permute(0, 3, 1, 2))[..., :side, :side].permute(0, 2, 3, 1)
            x = F.gelu(F.layer_norm(convolved, (convolved.shape[-1],), eps=1e-5))
            if self.residual and residual.shape == x.shape:
                x = x + residual
        return x.reshape(rows, length, -1)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., D)."""
        return self.proj(x)
