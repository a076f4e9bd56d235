"""Aliases move only through a gate, and every move is kept (design §5.7).

Fine-tuned: better than the holder on the same data. Pretrained: not collapsed, and a reload in a clean
process reproduces the recorded outputs. Both: better than an answer that knows nothing (the floor that
training recorded), lineage and card. Forcing overrules scores, never lineage, card or reload, and is kept
with who and why; ``rollback`` goes back to what held the alias before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from data2vec.errors import Data2VecError

from ..tracking.mlflow_access import ALIAS, ALIAS_RULE
from .alias_history import (
    AliasMove,
    confirm_entry,
    history,
    holders,
    note_outside_moves,
    show_score,
    write_entry,
)
from .alias_turns import Turn, turn
from .model_source import resolve
from .model_versions import PRETRAINED, ModelVersion, get_version, show
from .reload_check import CHECK_FILE, reload_problem

if TYPE_CHECKING:
    from ..tracking.tracker import Tracker


class GateRefusedError(Data2VecError):
    """The gate did not let an alias move; ``reasons`` says why."""

    def __init__(self, subject: str, reasons: list[str]) -> None:
        self.subject = subject
        self.reasons = list(reasons)
        super().__init__("\n".join([f"{subject} refused:", *(f"  {reason}" for reason in self.reasons)]))

    @property
    def line(self) -> str:
        """The same in one line."""
        return f"{self.subject} refused: {'; '.join(self.reasons)}"

    def __reduce__(self) -> tuple[type[GateRefusedError], tuple[str, list[str]]]:
        return type(self), (self.subject, self.reasons)


def gate_reasons(
    candidate: ModelVersion,
    holder: ModelVersion | None,
    reload: Callable[[], str | None],
    *,
    forced: bool = False,
) -> list[str]:
    """Why ``candidate`` may not take the alias from ``holder``; empty: it may.

    Args:
        candidate: the version that wants the alias.
        holder: who has it, ``None`` if nobody.
        reload: loads a pretrained candidate in a clean process and returns what is wrong; asked last,
            because it takes some seconds.
        forced: leave out what scores say.
    """
    reasons = [f"lineage tag {tag!r} is missing" for tag in candidate.missing_lineage()]
    if not candidate.description.strip():
        reasons.append("it has no model card")
    if holder is not None and holder.kind and holder.kind != candidate.kind:
        reasons.append(
            f"its kind is {candidate.kind}, the holder (version {holder.version}) is of kind {holder.kind}"
        )
    elif not forced:
        reasons += judgement(candidate, holder)
    if candidate.kind == PRETRAINED and not reasons and (problem := reload()):
        reasons.append(problem)
    return reasons


def judgement(candidate: ModelVersion, holder: ModelVersion | None) -> list[str]:
    """What scores and variances say against ``candidate``."""
    if candidate.kind == PRETRAINED:
        return _pretrained_reasons(candidate, holder) + _floor_reasons(candidate)
    against = [] if holder is None else _finetuned_reasons(candidate, holder)
    return against + _floor_reasons(candidate)


def _score_tag(candidate: ModelVersion) -> str:
    return "downstream" if candidate.kind == PRETRAINED else "metric"


def _floor_reasons(candidate: ModelVersion) -> list[str]:
    """It must beat an answer that knows nothing; a version that training has not judged has no floor."""
    tags, score = candidate.tags, _score_tag(candidate)
    floor, own = candidate.number("floor.value"), candidate.number(f"{score}.value")
    name = tags.get(f"{score}.name")
    if name is not None and own is None:
        return [f"tag '{score}.value' = {tags.get(f'{score}.value')!r}: it was never validated"]
    if floor is None or own is None:
        return []
    maximize = tags.get(f"{score}.maximize", "true").lower() == "true"
    if own > floor if maximize else own < floor:
        return []
    better = "higher" if maximize else "lower"
    return [f"{name} = {own:g} is not better than {_floor_text(candidate)} ({better} is better)"]


def _floor_text(candidate: ModelVersion) -> str:
    return (
        f"the {candidate.number('floor.value'):g} of {candidate.tags.get('floor.answer', 'knowing nothing')}"
    )


def _pretrained_reasons(candidate: ModelVersion, holder: ModelVersion | None) -> list[str]:
    collapse = candidate.tags.get("collapse", "").lower()
    reasons = []
    if collapse == "true":
        reasons.append("it collapsed: see the variance of targets and predictions of its run")
    elif collapse != "false":
        reasons.append(
            f"tag 'collapse' = {candidate.tags.get('collapse')!r} must be 'false', set by the training"
        )
    same = holder is not None and all(
        candidate.tags.get(tag) and candidate.tags.get(tag) == holder.tags.get(tag)
        for tag in ("downstream.name", "downstream.data", "downstream.maximize")
    )
    if holder is not None and same:
        own, held = candidate.number("downstream.value"), holder.number("downstream.value")
        maximize = candidate.tags["downstream.maximize"].lower() == "true"
        if own is not None and held is not None and (own < held if maximize else own > held):
            reasons.append(
                f"downstream score {candidate.tags['downstream.name']} = {own:g} is worse than "
                f"the holder's {held:g} (version {holder.version})"
            )
    return reasons


def _finetuned_reasons(candidate: ModelVersion, holder: ModelVersion) -> list[str]:
    who = f"the holder (version {holder.version})"
    reasons = []
    for tag, what in (
        ("metric.name", "they are judged by different metrics"),
        ("metric.maximize", "they disagree on which direction is better"),
        ("data.fingerprint", "they were judged on different data; evaluate both on the same data"),
    ):
        own, held = candidate.tags.get(tag), holder.tags.get(tag)
        if own != held or not own:
            reasons.append(f"{tag} = {own!r}, {who} has {held!r}: {what}")
    own, held = candidate.number("metric.value"), holder.number("metric.value")
    if own is None or held is None:
        side = "its" if own is None else f"{who}'s"
        reasons.append(f"{side} tag 'metric.value' is not a finite number: nothing to compare")
    elif not reasons:
        maximize = candidate.tags["metric.maximize"].lower() == "true"
        if not (own > held if maximize else own < held):
            reasons.append(
                f"{candidate.tags['metric.name']} = {own:g} is not better than {held:g} of {who} "
                f"({'higher' if maximize else 'lower'} is better)"
            )
    return reasons


def promote(
    tracker: Tracker,
    *,
    name: str,
    version: int | str,
    alias: str,
    by: str | None = None,
    force: str | None = None,
) -> AliasMove | None:
    """Give ``alias`` to a version, through the gate.

    Args:
        tracker: where.
        name: registered name.
        version: its number.
        alias: what to give it.
        by: who, for the history; by default this user on this machine.
        force: why it shall have the alias whatever its scores say; goes into the history.

    Returns:
        The entry made in the history; ``None`` if the version held the alias already.

    Raises:
        GateRefusedError: with all reasons; the alias stays where it is.
        Data2VecError: no such model or version, or an alias MLflow would not take.
    """
    _check_alias(alias)
    if force is not None and not force.strip():
        raise Data2VecError("--force needs a reason, which is kept in the alias's history")
    show(tracker, name)  # a clear message for an unknown name
    with turn(tracker, name) as mine:
        note_outside_moves(tracker, name)
        candidate = get_version(tracker, name, version)
        model = show(tracker, name)
        held = model.aliases.get(alias)
        if held == candidate.version:
            return None
        holder = next((v for v in model.versions if v.version == held), None)
        against = judgement(candidate, holder) if force is not None else []
        reasons = gate_reasons(
            candidate, holder, lambda: _reload(tracker, candidate), forced=force is not None
        )
        if reasons:
            raise GateRefusedError(f"{name}@{alias} -> version {candidate.version}", reasons)
        why = f"forced: {force} (although {'; '.join(against)})" if against else _why(candidate, holder)
        move = AliasMove(
            alias=alias, from_version=held, to_version=candidate.version, by=by or "", reason=why
        )
        return _move(tracker, candidate, move, mine)


def rollback(tracker: Tracker, *, name: str, alias: str, by: str | None = None) -> AliasMove:
    """Give ``alias`` back to the version that held it before; a second rollback goes one further back.

    Raises:
        Data2VecError: nothing to go back to, or that version was deleted.
    """
    show(tracker, name)  # a clear message for an unknown name
    with turn(tracker, name) as mine:
        note_outside_moves(tracker, name)
        model = show(tracker, name)
        held = model.aliases.get(alias)
        stack = holders(history(tracker, name), alias)
        # An alias moved by another program is not on the stack: going back means to our last holder.
        if stack and stack[-1] == held:
            stack.pop()
        if not stack:
            raise Data2VecError(
                f"{name}@{alias}: no earlier holder is recorded; see 'd2v registry history {name}'"
            )
        target = stack[-1]
        version = next((v for v in model.versions if v.version == target), None)
        if version is None:
            raise Data2VecError(
                f"{name}@{alias}: version {target}, which held it before, was deleted; promote another"
            )
        why = f"rollback from version {held}"
        move = AliasMove(
            alias=alias, from_version=held, to_version=target, by=by or "", reason=why, rollback=True
        )
        return _move(tracker, version, move, mine)


def _move(tracker: Tracker, version: ModelVersion, move: AliasMove, mine: Turn) -> AliasMove:
    # First the entry: a process killed in between leaves one that is pending and no move, or a move that it
    # explains, never a move without an entry.
    written = write_entry(tracker, version.name, replace(move, pending=True))
    mine.check()
    tracker.client.set_registered_model_alias(version.name, move.alias, str(version.version))
    written = confirm_entry(tracker, version.name, written)
    show_score(tracker, move.alias, version)
    return written


def _why(candidate: ModelVersion, holder: ModelVersion | None) -> str:
    if holder is None:
        own = candidate.number(f"{_score_tag(candidate)}.value")
        if own is None:
            return "first holder; no score is recorded"
        if candidate.number("floor.value") is None:
            return f"first holder; no floor is known of {candidate.tags[f'{_score_tag(candidate)}.name']}"
        name = candidate.tags[f"{_score_tag(candidate)}.name"]
        return f"first holder; {name} {own:g} against {_floor_text(candidate)}"
    if candidate.kind == PRETRAINED:
        return "not collapsed; reload in a clean process reproduces its outputs"
    metric = candidate.tags["metric.name"]
    return (
        f"{metric} {candidate.number('metric.value'):g} against {holder.number('metric.value'):g}, same data"
    )


def _reload(tracker: Tracker, candidate: ModelVersion) -> str | None:
    found = resolve(candidate.uri, tracker)
    if found.package is None:
        return "it is not an MLflow model made by d2v"
    return reload_problem(found.package, found.path / CHECK_FILE)


def _check_alias(alias: str) -> None:
    if not ALIAS.fullmatch(alias):
        raise Data2VecError(f"alias = {alias!r} {ALIAS_RULE}")
