"""The winner of each task: registered, used on the test files, and the only one whose weights stay."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..figures import shown
from ..recipe.entries import entry_of, imported
from ..recipe.sweep_definition import SweepDefinition
from ..registry.registration import Registration, Trained, register_summary
from ..tracking.interface import RunTracker
from ..tracking.scores import RecordScores, Score
from .capacity import Capacity
from .results import Record
from .selection import Choice
from .sweep_folder import delete_weights
from .trial import composed_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The best run of one task."""

    task: str  # which task
    trial: str  # name of the run that stands for the winning setting
    lr: float  # peak learning rate
    seed: int  # its seed
    metric: str  # what decided
    value: float  # of this run
    median: float  # of the setting over its seeds
    floor: float | None  # what an answer that knows nothing scores, in the same metric
    run_id: str | None  # MLflow run
    model_folder: Path  # its exported model
    model_uri: str | None = None  # ``models:/NAME/VERSION``, ``None`` if it was not registered
    alias: str | None = None  # the alias that it took


def register_winner(
    tracker: RunTracker,
    definition: SweepDefinition,
    choice: Choice,
    floor: float | None,
    protocol: Sequence[str],
    table: Path,
) -> Winner:
    """Register the run that stands for the winning setting, if the definition names a model.

    Args:
        tracker: where.
        definition: its ``register`` part.
        choice: the winner.
        floor: what an answer that knows nothing scores.
        protocol: how the figures came about; goes into the card.
        table: the result table, kept beside the card.
    """
    record, point = choice.record, choice.point
    stored, result = record.stored, record.result
    assert result is not None and result.summary is not None and point.median is not None
    name = definition.register.name.replace("{task}", point.task) if definition.register.name else None
    uri = alias = None
    if name is not None and result.run_id is not None:
        words = " ".join(f"{line[0].upper()}{line[1:]}." for line in protocol)
        value, median, least, most = (
            shown(point.metric, figure)
            for figure in (choice.score.value, point.median, min(point.values), max(point.values))
        )
        told = (
            f"Winner of a sweep: learning rate {stored.lr:g}, {point.metric} {value} with "
            f"seed {stored.seed}; median over {len(point.values)} seed(s) {median} "
            f"({least} to {most}). {words}"
        )
        registered = register_summary(
            tracker,
            composed_of(stored.trial),
            Trained(result.run_id, record.model_folder, result.summary, stored.model_uri),
            Registration(
                name=name,
                alias=definition.register.alias,
                protocol=told,
                seeds=tuple(
                    r.stored.seed for r, s in zip(point.records, point.scores, strict=True) if s is not None
                ),
                results_table=table,
            ),
        )
        if registered is not None:
            uri, _, taken = registered.partition(" ")
            alias = taken.strip("()").partition("@")[2] or None
            logger.info("%s: registered %s", point.task, registered)
    return Winner(
        task=point.task,
        trial=stored.name,
        lr=stored.lr,
        seed=stored.seed,
        metric=point.metric,
        value=choice.score.value,
        median=point.median,
        floor=floor,
        run_id=result.run_id,
        model_folder=record.model_folder,
        model_uri=uri,
        alias=alias,
    )


def use_winners(
    definition: SweepDefinition,
    choices: Mapping[str, Choice],
    folder: Path,
    capacity: Capacity,
    record: RecordScores,
) -> dict[str, Path]:
    """What the tasks of the winners make of them, such as files of a test server.

    Args:
        definition: of the sweep.
        choices: winners by task.
        folder: of the sweep.
        capacity: what one of them may occupy.
        record: receives scores of test subsets.

    Returns:
        Written files by name.
    """
    users: dict[str, dict[str, Choice]] = {}
    for task, choice in choices.items():
        user = entry_of(choice.record.stored.trial.recipe.task).after_sweep
        if user is not None:
            users.setdefault(user, {})[task] = choice
    paths: dict[str, Path] = {}
    for user, chosen in users.items():
        paths |= imported(user)(definition, chosen, folder, capacity, record)
    return paths


def record_winner_scores(
    tracker: RunTracker, winners: Sequence[Winner], task: str, scores: Sequence[Score]
) -> None:
    """Scores of test subsets, to the run of the task's winner and to its registered version."""
    winner = next(winner for winner in winners if winner.task == task)
    version = None
    if winner.model_uri is not None:
        name, _, number = winner.model_uri.removeprefix("models:/").rpartition("/")
        version = name, int(number)
    for line in tracker.record_scores(list(scores), winner.run_id, version):
        logger.info("%s: recorded in %s", task, line)


def delete_losers(records: Mapping[str, Record], choices: Mapping[str, Choice]) -> int:
    """Delete the weights of runs that lost to a winner of their task; returns the bytes freed."""
    winners = {task: choice.record.stored.name for task, choice in choices.items()}
    freed = 0
    for name, record in records.items():
        if record.over and winners.get(record.stored.task, name) != name:
            freed += delete_weights(record.folder, model=True)
    return freed
