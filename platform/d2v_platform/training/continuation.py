"""What a launch under a known name means: a change that is refused, a longer run, or nothing left to do."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data2vec.errors import ConfigError, Data2VecError, Problem

from ..recipe.components import NAMES
from ..recipe.compose import Composed, compose
from ..recipe.difference import Change, changes, resume_differences
from ..recipe.locate import config_root
from ..recipe.schema import Recipe
from ..redaction import redact, redact_text
from ..storage.locations import open_location
from .checkpoint import CheckpointStore
from .checkpoint_writer import Checkpoints
from .optimizer import make_schedule
from .run_storage import data_started_with, started_with

if TYPE_CHECKING:
    from ..tracking.tracker import ExistingRun

_LENGTH = ("optimization.max_update", "optimization.max_epoch")
# First words of the loop's reason to stop -> the field that must grow before such a run goes on.
_ENDED_BY = {
    "max_update": "optimization.max_update",
    "max_epoch": "optimization.max_epoch",
    "stop_time_hours": "optimization.stop_time_hours",
    "stop_cpu_minutes": "optimization.stop_cpu_minutes",
    "no improvement": "checkpoint.patience",
}


@dataclass(frozen=True)
class Continuation:
    """How a launch goes on with the run of its name."""

    nothing_left: bool = False  # the run has finished, and the recipe asks for no more
    reopen: bool = False  # it has finished, and goes on
    raised: Mapping[str, Change] = field(default_factory=dict)  # limits that the recipe raises
    lines: tuple[str, ...] = ()  # what the greater length changes, in words


def continue_run(
    composed: Composed, existing: ExistingRun, folder: Path, remote: str | None, data: str | None
) -> Continuation:
    """Compare what a run was started with and what is asked for now.

    Args:
        composed: what is asked for.
        existing: the run of this name.
        folder: of the run.
        remote: the run's folder at a URI.
        data: fingerprint of the training data; ``None`` if it is not known.

    Raises:
        ConfigError: the recipe or the data is another one: every field with both values.
        Data2VecError: the run cannot be made longer.
    """
    plain, name = started_with(folder, remote), existing.name
    if plain is None:
        return Continuation(nothing_left=existing.state == "finished")
    before = Recipe.from_dict(dict(plain))
    plain = redact(before.to_dict())  # with the fields that came after it, at their defaults
    raised = _raised(plain, composed.recipe)
    problems = [*_changed(plain, composed, raised, name, folder)]
    problems += _other_data(data_started_with(folder, remote), data, composed.recipe, name)
    if problems:
        raise ConfigError(problems, f"resuming {name!r}")
    if existing.state == "finished":
        if not _goes_on(existing, plain, composed.recipe, raised):
            return Continuation(nothing_left=True)
        _need_checkpoint(name, folder, remote)
    lines = tuple(_length_lines(before, composed.recipe, raised)) if raised else ()
    return Continuation(reopen=existing.state == "finished", raised=raised, lines=lines)


def resume_command(composed: Composed, name: str) -> str:
    """The command line that goes on with this run."""
    overrides = [text for text in composed.overrides if not text.lstrip("+").startswith("platform.run_name=")]
    ours = composed.source.resolve().is_relative_to(config_root().resolve())
    recipe = composed.named_recipe if ours else str(composed.source)
    words = ["d2v", "train", recipe, *overrides, f"platform.run_name={name}"]
    return redact_text(shlex.join(words))  # the secret itself is not in the line: type it again


def _raised(before: Mapping[str, Any], recipe: Recipe) -> dict[str, Change]:
    """The limits of the length that the recipe raises."""
    found = changes(before, recipe)
    return {name: found[name] for name in _LENGTH if name in found and _greater(found[name])}


def _greater(change: Change) -> bool:
    """A limit grows, or goes (0)."""
    return bool(change.before) and (not change.after or change.after > change.before)


def _changed(
    before: Mapping[str, Any], composed: Composed, raised: Mapping[str, Change], name: str, folder: Path
) -> Iterator[Problem]:
    """What may not change: all but raised limits, and what the recipe derives from a limit."""
    found = resume_differences(before, redact(composed.recipe.to_dict()))
    limits = {key: change for key, change in found.items() if key in _LENGTH}
    if limits:
        found = resume_differences(before, redact(_with_limits(composed, limits).to_dict())) | limits
    for key, change in found.items():
        if key in raised:
            continue
        rule = f"the run {name!r} was started with {change.before!r}; use it, or another platform.run_name"
        if key in _LENGTH:
            rule = f"the run {name!r} was started with {change.before!r}, which can be raised but not lowered"
        elif (folder / "model" / "config.json").is_file():
            rule += f", with checkpoint.restore_file={folder / 'model'} to begin from its weights"
        yield Problem(key, change.after, rule)


def _with_limits(composed: Composed, limits: Mapping[str, Change]) -> Recipe:
    """The recipe with the limits of before: fields that follow them are as they were."""
    words = [f"{key}={change.before}" for key, change in limits.items()]
    try:
        file = composed.source
        return compose(file.name, [*composed.overrides, *words], str(file.parent)).recipe
    except ConfigError:  # it does not fit the shorter length: then more has changed than the length
        return composed.recipe


def _other_data(before: str | None, data: str | None, recipe: Recipe, name: str) -> Iterator[Problem]:
    if data is not None and before not in (None, data):
        rule = (
            f"holds other data ({data[:12]}) than the run {name!r} was started with ({before[:12]}); "
            "use that data, or another platform.run_name"
        )
        yield Problem("task.data", recipe.task.data, rule)


def _goes_on(
    existing: ExistingRun, before: Mapping[str, Any], recipe: Recipe, raised: Mapping[str, Change]
) -> bool:
    """Whether a run that has finished would train further under this recipe."""
    ended = existing.tags.get("d2v.ended", "")
    limit = next((key for words, key in _ENDED_BY.items() if ended.startswith(words)), None)
    grown = changes(before, recipe).get(limit) if limit is not None else None
    if grown is not None and _greater(grown):
        return True
    if raised:
        given = ", ".join(f"{key} {c.before} -> {c.after}" for key, c in raised.items())
        mend = f"raise {limit} too" if limit else "use another platform.run_name"
        raise Data2VecError(
            f"the run {existing.name!r} ended because of another limit ({ended or 'unknown'}), so {given} "
            f"does not make it longer; {mend}"
        )
    return False


def _need_checkpoint(name: str, folder: Path, remote: str | None) -> None:
    checkpoints = Checkpoints(CheckpointStore(folder), open_location(remote) if remote else None)
    if not checkpoints.available():
        raise Data2VecError(
            f"the run {name!r} has finished and left no checkpoint in {folder} (checkpoint.no_save, or it "
            f"was deleted), so it cannot be made longer; checkpoint.restore_file={folder / 'model'} with "
            "another platform.run_name begins from its weights"
        )


def _length_lines(before: Recipe, after: Recipe, raised: Mapping[str, Change]) -> Iterator[str]:
    """One line of what is longer, and of what depends on the length."""
    given = ", ".join(f"{key} {c.before} -> {c.after or 'no limit'}" for key, c in raised.items())
    follows, stays = [], []
    end = before.optimization.max_update
    for name, group in after.parameter_groups().items():
        old = _schedule(before, name)
        new = _schedule(after, name)
        kind = f"{NAMES[type(group.lr_scheduler)]} learning rate{'' if name == 'default' else f' of {name}'}"
        at_end = f" (at update {end} from {old(end - 1):.3g} to {new(end):.3g})" if end else ""
        if any(old(update) != new(update) for update in (end // 2, end - 1, end)):
            follows.append(f"{kind}{at_end}")
        elif end and new(end) <= 0.01 * group.peaks[0]:
            stays.append(f"the {kind} does not follow: {new(end):.3g} from update {end} on")
    ends = [_annealing_end(recipe) for recipe in (before, after)]
    if ends[0] != ends[1]:
        follows.append(f"end of the teacher's annealing ({ends[0]} -> {ends[1]})")
    yield f"a longer run: {given}; what depends on the length: {', '.join(follows) or 'nothing'}"
    yield from stays


def _schedule(recipe: Recipe, group: str) -> Any:
    found = recipe.parameter_groups()[group]
    return make_schedule(found.lr_scheduler, found.peaks[0], recipe.optimization.max_update)


def _annealing_end(recipe: Recipe) -> int | None:
    model = recipe.model
    return getattr(model, "ema_anneal_end_step", None) or getattr(model, "max_update", None)
