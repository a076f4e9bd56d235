"""The arguments of a sweep: shared by ``d2v sweep`` and ``experiments/glue_sweep.py``.

What composes and runs one is imported when it runs: ``--help`` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data2vec.errors import Data2VecError, nearest_names

from ..recipe.locate import find_sweep, sweep_names

if TYPE_CHECKING:
    from ..recipe.sweep_definition import Sweep

logger = logging.getLogger(__name__)

_DESCRIPTION = "Run a sweep: many trainings on Ray Tune, one table, the best of each task registered."
_EXAMPLES = """\
examples:
  %(prog)s glue model.model_path=models:/data2vec2-text-base@champion task.data=/glue
  %(prog)s glue model.model_path=/model task.data=/glue 'grid.task=[cola,rte]' 'grid.seed=[1]'
  %(prog)s glue ... platform.run_name=first              a name: the same command again goes on with it
  %(prog)s glue ... platform.run_name=first 'grid.seed=[1,2,3]'   more seeds; finished trials are not repeated
  %(prog)s glue ... max_updates=300                      a cap of each trial's updates
  %(prog)s glue ... scheduler.name=asha                  stop weak trials early, each task by itself
  %(prog)s glue ... register.name=null register.alias=null        do not register the winners
  %(prog)s glue ... resources_per_trial.gpu=0.5          two trials share a GPU
  %(prog)s glue ... --plan                               list the trials and stop
  %(prog)s my_sweep.yaml ...                             a copy of configs/sweep/glue.yaml, edited
  %(prog)s decoding task.data=/manifests common_eval.path=MODEL dataset.gen_subset=dev decoding.type=kenlm \\
      decoding.lexicon=lexicon.txt decoding.lmpath=lm.arpa search.trials=64   weights of a language model

