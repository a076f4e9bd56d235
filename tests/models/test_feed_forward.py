"""The feed-forward network that activates again: values, gradients, what it keeps and what it multiplies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data2vec.dropout import keep_flags
from data2vec.feed_forward import ACTIVATIONS, feed_forward
from data2vec.randomness import seed_dropout

PLAIN = {"gelu": F.gelu, "relu": F.relu}


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_gradients_are_those_of_the_plain_formula(activation: str, rate: float) -> None:
    widen, narrow = nn.Linear(8, 32).double(), nn.Linear(32, 8).double()
    x = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)
    wanted = [x, *widen.parameters(), *narrow.parameters()]
    seed_dropout("feed-forward")
    ours = feed_forward(x, widen, narrow, activation=activation, dropout=rate)
    seed_dropout("feed-forward")
    inner = PLAIN[activation](widen(x))
    if rate:
        inner = inner * keep_flags(inner.shape, 1 - rate, inner.device) / (1 - rate)
    plain = narrow(inner)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    gradients = (torch.autograd.grad(y.square().sum(), wanted) for y in (ours, plain))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frozen", ["", "weights", "scale"])
def test_a_scaled_output(frozen: str) -> None:
    widen, narrow = nn.Linear(8, 32).double(), nn.Linear(32, 8).double()
    narrow.requires_grad_(frozen != "weights")
    scale = torch.randn(8, dtype=torch.float64, requires_grad=frozen != "scale")
    x = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)
    ours, plain = feed_forward(x, widen, narrow, scale=scale), scale * narrow(F.gelu(widen(x)))
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    wanted = [t for t in (x, scale, *narrow.parameters()) if t.requires_grad]
    gradients = (torch.autograd.grad(y.square().sum(), wanted) for y in (ours, plain))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


def test_it_keeps_one_wide_tensor_and_multiplies_no_more_than_it_must() -> None:
    widen, narrow = nn.Linear(8, 64), nn.Linear(64, 8)
    x = torch.randn(10, 8, requires_grad=True)
    wide: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape == (10, 64):
            wide[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = feed_forward(x, widen, narrow)
    assert len(wide) == 1
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 4 * 2 * 10 * 8 * 64
    narrow.requires_grad_(False)  # frozen weights cost no product
    y = feed_forward(x, widen, narrow)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 10 * 8 * 64
    with torch.no_grad():
        torch.testing.assert_close(feed_forward(x, widen, narrow), y)


@pytest.mark.parametrize("scaled", [False, True])
def test_lower_precision(scaled: bool) -> None:
    """Under autocast as PyTorch's own layers, whatever ran without gradients before in the same region."""
    widen, narrow = nn.Linear(16, 64), nn.Linear(64, 16)
    scale = nn.Parameter(torch.rand(16) + 0.5) if scaled else None
    x = torch.randn(6, 16)
    parameters = [*widen.parameters(), *narrow.parameters(), *([] if scale is None else [scale])]
    sides = []
    for compute in (
        lambda: feed_forward(x, widen, narrow, scale=scale),
        lambda: narrow(F.gelu(widen(x))) * (1.0 if scale is None else scale),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            y = compute()
        assert y.dtype == (torch.float32 if scaled else torch.bfloat16)
        sides.append((y, *torch.autograd.grad(y.float().square().sum(), parameters)))
    for ours, plain in zip(*sides, strict=True):
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            feed_forward(x, widen, narrow)
        y = narrow(F.gelu(feed_forward(x, widen, narrow) @ widen.weight.t()))
    gradients = torch.autograd.grad(y.float().sum(), [narrow.weight, narrow.bias])
    assert all(float(g.abs().sum()) > 0 for g in gradients)
