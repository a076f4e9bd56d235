"""From a finished training to a registered version: lineage tags, card, and the gate's inputs."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from data2vec.families import generation_in_words, modality_of, read_model_config, shape_in_words

from ..home import chosen_tracking_uri
from ..recipe.compose import Composed
from ..recipe.difference import difference, digest
from ..recipe.schema import Recipe
from ..redaction import redact_text
from ..tasks import task_class
from ..tasks.pretraining import COLLAPSE_GUARD_AFTER
from ..tracking.interface import RunTracker
from ..training.collapse import collapsed_stages
from ..training.loop_state import Summary
from ..training.run_description import code_version
from .card_pictures import PICTURE_FOLDER
from .model_card import CardFacts, model_card
from .model_versions import NewVersion
from .register import register
from .served_models import served_as

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A training that has ended."""

    run_id: str  # of MLflow
    model: Path  # the exported folder
    summary: Summary  # how it ended
    parent_uri: str | None = None  # exact name of the model it was fine-tuned from


@dataclasses.dataclass(frozen=True)
class Registration:
    """How its model is registered where the recipe does not say it."""

    name: str | None = None  # registered name instead of ``platform.register_as``
    alias: str | None = None  # alias instead of ``platform.alias``
    protocol: str | None = None  # how the figures came about, for the card
    seeds: tuple[int, ...] | None = None  # seeds behind the figures
    results_table: Path | None = None  # kept beside the card


def register_summary(
    tracker: RunTracker, composed: Composed, trained: Trained, asked: Registration = Registration()
) -> str | None:
    """Register the exported model of a run, if the recipe (or the caller) names it.

    Args:
        tracker: where.
        composed: what was trained.
        trained: what it became.
        asked: what the recipe does not say.

    Returns:
        ``models:/NAME/VERSION`` with the alias it took, or ``None`` if nothing was to be registered.
    """
    platform = composed.recipe.platform
    name, wanted = asked.name or platform.register_as, asked.alias or platform.alias
    if name is None:
        return None
    logger.info("registering the model as %s: card, pictures, and a prediction in a clean process", name)
    tags = lineage_tags(composed, trained.summary, trained.parent_uri)
    tags |= gate_tags(composed.recipe, trained.summary)
    facts = card_facts(name, composed, trained, tags, asked)
    new = NewVersion(
        folder=trained.model,
        name=name,
        run_id=trained.run_id,
        tags=tags,
        card_markdown=model_card(dataclasses.replace(facts, alias=wanted)),
        alias=wanted,
        results_table=asked.results_table,
        pictures=draw_data(composed.recipe, trained.model, trained.model.parent / PICTURE_FOLDER),
    )
    version = tracker.run(register, new)
    if version.refusal:
        logger.warning("%s/%s was registered without the alias: %s", name, version.version, version.refusal)
    taken = f"@{wanted}" if wanted and wanted in version.aliases else ""
    return f"models:/{name}/{version.version}{f' ({name}{taken})' if taken else ''}"


def draw_data(recipe: Recipe, model_folder: Path, folder: Path) -> list[Path]:
    """Pictures that need the recipe's data, where its task draws any.

    Never fails: a card without them is a card.

    Args:
        recipe: with its data on this machine or at a URI.
        model_folder: the exported model.
        folder: where they go.
    """
    try:
        return task_class(recipe).pictures(recipe, model_folder, folder)
    except Exception as error:
        logger.warning("no pictures of the data on the model card: %s: %s", type(error).__name__, error)
        return []


def lineage_tags(composed: Composed, summary: Summary, parent_uri: str | None) -> dict[str, str]:
    """What a version must carry: recipe, data, dictionary, code, parent."""

    changed = difference(composed.recipe, composed.base)
    told = {field: [change.before, change.after] for field, change in changed.items()}
    return {
        "recipe.name": composed.named_recipe,
        "recipe.digest": digest(composed.recipe),
        "recipe.difference": json.dumps(told) if told else "none",
        "code.version": code_version(),
        "parent.version": parent_uri or "none",
        "run.update": str(summary.best_update if summary.best_update is not None else summary.update),
    } | summary.facts


def gate_tags(recipe: Recipe, summary: Summary) -> dict[str, str]:
    """What the gate compares: the metric of a fine-tuned model, the variances of a pretrained one."""
    rules = recipe.checkpoint
    if task_class(recipe).pretraining:
        target, prediction = (summary.metrics.get(f"train/{key}") for key in ("target_var", "pred_var"))
        if target is None or prediction is None:
            return {"collapse": "unknown"}
        # Predictions start without variance: theirs counts once the recipe's own guard would.
        # Pixels, the targets of masked autoencoders, cannot collapse.
        low, low_target = (getattr(recipe.model, f"min_{name}_var", 0.0) for name in ("pred", "target"))
        still = prediction < low and summary.update > COLLAPSE_GUARD_AFTER
        stages = collapsed_stages(recipe, summary.metrics, summary.update)
        collapsed = bool(stages) or still or target < low_target
        tags = {"collapse": str(collapsed).lower()}
        if (metric := summary.facts.get("floor.metric")) is not None:  # a probe of the features
            value = summary.metrics.get(f"{recipe.valid_subsets()[0]}/{metric}")
            tags |= {
                "downstream.name": metric,
                "downstream.value": repr(value) if value is not None else "none",
                "downstream.maximize": "true",
                "downstream.data": summary.facts["floor.data"],
            }
        return tags
    return {
        "metric.name": rules.best_checkpoint_metric,
        "metric.value": repr(summary.best) if summary.best is not None else "none",
        "metric.maximize": str(rules.maximize_best_checkpoint_metric).lower(),
    }


def card_facts(
    name: str, composed: Composed, trained: Trained, tags: dict[str, str], asked: Registration
) -> CardFacts:
    """Everything the card states, read from the run and the exported folder."""
    config: dict[str, Any] = json.loads((trained.model / "config.json").read_text(encoding="utf-8"))
    model, task = read_model_config(config.get("family"), config["model"]), config.get("task") or {}
    modality = modality_of(model).lower()
    noun = served_as(config["kind"], modality).noun(config) or f"{modality} encoder"
    what = f"{generation_in_words(model)} {noun}".strip()
    changed = difference(composed.recipe, composed.base)
    shown = {
        key: value
        for key, value in trained.summary.metrics.items()
        if not key.startswith("train/") or "loss" in key
    }
    summary = trained.summary
    update = summary.best_update if summary.best_update is not None else summary.update
    subsets = ", ".join(composed.recipe.valid_subsets())
    judged = f"validation subset {subsets}" if subsets else "no validation"
    note = asked.protocol or f"{judged}, weights of update {update}"
    return CardFacts(
        name=name,
        kind=config["kind"],
        summary=f"{what}, {shape_in_words(model)}",
        recipe=composed.named_recipe,
        recipe_difference={field: (change.before, change.after) for field, change in changed.items()},
        data=redact_text(composed.recipe.task.data),
        data_size=summary.facts.get("data.size", ""),
        data_fingerprint=summary.facts.get("data.fingerprint", ""),
        metrics=shown,
        metrics_note=note,
        seeds=asked.seeds if asked.seeds is not None else (composed.recipe.common.seed,),
        lineage=tags,
        parent=trained.parent_uri,
        labels=tuple(str(label) for label in task.get("labels") or ()),
        modality=modality,
        tracking_uri=chosen_tracking_uri(composed.recipe.platform.tracking_uri),
    )
