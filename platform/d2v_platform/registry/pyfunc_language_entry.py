"""The code that MLflow runs when it loads a language model's version (models-from-code, no pickle).

Copied into every version like :mod:`pyfunc_entry`; it imports nothing of the platform.
"""

from __future__ import annotations

import math
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext


class LanguagePyfunc(PythonModel):
    """Probabilities of a table of sentences.

    Input: a column ``text``. Output: ``log_prob`` (natural logarithm, the end of the sentence included),
    ``tokens`` (likewise) and ``perplexity``.
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

        output = params.get("output") or "log_prob"
        if output != "log_prob":
            raise DataError(f"output = {output!r} must be log_prob: a language model has nothing else")
        rows = self._model.token_scores(text_column(model_input["text"], "text"))
        sums = [float(row.sum()) for row in rows]
        columns = {
            "log_prob": sums,
            "tokens": [len(row) for row in rows],
            "perplexity": [math.exp(-total / len(row)) for total, row in zip(sums, rows, strict=True)],
        }
        return pd.DataFrame(columns, index=model_input.index)


mlflow.models.set_model(LanguagePyfunc())
