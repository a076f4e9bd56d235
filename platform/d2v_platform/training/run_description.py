"""What MLflow's pages say of a run beside its figures: where it comes from, what it is, and its data."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from ..markdown import code, literal
from ..recipe.compose import Composed
from ..recipe.difference import difference, digest, recipe_section
from ..recipe.schema import Recipe
from ..redaction import redact_text
from ..tracking.interface import RunTracker
from .loop_state import Summary

NOTE_TAG = "mlflow.note.content"


def source_tags(command: str, code: str) -> dict[str, str]:
    """The columns *Source* and *Version*.

    Args:
        command: that made the run, without its options.
        code: version of the package and, in a checkout, the commit.
    """
    tags = {"mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
    commit = code.partition(" ")[2].partition("+")[0]
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def recipe_tags(composed: Composed) -> dict[str, str]:
    """What was trained: recipe, its digest, its difference from the named one, code."""
    changed = difference(composed.recipe, composed.base)
    return {
        "d2v.recipe": composed.named_recipe,
        "d2v.recipe_digest": digest(composed.recipe),
        "d2v.recipe_difference": json.dumps({k: [c.before, c.after] for k, c in changed.items()}),
        "d2v.code": code_version(),
        **source_tags(f"d2v train {composed.named_recipe}", code_version()),
    }


def summary_tags(summary: Summary) -> dict[str, str]:
    """How it ended, and the lineage that the loop found."""
    tags = {f"d2v.{key}": value for key, value in summary.facts.items()}
    return tags | {"d2v.ended": summary.reason, "d2v.bad_updates": str(summary.bad_updates)}


def code_version() -> str:
    """Package version and, in a checkout, the git commit (with ``+changes`` if files differ from it)."""
    version = metadata.version("data2vec-platform") if _installed() else "uninstalled"
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return version
    try:
        commit = subprocess.run(
            [
                "git",
                "-C",
                str(root),
                "describe",
                "--always",
                "--abbrev=12",
                "--dirty=+changes",
                "--exclude=*",
            ],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version} {commit}"


def _installed() -> bool:
    try:
        metadata.version("data2vec-platform")
    except metadata.PackageNotFoundError:
        return False
    return True


def description(composed: Composed, parent_uri: str | None, data: str | None = None) -> str:
    """The run's description, in Markdown.

    Args:
        composed: what is trained.
        parent_uri: exact name of the model it starts from.
        data: how much data it is, in words.
    """
    recipe = composed.recipe
    changed = {key: (c.before, c.after) for key, c in difference(recipe, composed.base).items()}
    lines = [
        f"- data: {code(recipe.task.data)}, subset {code(recipe.dataset.train_subset)}"
        + (f", {literal(data)}" if data else ""),
        f"- starts from: {literal(redact_text(parent_uri or 'random weights'))}",
    ]
    return redact_text("\n".join(lines) + "\n\n" + recipe_section(composed.named_recipe, changed))


def log_datasets(tracker: RunTracker, run_id: str, recipe: Recipe, facts: Mapping[str, str]) -> None:
    """The column *Datasets*: what the run is trained on, and what judges it.

    Args:
        tracker: where.
        run_id: the run.
        recipe: names place and subsets.
        facts: ``data.train_fingerprint`` and ``data.fingerprint`` (:func:`..tasks.task.data_facts`), and
            ``data.size``.
    """
    train = facts.get("data.train_fingerprint", facts.get("data.fingerprint"))
    judged = facts.get("data.fingerprint") if "data.train_fingerprint" in facts else None
    given: list[tuple[str | None, str, str, str | None]] = [
        (train, recipe.dataset.train_subset, "training", facts.get("data.size"))
    ]
    given += [(judged, subset, "validation", None) for subset in recipe.valid_subsets()[:1]]
    for fingerprint, subset, context, size in given:
        if fingerprint is not None:
            tracker.log_input(run_id, data_set(recipe.task.data, subset, fingerprint, size), context)


def data_set(place: str, subset: str, fingerprint: str, size: str | None) -> dict[str, Any]:
    """A data set in MLflow's terms: name, digest (36 characters at most), source and profile."""
    place = redact_text(place)
    return {
        "name": f"{PurePosixPath(place).name}/{subset}",
        "digest": fingerprint[:16],
        "source_type": place.partition("://")[0] if "://" in place else "local",
        "source": {"uri": place},
        "profile": {"size": size} if size else {},
    }
