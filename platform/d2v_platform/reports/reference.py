"""Reference curves of recipes, and whether a run's curves are near them at the same update.

A file holds one run: a comment line of facts as JSON, then one line an update; metrics of the training
without their ``train/``, an empty cell where nothing was measured.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.errors import Data2VecError, nearest_names
from data2vec.folders import write_text

from ..recipe.difference import resume_differences
from .run_history import Curve, RunHistory

LOSS_FACTOR, LEAST_VAR, LEAST_RANK, PROBE_POINTS = 1.5, 0.5, 0.33, 5.0
NEARNESS = 0.9  # share of the compared points that must be near, besides the last one
RULE = (
    f"near is, at the same update, a loss within a factor of {LOSS_FACTOR:g} of the reference, a target "
    f"variance of at least {LEAST_VAR:g} and an effective rank of at least {LEAST_RANK:g} of it, a probe at "
    f"most {PROBE_POINTS:g} points below it; a curve is near if its last compared point and "
    f"{100 * NEARNESS:.0f} % of all are"
)
_FACTS = ("recipe", "commit", "seed", "updates")
_WATCHED = ("loss", "target_var", "targets_rank")  # of training; more curves would mean more chance alarms
_PROBES = ("knn", "linear", "accuracy")
# Changes of these move no curve of the training.
_WITHOUT_EFFECT = ("checkpoint.", "criterion.log_keys", "dataset.valid", "dataset.disable_validation",
                   "task.probe_")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Curves of a run that went well."""

    path: Path  # where they were read
    recipe: str  # its name
    commit: str  # of the code that trained it
    seed: int  # common.seed
    updates: int  # that it covers
    changed: Mapping[str, Any] = field(default_factory=dict)  # fields that differ from the named recipe
    curves: Mapping[str, Curve]  # by MLflow's names; no seconds

    def history(self) -> RunHistory:
        """To be drawn beside a run."""
        return RunHistory(name=f"reference {self.recipe}", curves=dict(self.curves))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of a run against its reference."""

    metric: str
    update: int  # the last one compared
    value: float  # of the run there
    reference: float  # at the same update, between its points
    near: int  # points that are near
    points: int  # points compared
    outside_from: int | None  # first update that is not near; ``None`` if all are
    last_near: bool  # whether the last point is near

    @property
    def ok(self) -> bool:
        """By the rule."""
        return self.last_near and self.near >= NEARNESS * self.points

    def words(self) -> str:
        """For the table."""
        if self.outside_from is None:
            return "near"
        far = self.points - self.near
        return f"{'near' if self.ok else 'NOT near'}: {far} of {self.points} points are not, the first at " \
               f"update {self.outside_from}"  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Is this curve healthy?"""

    reference: Reference
    comparisons: Sequence[Comparison]
    differences: Sequence[str]  # of the recipes, in words

    @property
    def healthy(self) -> bool:
        """Every compared curve is near."""
        return all(found.ok for found in self.comparisons)

    def lines(self) -> list[str]:
        """In words, the rule included."""
        ref = self.reference
        whose = f"{ref.recipe} (seed {ref.seed}, {ref.updates} updates, commit {ref.commit})"
        far = [found for found in self.comparisons if not found.ok]
        until = max(found.update for found in self.comparisons)
        if self.healthy:
            names = ", ".join(found.metric for found in self.comparisons)
            lines = [f"Healthy as far as update {until}: near the reference of {whose} in {names}."]
        else:
            told = "; ".join(
                f"{f.metric} is {f.value:.4g} at update {f.update}, the reference {f.reference:.4g} "
                f"({f.words()})"
                for f in far
            )
            lines = [f"Not healthy by the reference of {whose}: {told}."]
        if self.differences:
            lines.append(f"The recipes differ, so read it with care: {'; '.join(self.differences)}.")
        return [*lines, f"Rule: {RULE}."]

    def rows(self) -> list[tuple[str, ...]]:
        """A line a metric."""
        return [
            (f.metric, str(f.update), f"{f.value:.4g}", f"{f.reference:.4g}", f.words())
            for f in self.comparisons
        ]  # fmt: skip


