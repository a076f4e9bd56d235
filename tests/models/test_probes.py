"""Probes find what is there, and nothing where nothing is."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from data2vec.errors import DataError
from data2vec.probes import accuracy, knn_predict, linear_probe


def clusters(seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 12, generator=torch.Generator().manual_seed(99)) * 3
    labels = torch.randint(0, 4, (200,), generator=draw)
    return centres[labels] + spread * torch.randn(200, 12, generator=draw), labels


def test_separable_features_are_found() -> None:
    (bank, labels), (queries, wanted) = clusters(1, 0.5), clusters(2, 0.5)
    assert accuracy(knn_predict(bank, labels, queries, 10, 4), wanted) == 100.0
    assert accuracy(linear_probe(bank, labels, queries, 4), wanted) == 100.0


def test_noise_is_not() -> None:
    draw = torch.Generator().manual_seed(5)
    x, labels = torch.randn(300, 12, generator=draw), torch.randint(0, 4, (300,), generator=draw)
    assert accuracy(knn_predict(x[:200], labels[:200], x[200:], 10, 4), labels[200:]) < 45
    assert accuracy(linear_probe(x[:200], labels[:200], x[200:], 4), labels[200:]) < 45


def test_the_linear_probe_agrees_with_scikit_learn() -> None:
    (bank, labels), (queries, wanted) = clusters(1, 2.5), clusters(2, 2.5)
    ours = accuracy(linear_probe(bank, labels, queries, 4), wanted)
    mean, deviation = bank.mean(0), bank.std(0)
    other = LogisticRegression(C=1.0).fit(((bank - mean) / deviation).numpy(), labels.numpy())
    theirs = 100 * other.score(((queries - mean) / deviation).numpy(), wanted.numpy())
    assert abs(ours - theirs) <= 3.0


def test_one_neighbour_is_the_nearest() -> None:
    bank = torch.eye(3)
    votes = knn_predict(bank, torch.tensor([2, 0, 1]), torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.2, 0.9]]), 1, 3)
    assert votes.argmax(1).tolist() == [2, 1]
    with pytest.raises(DataError):
        knn_predict(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), bank, 1, 3)