task.data is the folder that d2v prepare glue wrote (CoLA-bin, ...), or a raw GLUE folder (CoLA, ...), which
is then prepared once with the model's own dictionary. Overrides are key=value in Hydra's grammar, of the
definition (grid, fixed, select, register, scheduler, ...) or of every trial's recipe (group.key). ASHA stops
runs for good; it does not pause and resume them.
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are errors like all others of ours."""

    def error(self, message: str) -> NoReturn:
        raise Data2VecError(f"{message}; see {self.prog} --help")


def sweep_main(arguments: Sequence[str], prog: str = "d2v sweep", default: str | None = None) -> None:
    """Run the sweep that a command line asks for.

    Args:
        arguments: without the program's name.
        prog: the program's name, for messages.
        default: the sweep if none is named (``experiments/glue_sweep.py``).

    Raises:
        Data2VecError: a mistake in what was asked for, or trials that failed (after all others have ended).
    """
    given, overrides, config_dir, plan_only = read_words(arguments, prog, default)
    if (tuning := decoding_definition(given, config_dir)) is not None:
        from .decoding_search import decoding_sweep_main

        decoding_sweep_main(overrides, tuning, plan_only)
        return
    from ..recipe.sweep_definition import load_sweep

    run_or_plan(load_sweep(given, overrides, config_dir), plan_only)


def run_or_plan(sweep: Sweep, plan_only: bool) -> None:
    """Run a sweep of trainings, or say what it would run and what its first trial costs.

    Raises:
        Data2VecError: as :func:`sweep_main`.
    """
    if not plan_only:
        from .engine import run_sweep

        report_failures(run_sweep(sweep))
        return
    from ..launch import show_plan
    from .trial import composed_of

    for line in plan_lines(sweep):
        logger.info("%s", line)
    logger.info("the first trial, %s:", sweep.trials[0].name)
    show_plan(composed_of(sweep.trials[0]))


def report_failures(result: object) -> None:
    """End with an error if trials failed or a task has no winner; everything else of the sweep is done then.

    Raises:
        Data2VecError: names them.
    """
    from .engine import SweepResult

    assert isinstance(result, SweepResult)
    lines: list[str] = []
    if result.failed:
        lines.append(f"{len(result.failed)} trials have no result:")
        lines += [f"  {name}: {why}" for name, why in result.failed.items()]
        lines.append(
            "after mending it, the same command with "
            f"platform.run_name={result.name} runs the failed ones again"
        )
    for task in result.table.undecided:
        metric = next(row.metric for row in result.rows if row.task == task)
        lines.append(
            f"{task} has no winner: no finished trial of it has a value of {metric}; nothing of it was "
            f"registered, and its weights stay in {result.folder / 'trials'}"
        )
    if lines:
        raise Data2VecError("\n".join(lines))


def decoding_definition(name: str, config_dir: str | None) -> Path | None:
    """The file of a tuning of decoders (it has a ``search`` part); ``None`` for sweeps of trainings."""
    try:
        path = find_sweep(name, config_dir)
    except Data2VecError:
        return None  # load_sweep says so
    text = path.read_text(encoding="utf-8", errors="replace")
    return path if any(line.startswith("search:") for line in text.splitlines()) else None


def read_command(arguments: Sequence[str], prog: str, default: str | None = None) -> tuple[Sweep, bool]:
    """The sweep of trainings that a command line asks for, and whether only its plan is wanted."""
    from ..recipe.sweep_definition import load_sweep

    given, overrides, config_dir, plan_only = read_words(arguments, prog, default)
    return load_sweep(given, overrides, config_dir), plan_only


def read_words(
    arguments: Sequence[str], prog: str, default: str | None = None
) -> tuple[str, list[str], str | None, bool]:
    """Name, overrides, folder of the definition, and whether only the plan is wanted."""
    parser = _Parser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = ", ".join(sweep_names())
    parser.add_argument(
        "words",
        nargs="*",
        metavar="NAME | key=value",
        help=f"a sweep ({names}) or a file, and overrides, in any order",
    )
    parser.add_argument(
        "--config-dir", "-cd", metavar="DIR", dest="config_dir", help="folder of the definition"
    )
    parser.add_argument("--plan", action="store_true", help="list the trials, and stop")
    args, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        options = ["--config-dir", "--plan", "--help"]
        raise Data2VecError(
            f"unknown option {unknown[0]!r}{nearest_names(unknown[0], options) or f'; see {prog} --help'}"
        )
    overrides = [word for word in args.words if "=" in word or word.startswith(("~", "+"))]
    given = [word for word in args.words if word not in overrides] or ([default] if default else [])
    if len(given) != 1:
        asked = f"not {', '.join(map(repr, given))}" if given else f"for example {prog} glue task.data=..."
        raise Data2VecError(f"give one sweep, {asked} (there are: {names})")
    return given[0], overrides, args.config_dir, args.plan


def plan_lines(sweep: Sweep) -> list[str]:
    """The trials of a sweep, and which of them are done already."""
    from .sweep_folder import SweepFolder, identity, sweep_root

    name, trials, fresh = identity(sweep, None)
    root = sweep_root(name, trials)
    known = {} if fresh or not root.is_dir() else SweepFolder(root).records()
    d = sweep.definition
    lines = [
        f"sweep {sweep.name}{'' if fresh else f', name {name}'}: {len(trials)} trials, {d.scheduler.name}"
    ]
    lines += [f"note: {note}" for note in sweep.notes]
    for trial in trials:
        metric, _ = sweep.metric(trial)
        record = known.get(trial.name)
        state = record.result.status if record is not None and record.result is not None else "to run"
        updates = trial.recipe.optimization.max_update or "-"
        lines.append(f"  {trial.name:<32} {state:<9} updates {updates}, {metric}, {trial.recipe.task.data}")
    gpu = (
        "1 GPU if there are any"
        if d.resources_per_trial.gpu is None
        else f"{d.resources_per_trial.gpu:g} GPU"
    )
    cpu = d.resources_per_trial.cpu
    cpus = "1 CPU (beside a GPU the node's share of it)" if cpu is None else f"{cpu:g} CPU"
    lines.append(f"each {cpus}, {gpu}; as many at a time as the cluster holds")
    lines.append(
        f"winners: {d.register.name or 'not registered'}{f'@{d.register.alias}' if d.register.alias else ''}"
    )
    return lines
