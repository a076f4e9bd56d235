"""Every move of every alias of a registered model, kept as tags of that model, and moves that went past us.

MLflow's pages hide tags that begin with ``mlflow.``; what they show of an alias is its score, in a tag of the
alias's name.
"""

from __future__ import annotations

import getpass
import json
import logging
import socket
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..tracking.mlflow_access import short_reason
from .alias_turns import AliasBusyError, turn
from .model_versions import ModelVersion, RegisteredModel, show

if TYPE_CHECKING:
    from ..tracking.tracker import Tracker

logger = logging.getLogger(__name__)

_HISTORY = "mlflow.d2v.history."
_HISTORY_BEFORE = "history."  # of versions of ours until 2026
_OUTSIDE = "moved outside d2v (in MLflow's pages, or by another program): no gate has judged it"


@dataclass(frozen=True, kw_only=True)
class AliasMove:
    """One entry of the history; versions are ``None`` where nobody held the alias."""

    number: int = 0  # from 1, given when it is written
    time: str = ""  # ISO 8601, UTC, of writing
    alias: str
    from_version: int | None
    to_version: int | None
    by: str
    reason: str
    rollback: bool = False
    outside: bool = False
    pending: bool = False  # written down, and the alias not yet moved


def history(tracker: Tracker, name: str) -> list[AliasMove]:
    """All alias moves of a model, oldest first; one that was interrupted before the alias moved is none."""
    aliases = show(tracker, name).aliases  # a clear message for an unknown name
    tags = tracker.client.get_registered_model(name).tags
    moves = [
        AliasMove(**json.loads(text))
        for key, text in tags.items()
        if key.startswith((_HISTORY, _HISTORY_BEFORE))
    ]
    made = [move for move in moves if not move.pending or aliases.get(move.alias) == move.to_version]
    return sorted(made, key=lambda move: move.number)


def holders(moves: list[AliasMove], alias: str) -> list[int]:
    """The stack of holders: a move through the gate pushes, a rollback pops."""
    stack: list[int] = []
    for move in moves:
        if move.alias != alias or move.outside or move.to_version is None:
            continue
        if move.rollback:
            while stack and stack[-1] != move.to_version:
                stack.pop()
        elif stack[-1:] != [move.to_version]:  # else it came back after a move outside
            stack.append(move.to_version)
    return stack


def write_entry(tracker: Tracker, name: str, move: AliasMove) -> AliasMove:
    """Add a move to the history; it gets its number and time, and this user if nobody is named."""
    moves = history(tracker, name)
    number = moves[-1].number + 1 if moves else 1
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return _write(tracker, name, replace(move, number=number, time=now, by=move.by or _this_user()))


def confirm_entry(tracker: Tracker, name: str, move: AliasMove) -> AliasMove:
    """The alias of a pending entry has moved."""
    return _write(tracker, name, replace(move, pending=False))


def _write(tracker: Tracker, name: str, move: AliasMove) -> AliasMove:
    content = asdict(move)
    if not move.pending:
        del content["pending"]  # versions of ours until 2026 read what is left
    text = json.dumps(content, sort_keys=True)
    tracker.client.set_registered_model_tag(name, f"{_HISTORY}{move.number:04d}", text)
    return move


def show_score(tracker: Tracker, alias: str, version: ModelVersion) -> None:
    """Let MLflow's list of models show the score behind an alias."""
    words = ", ".join(filter(None, [version.score(), f"v{version.version}"]))
    tracker.client.set_registered_model_tag(version.name, alias, words)


def note_outside_moves(tracker: Tracker, name: str) -> list[AliasMove]:
    """Write moves that went past the gate into the history, and say so; the caller has its :func:`turn`."""
    model, moves = show(tracker, name), history(tracker, name)
    for move in moves:
        if move.pending:  # its process died between the alias and this
            confirm_entry(tracker, name, move)
    noted = []
    for alias, known, found in _outside(model, moves):
        _say(name, alias, known, found)
        move = AliasMove(
            alias=alias, from_version=known, to_version=found, by="unknown", reason=_OUTSIDE, outside=True
        )
        noted.append(write_entry(tracker, name, move))
        if version := next((v for v in model.versions if v.version == found), None):
            show_score(tracker, alias, version)
    return noted


def notice_outside_moves(tracker: Tracker, name: str) -> None:
    """The same for somebody who merely uses the model: nothing about it stops them."""
    found = []
    try:
        found = _outside(show(tracker, name), history(tracker, name))
        if not found:
            return
        with turn(tracker, name, 5.0):
            note_outside_moves(tracker, name)
    except AliasBusyError:  # somebody moves an alias at this moment
        return
    except Exception as error:  # a registry that one may only read
        for move in found:
            _say(name, *move)
        logger.warning("the history of %s cannot be written: %s", name, short_reason(error))


def _outside(model: RegisteredModel, moves: list[AliasMove]) -> list[tuple[str, int | None, int | None]]:
    """Alias, its version by the history, and the one that it has."""
    known: dict[str, int | None] = {move.alias: move.to_version for move in moves}
    return [
        (alias, known.get(alias), model.aliases.get(alias))
        for alias in sorted(known.keys() | model.aliases.keys())
        if known.get(alias) != model.aliases.get(alias)
    ]


def _say(name: str, alias: str, known: int | None, found: int | None) -> None:
    now = "it is gone" if found is None else f"it is version {found}"
    was = "was never set" if known is None else f"gave it to version {known}"
    logger.warning(
        "%s@%s was %s; d2v %s, and now %s ('d2v registry rollback %s --alias %s' goes back)",
        name, alias, _OUTSIDE, was, now, name, alias,
    )  # fmt: skip


def _this_user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
