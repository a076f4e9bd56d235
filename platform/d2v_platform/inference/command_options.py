"""Options that the commands for models in use share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

Device = Annotated[
    str, typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda, or cuda:1 of several.")
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size", min=1,
        help="Images, or recordings of 10 s, that go through the model together; results are the same.",
    ),
]  # fmt: skip
Pooling = Literal["mean", "cls", "none"]


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Options of ``d2v embed``, for the kind of model that it is given."""

    model: str  # as it was named
    dest: Path  # the Parquet file
    subset: str | None  # of the folder
    unlabelled: bool  # folders are no classes
    layer: int  # shared block whose output is taken
    pooling: Pooling  # ``mean``, ``cls`` or ``none``
    batch_size: int  # inputs at a time


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Options of ``d2v probe``, for the kind of model that it is given."""

    bank: str  # subset that teaches
    subset: str | None  # subset that is judged; None: the usual one
    layer: int  # shared block whose output is taken
    pooling: Pooling  # ``mean`` or ``cls``
    neighbours: int  # k of kNN


@dataclass(frozen=True)
class Probed:
    """What ``d2v probe`` found."""

    sides: tuple[str, str]  # the subset that taught, and the one that was judged
    counts: tuple[int, int]  # of items in them
    scores: Sequence[Mapping[str, float]]  # "knn" and "linear_probe" of each model, in percent
    odd: Sequence[str] = ()  # items that could not be taken as they are, in words
