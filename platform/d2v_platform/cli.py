"""``d2v``: train, sweep and use data2vec models.

``d2v --help`` imports no verb, and a verb imports what it needs when it runs: both answer at once.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from data2vec.errors import Data2VecError

from .redaction import redact_logs, redact_text
from .storage.local_places import path_problem

_COMPLETE = "_D2V_COMPLETE"  # set by the shell's completion
# Verbs with a module of their own: its place, the name in it, what `d2v --help` says, and an example.
_MODULES = {
    "prepare": (".preparation.commands", "app", "Turn raw data into folders for task.data.", ""),
    "registry": (
        ".registry.commands",
        "app",
        "Registered models: what exists, where it comes from, which version an alias stands for.",
        "",
    ),
    "runs": (
        ".tracking.run_list",
        "runs_command",
        "Trainings and sweeps in MLflow, the newest first: state, recipe, update and score.",
        "Example: d2v runs --experiment data2vec-text --json",
    ),
    "report": (
        ".reports.command",
        "report_command",
        "Write a report: one self-contained HTML file, a PNG and CSV files.",
        "Example: d2v report my-sweep --out report",
    ),
    "ui": (
        ".tracking.pages",
        "ui_command",
        "MLflow's pages over your runs and registered models.",
        "Example: d2v ui --port 5001",
    ),
    "transcribe": (
        ".inference.transcription",
        "transcribe_command",
        "Recordings of any length, rate and number of channels to text.",
        "Example: d2v transcribe talk.wav --model models:/NAME@ALIAS",
    ),
    "embed": (
        ".inference.embedding",
        "embed_command",
        "Embeddings to Parquet.",
        "Examples: d2v embed photos --model models:/NAME@ALIAS --dest photos.parquet; d2v embed talks "
        "--model models:/NAME@ALIAS --dest frames.parquet --pooling none --layer 5",
    ),
    "probe": (
        ".inference.probing",
        "probe_command",
        "kNN and linear probe of a frozen model's features, in percent.",
        "Examples: d2v probe /imagenet --model models:/NAME@ALIAS --random-weights 3; d2v probe /sentences "
        "--model models:/TEXT@ALIAS --subset test",
    ),
    "import": (
        ".importing.command",
        "import_command",
        "Turn a checkpoint of the reference (or of Hugging Face) into a model of ours.",
        "Example: d2v import base_libri.pt --register speech-base",
    ),
    "export": (
        ".importing.export_command",
        "export_command",
        "Write a model for fairseq, for Hugging Face's transformers, or as plain safetensors with a key "
        "table.",
        "Example: d2v export models:/m/1 --to huggingface --out m",
    ),
    "average": (
        ".registry.average_command",
        "average_command",
        "Average weights: the newest checkpoints of a run, or several models.",
        "Example: d2v average my-run --last 5 --out averaged",
    ),
    "doctor": (
        ".doctor.command",
        "doctor",
        "Ray, MLflow, storage, versions, GPUs, disk, permissions, orphan runs: what is wrong, how to mend "
        "it.",
        "",
    ),
    "env": (
        ".environment",
        "env_command",
        "Shell lines that let other programs find your runs and models; never a secret.",
        'Example: eval "$(d2v env)"',
    ),
}


class _Verbs(TyperGroup):
    """Imports a verb's module when this verb is asked for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in _MODULES:
            self.commands[args[0]] = verb(args[0])
        return super().resolve_command(ctx, args)


def verb(name: str) -> Any:
    """The command of a verb with a module of its own."""
    module, attribute, _, example = _MODULES[name]
    found = getattr(importlib.import_module(module, __package__), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(add_completion=False)
    alone.command(name, epilog=example or None)(found)
    return typer.main.get_command(alone)


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,  # d2v completion
    pretty_exceptions_enable=False,
    help="Train, sweep and use data2vec and data2vec 2.0 models on Ray, tracked by MLflow.",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at recipes.")

_PASS_ON = {"ignore_unknown_options": True, "help_option_names": []}


def _recipes(incomplete: str) -> list[str]:
    from .recipe.locate import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def _sweeps(incomplete: str) -> list[str]:
    from .recipe.locate import sweep_names

    return [name for name in sweep_names() if name.startswith(incomplete)]


# All words go to a parser of our own, which the scripts of experiments/ share.
RecipeWords = Annotated[list[str] | None, typer.Argument(autocompletion=_recipes)]
SweepWords = Annotated[list[str] | None, typer.Argument(autocompletion=_sweeps)]
Words = Annotated[list[str] | None, typer.Argument()]


def _say_version(asked: bool) -> None:
    if asked:
        import data2vec

        typer.echo(f"d2v {data2vec.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version.")
    ] = False,
) -> None:
    """Options of ``d2v`` itself."""


