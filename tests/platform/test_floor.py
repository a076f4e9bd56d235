"""What an answer that knows nothing scores, worked out by hand for each kind of task."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from d2v_platform.recipe.compose import compose
from d2v_platform.tasks.floor import (
    Floor,
    event_floor,
    image_floor,
    sentence_floor,
    token_floor,
    transcript_floor,
)
from d2v_platform.tasks.task import floor_facts

THREE_OF_FOUR = np.array([1, 1, 1, 0])


@pytest.mark.parametrize(
    ("metric", "value", "answer"),
    [
        ("accuracy", 75.0, "always answering '1'"),
        ("mcc", 0.0, "always answering '1'"),  # every answer scores 0: the commonest is named
        ("f1", 100 * 6 / 7, "always answering '1'"),
        ("acc_and_f1", (75.0 + 100 * 6 / 7) / 2, "always answering '1'"),
        ("loss", 0.75 * math.log2(4 / 3) + 0.25 * 2, "the shares of the labels as probabilities"),
    ],
)
def test_sentences(metric: str, value: float, answer: str) -> None:
    found = sentence_floor(THREE_OF_FOUR, ["0", "1"], False, metric)
    assert found is not None and found.answer == answer
    assert found.value == pytest.approx(value)


def test_f1_is_that_of_the_positive_label_even_where_it_is_rare() -> None:
    found = sentence_floor(1 - THREE_OF_FOUR, ["0", "1"], False, "f1")
    assert found is not None and (found.value, found.answer) == (pytest.approx(40.0), "always answering '1'")


def test_values_have_no_correlation_with_their_mean() -> None:
    values = np.array([0.0, 1.0, 5.0])
    for metric in ("pearson", "spearman", "pearson_and_spearman"):
        assert sentence_floor(values, [], True, metric) == Floor(metric, 0.0, "always the mean value")
    found = sentence_floor(values, [], True, "loss")
    assert found is not None and found.value == pytest.approx(14 / 3)  # (4 + 1 + 9) / 3


def test_images() -> None:
    labels = np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 4])
    classes = list("abcdefg")
    assert image_floor(labels, classes, "accuracy") == Floor("accuracy", 24.0, "always answering 'f'")
    assert image_floor(labels, classes, "top5") == Floor("top5", 88.0, "always the five commonest classes")
    assert image_floor(labels, classes, "loss") is None


def test_events() -> None:
    labels_NC = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    for metric, value in (
        ("mAP", (75 + 25) / 2),
        ("mAUC", 50.0),
        ("top1", 75.0),
    ):  # a class that never occurs
        found = event_floor(labels_NC, metric)
        assert found is not None and found.value == pytest.approx(value), metric
    assert event_floor(labels_NC, "loss") is None


def test_transcripts_and_tokens() -> None:
    assert [transcript_floor(m) for m in ("wer", "raw_wer", "uer")] == [
        Floor(m, 100.0, "an empty transcript") for m in ("wer", "raw_wer", "uer")
    ]
    assert transcript_floor("loss") is None
    counts = np.array([0, 2, 1, 1])
    bits, ppl = token_floor(counts, "loss"), token_floor(counts, "ppl")
    assert bits is not None and bits.value == pytest.approx(1.5)
    assert ppl is not None and ppl.value == pytest.approx(2**1.5)


def test_the_floor_is_of_the_first_validation_subset_and_the_metric_that_decides() -> None:
    recipe = compose("v2/text_finetuning/rte", ["task.data=/x", "model.model_path=/m"]).recipe
    asked: list[Any] = []

    def floor(subset: str, metric: str) -> Floor:
        asked.append((subset, metric))
        return Floor(metric, 52.5, "always")

    task: Any = SimpleNamespace(recipe=recipe, floor=floor)
    assert floor_facts(task) == {"floor.metric": "accuracy", "floor.value": "52.5", "floor.answer": "always"}
    assert asked == [("valid", "accuracy")]
    task.recipe = compose("v2/base_text_only_task", ["task.data=/x"]).recipe
    assert floor_facts(task) == {} and len(asked) == 1
