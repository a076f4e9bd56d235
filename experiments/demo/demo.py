"""``make demo``: pretrain on two Ray Train workers, sweep a task, register, predict from the registry."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2v_platform.home import d2v_home, home_folder
from d2v_platform.training import ray_session
from data2vec.errors import Data2VecError

from .live import Live
from .material import Material, MaterialSize, make_prose, prepare_material, read_task
from .screen import Prediction, Predictions, PretrainingFigures, Screen, TaskFigures, render
from .worker_kill import KillProof, WorkerKiller, prove

logger = logging.getLogger(__name__)

ALIAS = "demo"
PRETRAINED = "data2vec2-text-demo"
SHIPPED = Path(__file__).parent / "words"  # its README says what it is and how it is made
WORKERS = 2
_STAGES = (
    "text that Python and its packages ship, and a task made from it",
    f"pretraining on {WORKERS} Ray Train workers",
    "Ray Tune sweep from the weights that were just pretrained",
    "the same sweep from a model that was pretrained for longer",
    "the same sweep from random weights",
    "a model from the registry, in a clean process, predicts",
)
_TASK = "word order, CoLA's layout"
#: Neither is in the prose; the second is the first with its inner words shuffled.
_SENTENCES = (
    "The program reads the file and prints the name of every user.",
    "The the prints reads and of name file the program every user.",
)
_CLASSES = {"1": "acceptable", "0": "unacceptable"}
_TRUTHS = ("1", "0")  # of the sentences above


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How large everything is.

    Attributes:
        updates: of pretraining.
        log_interval: updates between two lines.
        save_interval: updates between two checkpoints.
        model: overrides of ``tiny/text_pretraining_alibi``.
        trial_updates: of each fine-tuning trial.
        rates: learning rates of the sweep.
        seeds: of the sweep.
        material: of prose and tasks.
    """

    updates: int = 300
    log_interval: int = 10
    save_interval: int = 50
    model: tuple[str, ...] = ("dataset.batch_size=8",)  # on each worker
    trial_updates: int = 500
    rates: tuple[float, ...] = (1e-3, 2e-3)
    seeds: tuple[int, ...] = (1,)
    material: MaterialSize = field(default_factory=MaterialSize)


#: For tests: everything happens, nothing is learnt.
FAST = DemoSize(
    updates=8,
    log_interval=1,
    save_interval=4,
    model=(
        "model.embed_dim=32",
        "model.modalities.text.decoder.decoder_dim=32",
        "task.tokens_per_sample=32",
        "dataset.batch_size=4",
    ),
    trial_updates=4,
    rates=(1e-3,),
    seeds=(1,),
    material=MaterialSize(packages=(), standard_library=False, vocabulary=2000, train=160, dev=40),
)


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the user asked for."""

    data: Path | None = None  # a raw GLUE folder instead of the task made from prose
    kill: bool = False  # kill a worker in mid-run
    updates: int | None = None  # of pretraining, instead of the size's
    fast: bool = False  # smallest sizes

    @property
    def size(self) -> DemoSize:
        """The sizes that follow."""
        return FAST if self.fast else DemoSize()

    @property
    def pretraining_updates(self) -> int:
        """Updates of pretraining."""
        return self.updates or self.size.updates


def main(arguments: Sequence[str], prog: str = "python experiments/quickstart.py") -> None:
    """Run the demo that a command line asks for and show its last screen."""
    for line in render(run_demo(read_command(arguments, prog))):
        sys.stdout.write(line + "\n")


def read_command(arguments: Sequence[str], prog: str) -> DemoOptions:
    """Options from a command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        allow_abbrev=False,
        description="The main job, small: pretrain a text model on 2 Ray Train workers, fine-tune it in a "
        "Ray Tune sweep, register the models in MLflow, load one back and predict. State lives under "
        "D2V_HOME.",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR",
        help="raw GLUE folder (with CoLA/): fine-tune on it instead of on a task made from prose",
    )  # fmt: skip
    parser.add_argument(
        "--kill",
        action="store_true",
        help="kill a training worker in mid-run and show that nothing is repeated",
    )
    parser.add_argument(
        "--updates",
        type=_positive,
        metavar="N",
        help=f"updates of pretraining (default {DemoSize().updates})",
    )
    parser.add_argument("--fast", action="store_true", help="smallest sizes, to test the machinery")
    args = parser.parse_args(list(arguments))
    return DemoOptions(data=args.data, kill=args.kill, updates=args.updates, fast=args.fast)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def run_demo(options: DemoOptions) -> Screen:
    """Everything, step by step.

    Raises:
        Data2VecError: anything that is the user's to mend.
    """
    begin = time.monotonic()
    _check(options)
    size, folder = options.size, home_folder("reports") / "demo"
    folder.mkdir(exist_ok=True)
    cpus = None if (os.cpu_count() or 1) >= WORKERS else WORKERS
    with Live(_STAGES, folder / "demo.log").running() as live:
        with live.stage(1):
            prose, facts = make_prose(size.material)
            live.reached(0.5)
            material = prepare_material(prose, facts, size.material, options.data)
            for line in _material_lines(material, options):
                logger.info("      %s", line)
        with ray_session.connected(num_cpus=cpus):
            with live.stage(2):
                pretraining, run, proof = _pretrain(options, material)
            with live.stage(3):
                fresh, fresh_sweep = _sweep(options, material, live, f"models:/{PRETRAINED}@{ALIAS}")
            with live.stage(4):
                tuned, sweep = _sweep(options, material, live, str(SHIPPED), register=True)
            with live.stage(5):
                control, random_sweep = _sweep(options, material, live, None)
        with live.stage(6):
            predictions = _predict(tuned.uri if tuned else None, options, material)
    screen = Screen(
        title=_title(options, facts.sources),
        seconds=time.monotonic() - begin,
        pretraining=pretraining,
        task=_figures(fresh, tuned, control, len(material.dev)),
        rates=len(size.rates),
        seeds=size.seeds,
        max_updates=size.trial_updates,
        predictions=predictions,
        proof=proof,
        home=str(d2v_home()),
        command=_command(),
        page=folder / "report.html",
    )
    sweeps = {"just pretrained": fresh_sweep, "longer pretrained": sweep, "random": random_sweep}
    _write_page(screen, material, run, sweeps)
    return screen