@app.command("train", context_settings=_PASS_ON, help="Train a recipe: pretraining or fine-tuning.")
def train_verb(words: RecipeWords = None) -> None:
    """As ``experiments/train.py``."""
    train_command(words or [], "d2v train")


@app.command(
    "sweep", context_settings=_PASS_ON, help="Run a sweep: many trainings, one table, the best registered."
)
def sweep_verb(words: SweepWords = None) -> None:
    """As ``experiments/glue_sweep.py``."""
    sweep_command(words or [], "d2v sweep")


@app.command("infer", context_settings=_PASS_ON, help="Decode or classify subsets with a model.")
def infer_verb(words: Words = None) -> None:
    """As ``experiments/infer.py``."""
    infer_command(words or [], "d2v infer")


app.add_typer(config_app, name="config")
for _name, (_, _, _help, _) in _MODULES.items():
    app.command(_name, help=_help)(lambda: None)  # for the list; _Verbs puts the command itself in its place


class Shell(StrEnum):
    """Shells whose completion is known."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(help="Your shell.")]) -> None:
    """Print what completes verbs, options and the names of recipes in your shell.

    bash: eval "$(d2v completion bash)" in ~/.bashrc. zsh: the same in ~/.zshrc, after compinit. fish: d2v
    completion fish > ~/.config/fish/completions/d2v.fish
    """
    from typer.completion import get_completion_script

    typer.echo(get_completion_script(prog_name="d2v", complete_var=_COMPLETE, shell=shell.value))


@config_app.command("show", context_settings=_PASS_ON, help="Show a recipe as it resolves.")
def config_show(words: RecipeWords = None) -> None:
    """Every field with its value, type and documentation."""
    from .recipe.command_line import SHOW, parse

    request = parse(words or [], "d2v config show", SHOW)
    from rich.console import Console

    from .recipe.compose import compose
    from .recipe.describe import recipe_as_yaml

    composed = compose(request.config_name, request.overrides, request.config_dir, check=False)
    console = Console(markup=False, soft_wrap=True, highlight=False)
    console.print(recipe_as_yaml(composed.recipe, changed_only=request.changed_only))
    for note in composed.notes:
        console.print(f"note: {note}", style="dim", markup=False)


@config_app.command("list")
def config_list() -> None:
    """List the recipes and sweeps that can be named."""
    for name in _recipes(""):
        typer.echo(name)
    for name in _sweeps(""):
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
    with _keeping_all():
        composed = request.compose()
        from .launch import launch, show_plan
        from .training.run_result import result_lines
        from .training.start_times import start_part_over

    start_part_over("recipe composed")
    if request.plan_only:
        show_plan(composed)
        return
    for line in result_lines(launch(composed)):
        logging.getLogger(__name__).info("%s", line)


@contextlib.contextmanager
def _keeping_all() -> Iterator[None]:
    """Look for no garbage: what imports make stays, and searching it again and again is a tenth of them."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def sweep_command(arguments: Sequence[str], prog: str, default: str | None = None) -> None:
    """``d2v sweep NAME ...`` and ``experiments/glue_sweep.py``."""
    from .sweeps.command import sweep_main

    sweep_main(arguments, prog, default)


def infer_command(arguments: Sequence[str], prog: str) -> None:
    """``d2v infer`` and ``experiments/infer.py``."""
    from .recipe.command_line import INFER, parse

    parse(arguments, prog, INFER)  # --help and misspelt options are answered before torch is imported
    from .inference.command import infer_each

    infer_each(arguments, prog)


def run(command: Callable[[], object]) -> None:
    """Run a command; a user's mistake is its message alone and exit code 2.

    Exit codes: 0 done, 1 a bug of ours (with its trace), 2 the user's mistake, 130 Ctrl-C, 143 SIGTERM.
    """
    from .training.process_settings import limit_memory

    configure_logging()
    limit_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        command()
    except Data2VecError as error:
        sys.stderr.write(redact_text(f"error: {error}\n"))
        raise SystemExit(2) from None
    except Exception as error:
        problem = path_problem(error)
        if problem is None:
            raise
        sys.stderr.write(redact_text(f"error: {problem}\n"))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None


def configure_logging() -> None:
    """Our own lines on standard error, other libraries only from warnings on."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    redact_logs()
    level = os.environ.get("D2V_LOG_LEVEL", "INFO").upper()
    for name in ("data2vec", "d2v_platform", "experiments"):
        logging.getLogger(name).setLevel(level)


def main() -> None:
    """The console script."""
    if _COMPLETE in os.environ:
        from typer.completion import completion_init

        completion_init()
    run(lambda: app(prog_name="d2v", complete_var=_COMPLETE))


if __name__ == "__main__":
    main()
