"""``d2v runs``: the trainings and sweeps that MLflow holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from data2vec.errors import Data2VecError, nearest_names

from .mlflow_access import unavailable
from .run_liveness import HEARTBEAT_TAG
from .tracker import Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run

    from .tracker import Tracker

_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """One run, as it is listed.

    Attributes:
        name: of the run.
        run_id: MLflow's.
        experiment: its name.
        state: ``running``, ``finished``, ``failed``, ``killed``, or ``dead``: its process is gone.
        recipe: name of the recipe, or of the sweep.
        update: the newest one that was logged.
        metric: what its score is; empty without one.
        score: newest value of the metric that decides over its checkpoints, else of the training loss.
        started: local time, ISO 8601.
    """

    name: str
    run_id: str
    experiment: str
    state: str
    recipe: str
    update: int | None
    metric: str
    score: float | None
    started: str


def list_runs(
    tracker: Tracker, experiment: str | None = None, *, limit: int = 20, trials: bool = False
) -> list[ListedRun]:
    """The newest runs first.

    Args:
        tracker: where.
        experiment: runs of this one only.
        limit: so many.
        trials: also the runs of sweeps.

    Raises:
        Data2VecError: there is no such experiment.
    """

    try:
        names = {e.experiment_id: e.name for e in tracker.client.search_experiments()}
        if experiment is not None:
            names = {key: name for key, name in names.items() if name == experiment} or _none(
                names, experiment
            )
        found: list[ListedRun] = []
        token: str | None = None
        while names:
            page = tracker.client.search_runs(
                list(names), order_by=["attributes.start_time DESC"], max_results=200, page_token=token
            )
            shown = (run for run in page if trials or _PARENT not in run.data.tags)
            found += [_listed(tracker, run, names[run.info.experiment_id]) for run in shown]
            token = page.token
            if not token or len(found) >= limit:
                break
        return found[:limit]
    except Data2VecError:
        raise
    except Exception as error:
        raise unavailable(tracker.tracking_uri, error) from error


def _none(names: dict[str, str], experiment: str) -> dict[str, str]:
    known = sorted(names.values())
    hint = nearest_names(experiment, known) or "; there are\n  " + "\n  ".join(known)
    raise Data2VecError(f"--experiment {experiment!r}: there is no such experiment{hint}")


def _listed(tracker: Tracker, run: Run, experiment: str) -> ListedRun:
    tags, metrics = run.data.tags, run.data.metrics
    state = run.info.status.lower()
    if state == "running" and HEARTBEAT_TAG in tags and not tracker.is_live(run):
        state = "dead"
    decides = run.data.params.get("checkpoint.best_checkpoint_metric", "")
    subset = run.data.params.get("dataset.valid_subset", "").split(",")[0]
    metric = next((name for name in (f"{subset}/{decides}", "train/loss") if name in metrics), "")
    steps = [point.step for point in run.data.to_proto().metrics]
    return ListedRun(
        name=run.info.run_name or run.info.run_id,
        run_id=run.info.run_id,
        experiment=experiment,
        state=state,
        recipe=tags.get("d2v.recipe") or (f"sweep {tags['d2v.sweep']}" if "d2v.sweep" in tags else ""),
        update=int(max(steps)) if steps else None,
        metric=metric,
        score=metrics.get(metric),
        started=datetime.fromtimestamp(run.info.start_time / 1000).isoformat(" ", "seconds"),
    )


def runs_command(
    experiment: Annotated[str | None, typer.Option(help="Runs of this experiment only.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 20,
    trials: Annotated[bool, typer.Option("--trials", help="Also the trainings of sweeps.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="MLflow server; default MLFLOW_TRACKING_URI.")
    ] = None,
) -> None:
    """Trainings and sweeps in MLflow, the newest first: state, recipe, update and score.

    A run that is dead, failed or killed goes on where it stopped with the same platform.run_name.
    """

    with Tracker(tracking_uri) as tracker:
        runs = list_runs(tracker, experiment, limit=limit, trials=trials)
    if as_json:
        typer.echo(json.dumps([asdict(run) for run in runs], indent=1))
        return
    if not runs:
        typer.echo("There are no runs yet: d2v train RECIPE task.data=FOLDER makes one.")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("run", "state", "recipe", "update", "score", "started", "experiment")
    for run in runs:
        update = "" if run.update is None else f"{run.update:,}"
        score = "" if run.score is None else f"{run.metric} {run.score:.4g}"
        cells = (run.name, run.state, run.recipe, update, score, run.started, run.experiment)
        table.add_row(*map(Text, cells))
    console = Console(markup=False)
    # Outside a terminal rich assumes 80 columns and would cut names: scripts get full lines.
    Console(markup=False, width=None if console.is_terminal else 200).print(table)
