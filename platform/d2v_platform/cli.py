"""``d2v``: train, sweep and use data2vec models.

Verbs import what they need when they run, so that ``d2v --help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

import typer

from data2vec.errors import Data2VecError

from .doctor.command import doctor
from .importing.command import import_command
from .importing.export_command import export_command
from .inference.embedding import embed_command
from .inference.image_commands import probe_command
from .inference.transcription import transcribe_command
from .preparation.commands import app as prepare_app
from .registry.commands import app as registry_app
from .reports.command import report_command
from .tracking.redaction import redact_logs, redact_text

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, sweep and use data2vec and data2vec 2.0 models on Ray, tracked by MLflow.",
)
app.add_typer(prepare_app, name="prepare")
app.add_typer(registry_app, name="registry")
config_app = typer.Typer(no_args_is_help=True, help="Look at recipes.")
app.add_typer(config_app, name="config")
app.command(help="Say what is wrong with this installation and its services, and how to mend it.")(doctor)
app.command("transcribe", epilog="Example: d2v transcribe talk.wav --model models:/NAME@ALIAS")(
    transcribe_command
)
_EMBED = (
    "Examples: d2v embed photos --model models:/NAME@ALIAS --dest photos.parquet; d2v embed talks --model "
    "models:/NAME@ALIAS --dest frames.parquet --pooling none --layer 5"
)
app.command("embed", epilog=_EMBED)(embed_command)
app.command("probe", epilog="Example: d2v probe /imagenet --model models:/NAME@ALIAS --random-weights 3")(
    probe_command
)
app.command("import", epilog="Example: d2v import base_libri.pt --register speech-base")(import_command)
app.command("export", epilog="Example: d2v export models:/m/1 --to huggingface --out m")(export_command)
app.command("report", epilog="Example: d2v report my-sweep --out report")(report_command)

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=_PASS_ON, help="Train a recipe: pretraining or fine-tuning (d2v train --help).")
def train(context: typer.Context) -> None:
    """All arguments go to the recipe's own parser, which ``experiments/train.py`` shares."""
    train_command(context.args, "d2v train")


@app.command(context_settings=_PASS_ON, help="Run a sweep of configs/sweep (d2v sweep --help).")
def sweep(context: typer.Context) -> None:
    """All arguments go to the sweep's own parser, which ``experiments/glue_sweep.py`` shares."""
    sweep_command(context.args, "d2v sweep")


@app.command(context_settings=_PASS_ON, help="Decode or classify subsets with a model (d2v infer --help).")
def infer(context: typer.Context) -> None:
    """All arguments go to the parser that ``experiments/infer.py`` shares."""
    infer_command(context.args, "d2v infer")


@config_app.command("show", context_settings=_PASS_ON, help="Show a resolved recipe: d2v config show NAME.")
def config_show(context: typer.Context) -> None:
    """Every field with its value, type and documentation."""
    from rich.console import Console

    from .recipe.command_line import parse
    from .recipe.compose import compose
    from .recipe.describe import describe

    arguments = [word for word in context.args if word != "--changed"]
    request = parse(arguments, "d2v config show")
    composed = compose(request.config_name, request.overrides, request.config_dir, check=False)
    console = Console(soft_wrap=True, highlight=False)
    console.print(describe(composed.recipe, changed_only="--changed" in context.args))
    for note in composed.notes:
        console.print(f"note: {note}", style="dim", markup=False)


@config_app.command("list")
def config_list() -> None:
    """List the recipes and sweeps that can be named."""
    from .recipe.locate import recipe_names
    from .recipe.sweep_definition import sweep_names

    for name in recipe_names():
        typer.echo(name)
    for name in sweep_names():
        typer.echo(f"sweep {name}")


def train_command(arguments: Sequence[str], prog: str) -> None:
    """``d2v train`` and ``experiments/train.py``."""
    from .recipe.command_line import parse

    request = parse(arguments, prog)
    if request.multirun:
        from .recipe.sweep_definition import sweep_of
        from .sweeps.command import run_or_plan

        sweep = sweep_of(request.config_name, request.overrides, request.config_dir)
        if sweep.definition.grid:  # without commas it is one training
            run_or_plan(sweep, request.plan_only)
            return
    composed = request.compose()
    from .training.launch import launch, show_plan
    from .training.run_result import result_lines
    from .training.start_times import reached

    reached("recipe composed")
    if request.plan_only:
        show_plan(composed)
        return
    for line in result_lines(launch(composed)):
        logging.getLogger(__name__).info("%s", line)


def sweep_command(arguments: Sequence[str], prog: str, default: str | None = None) -> None:
    """``d2v sweep NAME ...`` and ``experiments/glue_sweep.py``."""
    from .sweeps.command import sweep_main

    sweep_main(arguments, prog, default)


def infer_command(arguments: Sequence[str], prog: str) -> None:
    """``d2v infer`` and ``experiments/infer.py``."""
    from .inference.command import infer_command as decode

    decode(arguments, prog)


def run(command: Callable[[], object]) -> None:
    """Run a command; a user's mistake is its message alone and exit code 2.

    Exit codes: 0 done, 1 a bug of ours (with its trace), 2 the user's mistake, 130 Ctrl-C, 143 SIGTERM.
    """
    from .training.process_settings import limit_memory

    configure_logging()
    limit_memory()
    try:
        command()
    except Data2VecError as error:
        sys.stderr.write(redact_text(f"error: {error}\n"))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same platform.run_name resumes the run\n")
        raise SystemExit(130) from None


def configure_logging() -> None:
    """Our own lines on standard error, other libraries only from warnings on."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    redact_logs()
    level = os.environ.get("D2V_LOG_LEVEL", "INFO").upper()
    for name in ("data2vec", "d2v_platform"):
        logging.getLogger(name).setLevel(level)


def main() -> None:
    """The console script."""
    run(app)


if __name__ == "__main__":
    main()
