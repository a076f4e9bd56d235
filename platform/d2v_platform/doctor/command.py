"""``d2v doctor``: run every check, print what is wrong and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from .findings import guarded

if TYPE_CHECKING:
    from .findings import Finding


def examine(storage: Sequence[str] = (), mend: bool = False) -> Iterator[Finding]:
    """Every finding, one check after the other.

    Args:
        storage: URIs to try beside what the environment names.
        mend: close runs of dead processes, send what waits, upload what stayed behind.
    """
    from . import environment, services  # they import torch, which --help can do without

    yield from guarded("versions", environment.versions)
    yield from guarded("processors", environment.processors)
    yield from guarded("disk", environment.disks)
    yield from guarded("mlflow", lambda: services.mlflow(mend))
    yield from guarded("ray", services.ray)
    yield from guarded("storage", lambda: services.storage(storage))
    yield from guarded("uploads", lambda: services.uploads(mend))


def doctor(
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of lines."),
    storage: list[str] = typer.Option([], help="An s3:// or other URI to try; may be repeated."),  # noqa: B008
    mend: bool = typer.Option(
        False, "--mend", help="Close runs of dead processes, send waiting metrics, upload what stayed behind."
    ),
) -> None:
    """Ray, MLflow, storage, versions, GPUs, disk, permissions, orphan runs: what is wrong, how to mend it."""
    found: list[Finding] = []
    for finding in examine(storage, mend):
        found.append(finding)
        if not as_json:
            typer.echo(finding.line())
    bad = sum(finding.level == "bad" for finding in found)
    if as_json:
        typer.echo(json.dumps({"ok": not bad, "findings": [asdict(finding) for finding in found]}, indent=1))
    else:
        notes = sum(finding.level == "note" for finding in found)
        typer.echo(f"{bad} to mend, {notes} to know" if bad or notes else "all is well")
    raise typer.Exit(1 if bad else 0)
