"""``d2v registry``: list, show, promote, history, rollback; imported when they run."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from data2vec.errors import Data2VecError

from ..tracking.scores import stored_scores
from ..tracking.tracker import Tracker
from .model_versions import ancestry

if TYPE_CHECKING:
    from .model_versions import ModelVersion, RegisteredModel

app = typer.Typer(
    help="Registered models: what exists, where it comes from, which version an alias stands for.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
Uri = Annotated[
    str | None, typer.Option("--tracking-uri", help="MLflow server; default MLFLOW_TRACKING_URI.")
]
Name = Annotated[str, typer.Argument(help="registered name, see `d2v registry list`")]
AliasOption = Annotated[str, typer.Option("--alias", help="e.g. champion")]


@app.command("list", epilog="Example: `d2v registry list`")
def list_command(tracking_uri: Uri = None) -> None:
    """All registered models with their aliases and the score of the newest version."""
    from .register import list_models

    with Tracker(tracking_uri) as tracker:
        models = list_models(tracker)
    if not models:
        typer.echo("Nothing is registered yet. A training registers with platform.register_as=NAME.")
        return
    table = Table("model", "kind", "versions", "aliases", "newest", "made")
    for model in models:
        newest = model.versions[0] if model.versions else None
        table.add_row(
            model.name,
            newest.kind if newest else "",
            str(len(model.versions)),
            _aliases(model),
            newest.score() if newest else "",
            _day(newest) if newest else "",
        )
    _print(table)


@app.command("show", epilog="Example: `d2v registry show data2vec2-text-base-cola --version 3`")
def show_command(
    name: Name,
    version: Annotated[int | None, typer.Option(help="show this version's lineage and card")] = None,
    tracking_uri: Uri = None,
) -> None:
    """The versions of a model; with --version its lineage and card."""
    from .register import get_version, show

    with Tracker(tracking_uri) as tracker:
        model = show(tracker, name)
        if version is not None:
            chosen = get_version(tracker, name, version)
            table = Table("tag", "value", title=f"{chosen.uri}  {' '.join('@' + a for a in chosen.aliases)}")
            for key, value in sorted(chosen.tags.items()):
                table.add_row(key, value)
            _print(table)
            _tell_ancestry(chosen, ancestry(tracker, chosen))

            Console(markup=False).print(Markdown(chosen.description))
            return
        newest = model.versions[0] if model.versions else None
        steps = ancestry(tracker, newest) if newest else []
    table = Table("version", "aliases", "score", "tested", "data", "parent", "run", "made", title=name)
    for item in model.versions:
        table.add_row(
            str(item.version),
            ", ".join(item.aliases),
            item.score(),
            _tested(item),
            item.tags.get("data.fingerprint", "")[:12],
            item.tags.get("parent.version", ""),
            item.run_id[:8],
            _day(item),
        )
    _print(table)
    _tell_ancestry(newest, steps)


@app.command("add", epilog="Example: `d2v registry add cola-2@1500 --name data2vec2-text-base-cola`")
def add_command(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="RUN@UPDATE",
            help="run name or id, and an update, `best`, `last`, or `last5`: the mean of the 5 newest",
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="registered name")],
    alias: Annotated[str | None, typer.Option("--alias", help="alias to take, through the gate")] = None,
    tracking_uri: Uri = None,
) -> None:
    """Register a checkpoint of a run as a new version, with the run's lineage.

    The data of the run must still be where its recipe says: its fingerprint goes into the version.
    """
    from .from_run import RunCheckpoint, add_from_run

    wanted = RunCheckpoint.parse(checkpoint)
    with Tracker(tracking_uri) as tracker:
        version = add_from_run(tracker, wanted, name=name, alias=alias)
        steps = ancestry(tracker, version)
    typer.echo(f"{version.uri}: {wanted.run} at update {version.tags.get('run.update')}")
    _tell_ancestry(version, steps)
    if version.refusal:
        raise Data2VecError(f"{version.uri} was registered, but {version.refusal}")


@app.command("promote", epilog="Example: `d2v registry promote data2vec2-text-base-cola 3 --alias champion`")
def promote_command(
    name: Name,
    version: Annotated[int, typer.Argument(help="version number")],
    alias: AliasOption,
    force: Annotated[
        str | None,
        typer.Option(metavar="WHY", help="whatever the scores say; who and why go into the history"),
    ] = None,
    tracking_uri: Uri = None,
) -> None:
    """Give an alias to a version, through the gate.

    Fine-tuned models must be better than the holder on the same data; pretrained ones must not have collapsed
    and must give their recorded outputs when loaded in a clean process. Both must beat an answer that knows
    nothing: the most frequent class, an empty transcript, the features of an untrained network.
    """
    from .register import GateRefusedError, promote

    with Tracker(tracking_uri) as tracker:
        try:
            move = promote(tracker, name=name, version=version, alias=alias, force=force)
        except GateRefusedError as refused:
            hint = (
                "" if force is not None else "\n  (--force 'WHY' overrules what scores say, and is recorded)"
            )
            raise Data2VecError(f"{refused}{hint}") from refused
    if move is None:
        typer.echo(f"{name}@{alias} is version {version} already.")
    else:
        typer.echo(f"{name}@{alias}: {_from(move.from_version)} -> version {version} ({move.reason})")


@app.command("history", epilog="Example: `d2v registry history data2vec2-text-base-cola`")
def history_command(name: Name, tracking_uri: Uri = None) -> None:
    """Every move of every alias of a model, oldest first."""
    from .register import history

    with Tracker(tracking_uri) as tracker:
        moves = history(tracker, name)
    if not moves:
        typer.echo(f"No alias of {name} was ever set by d2v.")
        return
    table = Table("#", "time", "alias", "from", "to", "by", "reason", title=name)
    for move in moves:
        came, went = ("" if v is None else str(v) for v in (move.from_version, move.to_version))
        table.add_row(str(move.number), move.time, move.alias, came, went, move.by, move.reason)
    _print(table)


@app.command("rollback", epilog="Example: `d2v registry rollback data2vec2-text-base-cola --alias champion`")
def rollback_command(name: Name, alias: AliasOption, tracking_uri: Uri = None) -> None:
    """Give an alias back to the version that held it before."""
    from .register import rollback

    with Tracker(tracking_uri) as tracker:
        move = rollback(tracker, name=name, alias=alias)
    typer.echo(f"{name}@{alias}: {_from(move.from_version)} -> version {move.to_version} (rollback)")


def _tell_ancestry(version: ModelVersion | None, steps: list[str]) -> None:
    if version is not None:
        typer.echo(f"lineage of {version.uri}:")
        for depth, step in enumerate(steps):
            typer.echo(f"  {'-> ' if depth else '   '}{step}")


def _print(table: Table) -> None:
    # Outside a terminal rich assumes 80 columns and would cut names: scripts get full lines.
    console = Console(markup=False)
    Console(markup=False, width=None if console.is_terminal else 200).print(table)


def _aliases(model: RegisteredModel) -> str:
    return ", ".join(f"{alias} -> {version}" for alias, version in sorted(model.aliases.items()))


def _tested(version: ModelVersion) -> str:
    """Scores of test subsets; where each of them comes from stands with --version."""

    found = (item for score in stored_scores(version.tags) for item in score.metrics.items())
    return ", ".join(f"{key.removeprefix('test/')} {value:.4g}" for key, value in found)


def _day(version: ModelVersion) -> str:
    return datetime.fromtimestamp(version.created_ms / 1000).strftime("%Y-%m-%d %H:%M")


def _from(version: int | None) -> str:
    return "nobody" if version is None else f"version {version}"
