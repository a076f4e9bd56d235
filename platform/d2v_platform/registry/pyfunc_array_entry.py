"""The code that MLflow runs for a model of a user's family that embeds arrays; each version has a copy.

It imports nothing of the platform: the modules beside ``data2vec`` in the version's code register the family.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext


class ArrayModel(PythonModel):
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

        rows = []
        for number, nested in enumerate(model_input["input"]):
            try:
                rows.append(self._model.embed(_array(nested)).astype(float).tolist())
            except (DataError, TypeError, ValueError) as error:
                raise DataError(f"row {number}, column input: {error}") from error
        return pd.DataFrame({"embedding": rows}, index=model_input.index)


def _array(nested: Any) -> Any:
    """MLflow gives arrays of arrays."""
    found = np.array(nested.tolist() if isinstance(nested, np.ndarray) else nested, dtype=object)
    while found.dtype == object and found.size and isinstance(found.flat[0], np.ndarray | list):
        found = np.array([np.asarray(part).tolist() for part in found.ravel()])
    values = found.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("holds values that are no finite numbers")
    return values


mlflow.models.set_model(ArrayModel())
