"""Variance and effective rank: sums that add up to numpy's covariance, over evenly spaced vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data2vec.collapse import Scatter, stage_scatters, watched_channels


def numbers(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 5.0 + torch.randn(count, dim, generator=draw) * torch.linspace(0.1, 2.0, dim)


def rank(covariance: np.ndarray) -> float:
    values = np.linalg.eigvalsh(covariance).clip(0)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


@pytest.mark.parametrize("sizes", [[40], [7, 1, 32]])
def test_parts_add_up_to_the_covariance_of_everything(sizes: list[int]) -> None:
    x = numbers(40, 6)
    found = sum((Scatter.of(part) for part in x.split(sizes)), Scatter.zeros(6))
    wanted = np.cov(x.double().numpy(), rowvar=False)
    assert found.count == 40
    np.testing.assert_allclose(found.covariance().numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert found.deviation() == pytest.approx(float(np.sqrt(np.diag(wanted)).mean()), rel=1e-4)
    assert found.effective_rank() == pytest.approx(rank(wanted), rel=1e-3)


def test_padded_vectors_are_left_out() -> None:
    x, padding = numbers(30, 4).view(3, 10, 4), torch.zeros(3, 10, dtype=torch.bool)
    padding[1, 4:] = padding[2, 9:] = True
    found, wanted = Scatter.of(x, padding), Scatter.of(x[~padding])
    assert found.count == 23
    torch.testing.assert_close(found.covariance(), wanted.covariance())
    assert Scatter.of(x, torch.ones_like(padding)).count == 0
    stages = stage_scatters({"a": (x, padding), "b": (x, None)})
    assert {name: scatter.count for name, scatter in stages.items()} == {"a": 23, "b": 30}


def test_effective_rank_of_known_shapes() -> None:
    equal = torch.cat([torch.eye(4), -torch.eye(4)])
    assert Scatter.of(equal).effective_rank() == pytest.approx(4.0)
    line = torch.arange(9.0)[:, None] * torch.tensor([[1.0, -2.0, 3.0]])
    assert Scatter.of(line).effective_rank() == pytest.approx(1.0, abs=1e-6)
    still = torch.ones(9, 3)
    assert Scatter.of(still).effective_rank() == 0.0 and Scatter.of(still).deviation() == 0.0
    assert Scatter.zeros(3).effective_rank() == 0.0 and Scatter.of(still[:1]).deviation() == 0.0


def test_many_vectors_and_channels_are_thinned_out_evenly() -> None:
    x = numbers(513, 600)
    assert watched_channels(600) == 200 and watched_channels(256) == 256 and watched_channels(257) == 129
    found = Scatter.of(x)
    assert found.count == 171, "every third of 513 leaves at most 256"
    wanted = np.cov(x[::3, ::3].double().numpy(), rowvar=False)
    np.testing.assert_allclose(found.covariance().numpy(), wanted, rtol=1e-3, atol=1e-4)
    assert Scatter.of(numbers(256, 3)).count == 256
