"""Where the scores of an inference belong in MLflow: the run and the registered version of its model."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data2vec.errors import Data2VecError

from ..tracking.mlflow_access import short_reason
from ..tracking.scores import Score, record_scores
from ..tracking.tracker import Tracker

logger = logging.getLogger(__name__)
_VERSION = re.compile(r"models:/(?P<name>[^@/]+)/(?P<number>\d+)")
_RUN = re.compile(r"runs:/+(?P<run>[0-9a-f]{32})(?:/.*)?")


@dataclass(frozen=True)
class Owner:
    """What a model's scores are scores of; nothing of it for a model that MLflow does not know."""

    run_id: str | None = None  # the run that trained it
    version: tuple[str, int] | None = None  # registered name and number


def updates_seen(config: Mapping[str, Any]) -> int:
    """Updates that a model's weights have seen, by its ``config.json``; 0 where it does not say."""
    update = (config.get("origin") or {}).get("update")
    return update if isinstance(update, int) and update >= 0 else 0


def owner_of(asked: str, uri: str, config: Mapping[str, Any], run: str | None) -> Owner:
    """Find the run and the version of a model before it is used.

    Args:
        asked: the model as it was named.
        uri: its exact name, as it was resolved.
        config: its ``config.json``.
        run: name or id of the run that the user gave.

    Raises:
        Data2VecError: there is no such run, or the model is another run's.
    """
    version, known = None, str((config.get("origin") or {}).get("run_id") or "")
    if (match := _VERSION.fullmatch(uri)) is not None:
        version = match["name"], int(match["number"])
    if run is None and version is None and not _RUN.fullmatch(asked):
        return Owner()
    with Tracker() as tracker:
        if version is not None:
            known = tracker.client.get_model_version(version[0], str(version[1])).run_id or known
        elif (match := _RUN.fullmatch(asked)) is not None:
            known = match["run"]
        if run is None:
            return Owner(known or None, version)
        from ..reports.run_history import find_run

        found = find_run(tracker.client, run).info
    if known and known != found.run_id:
        raise Data2VecError(
            f"--run {run}: the model {asked} comes from the run {known}, not from {found.run_name} "
            f"({found.run_id}); leave --run out for a registered model, or give the run that trained it"
        )
    return Owner(found.run_id, version)


def record(owner: Owner, scores: Sequence[Score]) -> None:
    """Put scores into MLflow and say so; they are on disk already, so a failure is told and no more."""
    if not any(score.metrics for score in scores):
        return
    if owner == Owner():
        logger.info("the scores are not in MLflow: that takes a registered model, or --run RUN")
        return
    try:
        with Tracker() as tracker:
            for line in record_scores(tracker, scores, owner.run_id, owner.version):
                logger.info("recorded in %s", line)
    except Exception as error:  # MLflow raises whatever its store does
        logger.warning("the scores could not be recorded in MLflow: %s", short_reason(error))
