"""What the platform costs: the loop inside Ray Train over the bare loop, a save, a start.

The same recipe and data are trained twice, once by the bare loop in a fresh process without MLflow, Ray or
checkpoints, and once by ``d2v train`` on one Ray Train worker; the times of the single updates are compared
by their medians, and, because other programs disturb wall times, by processor time too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2v_platform.recipe.schema import Recipe
from d2v_platform.training.start_times import read_start

from .text_input import write_tokens

_WORDS = 1000
_SKIPPED = 2  # updates at the beginning that allocate


@dataclass(frozen=True)
class Steps:
    """Seconds of the single updates of one training, and processor time of its process.

    Attributes:
        seconds: wall time from one update's end to the next one's.
        cpu_per_update: median processor seconds of the training process, all of its threads.
        saves: (seconds that the loop waited, seconds in the thread, bytes) of each checkpoint.
    """

    seconds: tuple[float, ...]
    cpu_per_update: float
    saves: tuple[tuple[float, float, int], ...]

    @property
    def median(self) -> float:
        """Median wall time of an update."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Overhead:
    """All figures."""

    bare: Steps  # the loop alone
    on_ray: Steps  # the loop inside Ray Train
    saves: Steps  # of a bare loop that saves every second update
    starts: Mapping[str, Sequence[tuple[str, float]]]  # by where it runs: (part, seconds it took) in order

    def lines(self) -> list[str]:
        """The figures in words."""
        more = 100 * (self.on_ray.median / self.bare.median - 1)
        cpu = 100 * (self.on_ray.cpu_per_update / self.bare.cpu_per_update - 1)
        loop = [save[0] for save in self.saves.saves]
        thread = [save[1] for save in self.saves.saves]
        size = self.saves.saves[0][2] if self.saves.saves else 0
        bare, ray = self.bare, self.on_ray
        told = [
            f"bare loop          {bare.median:8.3f} s an update, {bare.cpu_per_update:.3f} CPU s",
            f"inside Ray Train   {ray.median:8.3f} s an update, {ray.cpu_per_update:.3f} CPU s"
            f"  ({more:+.1f} % wall, {cpu:+.1f} % CPU)",
            f"a checkpoint       {statistics.median(loop):8.3f} s of the loop, "
            f"{statistics.median(thread):.3f} s in its thread ({size / 1e6:.0f} MB)",
        ]
        for where, parts in self.starts.items():
            total = sum(seconds for _, seconds in parts)
            told.append(f"{where}: {total:.1f} s from the command to the end of the first update")
            told += [f"    {seconds:6.1f} s  {part}" for part, seconds in parts]
        return told


def measure_overhead(updates: int, samples: int, width: int, blocks: int) -> Overhead:
    """Run everything, one after the other.

    Args:
        updates: measured in each training.
        samples: of 128 tokens in an update; about a second's work is what long trainings have.
        width: of the model.
        blocks: of the model.
    """
    with tempfile.TemporaryDirectory(prefix="d2v_overhead_") as name:
        folder = Path(name)
        recipe = small_recipe(folder, updates, samples, width, blocks)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
            bare = pool.submit(bare_steps, recipe, str(folder / "bare"), 0).result()
            on_ray = pool.submit(ray_steps, recipe, str(folder / "ray")).result()
            saves = pool.submit(bare_steps, recipe, str(folder / "saves"), 2).result()
        starts = {
            "in this process (platform.num_workers=0)": start_parts(recipe, folder / "local", 0),
            "on one Ray Train worker, cluster started for it": start_parts(recipe, folder / "start", 1),
        }
    return Overhead(bare, on_ray, saves, starts)


