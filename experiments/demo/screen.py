"""The demo's last screen: what came out, whether or not pretraining won, and no more than that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .worker_kill import KillProof

SURE = 10  # the most certain answers are looked at: one in so many
_ERRORS = 2.0  # standard errors that a difference must exceed to count


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
    fresh: float | None  # the same from the weights that the demo pretrained
    pretrained: float | None  # the same from a model that was pretrained for longer
    lr: float | None  # rate that won with pretrained weights
    model: str  # name in the registry
    examples: int  # size of the dev set

    def noise(self, value: float) -> float:
        """Two standard errors of its difference to random weights, by the number of examples alone."""
        if not self.examples:
            return math.inf
        if self.metric == "mcc":
            return _ERRORS * 100.0 * math.sqrt(2.0 / self.examples)
        shares = [one / 100.0 for one in (self.random, value) if one is not None]
        spread = sum(share * (1.0 - share) for share in shares) * 2.0 / len(shares)
        return _ERRORS * 100.0 * math.sqrt(spread / self.examples)

    def verdict(self, value: float | None) -> str:
        """A value beside random weights', in words."""
        if self.random is None or value is None:
            return "not compared: a sweep has no result"
        gain, noise = value - self.random, self.noise(value)
        if abs(gain) <= noise:
            return f"{gain:+.1f}: no difference beyond noise (+-{noise:.1f})"
        return f"{gain:+.1f}: {'ahead' if gain > 0 else 'BEHIND'} beyond noise (+-{noise:.1f})"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a registered model said about one raw sentence that it was not trained on."""

    sentence: str
    label: str  # the likelier one
    score: float  # its probability
    truth: str  # the right one

    @property
    def right(self) -> bool:
        """Whether it is."""
        return self.label == self.truth

    def line(self) -> str:
        """In words."""
        return (
            f'"{self.sentence}" -> {self.label} ({self.score:.2f}), {"right" if self.right else "WRONG"}'
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Answers of one model from the registry."""

    model: str  # its address there
    shown: Sequence[Prediction]  # written for the demo
    held_out: Sequence[Prediction] = ()  # the task's dev sentences, by which the rate was chosen

    def surest(self) -> list[Prediction]:
        """The held-out sentence of each answer that it is most sure of."""
        answers = sorted({one.label for one in self.held_out})
        return [max((p for p in self.held_out if p.label == a), key=lambda p: p.score) for a in answers]

    def summary(self) -> list[str]:
        """How often it is right, and how often where it is sure."""
        known = sorted(self.held_out, key=lambda one: -one.score)
        if not known:
            return []
        sure = known[: max(len(known) // SURE, 1)]
        share, noise = _right(known), _ERRORS * 100.0 * math.sqrt(0.25 / len(known))
        same = 100.0 * max(Counter(one.truth for one in known).values()) / len(known)
        return [
            f"of {len(known)} held-out sentences {share:.0f} % right; of the {len(sure)} it is most sure of "
            f"(confidence {sure[-1].score:.2f} and more) {_right(sure):.0f} %",
            f"one answer for all gets {same:.0f} %, noise is +-{noise:.0f}: "
            + ("it has learnt something" if share - same > noise else "this model answers no better"),
        ]


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Everything on the last screen."""

    title: str  # what the demo ran on
    seconds: float  # all of it
    pretraining: PretrainingFigures  # its figures
    task: TaskFigures  # the table
    rates: int  # learning rates tried in every sweep
    seeds: Sequence[int]  # of the sweep
    max_updates: int  # of each trial
    predictions: Predictions  # from the registry
    proof: KillProof | None  # of a worker's death, if one was killed
    home: str  # where state lives
    command: str  # how ``d2v`` is called here
    page: Path | None = None  # the report


def render(screen: Screen) -> list[str]:
    """The lines."""
    p = screen.pretraining
    lines = [
        f"demo done in {_minutes(screen.seconds)}: {screen.title}",
        f"pretraining  loss {p.first_loss:.2f} -> {p.last_loss:.2f}   target variance {p.target_var:.2f}   "
        f"{p.workers} Ray Train workers   {p.updates} updates in {p.seconds:.0f} s   {p.model}",
    ]
    if screen.proof is not None:
        lines += _under("kill", screen.proof.lines())
    lines += ["", *table(screen.task), *notes(screen), ""]
    found = screen.predictions
    told = [f"{found.model}, loaded in a clean process; what it is most sure of, and sentences of ours:"]
    told += [p.line() for p in (*found.surest(), *found.shown)]
    lines += _under("prediction", told)
    lines += _under("", found.summary())
    if screen.page is not None:
        lines.append(f"report       {screen.page.as_uri()}   curves, table, masks and predictions")
    lines += [
        f"registry     make ui   runs, tables and models of {screen.home} in MLflow's pages",
        "your tasks   make demo DATA=/path/to/glue   (a folder with CoLA/)",
        f"your text    {screen.command} prepare text --train my.txt --build-dict --dest my-data && "
        f"{screen.command} train tiny/text_pretraining task.data=my-data",
    ]
    return lines


HEADER = (
    "task (metric, %)",
    "majority class",
    "random weights",
    "just pretrained",
    "longer pretrained",
    "lr",
    "model@alias",
)


def row(task: TaskFigures) -> tuple[str, ...]:
    """Cells of the table."""
    return (
        f"{task.task} ({task.metric})",
        *map(_value, (task.majority, task.random, task.fresh, task.pretrained)),
        "-" if task.lr is None else f"{task.lr:g}",
        task.model,
    )


def table(task: TaskFigures) -> list[str]:
    """The table, columns aligned, numbers to the right."""
    cells = [HEADER, row(task)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    return [
        "  ".join(
            text.ljust(width) if column in (0, len(HEADER) - 1) else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def notes(screen: Screen) -> list[str]:
    """Protocol and honesty."""
    several = len(screen.seeds) > 1
    seeds = f"{'median of seeds' if several else 'seed'} {', '.join(map(str, screen.seeds))}"
    return [
        f"beside random weights: just pretrained {screen.task.verdict(screen.task.fresh)}; longer pretrained "
        f"{screen.task.verdict(screen.task.pretrained)}",
        f"{seeds}; all the best of {screen.rates} rates, at most {screen.max_updates} "
        f"updates a trial; noise is {_ERRORS:g} standard errors by the dev examples, seeds come on top.",
    ]


def _right(found: Sequence[Prediction]) -> float:
    """Percent."""
    return 100.0 * sum(one.right for one in found) / len(found)


def _under(name: str, told: Sequence[str]) -> list[str]:
    return [f"{'' if number else name:13}{line}" for number, line in enumerate(told)]


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
