"""The commands of ``experiments/benchmark.py``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from data2vec.errors import Data2VecError

from . import (
    audio_input,
    audio_parts,
    ctc_speed,
    feeding,
    hugging_face,
    image_input,
    overhead,
    overlap,
    scale,
    text_input,
)
from .measure import Case, Timing, measure
from .pretraining import case

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Time training steps against this machine's own matrix rate, and against Hugging Face's models.",
)

Steps = Annotated[int, typer.Option(help="Measured steps of each case, after one that warms up.", min=1)]
Threads = Annotated[int, typer.Option(help="Threads of each case.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Only = Annotated[str, typer.Option(help="Only cases whose name contains this.")]
Compiled = Annotated[bool, typer.Option(help="Each pretraining step also compiled (needs a C++ compiler).")]


AUDIO = "seconds of audio"


@app.command()
def text(
    steps: Steps = 3,
    threads: Threads = 2,
    as_json: AsJson = False,
    only: Only = "",
    compiled: Compiled = False,
) -> None:
    """v2 base, 4 x 512 tokens, 2 and 8 clones; its input; Hugging Face's v1 base forward and backward.

    Example: python experiments/benchmark.py text --only "2 clones" --json
    """
    recipe = "v2/base_text_only_task"
    cases = [
        case(f"v2 text base step, {clones} clones", recipe, 4, 512, "tokens", clones=clones, compiled=how)
        for clones in (2, 8)
        for how in ways(compiled)
    ]
    reading = text_input.case(recipe, 4, 512)
    run([*cases, *peer("text", 4, 512), reading], steps, threads, as_json, only)


@app.command()
def vision(
    steps: Steps = 3,
    threads: Threads = 2,
    as_json: AsJson = False,
    only: Only = "",
    compiled: Compiled = False,
) -> None:
    """v2 ViT-B, 4 x 224 pixels, 8 and 16 clones; v1 base; Hugging Face's v1 base; input.

    Examples:

        python experiments/benchmark.py vision --json > vision.json

        python experiments/benchmark.py vision --only "8 clones" --steps 5 --compiled
    """
    recipe = "v2/base_images_only_task"
    cases = [
        case(f"v2 ViT-B step, {clones} clones", recipe, 4, 224, "images", clones=clones, compiled=how)
        for clones in (8, 16)
        for how in ways(compiled)
    ]
    first = "vision/pretraining/base_imagenet"
    cases += [case("v1 ViT-B step", first, 4, 224, "images", compiled=how) for how in ways(compiled)]
    run([*cases, *peer("vision", 4, 224), image_input.case(recipe, 4)], steps, threads, as_json, only)


@app.command()
def speech(
    steps: Steps = 3,
    threads: Threads = 2,
    as_json: AsJson = False,
    only: Only = "",
    compiled: Compiled = False,
) -> None:
    """v2 base, 2 x 5 s, 8 clones; v1 base; convolutions alone; Hugging Face's v1 base; input; decoding.

    Examples:

        python experiments/benchmark.py speech --json > speech.json

        python experiments/benchmark.py speech --only decoding
    """
    unit, recipe = AUDIO, "v2/base_audio_only_task"
    cases: list[Case] = []
    for how in ways(compiled):
        cases.append(case("v2 speech base step, 8 clones", recipe, 2, 80000, unit, clones=8, compiled=how))
        first = "audio/pretraining/base_librispeech"
        cases.append(case("v1 speech base step", first, 2, 80000, unit, compiled=how))
    cases += audio_parts.cases(recipe, 2, 80000, clones=8)
    others = [*peer("audio", 2, 80000), audio_input.case(recipe), *ctc_speed.cases(recipe, 160000)]
    run([*cases, *others], steps, threads, as_json, only)


@app.command(name="input")
def input_command(steps: Steps = 3, as_json: AsJson = False) -> None:
    """Text, JPEG and FLAC: samples a CPU-second, and how many H100s a host of 16 cores feeds.

    Example: python experiments/benchmark.py input
    """
    rows: list[feeding.Fed] = []
    for one, eaten in feeding.cases():
        outcome = measure(one, steps, threads=1)
        if isinstance(outcome, str):
            raise Data2VecError(f"{one.name}: {outcome}")
        rows.append(feeding.fed(outcome, eaten))
        typer.echo(f"{rows[-1].name}: {rows[-1].read:.3g} {rows[-1].unit} a CPU-second", err=True)
    if as_json:
        found = [asdict(row) | {"cores": row.cores(), "gpus": [row.gpus(), row.gpus(2.0)]} for row in rows]
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(feeding.as_markdown(rows))


@app.command(name="overlap")
def overlap_command(
    workers: Annotated[list[int] | None, typer.Option(help="Processes: 2 and 4.", min=2)] = None,
    link: Annotated[list[float] | None, typer.Option(help="MB/s: 250 and 1000.", min=1)] = None,
    updates: Annotated[int, typer.Option(help="Measured updates of each way.", min=1)] = 1,
) -> None:
    """Gradients summed during the last backward pass against after it: the share of waiting that is hidden.

    Example: python experiments/benchmark.py overlap --workers 2 --link 125
    """
    links = [1e6 * rate for rate in link or (250, 1000)]
    found = [row for count in workers or (2, 4) for row in overlap.measure(count, updates, links)]
    typer.echo(overlap.as_markdown(found))


@app.command(
    name="overhead",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def overhead_command(context: typer.Context) -> None:
    """The loop inside Ray Train over the bare loop, a save, a start by part (overhead --help)."""
    overhead.main(context.args)


@app.command(name="scale")
def scale_command(
    nodes: Annotated[int, typer.Option(help="Nodes, beside the head.", min=2)] = 4,
    gpus: Annotated[int, typer.Option(help="GPUs that each node says it has.", min=1)] = 8,
    trials: Annotated[int, typer.Option(help="Trials of the sweep.", min=1)] = 64,
    out: Annotated[Path | None, typer.Option(help="Folder for scale.json and scale.md.")] = None,
) -> None:
    """Place workers and trials on nodes whose GPUs are faked; a node dies and returns. Nothing is trained.

    Example: python experiments/benchmark.py scale --out experiments/results
    """
    phases: list[scale.Phase] = []
    for phase in scale.measure(nodes, gpus, trials):
        phases.append(phase)
        typer.echo(f"{phase.name}: {phase.processes} in {phase.started_s:.1f} s", err=True)
        if out is not None:
            scale.write(phases, out)
    typer.echo(scale.as_markdown(phases))


def ways(compiled: bool) -> tuple[bool, ...]:
    """Eager, and compiled where asked for."""
    return (False, True) if compiled else (False,)


def peer(modality: str, samples: int, length: int) -> list[Case]:
    """Hugging Face's model of a modality, if it can be imported; its work is not counted."""
    return [hugging_face.case(modality, samples, length, 0.0)] if hugging_face.available() else []


