"""Dropout: shares, gradients, keys, and what it keeps; the feed-forward network that activates again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data2vec.dropout import Dropout, keep_flags
from data2vec.randomness import seed_dropout
from data2vec.transformer import FeedForward, feed_forward


@pytest.mark.parametrize("rate", [0.1, 0.48, 0.9])
def test_share_and_mean(rate: float) -> None:
    seed_dropout("share", int(rate * 100))
    y = Dropout(rate)(torch.ones(1000, 1000))
    assert float((y == 0).float().mean()) == pytest.approx(rate, abs=0.002)
    assert y[y > 0].unique().tolist() == pytest.approx([1 / (1 - rate)])
    # Neighbours come from one random number and must not know of each other.
    dropped = (y == 0).flatten()
    for distance in (1, 2, 3, 4):
        both = (dropped[:-distance] & dropped[distance:]).float().mean()
        assert float(both) == pytest.approx(rate**2, abs=0.003)


def test_no_dropout_where_none_is_asked_for() -> None:
    x = torch.randn(3, 5)
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(1.0)(x).abs().sum() == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(1.5)


def test_it_is_a_function_of_the_key() -> None:
    def draw(*key: int | str) -> torch.Tensor:
        seed_dropout(*key)
        return Dropout(0.3)(torch.ones(64, 7))

    assert torch.equal(draw("dropout", 1, 2), draw("dropout", 1, 2))
    assert not torch.equal(draw("dropout", 1, 2), draw("dropout", 1, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_pass_where_values_do(dtype: torch.dtype) -> None:
    x = torch.randn(33, 17, dtype=dtype, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = Dropout(0.4)(x)
    assert y.dtype == dtype
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(gradient, torch.where(y == 0, 0.0, 1 / 0.6).to(dtype))
    assert sum(t.nbytes for t in saved) == x.numel()  # a byte an entry


def test_flags_of_any_count() -> None:
    for count in (1, 2, 3, 4, 5, 1023):
        assert keep_flags(torch.Size([count]), 1.0, torch.device("cpu")).all()
        assert not keep_flags(torch.Size([count]), 0.0, torch.device("cpu")).any()
    out = torch.zeros(2, 3, 5, dtype=torch.bool)
    keep_flags(out[1].shape, 1.0, out.device, out=out[1])
    assert out[1].all()
    assert not out[0].any()


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_feed_forward_network_activates_again_with_equal_dropout(rate: float) -> None:
    """Loss and gradients are those of the plain formula, whatever is drawn between its two passes."""
    network = FeedForward(8, 32, rate).double()
    x = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)

    def gradients(recompute: bool) -> list[torch.Tensor]:
        seed_dropout("feed-forward")
        if recompute:
            y = network(x)
        else:
            y = network.dropout(network.fc2(network.dropout(F.gelu(network.fc1(x)))))
        torch.rand(7)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *network.parameters()])]

    for ours, plain in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


def test_it_keeps_one_wide_tensor_and_multiplies_no_more_than_it_must() -> None:
    widen, narrow = nn.Linear(8, 64), nn.Linear(64, 8)
    x = torch.randn(10, 8, requires_grad=True)
    wide: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape == (10, 64):
            wide[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = feed_forward(x, widen, F.gelu, narrow)
    assert len(wide) == 1
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 4 * 2 * 10 * 8 * 64
    with torch.no_grad():
        torch.testing.assert_close(feed_forward(x, widen, F.gelu, narrow), y)
