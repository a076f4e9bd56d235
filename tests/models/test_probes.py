"""Probes find what is there, and nothing where nothing is."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from data2vec.errors import DataError
from data2vec.probes import knn_predict, linear_probe, top1


def clusters(seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 12, generator=torch.Generator().manual_seed(99)) * 3
    labels = torch.randint(0, 4, (200,), generator=draw)
    return centres[labels] + spread * torch.randn(200, 12, generator=draw), labels


def test_separable_features_are_found() -> None:
    (bank, labels), (queries, wanted) = clusters(1, 0.5), clusters(2, 0.5)
    assert top1(knn_predict(bank, labels, queries, 10, 4), wanted) == 100.0
    assert top1(linear_probe(bank, labels, queries, 4), wanted) == 100.0


def test_noise_is_not() -> None:
    draw = torch.Generator().manual_seed(5)
    x, labels = torch.randn(300, 12, generator=draw), torch.randint(0, 4, (300,), generator=draw)
    assert top1(knn_predict(x[:200], labels[:200], x[200:], 10, 4), labels[200:]) < 45
    assert top1(linear_probe(x[:200], labels[:200], x[200:], 4), labels[200:]) < 45


def test_the_linear_probe_agrees_with_scikit_learn() -> None:
    (bank, labels), (queries, wanted) = clusters(1, 2.5), clusters(2, 2.5)
    ours = top1(linear_probe(bank, labels, queries, 4), wanted)
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


def test_votes_are_the_formula() -> None:
    draw = torch.Generator().manual_seed(3)
    bank, labels = torch.randn(40, 6, generator=draw), torch.randint(0, 3, (40,), generator=draw)
    queries = 7.0 * torch.randn(1100, 6, generator=draw)  # more than one part
    votes = knn_predict(bank, labels, queries, 5, 3)
    assert votes.shape == (1100, 3)
    for row in (0, 1023, 1024, 1099):
        cosine = torch.nn.functional.cosine_similarity(queries[row][None].double(), bank.double())
        wanted = torch.zeros(3, dtype=torch.float64)
        for index in cosine.argsort(descending=True)[:5].tolist():
            wanted[labels[index]] += math.exp((float(cosine[index]) - 1.0) / 0.07)
        torch.testing.assert_close(votes[row].double(), wanted, rtol=1e-3, atol=1e-6)
    assert knn_predict(bank[:2], labels[:2], queries[:1], 5, 3).sum() > 0, "at most all of them"


@pytest.mark.parametrize("strengths", [(1e-3,), (1e-4, 1e-3, 1e-2, 1e-1)])
def test_the_linear_probe_is_the_regression_of_its_strength_on_everything(
    strengths: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all strengths tell everything, the strongest is taken; scikit-learn sums where we average."""
    monkeypatch.setattr("data2vec.probes._STRENGTHS", strengths)
    (bank, labels), (queries, _) = clusters(1, 0.5), clusters(2, 3.0)
    bank, queries = 0.01 * bank, 0.01 * queries  # standardised: their size is no matter
    ours = linear_probe(bank, labels, queries, 4).log_softmax(dim=1)
    mean, deviation = bank.double().mean(0), bank.double().std(0)
    x, others = (((part.double() - mean) / deviation).numpy() for part in (bank, queries))
    fitted = LogisticRegression(C=1 / (len(bank) * strengths[-1]), tol=1e-8, max_iter=2000)
    theirs = torch.from_numpy(fitted.fit(x, labels.numpy()).predict_log_proba(others))
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-2, atol=1e-2)


def test_a_channel_that_does_not_vary_does_no_harm() -> None:
    (bank, labels), (queries, wanted) = clusters(1, 0.5), clusters(2, 0.5)
    bank, queries = (torch.cat([part, torch.full((200, 1), 3.0)], dim=1) for part in (bank, queries))
    assert top1(linear_probe(bank, labels, queries, 4), wanted) == 100.0
    assert top1(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) == 0.0
    assert top1(torch.eye(4), torch.tensor([0, 1, 0, 0])) == 50.0