def run(cases: Sequence[Case], steps: int, threads: int, as_json: bool, only: str) -> None:
    """Measure the cases one after the other and show them."""
    console, timings = Console(markup=False, stderr=True), list[Timing]()
    for one in cases:
        if only not in one.name:
            continue
        console.print(f"{one.name} ...", style="dim")
        outcome = measure(one, steps, threads)
        if isinstance(outcome, str):
            console.print(f"{one.name}: {outcome}")
        else:
            timings.append(outcome)
    if as_json:
        typer.echo(json.dumps([asdict(timing) | real_time(timing) for timing in timings], indent=2))
        return
    Console(markup=False).print(table(timings, threads))
    for line in remarks(timings):
        Console(markup=False).print(line)


def remarks(timings: Sequence[Timing]) -> list[str]:
    """How much faster input comes than the fastest step takes it, and real-time factors."""
    found: list[str] = []
    for reading in timings:
        if not reading.name.startswith("input"):
            continue
        by_cpu = reading.units_per_second * reading.seconds / reading.cpu_seconds
        eaten = [t.units_per_second for t in timings if "step" in t.name and t.unit == reading.unit]
        margin = f", {by_cpu / max(eaten):.0f} x the fastest step" if eaten else ""
        found.append(f"input: {by_cpu:.3g} {reading.unit} a CPU-second{margin}")
        if reading.unit == AUDIO:
            found[-1] += f" ({reading.units_per_second:.0f} hours of audio an hour)"
    for timing in timings:
        if factor := real_time(timing):
            found.append(f"real-time factor {factor['real_time_factor']:.3g}: {timing.name}")
    return found


def real_time(timing: Timing) -> dict[str, float]:
    """Seconds needed for a second of audio, where that is what was measured."""
    spoken = timing.unit == AUDIO and any(word in timing.name for word in ("decoding", "emissions"))
    return {"real_time_factor": 1.0 / timing.units_per_second} if spoken else {}


def table(timings: Sequence[Timing], threads: int) -> Table:
    """A row for each case."""
    found = Table(title=f"medians; {threads} threads, fp32")
    for name in ("case", "s/step", "CPU s/step", "rate", "GFLOP/s", "share of matrix rate", "peak GB"):
        found.add_column(name, justify="left" if name == "case" else "right")
    for timing in timings:
        counted = timing.gflops > 0
        found.add_row(
            timing.name,
            f"{timing.seconds:.2f}",
            f"{timing.cpu_seconds:.1f}",
            f"{timing.units_per_second:.3g} {timing.unit}/s",
            f"{timing.gflops:.1f} of {timing.matrix_rate:.1f}" if counted else "",
            f"{timing.share:.0%}" if counted else "",
            f"{timing.peak_gb:.2f}",
        )
    return found
