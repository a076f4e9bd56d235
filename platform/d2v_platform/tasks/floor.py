"""What an answer that knows nothing scores: a model that does no better is of no use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data2vec.metrics import event_metrics, sentence_metrics


@dataclass(frozen=True)
class Floor:
    """A score to beat.

    Attributes:
        metric: of validation.
        value: of the answer, in the metric's unit.
        answer: what was answered, in words.
        data: fingerprint of the data, where it is not the one that the model is judged on anyway.
    """

    metric: str
    value: float
    answer: str
    data: str | None = None

    def facts(self) -> dict[str, str]:
        """As tags of runs and versions."""
        found = {
            "floor.metric": self.metric,
            "floor.value": repr(float(self.value)),
            "floor.answer": self.answer,
        }
        return found if self.data is None else found | {"floor.data": self.data}


def sentence_floor(targets: np.ndarray, labels: Sequence[str], regression: bool, metric: str) -> Floor | None:
    """The best constant answer: the class that scores most in this metric, or the mean value.

    Args:
        targets: (N,) class ids, or (N,) values for regression.
        labels: label of each class id.
        regression: values instead of classes.
        metric: of :func:`data2vec.metrics.sentence_metrics`, or ``loss``.
    """
    if metric == "loss":
        if regression:
            return Floor(metric, float(np.var(targets)), "always the mean value")
        return Floor(metric, _entropy(np.bincount(targets)), "the shares of the labels as probabilities")
    if regression:
        mean = np.full(len(targets), float(np.mean(targets)))
        return Floor(
            metric, sentence_metrics(mean, targets, labels, True, [metric])[metric], "always the mean value"
        )
    scores = {
        label: sentence_metrics(np.full_like(targets, number), targets, labels, False, [metric])[metric]
        for number, label in enumerate(labels)
    }
    commonest = np.bincount(targets, minlength=len(labels))
    best = max(labels, key=lambda label: (scores[label], commonest[list(labels).index(label)]))
    return Floor(metric, scores[best], f"always answering {best!r}")


def image_floor(targets: np.ndarray, classes: Sequence[str], metric: str) -> Floor | None:
    """The most frequent class, for ``accuracy``; the five most frequent ones, for ``top5``."""
    ranked = Counter(targets.tolist()).most_common(5)
    hits = {"accuracy": sum(n for _, n in ranked[:1]), "top5": sum(n for _, n in ranked)}.get(metric)
    if hits is None or not len(targets):
        return None
    named = classes[ranked[0][0]] if classes else ranked[0][0]
    answer = f"always answering {named!r}" if metric == "accuracy" else "always the five commonest classes"
    return Floor(metric, 100.0 * hits / len(targets), answer)


def event_floor(labels_NC: np.ndarray, metric: str) -> Floor | None:
    """The shares of the classes as scores of every clip (of ``event_metrics``)."""
    if metric not in ("mAP", "mAUC", "top1") or not len(labels_NC):
        return None
    scores_NC = np.tile(labels_NC.mean(axis=0), (len(labels_NC), 1))
    return Floor(
        metric, event_metrics(scores_NC, labels_NC)[metric], "the share of each class, whatever the clip"
    )


def transcript_floor(metric: str) -> Floor | None:
    """An empty transcript: every letter and word is missing."""
    return Floor(metric, 100.0, "an empty transcript") if metric in ("uer", "raw_wer", "wer") else None


def token_floor(counts_V: np.ndarray, metric: str) -> Floor | None:
    """The shares of the tokens as probabilities, in bits a token or as perplexity.

    Args:
        counts_V: (V,) how often each token is to be predicted.
        metric: ``loss`` or ``ppl``.
    """
    bits = _entropy(counts_V)
    value = {"loss": bits, "ppl": 2.0**bits}.get(metric)
    return None if value is None else Floor(metric, value, "the shares of the tokens as probabilities")


def _entropy(counts: np.ndarray) -> float:
    """Bits of a value that occurs so often, under the shares of all values."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
