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
from .norm_gelu import EPS, norm_gelu
from .randomness import generator


class WaveformConvolutions(nn.Module):
    """Convolutions without bias, each with layer norm and GELU. Names follow the reference.

    Args:
        layers: (channels, width, stride) of each convolution.
    """

    regions = ("forward",)
    eager_on_cpu = True  # a whole compiled step of data2vec 1 takes 1.2 times the CPU time of this

    def __init__(self, layers: tuple[ConvLayer, ...]) -> None:
        super().__init__()
        self.layers = layers
        inputs = (1, *(channels for channels, _, _ in layers))
        self.conv_layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "0": nn.Conv1d(before, channels, width, stride, bias=False),
                    "2": nn.ModuleDict({"1": nn.LayerNorm(channels, eps=EPS)}),
                }
            )
            for before, (channels, width, stride) in zip(inputs, layers, strict=False)
        )

    def forward(self, source_BS: torch.Tensor) -> torch.Tensor:
        """(B, S) samples to (B, T, C) frames."""
        x_BTC, norm = source_BS[..., None], None
        for block in self.conv_layers:
            assert isinstance(block, nn.ModuleDict)
            conv, norms = block["0"], block["2"]
            assert isinstance(conv, nn.Conv1d) and isinstance(norms, nn.ModuleDict)
            x_BTC = strided_convolution(x_BTC, conv.weight, conv.stride[0], norm)
            norm = norms["1"]
            assert isinstance(norm, nn.LayerNorm)
        assert norm is not None
        return norm_gelu(x_BTC, norm.weight, norm.bias)

    @torch.no_grad()
    def reset_parameters(self, seed: int, name: str) -> None:
        """Kaiming's normal distribution."""
        for index, block in enumerate(self.conv_layers):
            weight = block["0"].weight  # pyright: ignore
            deviation = (2.0 / weight[0].numel()) ** 0.5
            weight.normal_(0.0, deviation, generator=generator("init", seed, name, "convolution", index))


def strided_convolution(
    x_BTC: torch.Tensor, weight_OCK: torch.Tensor, stride: int, norm: nn.LayerNorm | None = None
) -> torch.Tensor:
    """A convolution as one matrix product for each chunk of ``stride`` taps.

    A chunk of input frames side by side is a row of a matrix that already lies in memory, so nothing is
    unfolded or copied, in neither direction. A whole step of data2vec 1 (4 layers, 3 clips of 2 s, CPU) needs
    14 % more memory with PyTorch's convolution or with these products under autograd, and the convolution
    takes 1.24 times the CPU time of this front end. Compiled code has PyTorch's convolution.

    Args:
        x_BTC: (B, T, C).
        weight_OCK: (O, C, K) as ``nn.Conv1d`` holds it.
        stride: frames between two outputs.
        norm: applied to the input, with GELU after it; what comes out of both is not kept for the backward
            pass, which computes it again.

    Returns:
        (B, T', O) with ``T' = (T - K) // stride + 1``.
    """
    kind = x_BTC.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x_BTC, weight_OCK = x_BTC.to(dtype), weight_OCK.to(dtype)
    gain, offset = (None, None) if norm is None else (norm.weight, norm.bias)
    if torch.compiler.is_compiling():
        if norm is not None:
            x_BTC = norm_gelu(x_BTC, gain, offset).to(weight_OCK.dtype)
        return F.conv1d(x_BTC.transpose(1, 2), weight_OCK, stride=stride).transpose(1, 2)
    return _StridedConvolution.apply(x_BTC, gain, offset, weight_OCK, stride)


