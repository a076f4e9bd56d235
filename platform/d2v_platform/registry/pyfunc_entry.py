"""The code that MLflow runs when it loads one of our model versions (models-from-code, no pickle).

This file is copied into every version, beside a copy of the ``data2vec`` package and the model folder, so
that a version keeps loading with the code it was registered with. It therefore imports nothing of the
platform.
"""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext


class TextPyfunc(PythonModel):
    """Class scores or embeddings of a table of texts.

    Input: a column ``text``, and ``text_pair`` for tasks on pairs of sentences (empty: a single sentence).
    Params: ``output`` = "scores" | "embedding", ``pooling`` = "mean" | "cls", ``layer`` (-1 = last block).
    Output: for scores ``label``, ``score`` and one ``score_<label>`` a class (a regression: ``score`` only);
    for embeddings one column ``embedding`` of lists.
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
        from data2vec.served import text_column

        classifier = self._model.config["kind"] != "pretrained"
        output = params.get("output") or ("scores" if classifier else "embedding")
        if output not in ("scores", "embedding"):
            raise DataError(f"output = {output!r} must be one of scores, embedding")
        if output == "scores" and not classifier:
            raise DataError("output = 'scores': a pretrained model has no head; use output = 'embedding'")
        texts = text_column(model_input["text"], "text")
        if output == "embedding":
            pooling, layer = params.get("pooling", "mean"), int(params.get("layer", -1))
            if pooling not in ("mean", "cls"):
                raise DataError(f"pooling = {pooling!r} must be one of mean, cls")
            rows = self._model.embed(texts, pooling=pooling, layer=layer)
            return pd.DataFrame(
                {"embedding": [[float(x) for x in row] for row in rows]}, index=model_input.index
            )
        return self._scores(texts, model_input)

    def _scores(self, texts: list[Any], model_input: pd.DataFrame) -> pd.DataFrame:
        from data2vec.served import text_column

        pairs: list[Any] = [None] * len(texts)
        if "text_pair" in model_input:
            pairs = text_column(model_input["text_pair"], "text_pair", optional=True)
        names: list[str] = []
        scores: dict[int, list[float]] = {}
        for single in (True, False):
            rows = [row for row, pair in enumerate(pairs) if (pair is None) == single]
            if rows:
                inputs: list[Any] = [texts[row] if single else (texts[row], pairs[row]) for row in rows]
                names, values = self._model.classify(inputs)
                scores.update({row: list(map(float, values[i])) for i, row in enumerate(rows)})
        table = [scores[row] for row in range(len(texts))]
        if self._model.config["task"].get("regression"):
            return pd.DataFrame({"score": [row[0] for row in table]}, index=model_input.index)
        best = [max(range(len(row)), key=row.__getitem__) for row in table]
        columns: dict[str, list[Any]] = {
            "label": [names[index] for index in best],
            "score": [row[index] for row, index in zip(table, best, strict=True)],
        }
        for index, name in enumerate(names):
            columns[f"score_{name}"] = [row[index] for row in table]
        return pd.DataFrame(columns, index=model_input.index)


mlflow.models.set_model(TextPyfunc())
