"""``d2v report``: one HTML page, a PNG and CSV files of a run or a sweep."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..storage.local_places import file_to_write, folder_to_write


class Over(StrEnum):
    """What curves are drawn over."""

    updates = "updates"
    cpu = "cpu"


def report_command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|SWEEP...",
            help="run (name or id), sweep, or SWEEP/TRIAL; further runs are laid over the first",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="folder to write to; default D2V_HOME/reports/NAME", parser=folder_to_write),
    ] = None,
    curves: Annotated[
        list[Path] | None,
        typer.Option("--with", help="curves.csv of another report, laid over too; may be repeated"),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help='draw these curves only ("loss", "variance", "val-knn", ...); may be repeated'),
    ] = None,
    over: Annotated[Over, typer.Option(help="draw curves over updates or CPU-minutes")] = Over.updates,
    reference: Annotated[
        bool,
        typer.Option("--reference", help="is it healthy? Lay its recipe's reference curves over it"),
    ] = False,
    reference_file: Annotated[
        Path | None,
        typer.Option("--reference-file", metavar="FILE", help="the same with the curves of a file"),
    ] = None,
    as_reference: Annotated[
        Path | None,
        typer.Option(
            "--write-reference",
            metavar="FILE",
            help="keep the run's curves as a reference",
            parser=file_to_write,
        ),
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="look in this MLflow experiment only")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="MLflow server; default MLFLOW_TRACKING_URI.")
    ] = None,
) -> None:
    """Write a report: one self-contained HTML file, a PNG and CSV files.

    Of a run: loss, variance, learning rate, EMA decay, throughput and everything else it logged. Of a sweep:
    the result table, and each task's metric over the learning rate with all seeds.
    """
    from .report import write_report

    written = write_report(
        names, out=out, curves=curves or (), experiment=experiment, tracking_uri=tracking_uri,
        only=only or (), over=over.value, reference=reference_file or reference, as_reference=as_reference,
    )  # fmt: skip
    for line in written.verdict:
        typer.echo(line)
    for path in (written.html, written.png, *written.tables):
        if path is not None:
            typer.echo(str(path))
