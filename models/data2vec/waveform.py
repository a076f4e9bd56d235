"""Waveform to frames: the convolutions before the transformer, and convolutional positions, of v1 and v2.

Frames stay the second dimension and channels the last one throughout, which is what layer norm and the
matrix products want: nothing is transposed between layers.

B clips, S samples, T frames, C channels, R rows, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .conv_spec import ConvLayer, frame_count
from .randomness import generator


class WaveformConvolutions(nn.Module):
    """Convolutions without bias, each with layer norm and GELU. Names follow the reference.

    Args:
        layers: (channels, width, stride) of each convolution.
    """

    def __init__(self, layers: tuple[ConvLayer, ...]) -> None:
        super().__init__()
        self.layers = layers
        inputs = (1, *(channels for channels, _, _ in layers))
        self.conv_layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "0": nn.Conv1d(before, channels, width, stride, bias=False),
                    "2": nn.ModuleDict({"1": nn.LayerNorm(channels, eps=1e-5)}),
                }
            )
            for before, (channels, width, stride) in zip(inputs, layers, strict=False)
        )

    def forward(self, source_BS: torch.Tensor) -> torch.Tensor:
        """(B, S) samples to (B, T, C) frames."""
        x_BTC = source_BS[..., None]
        for block in self.conv_layers:
            assert isinstance(block, nn.ModuleDict)
            conv, norms = block["0"], block["2"]
            assert isinstance(conv, nn.Conv1d) and isinstance(norms, nn.ModuleDict)
            x_BTC = F.gelu(norms["1"](strided_convolution(x_BTC, conv.weight, conv.stride[0])))
        return x_BTC

    @torch.no_grad()
    def reset_parameters(self, seed: int, name: str) -> None:
        """Kaiming's normal distribution."""
        for index, block in enumerate(self.conv_layers):
            weight = block["0"].weight  # pyright: ignore
            deviation = (2.0 / weight[0].numel()) ** 0.5
            weight.normal_(0.0, deviation, generator=generator("init", seed, name, "convolution", index))


def strided_convolution(x_BTC: torch.Tensor, weight_OCK: torch.Tensor, stride: int) -> torch.Tensor:
    """A convolution as one matrix product for each chunk of ``stride`` taps.

    A chunk of input frames side by side is a row of a matrix that already lies in memory, so nothing is
    unfolded or copied; on a CPU this runs at the rate of a matrix product, about half again as fast as a
    convolution. Taps that fill no chunk (the third one of width 3, stride 2) are a product each.

    Args:
        x_BTC: (B, T, C).
        weight_OCK: (O, C, K) as ``nn.Conv1d`` holds it.
        stride: frames between two outputs.

    Returns:
        (B, T', O) with ``T' = (T - K) // stride + 1``.
    """
    batch, length, channels = x_BTC.shape
    outputs, _, width = weight_OCK.shape
    frames = (length - width) // stride + 1
    weight_KCO = weight_OCK.permute(2, 1, 0)
    y_BTO: torch.Tensor | None = None
    whole = width - width % stride
    chunks = [(first, stride) for first in range(0, whole, stride)] + [
        (tap, 1) for tap in range(whole, width)
    ]
    for first, taps in chunks:
        if taps == stride:
            rows = x_BTC[:, first : first + frames * stride].reshape(batch, frames, stride * channels)
        else:
            rows = x_BTC[:, first : first + (frames - 1) * stride + 1 : stride]
        matrix = weight_KCO[first : first + taps].reshape(taps * channels, outputs).expand(batch, -1, -1)
        if y_BTO is None:
            y_BTO = torch.bmm(rows, matrix)
        else:
            y_BTO = torch.baddbmm(y_BTO, rows.to(y_BTO.dtype), matrix.to(y_BTO.dtype))
    assert y_BTO is not None
    return y_BTO


class PositionalConvolutions(nn.ModuleDict):
    """Grouped convolutions over time with a layer norm without weights and GELU: positions from context.

    Args:
        dim: D.
        width: frames that all convolutions together are meant to see; each has ``max(3, width // depth)``.
        groups: convolution groups.
        depth: number of convolutions.
        first: number in the name of the first one (1 in v2, where the reference counts a transposition).
    """

    def __init__(self, dim: int, width: int, groups: int, depth: int, first: int) -> None:
        kernel = max(3, width // depth)
        super().__init__(
            {
                str(first + index): nn.ModuleList(
                    [nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)]
                )
                for index in range(depth)
            }
        )

    def forward(self, x_RTD: torch.Tensor, padding_mask_RT: torch.Tensor | None = None) -> torch.Tensor:
        """(R, T, D) frames to (R, T, D) positions.

        Every convolution sees zeros at padded frames, as it sees behind the end of a clip that is alone.
        """
        length = x_RTD.shape[1]
        for layer in self.values():
            conv = layer[0]  # pyright: ignore[reportIndexIssue]
            assert isinstance(conv, nn.Conv1d)
            if padding_mask_RT is not None:
                x_RTD = x_RTD.masked_fill(padding_mask_RT[..., None], 0.0)
            # Two-dimensional with channels last: PyTorch's grouped convolution is fastest in this form.
            y_RD1T = F.conv2d(
                x_RTD.unsqueeze(1).permute(0, 3, 1, 2),
                conv.weight.unsqueeze(2),
                conv.bias,
                padding=(0, conv.kernel_size[0] // 2),
                groups=conv.groups,
            )
            y_RTD = y_RD1T.permute(0, 2, 3, 1).squeeze(1)[:, :length]  # an even kernel yields one too many
            x_RTD = F.gelu(F.layer_norm(y_RTD, (y_RTD.shape[-1],), eps=1e-5))
        return x_RTD


def frame_padding(padding_mask_BS: torch.Tensor | None, layers: tuple[ConvLayer, ...]) -> torch.Tensor | None:
    """Which frames lie behind the end of their clip.

    Args:
        padding_mask_BS: (B, S) bool, true behind the end of each clip.
        layers: the convolutions.

    Returns:
        (B, T) bool, or ``None`` where nothing is padded.
    """
    if padding_mask_BS is None or not bool(padding_mask_BS.any()):
        return None
    lengths = (~padding_mask_BS).sum(dim=1).tolist()
    frames_B = torch.tensor([frame_count(layers, int(n)) for n in lengths], device=padding_mask_BS.device)
    total = frame_count(layers, padding_mask_BS.shape[1])
    mask_BT = torch.arange(total, device=padding_mask_BS.device)[None, :] >= frames_B[:, None]
    return mask_BT if bool(mask_BT.any()) else None