def _check(options: DemoOptions) -> None:
    """What can be wrong is said before anything is made."""
    if options.data is not None:
        read_task(options.data)
    if options.kill and ("RAY_ADDRESS" in os.environ or ray_session.in_job()):
        raise Data2VecError(
            "--kill ends a process of this machine, but RAY_ADDRESS or the job names a cluster; "
            "unset RAY_ADDRESS"
        )
    if options.kill and options.pretraining_updates < 2 * options.size.save_interval:
        least = 2 * options.size.save_interval
        raise Data2VecError(
            f"--updates {options.updates}: with --kill it must be at least {least}, so that there is a "
            "checkpoint to start again from"
        )


# ---- pretraining ----------------------------------------------------------------------------------------


def _pretrain(options: DemoOptions, material: Material) -> tuple[PretrainingFigures, str, KillProof | None]:
    """Figures, MLflow's id of the run and, if a worker was killed, the proof."""
    from d2v_platform.launch import launch
    from d2v_platform.recipe.compose import compose

    size, updates = options.size, options.pretraining_updates
    name = f"demo-pretraining-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    composed = compose(
        "tiny/text_pretraining_alibi",
        [
            f"task.data={material.text}",
            *size.model,
            f"optimization.max_update={updates}",
            f"optimizer.groups.default.lr_scheduler.warmup_updates={max(updates // 14, 1)}",
            f"model.ema_anneal_end_step={max(updates // 3, 1)}",
            f"common.log_interval={size.log_interval}",
            f"checkpoint.save_interval_updates={size.save_interval}",
            f"distributed_training.distributed_world_size={WORKERS}",
            f"platform.num_workers={WORKERS}",
            "platform.gpus_per_worker=0",
            "platform.experiment=demo",
            f"platform.run_name={name}",
            f"platform.register_as={PRETRAINED}",
            f"platform.alias={ALIAS}",
        ],
    )
    killer = WorkerKiller(name, updates) if options.kill else None
    if killer is not None:
        killer.start()
    try:
        result = launch(composed)
    finally:
        if killer is not None:
            killer.stop()
    metrics = result.summary.metrics
    figures = PretrainingFigures(
        first_loss=metrics["train/first_loss"],
        last_loss=metrics["train/loss"],
        target_var=metrics["train/target_var"],
        workers=WORKERS,
        updates=result.summary.update,
        seconds=result.summary.seconds,
        model=_short_name(result.registered),
    )
    if killer is None:
        return figures, result.run_id, None
    if killer.killed is None:
        raise Data2VecError(
            "no worker was killed: the run was over before the moment came; try --updates 600"
        )
    proof = prove(killer.killed, result.folder, result.summary.update, size.log_interval)
    return figures, result.run_id, proof


def _short_name(registered: str | None) -> str:
    """``NAME@ALIAS`` from ``models:/NAME/3 (NAME@ALIAS)``, or the version where the alias was refused."""
    uri, _, alias = (registered or "").partition(" ")
    return alias.strip("()") or uri.removeprefix("models:/")


# ---- fine-tuning ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Best:
    """The best setting: value, majority class, rate, its model in words and its URI."""

    metric: str
    value: float
    majority: float | None
    lr: float
    model: str
    uri: str


def _registered_name(options: DemoOptions) -> str:
    """Prose and real data compete for different aliases."""
    return f"{PRETRAINED}-{'glue-' if options.data is not None else ''}cola"


