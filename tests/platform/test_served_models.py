"""The code that MLflow runs for a version: rows keep order, index and defaults; models are stand-ins."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from data2vec.errors import DataError


def serving(entry: Any, model: Any) -> Any:
    entry._model = model
    return lambda table, **params: entry.predict(None, table, params)


def test_texts_and_pairs_are_classified_in_the_order_of_their_rows() -> None:
    from d2v_platform.registry.pyfunc_entry import TextPyfunc

    asked: list[list[Any]] = []

    def classify(inputs: list[Any]) -> Any:
        asked.append(inputs)
        return ["no", "yes"], np.array([[0.2, 0.8] if isinstance(x, tuple) else [0.9, 0.1] for x in inputs])

    def embed(texts: list[str], pooling: str, layer: int) -> Any:
        return [np.full(2, float(len(text)) + layer) for text in texts]

    task: dict[str, Any] = {}
    config = {"kind": "sentence_classifier", "task": task}
    predict = serving(TextPyfunc(), SimpleNamespace(config=config, classify=classify, embed=embed))
    table = pd.DataFrame(
        {"text": ["a", "b", "c", "d"], "text_pair": ["x", "", None, float("nan")]}, index=[7, 5, 3, 1]
    )
    found = predict(table)
    assert asked == [["b", "c", "d"], [("a", "x")]]
    assert list(found.columns) == ["label", "score", "score_no", "score_yes"]
    assert list(found.index) == [7, 5, 3, 1] and list(found["label"]) == ["yes", "no", "no", "no"]
    assert list(found["score"]) == [0.8, 0.9, 0.9, 0.9] and list(found["score_yes"]) == [0.8, 0.1, 0.1, 0.1]
    embedded = predict(table, output="embedding")
    assert list(embedded["embedding"]) == [[0.0, 0.0]] * 4, "the last block by default"
    assert list(embedded.index) == [7, 5, 3, 1]
    task["regression"] = True
    assert predict(table)[["score"]].to_dict("list") == predict(table).to_dict("list")
    config["kind"] = "pretrained"
    assert list(predict(table, layer=4).columns) == ["embedding"]
    for params, told in (({"output": "scores"}, "no head"), ({"output": "x"}, "must be one of"),
                         ({"pooling": "max"}, "mean, cls")):  # fmt: skip
        with pytest.raises(DataError, match=told):
            predict(table, **params)


def test_recordings_have_their_own_rates_and_a_default() -> None:
    from d2v_platform.registry.pyfunc_audio_entry import AudioPyfunc

    asked: list[Any] = []
    word = SimpleNamespace(text="HI", start_s=0.0, end_s=0.5)

    def transcribe(recordings: list[Any]) -> Any:
        asked.extend(recordings)
        return [SimpleNamespace(text=f"T{n}", words=[word], score=-n) for n, _ in enumerate(recordings)]

    config = {"kind": "ctc"}
    model = SimpleNamespace(
        config=config, transcribe=transcribe, emissions=lambda rows: [np.zeros((2, 3))] * len(rows),
        classify=lambda rows: (["cat", "dog"], np.array([[0.3, 0.6], [0.7, 0.1], [0.0, 0.2]])),
        embed=lambda rows, pooling, layer: [np.full(1, layer)] * len(rows),
    )  # fmt: skip
    predict = serving(AudioPyfunc(), model)
    table = pd.DataFrame({"audio": [[0.0, 0.5], [1.0], None], "rate": [8000, float("nan"), 8000],
                          "file": [None, None, b"flac"]}, index=[9, 8, 7])  # fmt: skip
    found = predict(table)
    (first, rate), (second, default), file = asked
    assert (list(first), rate, list(second), default, file) == ([0.0, 0.5], 8000, [1.0], 16_000, b"flac")
    assert list(found["text"]) == ["T0", "T1", "T2"] and list(found["score"]) == [0, -1, -2]
    assert list(found.index) == [9, 8, 7]
    assert found["words"].iloc[0] == [{"text": "HI", "start_s": 0.0, "end_s": 0.5}]
    assert np.shape(predict(table, output="emissions")["emissions"].iloc[2]) == (2, 3)
    config["kind"] = "audio_classifier"
    found = predict(table)
    assert list(found["label"]) == ["dog", "cat", "dog"] and list(found["score"]) == [0.6, 0.7, 0.2]
    assert list(found["score_cat"]) == [0.3, 0.7, 0.0]
    config["kind"] = "pretrained"
    assert list(predict(table)["embedding"]) == [[-1.0]] * 3
    with pytest.raises(DataError, match="this model gives embedding"):
        predict(table, output="transcript")
    for rows, told in (
        ({"noise": [1]}, "there is neither"),
        ({"audio": [float("nan")]}, r"row 0: give audio \(an array of samples\)"),
    ):
        with pytest.raises(DataError, match=told):
            predict(pd.DataFrame(rows))


def test_a_language_model_gives_the_perplexity_of_a_token() -> None:
    from d2v_platform.registry.pyfunc_language_entry import LanguagePyfunc

    rows = {"A B": [-1.0, -2.0, -3.0], "C": [-0.5]}
    model = SimpleNamespace(token_scores=lambda texts: [np.array(rows[text]) for text in texts])
    predict = serving(LanguagePyfunc(), model)
    found = predict(pd.DataFrame({"text": ["C", "A B"]}, index=[4, 2]))
    assert list(found["log_prob"]) == [-0.5, -6.0] and list(found["tokens"]) == [1, 3]
    assert list(found["perplexity"]) == pytest.approx([math.exp(0.5), math.exp(2.0)])
    assert list(found.index) == [4, 2]
    with pytest.raises(DataError, match="must be log_prob"):
        predict(pd.DataFrame({"text": ["C"]}), output="scores")
