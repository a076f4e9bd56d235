"""Requests to served models: wrong values are refused by row and column, in one message."""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from data2vec import served
from data2vec.errors import DataError
from data2vec.served import answering, is_null, numbers, text_column


def entry(module: str, name: str, model: Any) -> Any:
    made = getattr(importlib.import_module(f"d2v_platform.registry.{module}"), name)()
    made._model = model
    return made


@pytest.fixture
def text_model() -> Any:
    def classify(inputs: list[Any]) -> tuple[list[str], np.ndarray]:
        return ["no", "yes"], np.array([[0.25, 0.75]] * len(inputs))

    config = {"kind": "sentence_classifier", "task": {}}
    return entry("pyfunc_entry", "TextPyfunc", SimpleNamespace(config=config, classify=classify))


def refusal(call: Callable[[], Any]) -> str:
    """What MLflow's server would answer: the message alone, status 400."""
    with pytest.raises(MlflowException) as caught:
        call()
    error = caught.value
    assert isinstance(error, DataError) and error.get_http_status_code() == 400
    answer = json.loads(error.serialize_as_json())
    assert "stack_trace" not in answer and "Traceback" not in str(answer)
    return str(answer["message"])


def test_texts_that_are_none_are_refused_by_row_and_column(text_model: Any) -> None:
    table = pd.DataFrame({"text": ["a", None, 5, float("nan"), pd.NA, True, ["x"], "b"]}, dtype=object)
    assert refusal(lambda: text_model.predict(None, table)) == (
        "row 1: text = null must be text; row 2: text = 5 must be text; row 3: text = null must be text; "
        "row 4: text = null must be text; row 5: text = True must be text; and 1 more"
    )
    pairs = pd.DataFrame({"text": ["a"] * 5, "text_pair": ["b", None, "", float("nan"), 7]}, dtype=object)
    assert refusal(lambda: text_model.predict(None, pairs)) == "row 4: text_pair = 7 must be text"
    assert list(text_model.predict(None, pairs[:4])["label"]) == ["yes"] * 4
    assert refusal(lambda: text_model.predict(None, pairs, {"output": "logits"})).startswith(
        "output = 'logits'"
    )


def test_sentences_of_a_language_model_are_checked() -> None:
    model = SimpleNamespace(token_scores=lambda texts: [np.array([-1.0])] * len(texts))
    served_model = entry("pyfunc_language_entry", "LanguagePyfunc", model)
    assert len(served_model.predict(None, pd.DataFrame({"text": ["a", ""]}))) == 2
    table = pd.DataFrame({"text": ["a", None]}, dtype=object)
    assert refusal(lambda: served_model.predict(None, table)) == "row 1: text = null must be text"
    assert "must be log_prob" in refusal(lambda: served_model.predict(None, table, {"output": "x"}))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"audio": None}, "row 1: give audio"),
        ({"audio": float("nan")}, "row 1: give audio"),
        ({"file": "text", "audio": [0.5]}, "row 1: give audio"),
        ({"audio": [0.5, None]}, "one list of finite numbers"),
        ({"audio": [0.5, float("nan")]}, "one list of finite numbers"),
        ({"audio": ["0.5"]}, "one list of finite numbers"),
        ({"audio": [[0.5]]}, "one list of finite numbers"),
        ({"audio": [True]}, "one list of finite numbers"),
        ({"audio": 5}, "one list of finite numbers"),
        ({"audio": [0.5], "rate": 0}, "rate = 0"),
        ({"audio": [0.5], "rate": 0.5}, "rate = 0.5"),
        ({"audio": [0.5], "rate": "16000"}, "rate = '16000'"),
        ({"audio": [0.5], "rate": float("inf")}, "rate = inf"),
    ],
)
def test_recordings_are_checked(row: dict[str, Any], told: str) -> None:
    model = SimpleNamespace(config={"kind": "pretrained"}, embed=lambda items, **_: [np.ones(2)] * len(items))
    audio = entry("pyfunc_audio_entry", "AudioPyfunc", model)
    good = {"audio": np.zeros(3), "rate": float("nan")}
    assert len(audio.predict(None, pd.DataFrame([good, {"file": b"x"}]))) == 2
    said = refusal(lambda: audio.predict(None, pd.DataFrame([good, row])))
    assert said.startswith("row 1: ") and told in said


@pytest.mark.parametrize("pixel", [None, float("nan"), 0.5, "7", [1]])
def test_images_of_anything_but_whole_numbers_are_refused(pixel: Any) -> None:
    def classify(images: list[Any]) -> tuple[list[str], np.ndarray]:
        assert all(image.dtype == np.uint8 and image.shape == (1, 2, 3) for image in images)
        return ["a"], np.ones((len(images), 1))

    images = entry(
        "pyfunc_image_entry", "ImagePyfunc", SimpleNamespace(classifier=object(), classify=classify)
    )
    nested = np.empty(1, dtype=object)  # as MLflow hands lists of lists on
    nested[0] = np.array([[1, 2, 3], [4, 5, 6]])
    good = [[[1, 2, 3], [4, 5, 6]]]
    assert len(images.predict(None, pd.DataFrame({"image": [good, nested]}))) == 2
    wrong = pd.DataFrame({"image": [good, [[[1, 2, pixel], [4, 5, 6]]]]})
    assert refusal(lambda: images.predict(None, wrong)).startswith("row 1: an image must hold whole numbers")
    either = pd.DataFrame({"file": ["text"], "image": [good]})
    assert refusal(lambda: images.predict(None, either)).startswith("row 0: give a column file")


def test_what_counts_as_null_and_as_numbers() -> None:
    assert all(map(is_null, (None, float("nan"), np.nan, pd.NA, pd.NaT)))
    assert not any(map(is_null, ("", 0, [], np.zeros(2), [None])))
    assert numbers([[1], [2.5]]) is not None and numbers([[1], [2, 3]]) is None and numbers("1") is None
    assert text_column(["", "a"], "text") == ["", "a"]


def test_a_mistake_of_ours_is_one_message_too(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(MlflowException) as caught, answering(MlflowException):
        raise KeyError("/srv/secret/place.py")
    answer = json.loads(caught.value.serialize_as_json())
    assert "/srv" not in str(answer) and "KeyError" in answer["message"]
    assert caught.value.get_http_status_code() == 500 and "/srv/secret" in caplog.text


def test_predictions_take_turns() -> None:
    inside: list[int] = []
    most: list[int] = []

    def ask() -> None:
        with answering(MlflowException):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6
    with pytest.raises(MlflowException), answering(MlflowException):
        raise DataError("a refusal gives the turn back")
    assert not served._TURN.locked()
