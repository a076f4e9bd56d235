"""One look at a GPU: tests marked gpu, the reference's cases, and whole updates, eager and compiled.

``make gpu-check`` on a machine with CUDA. Inputs are random numbers; an update is the teacher's step,
forward, backward, clipping and Adam, in bf16. *Share* is the reference algorithm's matrix work over time and
the card's dense bf16 rate. Needs this repository and what ``make setup`` installs (``constraints.txt`` names
each wheel).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from d2v_platform.recipe.schema import Recipe
from d2v_platform.training.accelerators import device_rate
from d2v_platform.training.workload import Workload
from data2vec.families import generation_of
from data2vec.flops import StepCost, Storage
from data2vec.v1.sizes import as_multi

from . import hugging_face
from .pretraining import TEXT_VOCABULARY, build_step, load

ROOT = Path(__file__).resolve().parents[2]
NO_DEVICE = "no CUDA device: PyTorch finds none here (--tiny --device cpu tries the script itself)"


@dataclass(frozen=True)
class Row:
    """An update to measure.

    Attributes:
        name: what the table calls it.
        recipe: a pretraining recipe.
        samples: B.
        length: tokens, pixels of a side or waveform samples.
        tiny: overrides that make its network small, to try the script.
        tiny_length: their length.
    """

    name: str
    recipe: str
    samples: int
    length: int
    tiny: tuple[str, ...]
    tiny_length: int


_SMALL_1 = ("model.encoder_layers=2", "model.encoder_embed_dim=48", "model.encoder_ffn_embed_dim=48",
            "model.encoder_attention_heads=2", "model.average_top_k_layers=2")  # fmt: skip


def _small(modality: str) -> tuple[str, ...]:
    model = ("depth=2", "embed_dim=48", "num_heads=2", "average_top_k_layers=2", "clone_batch=2")
    front = (
        "prenet_depth=0",
        "decoder.decoder_dim=16",
        "decoder.decoder_groups=1",
        "decoder.decoder_layers=1",
    )
    return tuple(f"model.{x}" for x in (*model, *(f"modalities.{modality}.{y}" for y in front)))


ROWS = (
    Row("v2 text base, 16 x 512, 8 clones", "v2/base_text_only_task", 16, 512, _small("text"), 16),
    Row("v2 ViT-B, 64 images, 16 clones", "v2/base_images_only_task", 64, 224, _small("image"), 224),
    Row("v2 ViT-L, 32 images, 16 clones", "v2/large_images_only_task", 32, 224, _small("image"), 224),
    Row("v2 audio base, 12 x 5 s, 8 clones", "v2/base_audio_only_task", 12, 80000, _small("audio"), 4000),
    Row("v1 audio base, 12 x 5 s", "audio/pretraining/base_librispeech", 12, 80000, _SMALL_1, 4000),
)


@dataclass
class Measured:
    """What an update needed.

    Attributes:
        name: of the row.
        compiled: by ``torch.compile``.
        milliseconds: of an update, the mean.
        share: of the card's bf16 rate; ``None`` where that is not known.
        peak_gb: highest memory of the device, 1e9 bytes; ``None`` on a CPU.
        forecast_gb: what a plan says.
        reads: times that an update waited for the device; ``None`` on a CPU.
        first_s: seconds of the first update, compiling included.
        kernels: the ten that took longest, with their milliseconds in one update.
        problem: why there is nothing else.
    """

    name: str
    compiled: bool
    milliseconds: float | None = None
    share: float | None = None
    peak_gb: float | None = None
    forecast_gb: float | None = None
    reads: int | None = None
    first_s: float | None = None
    kernels: list[tuple[str, float]] = field(default_factory=list)
    problem: str | None = None


def cost_of(recipe: Recipe, samples: int, length: int, device: str) -> StepCost:
    """Work and memory of an update, as a plan has them."""
    config = as_multi(recipe.model)
    assert config is not None, "the rows are of models that plans know"
    workload = Workload(
        recipe=recipe,
        config=config,
        vocab_size=TEXT_VOCABULARY if config.modality_name == "TEXT" else 0,
        pretraining=True,
        sizes=Counter(),
        epoch_micro_batches=None,
        sees_all=generation_of(recipe.model) == 1,
    )
    return workload.cost((samples, length), Storage.on(device, "bf16"), False)


def measure_row(row: Row, device: torch.device, compiled: bool, updates: int, tiny: bool) -> Measured:
    """One row; a failure of it is told in it."""
    samples, length = (2, row.tiny_length) if tiny else (row.samples, row.length)
    overrides = row.tiny if tiny else ()
    cost = cost_of(load(row.recipe, overrides), samples, length, device.type)
    found = Measured(row.name, compiled, forecast_gb=cost.peak_bytes / 1e9)
    try:
        backend = None if not compiled else "eager" if tiny else "inductor"
        step = build_step(row.recipe, overrides, samples, length, device, backend)
        _time(found, step, device, updates)
    except Exception as error:  # the other rows are worth as much
        found.problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    rate = device_rate(device, "bf16") if device.type == "cuda" else None
    if rate and found.milliseconds:
        found.share = cost.flops / (found.milliseconds / 1e3 * rate)
    return found


def _time(found: Measured, step: Callable[[int], None], device: torch.device, updates: int) -> None:
    cuda = device.type == "cuda"
    finish = torch.cuda.synchronize if cuda else lambda: None
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    step(0)
    finish()
    found.first_s = time.perf_counter() - begin
    for update in (1, 2):
        step(update)
    finish()
    begin = time.perf_counter()
    for update in range(3, 3 + updates):
        step(update)
    finish()
    found.milliseconds = 1e3 * (time.perf_counter() - begin) / updates
    if cuda:
        found.peak_gb = torch.cuda.max_memory_allocated() / 1e9
        found.reads = waits(lambda: step(3 + updates))
    found.kernels = longest_kernels(lambda: step(4 + updates), finish)


def waits(run: Callable[[], None]) -> int:
    """How often the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in told)


