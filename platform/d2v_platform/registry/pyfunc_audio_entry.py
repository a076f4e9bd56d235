"""The code that MLflow runs when it loads a speech model version of ours (models-from-code, no pickle).

This file is copied into every version, beside a copy of the ``data2vec`` package and the model folder, so
that a version keeps loading with the code it was registered with. It therefore imports nothing of the
platform.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext


class AudioModel(PythonModel):
    """Transcripts, emissions or embeddings of a table of recordings.

    Input: a column ``audio`` (arrays of samples) with an optional column ``rate`` (16000 where absent), or a
    column ``file`` (the content of audio files); a row uses whichever it has.
    Params: ``output`` = "transcript" | "emissions" | "embedding", ``pooling`` = "mean" | "none", ``layer``.
    Output: ``text``, ``words`` (text, start_s, end_s) and ``score``; or ``emissions`` (frames x symbols); or
    ``embedding``.
    """

    def load_context(self, context: PythonModelContext) -> None:
        import data2vec

        self._model = data2vec.load(context.artifacts["model"])

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  # the base says None
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        from data2vec.errors import DataError

        params = params or {}
        with_letters = self._model.config["kind"] == "ctc"
        output = params.get("output") or ("transcript" if with_letters else "embedding")
        if output not in ("transcript", "emissions", "embedding"):
            raise DataError(f"output = {output!r} must be one of transcript, emissions, embedding")
        if output != "embedding" and not with_letters:
            raise DataError(
                f"output = {output!r}: a pretrained model has no letters; use output = 'embedding'"
            )
        recordings = [_recording(row) for row in model_input.to_dict("records")]
        if output == "transcript":
            found = self._model.transcribe(recordings)
            columns: dict[str, list[Any]] = {
                "text": [transcript.text for transcript in found],
                "words": [[vars(word) for word in transcript.words] for transcript in found],
                "score": [transcript.score for transcript in found],
            }
        elif output == "emissions":
            columns = {"emissions": [self._model.emissions(recording).tolist() for recording in recordings]}
        else:
            pooling, layer = params.get("pooling", "mean"), int(params.get("layer", -1))
            rows = self._model.embed(recordings, pooling=pooling, layer=layer)
            columns = {"embedding": [row.astype(float).tolist() for row in rows]}
        return pd.DataFrame(columns, index=model_input.index)


def _recording(row: dict[Any, Any]) -> Any:
    from data2vec.errors import DataError

    content = row.get("file")
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    samples = row.get("audio")
    if samples is None or isinstance(samples, float):
        raise DataError("each row needs audio (an array of samples) or file (the content of an audio file)")
    rate = row.get("rate")
    return np.asarray(samples, dtype=np.float32), 16_000 if rate is None or pd.isna(rate) else int(rate)


mlflow.models.set_model(AudioModel())
