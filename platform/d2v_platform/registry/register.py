"""The model registry: nothing without lineage, nothing pickled, aliases only through the gate.

This module registers; reading (:mod:`model_versions`), naming (:mod:`model_source`) and moving aliases
(:mod:`promotion`) live beside it and are offered from here.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data2vec.errors import ConfigError, Data2VecError, Problem
from data2vec.folders import file_sha256

from ..home import home_folder
from ..recipe import user_code
from ..redaction import redact, redact_text
from ..tracking.mlflow_access import error_code, is_server
from ..tracking.scores import fitting_card, stored_scores, take_scores, with_scores
from .alias_history import AliasMove, history, note_outside_moves, show_score
from .alias_turns import turn
from .card_pictures import PICTURE_FOLDER, draw_curves, with_pictures
from .model_package import LINEAGE_FILE, package_model
from .model_source import ResolvedModel, resolve
from .model_versions import (
    KIND_TAG,
    LINEAGE_TAGS,
    MODEL_ID_TAG,
    RUN_TAG,
    WEIGHTS_TAG,
    ModelVersion,
    NewVersion,
    RegisteredModel,
    get_alias,
    get_version,
    list_models,
    missing_lineage,
    show,
)
from .promotion import GateRefusedError, promote, rollback
from .reload_check import CHECK_FILE
from .served_models import record_check

if TYPE_CHECKING:
    from ..tracking.tracker import Tracker

__all__ = [
    "LINEAGE_TAGS",
    "AliasMove",
    "GateRefusedError",
    "ModelVersion",
    "RegisteredModel",
    "ResolvedModel",
    "get_alias",
    "get_version",
    "history",
    "list_models",
    "promote",
    "record_check",
    "register",
    "resolve",
    "rollback",
    "show",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
_MAX_TAG = 5000  # characters; the column's size in PostgreSQL
_PACKAGING = threading.Lock()


def register(tracker: Tracker, new: NewVersion) -> ModelVersion:
    """Log a model folder as an MLflow model of a run and register it as a new version.

    The same weights of the same run are registered once: calling again after a crash gives the version that
    is there. Scores that the run has of these weights become the version's.

    Raises:
        ConfigError: lineage is incomplete or the name is not allowed; all problems at once.
        CheckpointError: the folder is no model folder.
    """
    user_code.load_installed()  # the tracker's process learns of users' families here
    from data2vec.artifact import read_artifact  # here: listing models needs no torch

    config = read_artifact(new.folder).config
    _check_request(new)
    weights = file_sha256(new.folder / "model.safetensors")
    own = {RUN_TAG: new.run_id, KIND_TAG: str(config["kind"]), WEIGHTS_TAG: weights}
    run_tags = tracker.client.get_run(new.run_id).data.tags
    scores = [score for score in stored_scores(run_tags) if score.weights == weights]
    version = _already_there(tracker, new.name, new.run_id, weights)
    if version is None:
        if not (new.folder / CHECK_FILE).is_file():
            record_check(new.folder)
        told = {key: str(value) for key, value in redact({**new.tags, **own}).items()}
        card = with_scores(redact_text(new.card_markdown), scores)
        version = _register_new(tracker, dataclasses.replace(new, tags=told, card_markdown=card), config)
    take_scores(tracker, scores, run_tags, new.name, version.version)
    refusal = None
    if new.alias is not None:
        try:
            promote(tracker, name=new.name, version=version.version, alias=new.alias)
        except GateRefusedError as refused:
            refusal = refused.line
    return dataclasses.replace(get_version(tracker, new.name, version.version), refusal=refusal)


def _register_new(tracker: Tracker, new: NewVersion, config: Mapping[str, Any]) -> ModelVersion:
    client, name, run_id, card = tracker.client, new.name, new.run_id, new.card_markdown
    experiment_id = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(
        # Unlike a registered name, this one may not have a dot.
        experiment_id,
        name=name.replace(".", "_"),
        source_run_id=run_id,
        model_type=config["kind"],
    )
    try:
        # One at a time: MLflow finds the model that a code file sets through a module-wide variable.
        # Beside the cache and not in /tmp: weights may be larger than a memory file system.
        with _PACKAGING, tempfile.TemporaryDirectory(dir=home_folder("cache", tracker.home)) as place:
            curves = draw_curves(tracker, run_id, Path(place))
            pictures = [*([curves] if curves else []), *new.pictures]
            shown = {file.stem: f"{PICTURE_FOLDER}/{file.name}" for file in pictures}
            package = package_model(
                dataclasses.replace(new, card_markdown=with_pictures(card, shown), pictures=pictures),
                Path(place) / "package",
                model_id=logged.model_id,
                config=config,
            )
            client.log_model_artifacts(logged.model_id, str(package))
        client.finalize_logged_model(logged.model_id, "READY")
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    try:
        client.create_registered_model(name)
    except Exception as error:
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, _about(name, card))
    created = client.create_model_version(
        name,
        # With a database as backend MLflow looks a models:/m-... source up in the *default* tracking store
        # of the process (its own TODO, 3.17), which need not be ours: give the place itself.
        source=f"models:/{logged.model_id}" if is_server(tracker.tracking_uri) else logged.artifact_location,
        run_id=run_id,
        model_id=logged.model_id,
        tags={key: _fitting_tag(value) for key, value in new.tags.items()} | {MODEL_ID_TAG: logged.model_id},
        description=fitting_card(with_pictures(card, _addresses(logged.model_id, pictures))),
    )
    tracker.set_tags(run_id, {f"registered.{name}": str(created.version)})
    version = get_version(tracker, name, created.version)
    show_score(tracker, "newest", version)
    with turn(tracker, name):
        note_outside_moves(tracker, name)
    return version


def _about(name: str, card: str) -> str:
    """The registered model in a sentence or two, for the head of its page."""
    summary = card.partition("\n\n")[2].partition("\n\n## ")[0].strip()
    return f"{summary}\n\nEach version holds its card; `d2v registry show {name}` lists scores and lineage."


def _addresses(model_id: str, pictures: Sequence[Path]) -> dict[str, str]:
    """Where MLflow's pages find the pictures: relative, so that a server's name and prefix do not matter.

    Pages show no ``data:`` images, and a description has room for 5000 characters.
    """
    files = (
        f"ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/files?artifact_file_path={PICTURE_FOLDER}"
    )
    return {file.stem: f"{files}/{file.name}" for file in pictures}


def _already_there(tracker: Tracker, name: str, run_id: str, weights: str) -> ModelVersion | None:
    try:
        model = show(tracker, name)
    except Data2VecError:
        return None
    for version in model.versions:
        if version.tags.get(RUN_TAG) == run_id and version.tags.get(WEIGHTS_TAG) == weights:
            return version
    return None


def _check_request(new: NewVersion) -> None:
    card, table = new.card_markdown, new.results_table
    problems = [
        Problem(f"tags[{tag!r}]", new.tags.get(tag), f"is required: {LINEAGE_TAGS[tag]}")
        for tag in missing_lineage(new.tags)
    ]
    if not _NAME.fullmatch(new.name):
        problems.append(Problem("name", new.name, "must be letters, digits, '_', '-' or '.', at most 128"))
    if not card.strip():
        problems.append(Problem("card_markdown", card, "is required: nothing is registered without a card"))
    if table is not None and not table.is_file():
        problems.append(Problem("results_table", str(table), "is no file"))
    if problems:
        raise ConfigError(problems, subject="the registration")


def _fitting_tag(value: str) -> str:
    return value if len(value) <= _MAX_TAG else f"{len(value)} characters, see {LINEAGE_FILE} in the version"
