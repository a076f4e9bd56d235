"""Metrics of sentence tasks over a whole evaluation set, in percent and full precision.

They are computed by scikit-learn and scipy on the gathered predictions, never averaged over batches or
workers. Both are imported where they are used: recipes are checked by the names of metrics alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .errors import DataError, nearest_names

POSITIVE_LABEL = "1"  # F1 looks at this label, whatever class id it has


def accuracy(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Share of equal entries, in percent."""
    return 100.0 * float(np.mean(predictions == targets))


def mcc(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Matthews correlation in percent; 0 for constant predictions. Renaming the classes does not change "
    "it."""
    if len(np.unique(predictions)) < 2 or len(np.unique(targets)) < 2:
        return 0.0
    from sklearn import metrics as sk

    return 100.0 * float(sk.matthews_corrcoef(targets, predictions))


def f1(predictions: np.ndarray, targets: np.ndarray, positive: int) -> float:
    """F1 of class ``positive`` in percent; 0 if it is neither predicted nor present."""
    from sklearn import metrics as sk

    nothing: Any = 0  # the stubs know the strings only
    score: Any = sk.f1_score(targets == positive, predictions == positive, zero_division=nothing)
    return 100.0 * float(score)


def pearson(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Pearson correlation in percent; 0 where a side is constant, so that it can be compared."""
    from scipy import stats

    return _correlation(stats.pearsonr, predictions, targets)


def spearman(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Spearman correlation in percent; 0 where a side is constant."""
    from scipy import stats

    return _correlation(stats.spearmanr, predictions, targets)


CLASSIFICATION_METRICS = ("accuracy", "mcc", "f1", "acc_and_f1")
REGRESSION_METRICS = ("pearson", "spearman", "pearson_and_spearman")


def wanted_metrics(
    *,
    regression: bool = False,
    report_mcc: bool = False,
    report_acc_and_f1: bool = False,
    report_pearson_and_spearman: bool = False,
) -> list[str]:
    """Names that the reference's criterion flags ask for; accuracy is always reported for classes."""
    names = [] if regression else ["accuracy"]
    names += ["mcc"] if report_mcc else []
    names += ["f1", "acc_and_f1"] if report_acc_and_f1 else []
    return names + (list(REGRESSION_METRICS) if report_pearson_and_spearman else [])


def sentence_metrics(
    predictions: np.ndarray | Sequence[float],
    targets: np.ndarray | Sequence[float],
    labels: Sequence[str],
    regression: bool,
    wanted: Iterable[str],
) -> dict[str, float]:
    """The wanted metrics of one evaluation.

    Args:
        predictions: (N,) class ids, or (N,) scores for regression.
        targets: (N,) in the same form.
        labels: label string of each class id; F1's positive class is the label ``"1"``.
        regression: scores instead of classes.
        wanted: names out of ``CLASSIFICATION_METRICS`` or ``REGRESSION_METRICS``.

    Returns:
        Name to value in percent. NaN for every name if a regression prediction is not finite.

    Raises:
        DataError: a name does not exist for this kind of task, lengths differ, or F1 has no label ``"1"``.
    """
    guess, truth = np.asarray(predictions), np.asarray(targets)
    names = list(dict.fromkeys(wanted))
    known = REGRESSION_METRICS if regression else CLASSIFICATION_METRICS
    kind = "regression" if regression else "classification"
    for name in names:
        if name not in known:
            raise DataError(
                f"metric {name!r} does not exist for {kind}; choose "
                f"{', '.join(known)}{nearest_names(name, known)}"
            )
    if guess.shape != truth.shape or guess.ndim != 1 or not len(guess):
        raise DataError(
            f"metrics need equally many predictions and targets, not {guess.shape} and {truth.shape}"
        )
    values: dict[str, float] = {}
    if regression:
        values["pearson"], values["spearman"] = pearson(guess, truth), spearman(guess, truth)
        values["pearson_and_spearman"] = (values["pearson"] + values["spearman"]) / 2
        return {name: values[name] for name in names}
    values["accuracy"] = accuracy(guess, truth)
    if "mcc" in names:
        values["mcc"] = mcc(guess, truth)
    if "f1" in names or "acc_and_f1" in names:
        if POSITIVE_LABEL not in labels:
            raise DataError(f"F1 needs a label {POSITIVE_LABEL!r}, but the labels are {', '.join(labels)}")
        values["f1"] = f1(guess, truth, list(labels).index(POSITIVE_LABEL))
        values["acc_and_f1"] = (values["accuracy"] + values["f1"]) / 2
    return {name: values[name] for name in names}


def _correlation(function: Callable[..., Any], predictions: np.ndarray, targets: np.ndarray) -> float:
    if not (np.isfinite(predictions).all() and np.isfinite(targets).all()):
        return float("nan")
    if len(predictions) < 2 or np.ptp(predictions) == 0 or np.ptp(targets) == 0:
        return 0.0
    return 100.0 * float(function(predictions, targets).statistic)


EVENT_METRICS = ("mAP", "mAUC", "top1")


def event_metrics(probabilities_NC: np.ndarray, labels_NC: np.ndarray) -> dict[str, float]:
    """How well clips are told by what they hold, in percent, over a whole evaluation set.

    ``mAP`` and ``mAUC`` are means over the classes that occur (and, for the latter, are absent somewhere) of
    average precision and of the area under the ROC curve; ``top1`` is the share of clips whose best class is
    among theirs. The reference calls mAP a fraction and 0 below 100 clips; here it is what the clips give.

    Args:
        probabilities_NC: (N, C) scores.
        labels_NC: (N, C) 0 or 1.
    """
    precision, area = event_scores_by_class(probabilities_NC, labels_NC)
    best_N = probabilities_NC.argmax(axis=1)
    return {
        "mAP": _nan_mean(precision),
        "mAUC": _nan_mean(area),
        "top1": 100.0 * float(labels_NC[np.arange(len(best_N)), best_N].mean()) if len(best_N) else 0.0,
    }


def event_scores_by_class(
    probabilities_NC: np.ndarray, labels_NC: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and area under the ROC curve of each class in percent, (C,); NaN where undefined."""
    from sklearn import metrics as sk

    classes = labels_NC.shape[1]
    precision, area = np.full(classes, np.nan), np.full(classes, np.nan)
    for c in range(classes):
        labels, scores = labels_NC[:, c], probabilities_NC[:, c]
        if labels.any():
            precision[c] = 100.0 * float(sk.average_precision_score(labels, scores))
            if not labels.all():
                area[c] = 100.0 * float(sk.roc_auc_score(labels, scores))
    return precision, area


def _nan_mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
