"""``d2v average``: the mean of the newest checkpoints of a run, or of several models, as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data2vec.errors import DataError

from ..storage.local_places import folder_to_write
from ..tracking.tracker import Tracker


def average_command(
    sources: Annotated[
        list[str], typer.Argument(metavar="RUN | MODEL MODEL...", help="A run's name or id, or models.")
    ],
    out: Annotated[Path, typer.Option("--out", help="New model folder.", parser=folder_to_write)],
    last: Annotated[int | None, typer.Option(min=2, help="So many newest checkpoints of the run.")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow server; default MLFLOW_TRACKING_URI.")
    ] = None,
) -> None:
    """Average weights: the newest checkpoints of a run, or several models.

    Sums are made in float32. `d2v registry add RUN@lastN` registers the mean of a run's N newest checkpoints.
    """
    if last is None and len(sources) < 2:
        raise DataError("give --last N for checkpoints of a run, or several models to average")
    if last is not None and len(sources) > 1:
        raise DataError(f"--last {last} is for the checkpoints of one run; here are {len(sources)} names")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"--out {out} is not empty; give a new folder")
    if last is None:
        from data2vec.averaging import average_folders

        from .model_folders import model_folder

        average_folders([model_folder(source)[0] for source in sources], out)
        typer.echo(f"mean of {len(sources)} models written to {out}")
        return
    from .from_run import RunCheckpoint, export_from_run

    with Tracker(tracking_uri) as tracker:
        taken = export_from_run(tracker, RunCheckpoint(sources[0], f"last{last}"), out)
    typer.echo(f"mean of the checkpoints of updates {', '.join(map(str, taken.updates))} written to {out}")
