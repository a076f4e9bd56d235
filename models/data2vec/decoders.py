"""Convolutional decoders: light networks that predict teacher features from the student's output.

R rows, T positions, D student width, C decoder width, N selected positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from .config import DecoderConfig
from .dropout import Dropout
from .norm_gelu import norm_gelu


class Decoder(nn.Module, ABC):
    """Convolutions with layer norm and GELU, then a projection back to the student's width.

    Convolution and projection are separate verbs because the loss needs predictions at masked positions only:
    ``decoder.project(mask.gather_masked(decoder.convolve(x)))``.

    Args:
        config: sizes.
        dim: D.
        convolution: ``nn.Conv1d`` or ``nn.Conv2d``.
    """

    proj: nn.Module

    def __init__(
        self, config: DecoderConfig, dim: int, convolution: type[nn.Conv1d] | type[nn.Conv2d]
    ) -> None:
        super().__init__()
        self.residual = config.decoder_residual
        self.add_positions_masked = config.add_positions_masked
        self.add_positions_all = config.add_positions_all
        self.input_dropout = Dropout(config.input_dropout)
        width, kernel = config.decoder_dim, config.decoder_kernel
        # Key names follow the reference: blocks.<j>.0 is the convolution.
        self.blocks = nn.ModuleList()
        for inputs in [dim, *[width] * (config.decoder_layers - 1)][: config.decoder_layers]:
            layer = convolution(inputs, width, kernel, padding=kernel // 2, groups=config.decoder_groups)
            self.blocks.append(nn.ModuleList([layer]))

    @property
    def convolutions(self) -> list[nn.Module]:
        """The convolutions in order."""
        return [block[0] for block in self.blocks if isinstance(block, nn.ModuleList)]

    @abstractmethod
    def convolve(self, x_RTD: torch.Tensor) -> torch.Tensor:
        """All convolutions: (R, T, D) to (R, T, C)."""

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., D)."""
        return self.proj(x)


class Decoder1d(Decoder):
    """Convolutions over time, and a projection of one or several layers."""

    def __init__(self, config: DecoderConfig, dim: int) -> None:
        super().__init__(config, dim, nn.Conv1d)
        layers: list[nn.Module] = []
        current = config.decoder_dim
        for index in range(config.projection_layers - 1):
            following = int(current * config.projection_ratio) if index == 0 else current
            layers += [nn.Linear(current, following), nn.GELU()]
            current = following
        layers.append(nn.Linear(current, dim))
        self.proj = layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def convolve(self, x_RTD: torch.Tensor) -> torch.Tensor:
        """All convolutions: (R, T, D) to (R, T, C)."""
        x_RCT = x_RTD.transpose(1, 2)
        for convolution in self.convolutions:
            residual = x_RCT
            x_RCT = convolution(x_RCT)[..., : residual.shape[-1]]  # an even kernel yields one frame too many
            x_RCT = norm_gelu(x_RCT.transpose(1, 2)).transpose(1, 2)
            if self.residual and residual.shape == x_RCT.shape:
                x_RCT = x_RCT + residual
        return x_RCT.transpose(1, 2)


class Decoder2d(Decoder):
    """Convolutions over a square grid, and one linear projection.

    The grid stays channels-last throughout: patches come as (T, D) rows, which is that layout already, and
    the layer norm wants it too, so nothing is transposed between layers.
    """

    def __init__(self, config: DecoderConfig, dim: int) -> None:
        super().__init__(config, dim, nn.Conv2d)
        self.proj = nn.Linear(config.decoder_dim if config.decoder_layers else dim, dim)

    def convolve(self, x_RTD: torch.Tensor) -> torch.Tensor:
        """All convolutions: (R, T, D) to (R, T, C), T a square number."""
        rows, length, _ = x_RTD.shape
        side = round(length**0.5)
        x = x_RTD.reshape(rows, side, side, -1)
        for convolution in self.convolutions:
            residual = x
            # An even kernel yields one row and one column too many.
            convolved = convolution(x.permute(0, 3, 1, 2))[..., :side, :side].permute(0, 2, 3, 1)
            x = norm_gelu(convolved)
            if self.residual and residual.shape == x.shape:
                x = x + residual
        return x.reshape(rows, length, -1)
