"""The code that MLflow runs when it loads an audio model version of ours (models-from-code, no pickle).

This file is copied into every version, beside a copy of the ``data2vec`` package and the model folder, so
that a version keeps loading with the code it was registered with. It therefore imports nothing of the
platform.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

# What models of each kind give, the default first.
_OUTPUTS = {
    "pretrained": ("embedding",),
    "ctc": ("transcript", "emissions", "embedding"),
    "audio_classifier": ("scores", "embedding"),
}


class AudioPyfunc(PythonModel):
    """Transcripts, emissions, event scores or embeddings of a table of recordings.

    Input: a column ``audio`` (arrays of samples) with an optional column ``rate`` (16000 where absent), or a
    column ``file`` (the content of audio files); a row uses whichever it has.
    Params: ``output`` = "transcript" | "emissions" (models with letters) | "scores" (models of events) |
    "embedding", ``pooling`` = "mean" | "none", ``layer``.
    Output: ``text``, ``words`` (text, start_s, end_s) and ``score``; or ``emissions`` (frames x symbols); or
    ``label``, ``score`` and one ``score_<label>`` a class; or ``embedding``.
    """

    def load_context(self, context: PythonModelContext) -> None:
        import data2vec

        self._model = data2vec.load(context.artifacts["model"], device="auto")

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  # the base says None
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        from data2vec.served import answering

        with answering(MlflowException):
            return self._predict(model_input, params or {})

    def _predict(self, model_input: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        from data2vec.errors import DataError

        outputs = _OUTPUTS[self._model.config["kind"]]
        output = params.get("output") or outputs[0]
        if output not in outputs:
            raise DataError(f"output = {output!r}: this model gives {', '.join(outputs)}")
        if "audio" not in model_input and "file" not in model_input:  # MLflow passes over unknown columns
            raise DataError("give a column audio (arrays of samples) or file (bytes); there is neither")
        rows = model_input.to_dict("records")
        recordings = [_recording(number, row) for number, row in enumerate(rows)]
        if output == "transcript":
            found = self._model.transcribe(recordings)
            columns: dict[str, list[Any]] = {
                "text": [transcript.text for transcript in found],
                "words": [[vars(word) for word in transcript.words] for transcript in found],
                "score": [transcript.score for transcript in found],
            }
        elif output == "emissions":
            columns = {"emissions": [found.tolist() for found in self._model.emissions(recordings)]}
        elif output == "scores":
            names, scores = self._model.classify(recordings)
            best = scores.argmax(axis=1)
            columns = {"label": [names[i] for i in best], "score": scores.max(axis=1).tolist()}
            columns |= {f"score_{name}": scores[:, i].tolist() for i, name in enumerate(names)}
        else:
            pooling, layer = params.get("pooling", "mean"), int(params.get("layer", -1))
            rows = self._model.embed(recordings, pooling=pooling, layer=layer)
            columns = {"embedding": [row.astype(float).tolist() for row in rows]}
        return pd.DataFrame(columns, index=model_input.index)


def _recording(number: int, row: dict[Any, Any]) -> Any:
    from data2vec.errors import DataError
    from data2vec.served import is_null, numbers

    content, samples, rate = (row.get(name) for name in ("file", "audio", "rate"))
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    if is_null(samples) or not is_null(content):
        raise DataError(
            f"row {number}: give audio (an array of samples) or file (the content of an audio file)"
        )
    array = numbers(samples)
    if array is None or array.ndim != 1:
        raise DataError(f"row {number}: audio must be one list of finite numbers")
    if is_null(rate):
        return array.astype(np.float32), 16_000
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate % 1 != 0 or rate < 1:
        raise DataError(f"row {number}: rate = {rate!r} must be a whole number of samples a second")
    return array.astype(np.float32), int(rate)


mlflow.models.set_model(AudioPyfunc())
