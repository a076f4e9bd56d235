"""Requests to a served model: what a table may hold, and answers that a server can give as they are.

Rows are counted from 0.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .errors import Data2VecError, DataError

logger = logging.getLogger(__name__)

_SHOWN = 5
_TURN = threading.Lock()


@contextmanager
def answering(server_error: Any) -> Iterator[None]:
    """Compute one answer: predictions take turns, and what goes wrong is one message.

    Several at once would be no faster, as one uses all cores, and would leave a server no time to say
    meanwhile that it is well.

    Args:
        server_error: MLflow's exception, which its server answers with the message alone; of any other it
            shows the trace, with the places of files on the server.

    Raises:
        Data2VecError: the request was wrong; it is a ``server_error`` too.
    """

    class RefusedRequest(server_error, DataError):
        """A request that cannot be answered."""

    with _TURN:
        try:
            yield
        except Data2VecError as error:
            raise RefusedRequest.invalid_parameter_value(str(error)) from None
        except Exception as error:
            logger.exception("a request failed")
            told = (
                f"the model failed on this request ({type(error).__name__}); the log of the server says more"
            )
            raise server_error(told) from error


def text_column(values: Iterable[Any], column: str, *, optional: bool = False) -> list[str | None]:
    """The texts of a column; with ``optional``, ``None`` where there is none (null or empty).

    Raises:
        DataError: a value is no text, with its row; all of them at once.
    """
    found = [None if optional and (value == "" or is_null(value)) else value for value in values]

    def problem(value: Any) -> str | None:
        return None if isinstance(value, str) or (optional and value is None) else "must be text"

    check_rows(found, column, problem)
    return found


def check_rows(values: Iterable[Any], column: str, problem: Callable[[Any], str | None]) -> None:
    """Refuse a column's wrong values, all at once.

    Raises:
        DataError: naming row, column, value and rule.
    """
    wrong = [
        f"row {row}: {column} = {_short(value)} {rule}"
        for row, value in enumerate(values)
        if (rule := problem(value)) is not None
    ]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise DataError("; ".join(wrong[:_SHOWN]) + more)


def is_null(value: Any) -> bool:
    """What JSON's null, a missing key or an empty cell becomes in a table: None, NaN or pandas' NA."""
    if value is None:
        return True
    try:
        return bool(value != value)  # NaN alone differs from itself
    except (TypeError, ValueError):  # pandas' NA has no truth; arrays have several
        return type(value).__name__ == "NAType"


def numbers(value: Any) -> np.ndarray | None:
    """Nested lists or arrays of finite numbers as one array; ``None`` for anything else."""
    try:
        array = np.asarray(value)
        if array.dtype == object:  # arrays in arrays, as tables hold them
            array = np.array(_lists(value))
    except (ValueError, TypeError):  # lists of unlike lengths
        return None
    return array if array.dtype.kind in "iuf" and np.isfinite(array).all() else None


def _lists(value: Any) -> Any:
    return [_lists(part) for part in value] if isinstance(value, list | tuple | np.ndarray) else value


def _short(value: Any) -> str:
    text = "null" if is_null(value) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