class _StridedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain, offset, weight, stride):
        ctx.save_for_backward(x, gain, offset, weight)
        ctx.stride = stride
        if gain is not None:
            normed, _, _ = torch.native_layer_norm(x.to(gain.dtype), x.shape[-1:], gain, offset, EPS)
            x = torch.ops.aten.gelu_(normed).to(weight.dtype)
        frames = (x.shape[1] - weight.shape[2]) // stride + 1
        out = x.new_empty(x.shape[0], frames, weight.shape[0])
        for chunk, (first, taps) in enumerate(_chunks(weight.shape[2], stride)):
            matrix = _chunk_matrix(weight, first, taps)
            for clip, clip_out in zip(x, out, strict=True):
                rows = _rows(clip, first, taps, frames, stride)
                torch.addmm(clip_out, rows, matrix, beta=min(chunk, 1), out=clip_out)
        return out

    @staticmethod
    def backward(ctx, *grads):
        x, gain, offset, weight = ctx.saved_tensors
        if gain is None:
            grad, weight_grad = _convolution_backward(
                x, weight, grads[0], ctx.stride, ctx.needs_input_grad[0]
            )
            return grad, None, None, weight_grad, None
        x_grad, weight_grad = torch.empty_like(x), torch.zeros_like(weight)
        gain_grad, offset_grad = torch.zeros_like(gain), torch.zeros_like(offset)
        for clip, clip_grad, out_grad in zip(x.split(1), x_grad.split(1), grads[0].split(1), strict=True):
            wide = clip.to(gain.dtype)
            normed, mean, deviation = torch.native_layer_norm(wide, x.shape[-1:], gain, offset, EPS)
            active = F.gelu(normed).to(weight.dtype)
            grad, part = _convolution_backward(active, weight, out_grad, ctx.stride, True)
            assert grad is not None
            weight_grad += part
            torch.ops.aten.gelu_backward.grad_input(grad.to(normed.dtype), normed, grad_input=normed)
            grad, *parts = torch.ops.aten.native_layer_norm_backward(
                normed, wide, x.shape[-1:], mean, deviation, gain, offset, [True, True, True]
            )
            clip_grad.copy_(grad)
            gain_grad += parts[0]
            offset_grad += parts[1]
        return x_grad, gain_grad, offset_grad, weight_grad, None


def _convolution_backward(
    x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, stride: int, needs_input: bool
) -> tuple[torch.Tensor | None, torch.Tensor]:
    grad, (outputs, channels, width) = grad.contiguous(), weight.shape
    x_grad = torch.zeros_like(x) if needs_input else None
    weight_grad = weight.new_zeros(width, channels, outputs)
    for first, taps in _chunks(width, stride):
        matrix = _chunk_matrix(weight, first, taps)
        matrix_grad = weight_grad[first : first + taps].view(taps * channels, outputs)
        for index, clip_grad in enumerate(grad):
            rows = _rows(x[index], first, taps, grad.shape[1], stride)
            torch.addmm(matrix_grad, rows.T, clip_grad, out=matrix_grad)
            if x_grad is not None:
                rows_grad = _rows(x_grad[index], first, taps, grad.shape[1], stride)
                torch.addmm(rows_grad, clip_grad, matrix.T, out=rows_grad)
    return x_grad, weight_grad.permute(2, 1, 0)


def _chunks(width: int, stride: int) -> list[tuple[int, int]]:
    """(first tap, number of taps) of each chunk of at most ``stride`` taps."""
    return [(first, min(stride, width - first)) for first in range(0, width, stride)]


def _chunk_matrix(weight_OCK: torch.Tensor, first: int, taps: int) -> torch.Tensor:
    """(taps * C, O)."""
    return weight_OCK[..., first : first + taps].permute(2, 1, 0).reshape(-1, weight_OCK.shape[0])


def _rows(x_TC: torch.Tensor, first: int, taps: int, frames: int, stride: int) -> torch.Tensor:
    """A view (frames, taps * C): the frames ``first ... first + taps`` beyond every ``stride``-th one."""
    step, channels = x_TC.stride(0), x_TC.shape[1]
    return x_TC.as_strided(
        (frames, taps * channels), (stride * step, 1), x_TC.storage_offset() + first * step
    )


class PositionalConvolutions(nn.ModuleDict):
    """Grouped convolutions over time with a layer norm without weights and GELU: positions from context.

    Args:
        dim: D.
        width: frames that all convolutions together are meant to see; each has ``max(3, width // depth)``.
        groups: convolution groups.
        depth: number of convolutions.
        first: number in the name of the first one (1 in v2, where the reference counts a transposition).
    """

    regions = ("forward",)

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
            x_RTD = norm_gelu(y_RTD)
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
