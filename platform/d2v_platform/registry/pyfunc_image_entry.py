"""The code that MLflow runs when it loads one of our image model versions (models-from-code, no pickle).

It is copied into every version beside a copy of ``data2vec``, so it imports nothing of the platform.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext


class ImagePyfunc(PythonModel):
    """Class scores or embeddings of a table of images.

    Input: a column ``file`` (content of an image file) or ``image`` ((height, width, 3) values 0 ... 255).
    Params: ``output`` = "scores" | "embedding", ``pooling`` = "mean" | "cls", ``layer`` (-1 = last block).
    Output: for scores ``label``, ``score`` and one ``score_<label>`` a class; for embeddings one column
    ``embedding`` of lists.
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

        classifier = self._model.classifier is not None
        output = params.get("output") or ("scores" if classifier else "embedding")
        if output not in ("scores", "embedding"):
            raise DataError(f"output = {output!r} must be one of scores, embedding")
        if output == "scores" and not classifier:
            raise DataError("output = 'scores': a pretrained model has no head; use output = 'embedding'")
        images = _images(model_input)
        if output == "embedding":
            pooling, layer = params.get("pooling", "mean"), int(params.get("layer", -1))
            if pooling not in ("mean", "cls"):
                raise DataError(f"pooling = {pooling!r} must be one of mean, cls")
            with _naming_the_row(images):
                rows = self._model.embed(images, pooling=pooling, layer=layer)
            values = [[float(x) for x in row] for row in rows]
            return pd.DataFrame({"embedding": values}, index=model_input.index)
        with _naming_the_row(images):
            names, scores = self._model.classify(images)
        best = scores.argmax(axis=1)
        columns: dict[str, Any] = {
            "label": [names[index] for index in best],
            "score": [float(row[index]) for row, index in zip(scores, best, strict=True)],
        }
        columns |= {f"score_{name}": scores[:, index] for index, name in enumerate(names)}
        return pd.DataFrame(columns, index=model_input.index)


def _images(table: pd.DataFrame) -> list[Any]:
    """The image of each row: the content of a file where there is one, else the array."""
    import numpy as np

    from data2vec.errors import DataError
    from data2vec.served import is_null, numbers

    if "file" not in table and "image" not in table:  # MLflow passes over columns that it does not know
        raise DataError("give a column file (bytes) or image (height x width x 3 values); there is neither")
    found: list[Any] = []
    for row in range(len(table)):
        file = table["file"].iloc[row] if "file" in table else None
        if isinstance(file, bytes | bytearray | memoryview):
            found.append(bytes(file))
            continue
        image = table["image"].iloc[row] if "image" in table else None
        if is_null(image) or not is_null(file):
            raise DataError(f"row {row}: give a column file (bytes) or image (height x width x 3 values)")
        array = numbers(image)
        if array is None or not np.array_equal(array, np.trunc(array)):
            raise DataError(f"row {row}: an image must hold whole numbers, height x width x 3 of them")
        if array.min(initial=0) < 0 or array.max(initial=0) > 255:
            raise DataError(f"row {row}: values of an image must lie in 0 ... 255")
        found.append(array.astype(np.uint8))
    return found


@contextmanager
def _naming_the_row(images: list[Any]) -> Iterator[None]:
    """An image that cannot be read is told by its row."""
    from data2vec.data.image_files import UnreadableImageError, read_image
    from data2vec.errors import DataError

    try:
        yield
    except UnreadableImageError:
        for row, image in enumerate(images):
            if isinstance(image, bytes):
                try:
                    read_image(image)
                except UnreadableImageError as error:
                    raise DataError(f"row {row}: {error}") from None
        raise


mlflow.models.set_model(ImagePyfunc())
