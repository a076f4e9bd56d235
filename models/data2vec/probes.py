"""How much a frozen model's features say: nearest neighbours, and a linear classifier on top of them.

N training vectors, Q queries, D width, C classes, K neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .errors import DataError
from .randomness import generator

TEMPERATURE = 0.07  # of the neighbours' votes, as is usual for this probe
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # L2 strengths that the linear probe chooses from


def knn_predict(
    bank_ND: torch.Tensor, labels_N: torch.Tensor, queries_QD: torch.Tensor, neighbours: int, classes: int
) -> torch.Tensor:
    """Classes by votes of the nearest training vectors, weighted by ``exp(cosine / 0.07)``.

    Args:
        bank_ND: (N, D) features with known classes.
        labels_N: (N,) int64.
        queries_QD: (Q, D).
        neighbours: K, at most N are used.
        classes: C.

    Returns:
        (Q, C) votes; the largest is the prediction.
    """
    if len(bank_ND) == 0:
        raise DataError("the kNN probe needs training vectors")
    bank, votes = F.normalize(bank_ND.float(), dim=1), []
    for part in F.normalize(queries_QD.float(), dim=1).split(1024):
        similarity, index = (part @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        weight = ((similarity - 1.0) / TEMPERATURE).exp()  # at most 1: nothing overflows
        votes.append(torch.zeros(len(part), classes).scatter_add_(1, labels_N[index], weight))
    return torch.cat(votes) if votes else torch.zeros(0, classes)


def linear_probe(
    train_ND: torch.Tensor, labels_N: torch.Tensor, queries_QD: torch.Tensor, classes: int, *, seed: int = 1
) -> torch.Tensor:
    """Multinomial logistic regression on standardised features.

    The L2 strength is chosen on a fifth of the training vectors, then all of them are used: the queries take
    no part in any choice.

    Args:
        train_ND: (N, D).
        labels_N: (N,) int64.
        queries_QD: (Q, D).
        classes: C.
        seed: decides which fifth.

    Returns:
        (Q, C) logits.
    """
    if len(train_ND) < 2:
        raise DataError("the linear probe needs at least two training vectors")
    deviation, mean = torch.std_mean(train_ND.double(), dim=0)
    deviation = deviation.clamp_min(1e-6)
    x, queries = (train_ND.double() - mean) / deviation, (queries_QD.double() - mean) / deviation
    order = torch.randperm(len(x), generator=generator("probe", seed))
    held, kept = order[: max(1, len(x) // 5)], order[max(1, len(x) // 5) :]
    best, best_score = _STRENGTHS[0], -1.0
    for strength in _STRENGTHS:
        weight, bias = _fit(x[kept], labels_N[kept], classes, strength)
        score = float(((x[held] @ weight + bias).argmax(1) == labels_N[held]).double().mean())
        if score >= best_score:  # ties go to the stronger one
            best, best_score = strength, score
    weight, bias = _fit(x, labels_N, classes, best)
    return (queries @ weight + bias).float()


@torch.enable_grad()
def _fit(
    x_ND: torch.Tensor, labels_N: torch.Tensor, classes: int, strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.zeros(x_ND.shape[1], classes, dtype=x_ND.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=x_ND.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x_ND @ weight + bias, labels_N) + 0.5 * strength * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType] - the closure returns a tensor
    return weight.detach(), bias.detach()


def top1(scores_QC: torch.Tensor, labels_Q: torch.Tensor) -> float:
    """Percent of queries whose largest score is the label's."""
    return 100.0 * float((scores_QC.argmax(1) == labels_Q).double().mean()) if len(labels_Q) else 0.0
