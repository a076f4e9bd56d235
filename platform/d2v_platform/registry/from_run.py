"""Registering a checkpoint of a run afterwards: ``d2v registry add RUN@UPDATE``.

The checkpoint is verified and exported as training itself would have exported it, with the lineage that the
run recorded when it was made and the metrics that the loop knew at that update.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data2vec.averaging import mean_weights
from data2vec.errors import Data2VecError

from ..home import home_folder
from ..recipe.compose import Composed
from ..recipe.schema import Recipe
from ..storage.locations import open_location
from ..tasks import make_task
from ..tasks.task import floor_facts, size_facts
from ..tracking.mlflow_access import error_code
from ..tracking.tracker import RESUME_TAG
from ..training.checkpoint import CheckpointStore
from ..training.checkpoint_writer import Checkpoints
from ..training.loop_state import Summary
from ..training.run_storage import remote_folder, run_root, started_with
from .card_pictures import PICTURE_FOLDER
from .model_card import model_card
from .model_folders import resolve_models
from .model_versions import PARENT_TAG, ModelVersion, NewVersion
from .register import register
from .registration import Registration, Trained, card_facts, draw_data, gate_tags, lineage_tags

if TYPE_CHECKING:
    from mlflow.entities import Run

    from ..tracking.tracker import Tracker
    from ..training.loop_state import Summary

logger = logging.getLogger(__name__)

_SPEC = re.compile(r"(?P<run>[^@]+)@(?P<update>\d+|best|last\d*)")


@dataclass(frozen=True)
class RunCheckpoint:
    """What ``RUN@UPDATE`` names."""

    run: str  # id or name of the run
    update: int | str  # its number, "best", "last", or "last5" for the mean of the 5 newest

    @classmethod
    def parse(cls, text: str) -> RunCheckpoint:
        """Read ``RUN@UPDATE``.

        Raises:
            Data2VecError: another form.
        """
        match = _SPEC.fullmatch(text.strip())
        if match is None:
            raise Data2VecError(
                f"{text!r} must be RUN@UPDATE: a run's name or id, and the number of an update, best, "
                "last or last5 (the mean of the 5 newest); for example cola-2@1500"
            )
        update = match["update"]
        return cls(match["run"], int(update) if update.isdecimal() else update)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A checkpoint of a run, or the mean of several, exported."""

    run: Run  # the run
    recipe: Recipe  # what it was trained with; a parent model by its exact name
    plain: dict[str, Any]  # the same as the run recorded it
    updates: list[int]  # of the checkpoints
    folder: Path  # model folder
    summary: Summary  # as if training had ended there; a mean has no figures, since nobody has validated it
    parent: str | None  # exact name of the model it started from


def export_from_run(tracker: Tracker, wanted: RunCheckpoint, folder: Path | None = None) -> Taken:
    """Export a checkpoint of a run, or the mean of its newest ones, as training itself would have.

    Args:
        tracker: where.
        wanted: run and update.
        folder: where to; by default in the cache.

    Raises:
        Data2VecError: no such run or update, its state is not on this machine, or its data has gone.
        CheckpointError: the checkpoint is damaged.
    """

    run = run_exactly_named(tracker, wanted.run)
    run_id, tags = run.info.run_id, dict(run.data.tags)
    storage = _stated(run.data.params.get("platform.storage"))
    root, remote = run_root(storage) / run_id, remote_folder(storage, run_id)
    plain = started_with(root, remote)
    if plain is None:
        where = f"{root} or {remote}" if remote else str(root)
        raise Data2VecError(f"the state of run {wanted.run!r} is not here: {where} has no recipe.json")
    recipe = Recipe.from_dict(plain)

    store = CheckpointStore(root)
    checkpoints = Checkpoints(store, open_location(remote) if remote else None)
    updates = _chosen(wanted, sorted(checkpoints.available()), store.best_update())
    checkpoint = checkpoints.load(updates[-1])
    manifest = json.loads((checkpoint.folder / "manifest.json").read_text(encoding="utf-8"))
    weights, several = checkpoint.tensors["model"], len(updates) > 1
    if several:
        weights = mean_weights((f"update {u}", checkpoints.load(u).tensors["model"]) for u in updates)

    parent = _stated(tags.get(PARENT_TAG))
    if parent is not None and hasattr(recipe.model, "model_path"):
        # The alias in the recipe may stand for another version by now.
        recipe = replace(recipe, model=replace(recipe.model, model_path=parent))  # type: ignore[type-var]
    models = resolve_models(recipe)
    task = make_task(recipe, models.pretrained)
    task.restore(checkpoint.state["task"])
    origin = {
        "run_id": run_id, "recipe": tags.get("d2v.recipe", ""), "update": updates[-1],
        "recipe.digest": tags.get("d2v.recipe_digest", ""), "code": tags.get("d2v.code", ""),
    } | ({"averaged": updates} if several else {})  # fmt: skip
    name = f"{run_id}-{'-'.join(map(str, updates))}"
    folder = folder or home_folder("cache", tracker.home) / "added" / name / "model"
    what = f"mean of the checkpoints of updates {', '.join(map(str, updates))}"
    summary = Summary(
        update=updates[-1],
        metrics={} if several else dict(checkpoint.state["metrics"]),
        best=None if several else manifest.get("metric"),
        best_update=updates[-1],
        reason=what if several else f"checkpoint of update {updates[-1]}",
        export=str(task.export(folder, origin, weights)),
        facts=task.facts() | size_facts(task) | floor_facts(task),
        seconds=float(checkpoint.state["elapsed_s"]),
        bad_updates=int(checkpoint.state["bad_updates"]),
    )
    return Taken(
        run=run,
        recipe=recipe,
        plain=plain,
        updates=updates,
        folder=folder,
        summary=summary,
        parent=parent or models.pretrained_uri,
    )


