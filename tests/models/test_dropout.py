"""Dropout: shares, gradients, keys, and what it keeps."""

from __future__ import annotations

import pytest
import torch

from data2vec.dropout import Dropout, keep_flags
from data2vec.randomness import seed_dropout


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
    for count in (1, 2, 3, 4, 5, 1023, 500_000):
        assert keep_flags(torch.Size([count]), 1.0, torch.device("cpu")).all()
        assert not keep_flags(torch.Size([count]), 0.0, torch.device("cpu")).any()
    out = torch.zeros(2, 3, 5, dtype=torch.bool)
    keep_flags(out[1].shape, 1.0, out.device, out=out[1])
    assert out[1].all()
    assert not out[0].any()


def test_a_processor_whose_dropout_keeps_flags_uses_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data2vec.dropout.keeps_flags", lambda _: True)
    seed_dropout("own")
    ours = Dropout(0.5)(torch.ones(40))
    seed_dropout("own")
    assert torch.equal(ours, torch.nn.functional.dropout(torch.ones(40), 0.5))