def longest_kernels(run: Callable[[], None], finish: Callable[[], None]) -> list[tuple[str, float]]:
    """Names and milliseconds of the ten kernels (operators on a CPU) that take longest."""
    with torch.profiler.profile() as profiler:
        run()
        finish()
    cuda = torch.cuda.is_available()
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = [(event.key, getattr(event, key) / 1e3) for event in profiler.key_averages()]
    return sorted(rows, key=lambda pair: -pair[1])[:10]


def peer(device: torch.device, updates: int, tiny: bool) -> list[Measured]:
    """Hugging Face's v1 models, forward and backward at the same sizes; none where it is not installed."""
    rows: list[Measured] = []
    sizes = {"text": (16, 512), "audio": (12, 80000), "vision": (64, 224)}
    for modality, (samples, length) in sizes.items() if hugging_face.available() and not tiny else ():
        found = Measured(f"Hugging Face v1 {modality} base, forward + backward", False)
        try:
            _time(found, hugging_face.build_step(modality, samples, length, device), device, updates)
        except Exception as error:
            found.problem = f"{type(error).__name__}: {error}"
        rows.append(found)
    return rows


def outcome(name: str, words: Sequence[str], limit_s: int) -> dict[str, Any]:
    """What another program says: its exit status, last lines and seconds."""
    begin = time.perf_counter()
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
        status, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        status, text = 124, str(error.stdout or "")
    lines = text.strip().splitlines()[-15:]
    return {"name": name, "status": status, "seconds": time.perf_counter() - begin, "last_lines": lines}


def tests(device: torch.device) -> list[dict[str, Any]]:
    """The tests that need CUDA, and the reference's cases on it."""
    cases = [str(folder) for folder in sorted((ROOT / "tests/parity/cases").glob("*/"))]
    marked = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    parity = [sys.executable, "tests/parity/check.py", "--device", str(device), *cases]
    return [outcome("tests marked gpu", marked, 240), outcome("parity", parity, 120)]


def markdown(device: str, rows: Sequence[Measured], ran: Sequence[dict[str, Any]]) -> str:
    """The tables."""
    out = [f"# {device}", ""]
    out += [f"- {one['name']}: exit status {one['status']}, {one['seconds']:.0f} s" for one in ran]
    out += ["", "| update | | ms | share of bf16 | peak GB | planned | waits | first s |",
            "|---|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for row in rows:
        how = "compiled" if row.compiled else "eager"
        if row.problem:
            out.append(f"| {row.name} | {how} | {row.problem.replace('|', '/')} | | | | | |")
            continue
        cells = [_cell(row.milliseconds, ".1f"), _cell(row.share, ".0%"), _cell(row.peak_gb, ".1f"),
                 _cell(row.forecast_gb, ".1f"), _cell(row.reads, "d"), _cell(row.first_s, ".0f")]  # fmt: skip
        out.append(f"| {row.name} | {how} | {' | '.join(cells)} |")
    for row in rows:
        if row.kernels:
            out += ["", f"**{row.name}, {'compiled' if row.compiled else 'eager'}**", ""]
            out += [f"- {ms:.2f} ms `{name[:100]}`" for name, ms in row.kernels]
    return "\n".join(out) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main(words: Sequence[str]) -> int:
    """Run it; 2 without a device, 1 if a test or a row failed."""
    parser = argparse.ArgumentParser(prog="gpu_check.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder for JSON and Markdown")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--updates", type=int, default=10, help="measured updates of each row")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--tiny", action="store_true", help="small networks: tries the script")
    parser.add_argument("--no-tests", action="store_true", help="the table alone")
    given = parser.parse_args(words)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print(NO_DEVICE, file=sys.stderr)
        return 2
    device = torch.device(given.device)
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    ran = [] if given.no_tests else tests(device)
    rows = list[Measured]()
    for row in ROWS:
        for compiled in (False, True) if given.only in row.name else ():
            rows.append(measure_row(row, device, compiled, given.updates, given.tiny))
            print(json.dumps({**asdict(rows[-1]), "kernels": None}), flush=True)
    rows += peer(device, given.updates, given.tiny)
    given.out.mkdir(parents=True, exist_ok=True)
    found = {"device": title, "torch": torch.__version__, "tests": ran, "rows": [asdict(r) for r in rows]}
    (given.out / "gpu-check.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (given.out / "gpu-check.md").write_text(markdown(title, rows, ran), encoding="utf-8")
    print(f"{given.out}/gpu-check.json and gpu-check.md")
    return int(any(row.problem for row in rows) or any(one["status"] for one in ran))