def small_recipe(folder: Path, updates: int, samples: int, width: int, blocks: int) -> dict[str, Any]:
    """A text pretraining recipe on made-up data, as a plain dictionary."""
    data = folder / "data"
    data.mkdir()
    write_tokens(data, {"train": samples * (updates + 8), "valid": 8}, 128, _WORDS)
    decoder = {"decoder_dim": 64, "decoder_groups": 1, "decoder_kernel": 9, "decoder_layers": 3}
    return {
        "common": {"log_interval": 1},
        "task": {"_name": "masked_lm", "data": str(data), "tokens_per_sample": 128},
        "dataset": {"batch_size": samples, "num_workers": 0, "disable_validation": True},
        "optimization": {"max_update": updates + _SKIPPED, "lr": [1e-4]},
        "optimizer": {"_name": "adam", "adam_betas": [0.9, 0.98]},
        "lr_scheduler": {"_name": "cosine", "warmup_updates": 4},
        "checkpoint": {"no_epoch_checkpoints": True, "no_save": True},
        "criterion": {"_name": "model"},
        "model": {
            "_name": "data2vec_multi", "loss_scale": 1.0, "depth": blocks, "embed_dim": width,
            "num_heads": max(1, width // 64), "average_top_k_layers": blocks, "clone_batch": 4,
            "supported_modality": "TEXT",
            "modalities": {"text": {"prenet_depth": 0, "mask_prob": 0.48, "mask_length": 1,
                                    "max_source_positions": 128, "decoder": decoder}},
        },
        "platform": {"num_workers": 1, "threads_per_worker": 1, "experiment": "overhead"},
    }  # fmt: skip


class Clock:
    """A reporter that notes when figures come, once an update."""

    def __init__(self) -> None:
        self.walls: list[float] = []
        self.cpus: list[float] = []

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Note the time, and the processor time that the loop itself reports."""
        self.walls.append(time.time())
        self.cpus.append(metrics["speed/cpu_s_per_update"])

    def flush(self) -> None:
        """Nothing waits."""

    def evaluated(self, update: int, metrics: Mapping[str, float]) -> bool:
        """Nobody is told."""
        return False


def bare_steps(recipe: dict[str, Any], folder: str, save_every: int) -> Steps:
    """The loop alone, in this process."""
    from d2v_platform.training import train_loop
    from d2v_platform.training.job import Job

    plain = json.loads(json.dumps(recipe))
    plain["checkpoint"] |= {"no_save": not save_every, "save_interval_updates": save_every}
    made: list[Any] = []
    checkpoints = train_loop.Checkpoints

    class Kept(checkpoints):
        """Remembered, for its times."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    train_loop.Checkpoints = Kept
    clock = Clock()
    train_loop.train(Job(Recipe.from_dict(plain), Path(folder), threads=1), clock)
    saves = [(t.loop_s, t.thread_s, t.file_bytes) for one in made for t in one.times]
    return Steps(_between(clock.walls), statistics.median(clock.cpus[_SKIPPED:]), tuple(saves))


def _between(walls: Sequence[float]) -> tuple[float, ...]:
    """Seconds between the ends of the measured updates."""
    return tuple(after - before for before, after in itertools.pairwise(walls[_SKIPPED - 1 :]))


def ray_steps(recipe: dict[str, Any], home: str) -> Steps:
    """The same on one Ray Train worker, with MLflow; its points tell when each update ended."""
    from d2v_platform.launch import launch
    from d2v_platform.recipe.compose import compose
    from d2v_platform.tracking.tracker import Tracker

    os.environ["D2V_HOME"] = home
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    result = launch(compose("overhead", [], str(_written(recipe, Path(home)))))
    with Tracker() as tracker:
        points = tracker.client.get_metric_history(result.run_id, "train/loss")
        cpu = tracker.client.get_metric_history(result.run_id, "speed/cpu_s_per_update")
    walls = [point.timestamp / 1000 for point in sorted(points, key=lambda point: point.step)]
    used = [point.value for point in sorted(cpu, key=lambda point: point.step)]
    return Steps(_between(walls), statistics.median(used[_SKIPPED:]), ())


def start_parts(recipe: dict[str, Any], home: Path, workers: int) -> list[tuple[str, float]]:
    """Time from ``train.py`` to the first update, by part."""
    plain = json.loads(json.dumps(recipe))
    plain["optimization"]["max_update"] = 1
    plain["lr_scheduler"]["warmup_updates"] = 0
    plain["platform"]["num_workers"] = workers
    folder = _written(plain, home)
    script = Path(__file__).resolve().parents[1] / "train.py"
    environment = {**os.environ, "D2V_HOME": str(home), "D2V_LOG_LEVEL": "DEBUG"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    begin = time.time()
    done = subprocess.run(
        [sys.executable, str(script), "--config-dir", str(folder), "--config-name", "overhead"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = [entry for line in done.stderr.splitlines() if (entry := read_start(line))]
    if done.returncode or not found:
        raise RuntimeError(f"train.py ended with {done.returncode}: {done.stderr[-2000:]}")
    found.sort(key=lambda entry: entry[1])
    times = [begin, *(clock for _, clock in found)]
    return [(part, after - before) for (part, after), before in zip(found, times, strict=False)]


def _written(recipe: dict[str, Any], home: Path) -> Path:
    import yaml

    folder = home / "recipe"
    folder.mkdir(parents=True, exist_ok=True)
    text = "# @package _group_\n" + yaml.safe_dump(recipe)
    (folder / "overhead.yaml").write_text(text, encoding="utf-8")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """``python experiments/benchmark.py overhead``."""
    parser = argparse.ArgumentParser(prog="benchmark overhead", description=__doc__)
    parser.add_argument("--updates", type=int, default=20, help="measured updates of each training")
    parser.add_argument("--samples", type=int, default=16, help="samples of 128 tokens in an update")
    parser.add_argument("--width", type=int, default=384, help="width of the model")
    parser.add_argument("--blocks", type=int, default=6, help="blocks of the model")
    given = parser.parse_args(arguments)
    for line in measure_overhead(given.updates, given.samples, given.width, given.blocks).lines():
        print(line)


if __name__ == "__main__":
    main()