def _sweep(
    options: DemoOptions, material: Material, live: Live, parent: str | None, *, register: bool = False
) -> tuple[_Best | None, str]:
    """What is best from a parent's weights, by default from random ones, and the name of the sweep."""
    from d2v_platform.recipe.sweep_definition import load_sweep
    from d2v_platform.sweeps.engine import run_sweep

    size = options.size
    overrides = [
        f"task.data={material.raw}",
        f"model.model_path={parent or SHIPPED}",
        f"model.no_pretrained_weights={parent is None}",
        f"max_updates={size.trial_updates}",
        f"grid.lr=[{','.join(map(str, size.rates))}]",
        f"grid.seed=[{','.join(map(str, size.seeds))}]",
    ]
    if register:
        overrides.append(f"register.name={_registered_name(options)}")
    else:
        overrides += ["register.name=null", "register.alias=null"]
    result = run_sweep(load_sweep("demo", overrides), quiet=True, reached=live.reached)
    for trial, why in result.failed.items():
        logger.warning("      trial %s has no result: %s", trial, why)
    for row in result.rows:
        values = ", ".join("-" if v is None else f"{v:.1f}" for v in row.values.values())
        logger.info(
            "      %-5s lr %-6g %s %s%s",
            row.task,
            row.lr,
            row.metric,
            values,
            "  <- best" if row.chosen else "",
        )
    best: _Best | None = None
    for winner in result.winners:
        version = (winner.model_uri or "").removeprefix("models:/")
        name = version.rpartition("/")[0]
        model, uri = f"{name}@{winner.alias}", f"models:/{name}@{winner.alias}"
        if not winner.alias:
            useless = winner.floor is not None and winner.value <= winner.floor
            why = "no better than one answer for all" if useless else f"@{ALIAS} stays: no better"
            model, uri = f"{version} ({why})", f"models:/{version}"
        best = _Best(
            metric=winner.metric,
            value=winner.value,
            majority=winner.floor,
            lr=winner.lr,
            model=model,
            uri=uri,
        )
    return best, result.name


def _figures(fresh: _Best | None, tuned: _Best | None, control: _Best | None, examples: int) -> TaskFigures:
    known = tuned or control
    return TaskFigures(
        task=_TASK,
        metric=known.metric if known else "-",
        majority=known.majority if known else None,
        random=control.value if control else None,
        fresh=fresh.value if fresh else None,
        pretrained=tuned.value if tuned else None,
        lr=tuned.lr if tuned else None,
        model=tuned.model if tuned else "-",
        examples=examples,
    )


# ---- the rest -------------------------------------------------------------------------------------------


def _predict(uri: str | None, options: DemoOptions, material: Material) -> Predictions:
    """By this demo's model, or by an earlier one's where no trial has a result."""
    from .registry_prediction import predict

    uri = uri or f"models:/{_registered_name(options)}@{ALIAS}"
    known = [*zip(_SENTENCES, _TRUTHS, strict=True), *material.dev]
    answers = [
        Prediction(
            sentence=found.text,
            label=_CLASSES.get(found.label, found.label),
            score=found.score,
            truth=_CLASSES[truth],
        )
        for found, (_, truth) in zip(predict(uri, [text for text, _ in known]), known, strict=True)
    ]
    return Predictions(model=uri, shown=answers[: len(_SENTENCES)], held_out=answers[len(_SENTENCES) :])


def _write_page(screen: Screen, material: Material, run: str, sweeps: dict[str, str]) -> None:
    from d2v_platform.recipe.compose import compose
    from data2vec.data.dictionary import Dictionary
    from data2vec.data.tokenizer import TextTokenizer

    from .page import masks_of, write_page

    model: Any = compose("tiny/text_pretraining_alibi", ["task.data=/not/read"]).recipe.model
    tokenizer = TextTokenizer(dictionary=Dictionary.load(material.text / "dict.txt"))
    masks = masks_of(_SENTENCES[0], tokenizer, model.modalities.text.mask_prob, model.clone_batch)
    assert screen.page is not None
    write_page(screen.page, screen, run=run, sweeps=sweeps, masks=masks)


def _material_lines(material: Material, options: DemoOptions) -> Iterator[str]:
    yield from material.facts.lines()
    tokens = material.tokens.splits
    unknown = 100.0 * tokens["train"].unknown_tokens / max(tokens["train"].tokens, 1)
    yield (
        f"dictionary of {material.tokens.vocabulary} symbols made from it; {tokens['train'].tokens} "
        f"training tokens ({unknown:.1f}% unknown)"
    )
    whose = "made from held-out prose" if options.data is None else str(options.data)
    labels = [label for _, label in material.train]
    counts = ", ".join(f"{name}: {labels.count(label)}" for label, name in _CLASSES.items())
    dev = len(material.dev)
    yield f"task cola ({whose}): {len(labels)} training examples ({counts}), {dev} dev examples"


def _title(options: DemoOptions, sources: dict[str, str]) -> str:
    prose = f"prose of {', '.join(sources)}"
    return prose if options.data is None else f"{prose}; CoLA of {options.data}"


def _command() -> str:
    """How to call ``d2v`` from here."""
    path = Path(sys.executable).parent / "d2v"
    if not path.exists():
        return f"{shlex.quote(sys.executable)} -m d2v_platform.cli"
    with contextlib.suppress(ValueError):
        return shlex.quote(str(path.relative_to(Path.cwd())))
    return shlex.quote(str(path))
