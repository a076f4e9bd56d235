"""Comparing recipes: what a run changed, which recipe it is, and whether it may be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data2vec.typed import flatten

from ..markdown import code, table
from ..redaction import redact
from .groups import MISSING
from .schema import Recipe

# Not part of what is computed. The data path is free too: data sets are compared by their fingerprints.
_NOT_COMPUTED = ("platform.", "task.data", "common.user_dir")
# Further fields that a resumed run may change: what is logged, kept or predicted, and how long to go on.
_FREE_TO_CHANGE = frozenset({
    "common.user_dir",
    "common.log_interval",
    "dataset.num_workers",
    "dataset.gen_subset",
    "optimization.stop_time_hours",
    "optimization.stop_cpu_minutes",
    "checkpoint.save_interval",
    "checkpoint.save_interval_updates",
    "checkpoint.save_interval_minutes",
    "checkpoint.keep_interval_updates",
    "checkpoint.keep_last_epochs",
    "checkpoint.keep_best_checkpoints",
    "checkpoint.no_epoch_checkpoints",
    "checkpoint.no_save",
    "checkpoint.patience",
    "common_eval.path",
    "common_eval.results_path",
})  # fmt: skip
_SHOWN = 40  # changed keys listed on a card and a run's page; all of them are in lineage.json and the run
_WORKERS = ("distributed_training.distributed_world_size", "optimization.update_freq")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One field with two values; ``None`` also stands for a field that a recipe does not have."""

    before: Any
    after: Any


def difference(recipe: Recipe | Mapping[str, Any], named: Recipe | Mapping[str, Any]) -> dict[str, Change]:
    """The fields in which ``recipe`` departs from the named recipe it was made from.

    Where and how it runs (``platform``) and what the named recipe leaves to the user (``???``) do not count.

    Returns:
        Dotted field -> its value in the named recipe (``before``) and in ``recipe`` (``after``).
    """
    return {
        name: change
        for name, change in changes(named, recipe).items()
        if not name.startswith(("platform.", "common.user_dir")) and change.before != MISSING
    }


def digest(recipe: Recipe | Mapping[str, Any]) -> str:
    """SHA-256 of what is computed: canonical JSON without ``platform.*`` and the path of the data."""
    flat = {name: value for name, value in _flat(recipe).items() if not name.startswith(_NOT_COMPUTED)}
    text = json.dumps(flat, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def resume_differences(old: Recipe | Mapping[str, Any], new: Recipe | Mapping[str, Any]) -> dict[str, Change]:
    """The changed fields that forbid going on with a run under its old name.

    Free are the platform's resources (not the precision), the path of the data (its fingerprint decides),
    logging, loading and the keeping of checkpoints, and how the micro-batches of an update split into workers
    and accumulation (W*F) as long as their product stays.
    """
    found = changes(old, new)
    if _micro_batches(old) == _micro_batches(new):
        found = {name: change for name, change in found.items() if name not in _WORKERS}
    return {
        name: change
        for name, change in found.items()
        if name == "platform.precision" or not (name.startswith(_NOT_COMPUTED) or name in _FREE_TO_CHANGE)
    }


def changes(before: Recipe | Mapping[str, Any], after: Recipe | Mapping[str, Any]) -> dict[str, Change]:
    """Every field that differs."""
    old, new = _flat(before), _flat(after)
    names = dict.fromkeys([*new, *old])
    return {
        name: Change(before=old.get(name), after=new.get(name))
        for name in names
        if old.get(name) != new.get(name)
    }


def recipe_section(recipe: str, recipe_difference: Mapping[str, tuple[Any, Any]]) -> str:
    """The named recipe and what was changed in it, as Markdown."""
    changed = redact(dict(recipe_difference))
    if not changed:
        return f"## Recipe\n\n{code(recipe)}, unchanged."
    rows = [
        (code(key), *(code(json.dumps(value, default=str)) for value in (old, new)))
        for key, (old, new) in sorted(changed.items())
    ]
    text = f"## Recipe\n\n{code(recipe)} with {len(rows)} changed " + ("key" if len(rows) == 1 else "keys")
    text += ":\n\n" + table(("key", "recipe", "here"), rows[:_SHOWN])
    if len(rows) > _SHOWN:
        text += f"\n\n{len(rows) - _SHOWN} more are in `lineage.json` and in the run."
    return text


def _flat(recipe: Recipe | Mapping[str, Any]) -> dict[str, Any]:
    return flatten(recipe.to_dict() if isinstance(recipe, Recipe) else recipe)


def _micro_batches(recipe: Recipe | Mapping[str, Any]) -> list[Any]:
    flat = _flat(recipe)
    world, freq = (flat.get(name) for name in _WORKERS)
    return [world * f for f in freq] if isinstance(world, int) and isinstance(freq, list) else []
