"""The fused kernel equals the plain formula, and padding is never attended to."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from data2vec.attention import Attention, attend, attention_bias


def pair(dim: int, heads: int) -> tuple[Attention, Attention]:
    torch.manual_seed(0)
    fused, eager = Attention(dim, heads), Attention(dim, heads, fused=False)
    eager.load_state_dict(fused.state_dict())
    return fused, eager


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("rows", "length", "dim", "heads"), [(1, 1, 8, 2), (3, 7, 12, 3), (2, 33, 64, 4)])
def test_fused_equals_eager(rows: int, length: int, dim: int, heads: int, padded: bool) -> None:
    fused, eager = pair(dim, heads)
    x = torch.randn(rows, length, dim)
    padding = torch.arange(length)[None, :] >= torch.randint(1, length + 1, (rows, 1))
    bias = attention_bias(padding) if padded else None
    results = []
    for attention in (fused, eager):
        leaf = x.clone().requires_grad_()
        out = attention(leaf, bias)
        out.square().sum().backward()
        gradients = [p.grad.clone() for p in attention.parameters() if p.grad is not None]
        results.append((out, leaf.grad, *gradients))
    assert len(results[0]) == 6
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_equals_the_textbook_formula() -> None:
    """One head at a time, one query at a time."""
    attention, _ = pair(6, 2)
    x = torch.randn(1, 4, 6)
    padding = torch.tensor([[False, False, False, True]])
    qkv = (x[0] @ attention.qkv.weight.T + attention.qkv.bias).detach()
    out = torch.zeros(4, 6)
    for head in range(2):
        q, k, v = (qkv[:, part * 6 + head * 3 : part * 6 + head * 3 + 3] for part in range(3))
        for position in range(4):
            weights = torch.tensor([math.exp(float(q[position] @ k[j]) / math.sqrt(3)) for j in range(3)])
            out[position, head * 3 : head * 3 + 3] = (weights / weights.sum()) @ v[:3]
    expected = out @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(attention(x, attention_bias(padding))[0], expected)


@pytest.mark.parametrize("index", [0, 1], ids=["fused", "eager"])
def test_padding_is_not_attended_to(index: int) -> None:
    attention = pair(8, 2)[index]
    padding = torch.tensor([[False] * 5 + [True] * 3, [False] * 8])
    x = torch.randn(2, 8, 8)
    changed = x.clone()
    changed[0, 5:] = 100.0
    bias = attention_bias(padding)
    before, after = attention(x, bias), attention(changed, bias)
    assert torch.equal(before[0, :5], after[0, :5])
    alone = attention(x[:1, :5])
    torch.testing.assert_close(before[:1, :5], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("index", [0, 1], ids=["fused", "eager"])
def test_a_row_of_padding_alone_gives_finite_numbers(index: int) -> None:
    """A short sample in a long batch: a mask may leave it nothing but padding."""
    attention = pair(8, 2)[index]
    x = torch.randn(2, 4, 8, requires_grad=True)
    out = attention(x, attention_bias(torch.tensor([[True] * 4, [False] * 4])))
    out.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
    torch.testing.assert_close(out[0], attention.proj.bias.expand(4, 8))


def test_no_padding_needs_no_bias() -> None:
    assert attention_bias(None) is None
    bias = attention_bias(torch.tensor([[False, True]]))
    assert bias is not None
    assert bias.shape == (1, 1, 1, 2)
    assert bias.flatten().tolist() == [0.0, float("-inf")]


def test_dropout_works_in_training_only() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2, attention_dropout=0.5, projection_dropout=0.5)
    x = torch.randn(1, 6, 8)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


@pytest.mark.parametrize("entries", [2**20, 1], ids=["all rows at once", "row by row"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_recomputing_backward_pass_is_the_derivative(
    dropout: float, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of attention with dropout (same flags at every call) and a bias that learns, partly masked out."""
    monkeypatch.setattr("data2vec.attention.PART_ENTRIES", entries)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(2, 2, 5, 3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)
    )
    slope = torch.randn(2, 1, 1, dtype=torch.float64, generator=generator).requires_grad_()
    distance = torch.randn(5, 5, dtype=torch.float64, generator=generator)
    hidden = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    hidden[1, ..., 3:] = float("-inf")

    def compute(*tensors: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(2)
        *qkv, slope = tensors
        return attend(*qkv, bias=slope * distance + hidden, dropout=dropout)

    assert torch.autograd.gradcheck(compute, (q, k, v, slope))


@pytest.mark.parametrize("shape", [(1, 2, 5, 5), (3, 2, 5, 5), (2, 5, 5), (3, 1, 1, 5)])
def test_a_bias_for_some_rows_or_all_row_by_row(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data2vec.attention.PART_ENTRIES", 1)
    torch.manual_seed(0)
    bias = torch.randn(shape, requires_grad=True)
    qkv = [torch.randn(3, 2, 5, 4, requires_grad=True) for _ in range(3)]
    plain = ((qkv[0] @ qkv[1].transpose(-2, -1)) * 0.5 + bias).softmax(dim=-1) @ qkv[2]
    ours = attend(*qkv, bias=bias)
    torch.testing.assert_close(ours, plain)
    sides = [torch.autograd.grad(side.square().sum(), [bias, *qkv]) for side in (ours, plain)]
    torch.testing.assert_close(sides[0], sides[1])


def test_dropped_attention_weights_have_the_asked_share_and_mean() -> None:
    torch.manual_seed(3)
    q = torch.zeros(4, 4, 64, 8, requires_grad=True)  # equal weights: 1 / 64 each
    out = attend(q, q, torch.ones(4, 4, 64, 8), None, 0.25)
    kept = out.detach()[..., 0] * 0.75 * 64  # kept weights of each query
    assert abs(float(kept.mean()) / 64 - 0.75) < 0.01
    assert float(kept.std()) == pytest.approx((64 * 0.25 * 0.75) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("entries", "kept"),
    [(2 * 40 * 40, {torch.bool: 3}), (3 * 2 * 40 * 40, {torch.float32: 2, torch.uint8: 1})],
)
def test_large_attention_maps_are_not_kept_but_for_flags(
    entries: int, kept: dict[torch.dtype, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """(R, H, T, T) tensors that autograd saves: flags of one byte; of small maps numbers too."""
    monkeypatch.setattr("data2vec.attention.PART_ENTRIES", entries)
    attention, x = Attention(8, 2, attention_dropout=0.1), torch.randn(3, 40, 8)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        attention(x)
    maps = {t.data_ptr(): t.dtype for t in saved if t.shape[-2:] == (40, 40)}
    assert Counter(maps.values()) == kept


@pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["a bias that learns", "dropout too"])
def test_attention_that_is_computed_again_leaves_padding_out(dropout: float) -> None:
    """The path without a fused kernel: rows that see some keys, all of them, or none."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(3, 2, 6, 4, requires_grad=True) for _ in range(3))
    hidden = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    slope = torch.randn(2, 1, 1, requires_grad=True)
    bias = slope * torch.randn(6, 6) + attention_bias(hidden)
    seen = attend(q, k, v, bias, dropout) if dropout == 0.0 else torch.stack(
        [attend(q, k, v, bias, dropout) for _ in range(600)]
    ).mean(0)  # fmt: skip
    logits = q @ k.transpose(-2, -1) / 2 + bias
    weights = logits.masked_fill(hidden[:, None, None, :].all(-1, keepdim=True), 0.0).softmax(-1)
    wanted = weights.masked_fill(hidden[:, None, None, :], 0.0) @ v
    torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-5 if dropout == 0.0 else 0.12)
    assert not seen[2].any() and torch.isfinite(seen).all()
