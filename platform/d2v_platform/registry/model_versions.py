"""Registered models as we read them: versions with their tags, aliases and lineage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data2vec.errors import Data2VecError, nearest_names

from ..tracking.mlflow_access import error_code

if TYPE_CHECKING:
    from ..tracking.tracker import Tracker

# Design §5.7: nothing is registered without these. "none" is a valid statement, silence is not.
LINEAGE_TAGS: dict[str, str] = {
    "recipe.name": "the recipe it was trained with",
    "recipe.digest": "hash of the resolved recipe",
    "recipe.difference": "what was changed in the named recipe ('none' if nothing)",
    "data.fingerprint": "hash of the data it was trained on (fine-tuned: judged on)",
    "dictionary.hash": "hash of the dictionary ('none' for speech and images)",
    "code.version": "version or commit of the code",
    "parent.version": "the version it was fine-tuned from ('none' if trained from scratch)",
}
RUN_TAG = "run.id"
PARENT_TAG = "d2v.parent"  # of a run: exact name of the model that it was fine-tuned from
KIND_TAG = "model.kind"
WEIGHTS_TAG = "weights.sha256"
MODEL_ID_TAG = "model.id"  # MLflow's logged model
PRETRAINED = "pretrained"


@dataclass(frozen=True, kw_only=True)
class NewVersion:
    """What is to be registered.

    Attributes:
        folder: model folder of ours; gets a ``check.json`` if it has none.
        name: registered name, e.g. ``data2vec2-text-base-cola``.
        run_id: the run that made it.
        tags: lineage (:data:`LINEAGE_TAGS`, all required) and, for the gate, ``metric.name``,
            ``metric.value``, ``metric.maximize`` (fine-tuned) or ``collapse`` (pretrained).
        card_markdown: the model card; also the version's description.
        alias: alias to take if the gate lets it; see ``ModelVersion.refusal``.
        results_table: CSV or Markdown to keep beside the card.
        pictures: PNG files for the card (``card_pictures.TITLES`` says of what); the run's curves are drawn
            when it is registered.
    """

    folder: Path
    name: str
    run_id: str
    tags: Mapping[str, str]
    card_markdown: str
    alias: str | None = None
    results_table: Path | None = None
    pictures: Sequence[Path] = ()


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model.

    ``refusal`` is set by ``register`` when the gate did not let the wanted alias move.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    uri: str
    run_id: str
    model_id: str | None
    tags: dict[str, str] = field(default_factory=dict)
    description: str = ""
    created_ms: int = 0
    refusal: str | None = None

    @property
    def kind(self) -> str:
        """``pretrained``, ``sentence_classifier``, or empty for a version that is not ours."""
        return self.tags.get(KIND_TAG, "")

    def number(self, tag: str) -> float | None:
        """A tag as a finite number; ``None`` where it is absent or is none."""
        try:
            value = float(self.tags[tag])
        except (KeyError, ValueError):
            return None
        return value if math.isfinite(value) else None

    def score(self) -> str:
        """What the gate compares, in words; empty where nothing was measured."""
        for kind in ("metric", "downstream"):
            value = self.number(f"{kind}.value")
            if value is not None:
                return f"{self.tags.get(f'{kind}.name', '?')} {value:.4g}"
        return ""

    def missing_lineage(self) -> list[str]:
        """Lineage tags that are absent or empty."""
        return missing_lineage(self.tags) + ([] if self.tags.get(RUN_TAG) else [RUN_TAG])


@dataclass(frozen=True)
class RegisteredModel:
    """A registered name with its versions (newest first) and aliases (alias -> version)."""

    name: str
    versions: tuple[ModelVersion, ...]
    aliases: dict[str, int]


def missing_lineage(tags: Mapping[str, str]) -> list[str]:
    """The required lineage tags that are absent or empty."""
    return [tag for tag in LINEAGE_TAGS if not str(tags.get(tag, "")).strip()]


def ancestry(tracker: Tracker, version: ModelVersion) -> list[str]:
    """Where a version comes from, oldest first: data, pretrained model, data, fine-tuned model, in words.

    A parent that is no registered version (a file, a deleted version) ends the line and is named.
    """
    steps: list[str] = []
    current, seen = version, set[str]()
    while current.uri not in seen:
        seen.add(current.uri)
        tags = current.tags
        made = f"run {current.run_id[:8]}, recipe {tags.get('recipe.name', '?')}"
        if tags.get("run.update"):
            made += f", update {tags['run.update']}"
        steps.append(f"{current.kind or 'model'} {current.uri} ({made})")
        trained = tags.get("data.train_fingerprint") or tags.get("data.fingerprint") or "?"
        steps.append(f"data {trained[:16]}")
        parent = tags.get("parent.version", "none")
        if parent in ("", "none"):
            break
        name, _, number = parent.removeprefix("models:/").rpartition("/")
        try:
            if not parent.startswith("models:/") or not name:
                raise Data2VecError(parent)
            current = get_version(tracker, name, number)
        except Data2VecError:
            steps.append(f"model {parent} (not in this registry)")
            break
    return steps[::-1]


def list_models(tracker: Tracker) -> list[RegisteredModel]:
    """All registered models, by name."""
    names: list[str] = []
    token: str | None = None
    while True:
        page = tracker.client.search_registered_models(max_results=100, page_token=token)
        names.extend(model.name for model in page)
        token = page.token
        if not token:
            return [show(tracker, name) for name in sorted(names)]


def show(tracker: Tracker, name: str) -> RegisteredModel:
    """One registered model.

    Raises:
        Data2VecError: no model of this name; the message lists what exists.
    """
    try:
        # Searches leave aliases out; this call does not.
        model = tracker.client.get_registered_model(name)
    except Exception as error:
        if error_code(error) not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise _unknown(tracker, name) from error
    aliases = {alias: int(version) for alias, version in model.aliases.items()}
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = tracker.client.search_model_versions(f"name = '{name}'", max_results=100, page_token=token)
        found.extend(_version(entity, aliases) for entity in page)
        token = page.token
        if not token:
            break
    return RegisteredModel(name, tuple(sorted(found, key=lambda v: v.version, reverse=True)), aliases)


def get_version(tracker: Tracker, name: str, version: int | str) -> ModelVersion:
    """One version.

    Raises:
        Data2VecError: the model or the version does not exist; the message lists what does.
    """
    model = show(tracker, name)
    for candidate in model.versions:
        if str(candidate.version) == str(version):
            return candidate
    raise Data2VecError(
        f"models:/{name}/{version}: {name} has the versions {_listed(model)}"
        if model.versions
        else f"models:/{name}/{version}: {name} has no versions"
    )


def get_alias(tracker: Tracker, name: str, alias: str) -> ModelVersion:
    """The version that holds an alias.

    Raises:
        Data2VecError: the model or the alias does not exist; the message lists what does.
    """
    model = show(tracker, name)
    if alias not in model.aliases:
        known = ", ".join(f"{a} -> {v}" for a, v in sorted(model.aliases.items())) or "none"
        raise Data2VecError(
            f"models:/{name}@{alias}: {name} has the aliases: {known}{nearest_names(alias, model.aliases)}; "
            f"its versions are {_listed(model) or 'none'}"
        )
    return get_version(tracker, name, model.aliases[alias])


def _listed(model: RegisteredModel) -> str:
    return ", ".join(str(v.version) for v in reversed(model.versions))


def _unknown(tracker: Tracker, name: str) -> Data2VecError:
    names = [model.name for model in tracker.client.search_registered_models(max_results=100)]
    known = f"registered are {', '.join(sorted(names))}" if names else "nothing is registered yet"
    return Data2VecError(f"no registered model {name!r}{nearest_names(name, names) or ';'} {known}")


def _version(entity: Any, aliases: Mapping[str, int]) -> ModelVersion:
    version = int(entity.version)
    return ModelVersion(
        name=entity.name,
        version=version,
        aliases=tuple(sorted(alias for alias, held in aliases.items() if held == version)),
        uri=f"models:/{entity.name}/{version}",
        run_id=entity.run_id or "",
        model_id=_model_id(entity),
        tags=dict(entity.tags),
        description=entity.description or "",
        created_ms=int(entity.creation_timestamp or 0),
    )


def _model_id(entity: Any) -> str | None:
    source = str(entity.source or "")
    if MODEL_ID_TAG in entity.tags:
        return str(entity.tags[MODEL_ID_TAG])
    return source.removeprefix("models:/") if source.startswith("models:/m-") else None
