"""The convolutional decoder against an explicit convolution, in all shapes that a recipe can give it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data2vec.config import DecoderConfig
from data2vec.decoders import Decoder1d


def convolution_by_hand(x_RTC: torch.Tensor, layer: nn.Conv1d, kernel: int) -> torch.Tensor:
    """Every output frame from its own window of zero-padded input; one frame more is never made."""
    rows, length, width = x_RTC.shape
    left = kernel // 2
    padded = F.pad(x_RTC, (0, 0, left, kernel))
    out = torch.zeros(rows, length, layer.out_channels)
    inner, outer = width // layer.groups, layer.out_channels // layer.groups
    for t in range(length):
        window = padded[:, t : t + kernel]
        for channel in range(layer.out_channels):
            group = channel // outer
            weights = layer.weight[channel]  # (inner, kernel)
            out[:, t, channel] = (window[:, :, group * inner : (group + 1) * inner] * weights.T).sum((1, 2))
    return out + layer.bias


@pytest.mark.parametrize("kernel", [1, 3, 4, 6, 9])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("width", [8, 12])
def test_decoder_formula(kernel: int, residual: bool, width: int) -> None:
    torch.manual_seed(0)
    dim, groups = 8, 4
    config = DecoderConfig(
        decoder_dim=width,
        decoder_groups=groups,
        decoder_kernel=kernel,
        decoder_layers=3,
        decoder_residual=residual,
    )
    decoder = Decoder1d(config, dim).eval()
    x = torch.randn(2, 7, dim)
    expected = x
    for block in decoder.blocks:
        assert isinstance(block, nn.ModuleList)
        convolution = block[0]
        assert isinstance(convolution, nn.Conv1d)
        before = expected
        z = convolution_by_hand(before, convolution, kernel)
        centred = z - z.mean(-1, keepdim=True)
        expected = F.gelu(centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt())
        if residual and before.shape == expected.shape:
            expected = expected + before
    torch.testing.assert_close(decoder.convolve(x), expected, rtol=1e-4, atol=1e-5)


def test_projection_widens_once_and_names_follow_the_reference() -> None:
    config = DecoderConfig(decoder_dim=8, decoder_groups=1, projection_layers=3, projection_ratio=1.5)
    shapes = {name: tuple(p.shape) for name, p in Decoder1d(config, 6).named_parameters() if "proj" in name}
    assert shapes == {
        "proj.0.weight": (12, 8), "proj.0.bias": (12,), "proj.2.weight": (12, 12), "proj.2.bias": (12,),
        "proj.4.weight": (6, 12), "proj.4.bias": (6,),
    }  # fmt: skip
    single = {name for name, _ in Decoder1d(DecoderConfig(decoder_dim=32), 16).named_parameters()}
    assert {"proj.weight", "proj.bias", "blocks.0.0.weight"} <= single


def test_projecting_masked_positions_alone_is_the_same() -> None:
    torch.manual_seed(0)
    decoder = Decoder1d(DecoderConfig(decoder_dim=8, decoder_groups=2, projection_layers=2), 4).eval()
    convolved = decoder.convolve(torch.randn(2, 9, 4))
    mask = torch.rand(2, 9) > 0.5
    torch.testing.assert_close(decoder.project(convolved)[mask], decoder.project(convolved[mask]))
