"""Metrics of sentence tasks: hand-computed values, orientation of F1, undefined cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.errors import DataError
from data2vec.metrics import event_metrics, event_scores_by_class, sentence_metrics, wanted_metrics

ALL = ["accuracy", "mcc", "f1", "acc_and_f1"]


def test_values_by_hand() -> None:
    # The class of label "1" is 0, as in MRPC: true positives 2, false 1; false negatives 1, true negatives 2.
    predictions, targets = [0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 1, 1]
    found = sentence_metrics(predictions, targets, ["1", "0"], False, ALL)
    assert found["accuracy"] == pytest.approx(100 * 4 / 6)
    assert found["f1"] == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1))
    assert found["mcc"] == pytest.approx(100 * (2 * 2 - 1 * 1) / math.sqrt(3 * 3 * 3 * 3))
    assert found["acc_and_f1"] == pytest.approx((found["accuracy"] + found["f1"]) / 2)


def test_f1_follows_the_label_one_not_the_class_id() -> None:
    predictions, targets = [0, 0, 0, 1], [0, 0, 1, 1]
    majority_first = sentence_metrics(predictions, targets, ["1", "0"], False, ["f1"])["f1"]
    minority_first = sentence_metrics(predictions, targets, ["0", "1"], False, ["f1"])["f1"]
    assert majority_first == pytest.approx(80.0)
    assert minority_first == pytest.approx(200 / 3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_renaming_classes_changes_nothing_when_labels_follow(pairs: list[tuple[int, int]]) -> None:
    predictions, targets = np.asarray(pairs).T
    one = sentence_metrics(predictions, targets, ["0", "1"], False, ALL)
    other = sentence_metrics(1 - predictions, 1 - targets, ["1", "0"], False, ALL)
    assert one == pytest.approx(other)


def test_correlations() -> None:
    found = sentence_metrics([1.0, 2.0, 3.0, 9.0], [0.1, 0.2, 0.3, 0.4], [], True, wanted_metrics(
        regression=True, report_pearson_and_spearman=True))  # fmt: skip
    expected = np.corrcoef([1.0, 2.0, 3.0, 9.0], [0.1, 0.2, 0.3, 0.4])[0, 1]
    assert found["pearson"] == pytest.approx(100 * expected)
    assert found["spearman"] == pytest.approx(100.0)
    assert found["pearson_and_spearman"] == pytest.approx((found["pearson"] + found["spearman"]) / 2)


def test_constant_and_diverged_predictions() -> None:
    assert sentence_metrics([1, 1, 1], [0, 1, 1], ["0", "1"], False, ["mcc"])["mcc"] == 0.0
    constant = sentence_metrics([0.5, 0.5], [0.1, 0.9], [], True, ["pearson", "spearman"])
    assert constant == {"pearson": 0.0, "spearman": 0.0}
    assert math.isnan(sentence_metrics([float("nan"), 1.0], [0.1, 0.9], [], True, ["pearson"])["pearson"])


def test_flags_of_the_reference() -> None:
    assert wanted_metrics() == ["accuracy"]
    assert wanted_metrics(report_mcc=True, report_acc_and_f1=True) == ["accuracy", "mcc", "f1", "acc_and_f1"]
    assert wanted_metrics(regression=True) == []


@pytest.mark.parametrize(
    ("labels", "regression", "wanted", "message"),
    [
        (["0", "1"], False, ["mc"], "did you mean 'mcc'"),
        ([], True, ["accuracy"], "does not exist for regression"),
        (["yes", "no"], False, ["f1"], "F1 needs a label '1'"),
    ],
)
def test_impossible_metrics(labels: list[str], regression: bool, wanted: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sentence_metrics([0, 1], [0, 1], labels, regression, wanted)


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="equally many"):
        sentence_metrics([0], [0, 1], ["0", "1"], False, ["accuracy"])


def test_f1_where_precision_and_recall_differ() -> None:
    labels = ["0", "1"]
    found = sentence_metrics([1, 0, 0, 1, 0], [1, 1, 1, 0, 0], labels, False, ["f1", "acc_and_f1", "f1"])
    found = sentence_metrics([1, 0, 0, 1, 0], [1, 1, 1, 0, 0], ["0", "1"], False, ["f1", "acc_and_f1", "f1"])
    assert found["f1"] == pytest.approx(100 * 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert list(found) == ["f1", "acc_and_f1"] and found["acc_and_f1"] == pytest.approx((40 + 40.0) / 2)


@pytest.mark.parametrize(
    ("predictions", "targets", "value"),
    [([1.0, 2.0], [3.0, 3.0], 0.0), ([2.0, 2.0], [1.0, 3.0], 0.0), ([1.0], [2.0], 0.0),
     ([1.0, 2.0], [2.0, 1.0], -100.0)],
)  # fmt: skip
def test_correlations_of_what_does_not_vary(
    predictions: list[float], targets: list[float], value: float
) -> None:
    found = sentence_metrics(predictions, targets, [], True, ["spearman", "pearson"])
    assert found == pytest.approx({"spearman": value, "pearson": value})


def test_no_matthews_correlation_where_a_side_has_one_class() -> None:
    for predictions, targets in (([1, 1], [0, 1]), ([0, 1], [1, 1])):
        assert sentence_metrics(predictions, targets, ["0", "1"], False, ["mcc"]) == {"mcc": 0.0}


def test_events_that_all_clips_hold_have_a_precision_and_no_area() -> None:
    labels = np.array([[1, 1], [1, 0]])
    precision, area = event_scores_by_class(np.array([[0.4, 0.9], [0.6, 0.2]]), labels)
    assert precision.tolist() == [100.0, 100.0] and math.isnan(area[0]) and area[1] == 100.0
    found = event_metrics(np.array([[0.4, 0.9], [0.6, 0.2]]), labels)
    assert found == {"mAP": 100.0, "mAUC": 100.0, "top1": 100.0}
