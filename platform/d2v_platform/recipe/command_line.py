"""The arguments of a command that reads a recipe: ``d2v train``, ``d2v infer`` and their scripts.

What composes a recipe is imported when one is composed: ``--help`` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from data2vec.errors import Data2VecError, nearest_names

if TYPE_CHECKING:
    from .compose import Composed

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
  %(prog)s my/recipe.yaml task.data=/path/to/data      a file of your own: see configs/README.md

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
    changed: bool = False  # has --changed
    sweeps: bool = True  # has --multirun


TRAIN = Command(
    description="Train a recipe: pretraining or fine-tuning, here or on a Ray cluster.",
    examples=_EXAMPLES,
    plan=True,
)

SHOW = Command(
    description="Show a recipe as it resolves: every field with its value, type and meaning.",
    examples="""\
examples:
  %(prog)s v2/base_text_only_task
  %(prog)s v2/base_text_only_task optimization.lr=[1e-4] --changed     fields that differ from the defaults
  %(prog)s my/recipe.yaml
  %(prog)s --config-dir configs/v2 --config-name base_text_only_task
""",
    changed=True,
    sweeps=False,
)

INFER = Command(
    description="Decode or classify subsets with a model, here or on a Ray cluster.",
    examples="""\
examples:
  %(prog)s task.data=/manifests common_eval.path=models:/NAME@ALIAS dataset.gen_subset=dev,test
  %(prog)s ... decoding.type=kenlm decoding.lexicon=lexicon.txt decoding.lmpath=lm.arpa decoding.beam=500
  %(prog)s ... decoding.type=fairseqlm decoding.lexicon=lexicon.txt decoding.lmpath=lm.pt  # beside: dict.txt
  %(prog)s ... decoding.type=fairseqlm decoding.lmpath=models:/LM@ALIAS decoding.unitlm=true    # over letters
  %(prog)s ... platform.num_workers=4        # spread over Ray workers; distributed_world_size=4 is the same
  d2v sweep decoding ...                      # weights of the language model, tuned on a dev subset
  %(prog)s ... --run RUN                     # scores of a model that is not registered go to this run

  %(prog)s task.data=/images common_eval.path=models:/NAME@ALIAS dataset.gen_subset=val   # an image model
  %(prog)s task.data=/photos common_eval.path=models:/NAME@ALIAS task.labels=null    # folders, no classes

  %(prog)s task.data=/clips common_eval.path=models:/NAME@ALIAS dataset.gen_subset=eval     # audio events

audio events: predictions.parquet, predictions.csv, per_class.csv and summary.json;
images: predictions.parquet, predictions.csv, per_class.csv, confusion.csv and confusion.png, summary.json;
speech: hypo.word, hypo.units, ref.word, ref.units, wer, utterances.parquet, utterances.csv and worst.html;
all in common_eval.results_path.
""",
    default_name="infer",
    run=True,
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
    changed_only: bool = False  # show what differs from the defaults

    def compose(self) -> Composed:
        """Compose and check the recipe; see :func:`d2v_platform.recipe.compose.compose`."""
        from .compose import compose

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
        "words",
        nargs="*",
        metavar="NAME | group.key=value",
        help="a recipe or its file, and overrides, in any order",
    )
    made.add_argument("--config-name", "-cn", metavar="NAME", help="the recipe (the same as NAME)")
    made.add_argument("--config-dir", "-cd", "--config-path", "-cp", metavar="DIR", dest="config_dir",
                      help="folder of the recipe; without it our own recipes are searched. The reference's "
                           "folders (examples/data2vec/...) stand for ours if they do not exist")  # fmt: skip
    if command.sweeps:
        made.add_argument("--multirun", "-m", action="store_true", help="commas in overrides make a sweep")
    if command.changed:
        made.add_argument("--changed", action="store_true", help="only what differs from the defaults")
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
        multirun=command.sweeps and args.multirun,
        plan_only=command.plan and args.plan,
        run=args.run if command.run else None,
        changed_only=command.changed and args.changed,
    )
