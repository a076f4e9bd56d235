"""A recipe as MLflow params: flat, without secrets, and nothing cut."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data2vec.typed import flatten

from .redaction import redact

_MAX_VALUE = 6000  # characters; MLflow's limit
_KEY = re.compile(r"[\w.\- /:]{1,250}")


@dataclass(frozen=True)
class PreparedParams:
    """A recipe ready to be logged.

    ``values`` are what fits into params, ``unfit`` the names of what does not (too long, or a name MLflow
    refuses), ``nested`` the whole recipe without secrets.
    """

    values: dict[str, str]
    unfit: list[str]
    nested: dict[str, Any]


def prepare_params(params: Mapping[str, Any]) -> PreparedParams:
    """Flatten a nested plain recipe; text stays as it is, everything else is written as JSON."""
    nested = redact(dict(params))
    values: dict[str, str] = {}
    unfit: list[str] = []
    for key, value in sorted(flatten(nested).items()):
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        if len(text) > _MAX_VALUE or not _KEY.fullmatch(key):
            unfit.append(key)
        else:
            values[key] = text
    return PreparedParams(values, unfit, nested)