HEADER = ("metric", "at update", "run", "reference", "")


def reference_root() -> Path:
    """Where reference curves are: the checkout's ``experiments/results``, else the copy inside the wheel."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "experiments" / "results" / "reference"
    return checkout if checkout.is_dir() else package / "_reference"


def find_reference(run: RunHistory, file: Path | None = None) -> Reference:
    """The reference of a run's recipe, or the one in a file.

    Raises:
        Data2VecError: the run names no recipe, or there is no reference of it; with those that there are.
    """
    if file is not None:
        return read_reference(file)
    root, recipe = reference_root(), run.tags.get("d2v.recipe")
    there = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.csv"))
    other = f"give another with --reference-file FILE; there are curves of {', '.join(there) or 'none'}"
    if recipe is None:
        raise Data2VecError(f"the run {run.name!r} has no tag d2v.recipe, which names its reference: {other}")
    if recipe not in there:
        raise Data2VecError(
            f"there is no reference for the recipe {recipe!r} of the run {run.name!r}"
            f"{nearest_names(recipe, there)}: {other}"
        )
    return read_reference(root / f"{recipe}.csv")


def judge(run: RunHistory, reference: Reference) -> Verdict:
    """Compare every curve of the reference that the run has too.

    Raises:
        Data2VecError: they have nothing in common.
    """
    pairs = {key: run.curves[key] for key in reference.curves if key in run.curves}
    found = [_compare(key, curve, reference.curves[key]) for key, curve in pairs.items()]
    comparisons = [comparison for comparison in found if comparison is not None]
    if not comparisons:
        raise Data2VecError(
            f"the run {run.name!r} and the reference {reference.path} have no metric at the same updates: "
            f"the run has {_extent(run.curves)}; the reference {_extent(reference.curves)}"
        )
    return Verdict(
        reference=reference, comparisons=comparisons, differences=_recipe_differences(run, reference)
    )


def write_reference(run: RunHistory, path: Path) -> None:
    """Keep a run's curves as the reference of its recipe.

    Raises:
        Data2VecError: it has no recipe or no training curves.
    """
    curves = {key: curve for key, curve in run.curves.items() if _kept(key)}
    if "d2v.recipe" not in run.tags or "train/loss" not in curves:
        raise Data2VecError(f"the run {run.name!r} cannot be a reference: it has no recipe or no train/loss")
    facts = {
        "recipe": run.tags["d2v.recipe"],
        "commit": run.tags.get("mlflow.source.git.commit", ""),
        "seed": int(run.number("common.seed") or 0),
        "updates": max(int(curve.updates[-1]) for curve in curves.values()),
        "changed": {key: new for key, (_, new) in _changed(run).items()},
    }
    columns = {
        key: dict(zip(c.updates.tolist(), c.values.tolist(), strict=True)) for key, c in curves.items()
    }
    lines = [f"# {json.dumps(facts)}", ",".join(["update", *(key.removeprefix("train/") for key in columns)])]
    for update in sorted({update for column in columns.values() for update in column}):
        cells = [f"{column[update]:.6g}" if update in column else "" for column in columns.values()]
        lines.append(",".join([str(update), *cells]))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines) + "\n")


def read_reference(path: Path) -> Reference:
    """Curves that :func:`write_reference` wrote.

    Raises:
        Data2VecError: naming the file, the line and what is missing.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Data2VecError(f"reference {path} cannot be read: {error}") from error
    first, _, rest = text.partition("\n")
    try:
        facts = json.loads(first.removeprefix("#")) if first.startswith("#") else {}
    except json.JSONDecodeError:
        facts = {}
    missing = [name for name in _FACTS if not isinstance(facts, dict) or name not in facts]
    if missing:
        raise Data2VecError(
            f"{path}: line 1 must be # and JSON with {', '.join(_FACTS)}, as d2v report --write-reference "
            f"writes it; missing: {', '.join(missing)}"
        )
    header, *rows = list(csv.reader(rest.splitlines())) or [[]]
    if header[:1] != ["update"] or not rows:
        raise Data2VecError(f"{path}: line 2 must name columns, the first of them update, and points follow")
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in header[1:]}
    for number, row in enumerate(rows, start=3):
        try:
            update, *values = row
            for name, value in zip(header[1:], values, strict=True):
                if value:
                    points[name].append((int(update), float(value)))
        except ValueError:
            raise Data2VecError(
                f"{path}: line {number} does not fit the columns: {','.join(row)[:80]}"
            ) from None
    return Reference(
        path=path, **{name: facts[name] for name in _FACTS}, changed=facts.get("changed", {}),
        curves={name if "/" in name else f"train/{name}": _curve(p) for name, p in points.items() if p},
    )  # fmt: skip


