"""The arguments of a command that reads a recipe: ``d2v train``, ``d2v infer`` and their scripts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from data2vec.errors import Data2VecError, nearest_names

from .compose import Composed, compose

_EXAMPLES = """\
examples:
  %(prog)s v2/base_text_only_task task.data=/path/to/data
  %(prog)s --config-dir configs/v2 --config-name base_text_only_task task.data=/path/to/data
  %(prog)s v2/text_finetuning/cola task.data=/glue/CoLA-bin \\
      model.model_path=models:/data2vec2-text-base@champion "optimization.lr=[1e-5]"
  %(prog)s v2/base_text_only_task task.data=/path/to/data \\
      distributed_training.distributed_world_size=4 +optimization.update_freq='[4]'
  %(prog)s -m rte task.data=/glue/RTE-bin model.model_path=/model common.seed=1,2,3
  %(prog)s -m v2/base_text_only_task task.data=/path/to/data model.loss_beta=0,4 select.metric=train/loss
  %(prog)s v2/base_text_only_task task.data=/path/to/data --plan

Overrides are group.key=value in Hydra's grammar: lists [1,2], null, quotes 'a,b', references ${group.key}.
All fields with types, defaults and documentation: d2v config show NAME
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What differs between the commands."""

    description: str
    examples: str
    default_name: str | None = None  # the file if none is named
    plan: bool = False  # has --plan
    run: bool = False  # has --run


TRAIN = Command(
    description="Train a recipe: pretraining or fine-tuning, here or on a Ray cluster.",
    examples=_EXAMPLES,
    plan=True,
)


@dataclass(frozen=True, kw_only=True)
class RecipeRequest:
    """What a command line asks for."""

    config_name: str
    config_dir: str | None = None
    overrides: tuple[str, ...] = ()
    multirun: bool = False  # commas in overrides make a sweep
    plan_only: bool = False  # print the plan and stop
    run: str | None = None  # of the model that is used

    def compose(self) -> Composed:
        """Compose and check the recipe; see :func:`d2v_platform.recipe.compose.compose`."""
        return compose(self.config_name, self.overrides, self.config_dir, self.multirun)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are errors like all others of ours."""

    def error(self, message: str) -> NoReturn:
        raise Data2VecError(f"{message}; see {self.prog} --help")


def parser(prog: str = "d2v train", command: Command = TRAIN) -> argparse.ArgumentParser:
    """The argument parser, for its help."""
    made = _Parser(
        prog=prog,
        description=command.description,
        epilog=command.examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "words", nargs="*", metavar="NAME | group.key=value", help="a recipe and overrides, in any order"
    )
    made.add_argument("--config-name", "-cn", metavar="NAME", help="the recipe (the same as NAME)")
    made.add_argument("--config-dir", "-cd", "--config-path", "-cp", metavar="DIR", dest="config_dir",
                      help="folder of the recipe; without it our own recipes are searched. The reference's "
                           "folders (examples/data2vec/...) stand for ours if they do not exist")  # fmt: skip
    made.add_argument("--multirun", "-m", action="store_true", help="commas in overrides make a sweep")
    if command.plan:
        made.add_argument(
            "--plan", action="store_true", help="print batch, accumulation, memory and FLOPs, and stop"
        )
    if command.run:
        made.add_argument(
            "--run", metavar="RUN", help="run in MLflow that trained the model: its scores go there. A "
            "registered model's scores go to its version and its run without it"
        )  # fmt: skip
    return made


def parse(argv: Sequence[str], prog: str = "d2v train", command: Command = TRAIN) -> RecipeRequest:
    """Read a command line.

    Args:
        argv: the arguments without the program's name; ``--help`` prints the help and exits.
        prog: the program's name, for messages.
        command: which of the commands.

    Raises:
        Data2VecError: an unknown option, no recipe, or more than one.
    """
    made = parser(prog, command)
    args, unknown = made.parse_known_intermixed_args(list(argv))
    if unknown:
        options = [name for action in made._actions for name in action.option_strings]
        hints = nearest_names(unknown[0], options)
        raise Data2VecError(f"unknown option {unknown[0]!r}{hints or f'; see {prog} --help'}")
    overrides = tuple(word for word in args.words if "=" in word or word.startswith(("~", "+")))
    names = [word for word in args.words if word not in overrides]
    if args.config_name is not None:
        names.insert(0, args.config_name)
    if len(names) > 1:
        others = ", ".join(repr(name) for name in names)
        raise Data2VecError(f"one recipe at a time, not {others}; an override needs '=': group.key=value")
    if not names and command.default_name is not None:
        names.append(command.default_name)
    if not names:
        raise Data2VecError(
            f"which recipe? Give its name, for example {prog} v2/base_text_only_task task.data=..."
        )
    return RecipeRequest(
        config_name=names[0],
        config_dir=args.config_dir,
        overrides=overrides,
        multirun=args.multirun,
        plan_only=command.plan and args.plan,
        run=args.run if command.run else None,
    )
