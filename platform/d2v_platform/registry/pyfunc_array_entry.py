"""The code that MLflow runs for a model of a user's family that embeds arrays; each version has a copy.

It imports nothing of the platform: the modules beside ``data2vec`` in the version's code register the family.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext


class ArrayPyfunc(PythonModel):
    """A column ``input`` of nested lists to a column ``embedding`` of lists."""

    def load_context(self, context: PythonModelContext) -> None:
        import data2vec

        code = Path(context.artifacts["model"]).parents[1] / "code"  # MLflow has it on the path
        for file in sorted(code.glob("*.py")):
            importlib.import_module(file.stem)
        self._model = data2vec.load(context.artifacts["model"], device="auto")

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  # the base says None
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        from data2vec.errors import DataError
        from data2vec.served import answering, check_rows, numbers

        with answering(MlflowException):
            given = list(model_input["input"])
            check_rows(
                given, "input", lambda v: None if numbers(v) is not None else "must be an array of numbers"
            )
            rows = []
            for number, nested in enumerate(given):
                try:
                    rows.append(self._model.embed(numbers(nested)).astype(float).tolist())
                except DataError as error:
                    raise DataError(f"row {number}: input: {error}") from error
            return pd.DataFrame({"embedding": rows}, index=model_input.index)


mlflow.models.set_model(ArrayPyfunc())
