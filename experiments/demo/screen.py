"""The demo's last screen: what came out, in about a dozen lines, whether or not pretraining won."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .worker_kill import KillProof


@dataclass(frozen=True, kw_only=True)
class PretrainingFigures:
    """How pretraining went."""

    first_loss: float  # of the first log line
    last_loss: float  # of the last one
    target_var: float  # deviation of the teacher's features over positions; near 0 would be a collapse
    workers: int  # Ray Train workers
    updates: int  # completed
    seconds: float  # of training
    model: str  # name in the registry


@dataclass(frozen=True, kw_only=True)
class TaskFigures:
    """One row of the table; values are percentages of the task's official metric on its dev set."""

    task: str  # what it is
    metric: str  # its official metric
    majority: float | None  # of always giving the commonest label
    random: float | None  # best of the sweep from random weights; ``None`` if no trial has a value
    pretrained: float | None  # the same from pretrained weights
    lr: float | None  # rate that won with pretrained weights
    model: str  # name in the registry
    examples: int  # size of the dev set


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a registered model said about one raw sentence."""

    model: str
    sentence: str
    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Everything on the last screen."""

    title: str  # what the demo ran on
    seconds: float  # all of it
    pretraining: PretrainingFigures  # its figures
    tasks: Sequence[TaskFigures]  # the table
    rates: int  # learning rates tried in both sweeps
    seeds: Sequence[int]  # of the sweep
    max_updates: int  # of each trial
    predictions: Sequence[Prediction]  # from the registry
    proof: KillProof | None  # of a worker's death, if one was killed
    home: str  # where state lives
    command: str  # how ``d2v`` is called here


def render(screen: Screen) -> list[str]:
    """The lines."""
    p = screen.pretraining
    lines = [
        f"demo done in {_minutes(screen.seconds)}: {screen.title}",
        f"pretraining  loss {p.first_loss:.2f} -> {p.last_loss:.2f}   target variance {p.target_var:.2f}   "
        f"{p.workers} Ray Train workers   {p.updates} updates in {p.seconds:.0f} s   {p.model}",
    ]
    if screen.proof is not None:
        lines += [f"kill         {line}" if not n else f"             {line}"
                  for n, line in enumerate(screen.proof.lines())]  # fmt: skip
    lines += ["", *table(screen.tasks), *_notes(screen), ""]
    lines += [
        f'prediction   "{found.sentence}" -> {found.label} ({found.score:.2f}; {found.model})'
        for found in screen.predictions
    ]
    lines += [
        f"registry     make ui   runs, tables and models of {screen.home} in MLflow's pages",
        "your tasks   make demo DATA=/path/to/glue   (a folder with CoLA/ and RTE/)",
        f"your text    {screen.command} prepare text --train my.txt --build-dict --dest my-data && "
        f"{screen.command} train tiny/text_pretraining task.data=my-data",
    ]
    return lines


def table(tasks: Sequence[TaskFigures]) -> list[str]:
    """The table, columns aligned, numbers to the right."""
    rows = [("task (metric, %)", "majority class", "random weights", "pretrained", "lr", "model@alias")]
    for task in tasks:
        rate = "-" if task.lr is None else f"{task.lr:g}"
        values = [_value(value) for value in (task.majority, task.random, task.pretrained)]
        rows.append((f"{task.task} ({task.metric})", values[0], values[1], values[2], rate, task.model))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if column in (0, 5) else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _notes(screen: Screen) -> list[str]:
    """Protocol and honesty."""
    seeds = ", ".join(map(str, screen.seeds))
    known = [task for task in screen.tasks if task.random is not None and task.pretrained is not None]
    won = sum((task.pretrained or 0.0) > (task.random or 0.0) for task in known)
    verdict = (
        f"pretrained weights are ahead on {won} of {len(known)} tasks" if known else "no task has a result"
    )
    examples = min((task.examples for task in screen.tasks), default=0)
    error = 100.0 * math.sqrt(0.25 / examples) if examples else float("nan")
    word = "seed" if len(screen.seeds) == 1 else "seeds"
    noise = "one seed is noise" if len(screen.seeds) == 1 else "few seeds are noisy"
    return [
        f"{word} {seeds}; both the best of {screen.rates} rates, at most {screen.max_updates} updates a "
        f"trial; {verdict}.",
        f"{noise}: {examples} dev examples alone mean +-{error:.1f} points of accuracy (1 standard error).",
    ]


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
