"""Options that the commands for models in use share."""

from __future__ import annotations

from typing import Annotated

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