def _curve(points: list[tuple[int, float]]) -> Curve:
    updates, values = zip(*sorted(points), strict=True)
    return Curve(np.array(updates, dtype=np.int64), np.array(values), np.zeros(len(updates)))


def _kept(key: str) -> bool:
    group, _, name = key.rpartition("/")
    if group == "train":
        return name in _WATCHED
    return name.startswith(_PROBES)


def _compare(key: str, run: Curve, reference: Curve) -> Comparison | None:
    """``None`` where they share no update or the metric has no rule."""
    within = (run.updates >= reference.updates[0]) & (run.updates <= reference.updates[-1])
    if not within.any():
        return None
    updates, values = run.updates[within], run.values[within]
    wanted = np.interp(updates, reference.updates, reference.values)
    name = key.rpartition("/")[2]
    if name == "loss":
        near = (values <= LOSS_FACTOR * wanted) & (values * LOSS_FACTOR >= wanted)
    elif name.endswith(("_var", "_rank")):
        near = values >= (LEAST_VAR if name.endswith("_var") else LEAST_RANK) * wanted
    elif name.startswith(_PROBES):
        near = values >= wanted - PROBE_POINTS
    else:
        return None
    return Comparison(
        metric=key, update=int(updates[-1]), value=float(values[-1]), reference=float(wanted[-1]),
        near=int(near.sum()), points=len(near), last_near=bool(near[-1]),
        outside_from=None if near.all() else int(updates[np.argmin(near)]),
    )  # fmt: skip


def _recipe_differences(run: RunHistory, reference: Reference) -> list[str]:
    if run.tags.get("d2v.recipe") != reference.recipe:
        return [f"the run's is {run.tags.get('d2v.recipe', 'not known')}"]
    changed = _changed(run)
    asked = ("distributed_training.distributed_world_size", "optimization.update_freq", *reference.changed)
    named = {key: _plain(run.params[key]) for key in asked if key in run.params}
    named |= {key: old for key, (old, _) in changed.items()}
    theirs = named | dict(reference.changed)
    ours = named | {key: new for key, (_, new) in changed.items()}
    return [
        f"{key} {json.dumps(change.after)} here, there {json.dumps(change.before)}"
        for key, change in sorted(resume_differences(theirs, ours).items())
        if not key.startswith(_WITHOUT_EFFECT)
    ]


def _plain(param: str) -> Any:
    try:
        return json.loads(param)
    except json.JSONDecodeError:  # text is kept as it is
        return param


def _changed(run: RunHistory) -> dict[str, tuple[Any, Any]]:
    try:
        return json.loads(run.tags.get("d2v.recipe_difference", "{}"))
    except json.JSONDecodeError:  # too long for a tag: the recipes are not compared
        return {}


def _extent(curves: Mapping[str, Curve]) -> str:
    told = [f"{key} {c.updates[0]}..{c.updates[-1]}" for key, c in curves.items() if _kept(key)]
    return ", ".join(told) or "no curves of a training"
