"""A recipe as MLflow params: flat, without secrets, and nothing cut."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data2vec.typed import flatten

from ..redaction import redact

if TYPE_CHECKING:
    from mlflow.entities import Run

    from .tracker import Tracker

_MAX_VALUE = 6000  # characters; MLflow's limit
_BATCH = 100  # params in one call; MLflow's limit
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


def log_params(tracker: Tracker, run: Run, params: Mapping[str, Any]) -> None:
    """Log what is not there yet; params cannot change, so later values are noted in a tag."""
    from mlflow.entities import Param

    run_id, there = run.info.run_id, run.data.params
    prepared = prepare_params(params)
    fresh = [Param(key, text) for key, text in prepared.values.items() if key not in there]
    changed = {k: [there[k], text] for k, text in prepared.values.items() if there.get(k, text) != text}
    for start in range(0, len(fresh), _BATCH):
        tracker.client.log_batch(run_id, params=fresh[start : start + _BATCH], synchronous=True)
    if prepared.unfit:
        tracker.set_tags(run_id, {"d2v.params_in_artifact": json.dumps(prepared.unfit)})
    if changed:
        tracker.set_tags(run_id, {"d2v.params_changed_on_resume": json.dumps(changed)})
    if fresh:
        tracker.log_dict(run_id, prepared.nested, "recipe/params.json")