def add_from_run(
    tracker: Tracker, wanted: RunCheckpoint, *, name: str, alias: str | None = None
) -> ModelVersion:
    """Export a checkpoint of a run, or the mean of several, and register it as a new version.

    Args:
        tracker: where.
        wanted: run and update.
        name: registered name.
        alias: alias to take if the gate lets it; see ``ModelVersion.refusal``.

    Raises:
        Data2VecError: what :func:`export_from_run` raises.
    """
    taken = export_from_run(tracker, wanted)
    tags, summary, parent = dict(taken.run.data.tags), taken.summary, taken.parent
    composed = _as_composed(taken.recipe, taken.plain, tags)
    lineage = lineage_tags(composed, summary, parent) | gate_tags(taken.recipe, summary)
    note = None
    if len(taken.updates) > 1:
        lineage["averaged.updates"] = ", ".join(map(str, taken.updates))
        note = f"{summary.reason}; no figures: it has not been validated"
    if "d2v.code" in tags:
        lineage["code.version"] = tags["d2v.code"]  # of the training, not of this command
    run_id = taken.run.info.run_id
    trained = Trained(run_id, taken.folder, summary, parent)
    facts = card_facts(name, composed, trained, lineage, Registration(protocol=note))
    new = NewVersion(
        folder=taken.folder,
        name=name,
        run_id=run_id,
        tags=lineage,
        card_markdown=model_card(facts),
        alias=alias,
        pictures=draw_data(taken.recipe, taken.folder, taken.folder.parent / PICTURE_FOLDER),
    )
    return register(tracker, new)


def run_exactly_named(tracker: Tracker, wanted: str) -> Run:
    """A run by its id or its name, in whichever experiment it is.

    Raises:
        Data2VecError: none, or several of this name.
    """

    if re.fullmatch(r"[0-9a-f]{32}", wanted):
        try:
            return tracker.client.get_run(wanted)
        except Exception as error:
            if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise Data2VecError(f"no run has the id {wanted}") from error
    if not re.fullmatch(r"[\w.\-]+", wanted):
        raise Data2VecError(f"{wanted!r} is neither the name nor the id of a run")
    experiments = tracker.client.search_experiments()
    runs = tracker.client.search_runs(
        [experiment.experiment_id for experiment in experiments],
        f"tags.`{RESUME_TAG}` = '{wanted}'",
        max_results=5,
    )
    if len(runs) == 1:
        return runs[0]
    if runs:
        ids = ", ".join(run.info.run_id for run in runs)
        raise Data2VecError(f"several runs are called {wanted!r}; give the id: {ids}")
    names = ", ".join(sorted({e.name for e in experiments})) or "none"
    raise Data2VecError(f"no run is called {wanted!r} (experiments looked in: {names})")


def _chosen(wanted: RunCheckpoint, available: list[int], best: int | None) -> list[int]:
    """Of ``lastN`` the N newest updates, of others one."""
    count = str(wanted.update).removeprefix("last")
    if not str(wanted.update).startswith("last") or not count:
        return [_choose(wanted, available, best)]
    if not 2 <= int(count) <= len(available):
        raise Data2VecError(
            f"{wanted.update}: run {wanted.run!r} has {len(available)} checkpoints "
            f"({', '.join(map(str, available)) or 'none'}), and a mean is of 2 or more"
        )
    return available[-int(count) :]


def _choose(wanted: RunCheckpoint, available: list[int], best: int | None) -> int:
    if not available:
        raise Data2VecError(f"run {wanted.run!r} has no checkpoint (checkpoint.no_save, or it was deleted)")
    there = ", ".join(map(str, available))
    if wanted.update == "last":
        return available[-1]
    if wanted.update == "best":
        if best is None:
            raise Data2VecError(f"run {wanted.run!r} marked no best checkpoint; there are updates {there}")
        return best
    if wanted.update not in available:
        raise Data2VecError(
            f"run {wanted.run!r} has no checkpoint of update {wanted.update}; it has {there} "
            "(checkpoint.keep_interval_updates and its neighbours decide what stays)"
        )
    return int(wanted.update)


def _as_composed(recipe: Recipe, plain: Mapping[str, Any], tags: Mapping[str, str]) -> Composed:
    """The recipe beside the named one, put together from what the run recorded."""
    base = copy.deepcopy(dict(plain))
    changed: dict[str, list[Any]] = json.loads(tags.get("d2v.recipe_difference") or "{}")
    for dotted, (before, _) in changed.items():
        *groups, field = dotted.split(".")
        node: Any = base
        for group in groups:
            node = node.setdefault(group, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node[field] = before
    return Composed(
        recipe=Recipe.from_dict(dict(plain)),
        notes=(),
        named_recipe=tags.get("d2v.recipe", "unknown"),
        source=Path(),
        base=base,
        overrides=(),
        sweep=None,
    )


def _stated(text: str | None) -> str | None:
    return None if text in (None, "", "null", "None", "none") else text
