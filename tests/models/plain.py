"""The networks and objectives once more, plainly and row by row in float64, to compare the library with.

Nothing here is fast, batched or shared with the library: one loop for each sum of a formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

State = Mapping[str, torch.Tensor]
EPS = 1e-5  # of front ends, decoders and targets


def informative(module: torch.nn.Module, seed: int, size: float = 0.3) -> None:
    """Move every weight, so that swapped, skipped and unused tensors show."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=draw))


def doubles(module: torch.nn.Module, gradients: bool = False) -> dict[str, torch.Tensor]:
    """A copy of all tensors in float64, with gradients where the module's learn."""
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    return {
        name: value.detach().double().clone().requires_grad_(gradients and name in trained)
        for name, value in module.state_dict().items()
    }


def below(state: State, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors under a name, without it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def normed(x: torch.Tensor, dims: tuple[int, ...] = (-1,), eps: float = EPS) -> torch.Tensor:
    """Zero mean and unit (biased) variance over ``dims``."""
    centred = x - x.mean(dim=dims, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(dim=dims, keepdim=True) + eps)


def layer_norm(x: torch.Tensor, state: State, name: str, eps: float = EPS) -> torch.Tensor:
    """Over channels, with gain and offset if there are any."""
    if f"{name}.weight" not in state:
        return normed(x, eps=eps)
    return normed(x, eps=eps) * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def attention(
    q_TD: torch.Tensor, k_TD: torch.Tensor, v_TD: torch.Tensor, heads: int, bias_HTT: torch.Tensor
) -> torch.Tensor:
    """One row, head by head; a query whose every key is hidden gets zeros."""
    width = q_TD.shape[1] // heads
    out = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = q_TD[:, part] @ k_TD[:, part].T / math.sqrt(width) + bias_HTT[head]
        nothing = torch.isneginf(bias_HTT[head]).all(dim=1, keepdim=True)
        weights = torch.softmax(logits.masked_fill(nothing, 0.0), dim=1).masked_fill(nothing, 0.0)
        out.append(weights @ v_TD[:, part])
    return torch.cat(out, dim=1)


def padding_bias(heads: int, padded_T: torch.Tensor) -> torch.Tensor:
    """(H, T, T): nobody looks at padded positions."""
    length = len(padded_T)
    bias = torch.zeros(heads, length, length, dtype=torch.float64)
    return bias.masked_fill(padded_T[None, None, :], -math.inf)


def alibi(heads: int, positions_T: torch.Tensor, scale_H: torch.Tensor) -> torch.Tensor:
    """(H, T, T): minus slope times clamped scale times distance; H a power of two."""
    distance = (positions_T[:, None] - positions_T[None, :]).abs().double()
    slopes = [2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)]
    return torch.stack([-slopes[h] * scale_H[h].clamp(min=0.0) * distance for h in range(heads)])


def embedding(ids_T: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    """Rows of a table; the row of padding (1) learns nothing."""
    return torch.stack([weight_VD[i].detach() if i == 1 else weight_VD[i] for i in ids_T.tolist()])


def position_numbers(ids_T: torch.Tensor) -> torch.Tensor:
    """2, 3, 4, ... of the real tokens, 1 of padding."""
    numbers, seen = [], 0
    for token in ids_T.tolist():
        seen += token != 1
        numbers.append(1 if token == 1 else 1 + seen)
    return torch.tensor(numbers)


def embedded(ids_T: torch.Tensor, state: State, scaled: bool, positions: bool, norm: bool) -> torch.Tensor:
    """Tokens with their positions, before any layer."""
    words_VD = state["embed_tokens.weight"]
    x = embedding(ids_T, words_VD) * (words_VD.shape[1] ** 0.5 if scaled else 1.0)
    if positions:
        x = x + embedding(position_numbers(ids_T), state["embed_positions.weight"])
    return layer_norm(x, state, "layernorm_embedding") if norm else x


def patches(image_CSS: torch.Tensor, state: State, name: str, size: int) -> torch.Tensor:
    """(T, D) vectors of an image's patches, row by row."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return F.conv2d(image_CSS.double()[None], weight, bias, stride=size)[0].flatten(1).T


def slowed(x: torch.Tensor, mult: float) -> torch.Tensor:
    """The same values with ``mult`` times their gradient."""
    return mult * x + (1.0 - mult) * x.detach()


def same_convolution(x_TD: torch.Tensor, state: State, name: str, groups: int) -> torch.Tensor:
    """Over time with as many outputs as inputs; an even kernel's surplus output is cut at the end."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    y = F.conv1d(x_TD.T[None], weight, bias, padding=weight.shape[2] // 2, groups=groups)
    return y[0].T[: len(x_TD)]


def waveform_convolutions(samples_S: torch.Tensor, state: State, layers: list[tuple[int, int, int]]) -> Any:
    """(S,) to (T, C): convolution, layer norm, GELU, for each layer."""
    x = samples_S.double()[:, None]
    for index, (_, _, stride) in enumerate(layers):
        x = F.conv1d(x.T[None], state[f"conv_layers.{index}.0.weight"], stride=stride)[0].T
        x = gelu(layer_norm(x, state, f"conv_layers.{index}.2.1"))
    return x


def convolutional_positions(
    x_TD: torch.Tensor, state: State, names: list[str], groups: int, padded_T: torch.Tensor
) -> torch.Tensor:
    """Grouped convolutions, each with a norm without weights and GELU; padded frames are zeros to each."""
    for name in names:
        x_TD = x_TD.masked_fill(padded_T[:, None], 0.0)
        x_TD = gelu(normed(same_convolution(x_TD, state, name, groups)))
    return x_TD


def targets(config: Any, layers: list[torch.Tensor]) -> torch.Tensor:
    """Mean of the top layers' (B, T, D), each normalised, normalised again."""
    total = torch.zeros_like(layers[0])
    for x in layers[len(layers) - config.average_top_k_layers :]:
        if config.batch_norm_target_layer:
            x = normed(x, (0, 1))
        if config.instance_norm_target_layer:
            x = normed(x, (1,))
        if getattr(config, "group_norm_target_layer", False):
            x = normed(x, (1, 2))
        if config.layer_norm_target_layer:
            x = normed(x, (2,))
        total = total + x / config.average_top_k_layers
    if config.layer_norm_targets:
        total = normed(total, (2,))
    if config.instance_norm_targets:
        total = normed(total, (1,))
    return total


def distance(prediction: torch.Tensor, target: torch.Tensor, beta: float) -> torch.Tensor:
    """Summed squared error, or smooth L1."""
    error = prediction - target
    if beta == 0:
        return error.pow(2).sum()
    small = error.abs() < beta
    return torch.where(small, error.pow(2) / (2.0 * beta), error.abs() - beta / 2.0).sum()


def scaled_distance(config: Any, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The distance times what the configuration says; 1 / sqrt(width) unless it says something."""
    scale = config.embed_dim**-0.5 if config.loss_scale is None else config.loss_scale
    return scale * distance(prediction, target, config.loss_beta)


def agree(ours: torch.Tensor | None, plain: torch.Tensor | None, what: str, tolerance: float = 2e-4) -> None:
    """Equal up to the rounding of fp32, measured against the largest number."""
    plain = torch.zeros(()) if plain is None else plain.detach()
    found = torch.zeros_like(plain) if ours is None else ours.detach().double()
    scale = max(float(plain.abs().max()), 1e-2)  # key biases have no true gradient
    gap = float((found - plain).abs().max())
    assert gap <= tolerance * scale, f"{what}: off by {gap:.2e} of {scale:.2e}"
