"""Timing of training steps on shared machines: CPU-seconds, and shares of the machine's own matrix rate.

A wall time alone says nothing where other programs run. Each step is put between two measurements of the
sgemm rate, and what is reported is the step's matrix work over its wall time over that rate. Every case runs
in a fresh process and the rate in another, so that a case's peak memory is its own.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch

MATRIX_SHAPES = ((2048, 768, 3072), (2048, 3072, 768), (2048, 768, 768))
"""(rows, inner, columns) of the products that set the rate: a base model's linear layers."""

_RATE_SECONDS = 1.0


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
        name: what the table calls it.
        build: an importable function that takes ``options`` and returns the step to repeat.
        options: its keyword arguments.
        matrix_flops: matrix work of one step by the reference's algorithm.
        units: what one step works through, for a rate (tokens, images, seconds of audio).
        unit: their name.
    """

    name: str
    build: Callable[..., Callable[[int], None]]
    options: Mapping[str, Any]
    matrix_flops: float
    units: float
    unit: str


@dataclass(frozen=True)
class Timing:
    """What a case needed; medians over the measured steps."""

    name: str
    seconds: float  # wall time a step
    cpu_seconds: float  # processor time a step, all threads
    units_per_second: float  # by wall time
    unit: str
    gflops: float  # matrix work over wall time, 1e9 FLOP/s
    matrix_rate: float  # sgemm rate right before and after the steps, 1e9 FLOP/s
    share: float  # of the matrix rate
    peak_gb: float  # highest resident memory of the process, 1e9 bytes


def matrix_rate(seconds: float = _RATE_SECONDS) -> float:
    """Rate of fp32 matrix products on the threads in use, FLOP/s: the median over repetitions."""
    operands = [(torch.randn(m, k), torch.randn(k, n), 2.0 * m * k * n) for m, k, n in MATRIX_SHAPES]
    rates: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(rates) < 3:
        start = time.perf_counter()
        for left, right, _ in operands:
            torch.mm(left, right)
        rates.append(sum(flops for *_, flops in operands) / (time.perf_counter() - start))
    return statistics.median(rates)


def measure(case: Case, steps: int, threads: int) -> Timing | str:
    """Run a case in a process of its own.

    Returns:
        Its timing; or, if the process was killed, what that means.
    """
    with _process(threads) as pool:
        try:
            return pool.submit(_run, case, steps, threads).result()
        except BrokenProcessPool:
            return "the process was killed, most likely for want of memory"


def _process(threads: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,))


def _run(case: Case, steps: int, threads: int) -> Timing:
    step = case.build(**case.options)
    step(0)  # allocations, and the optimizer's state
    walls, cpus, shares, rates = [], [], [], []
    with _process(threads) as meter:
        before = meter.submit(matrix_rate).result()
        for index in range(1, steps + 1):
            wall, cpu = time.perf_counter(), _cpu_seconds()
            step(index)
            walls.append(time.perf_counter() - wall)
            cpus.append(_cpu_seconds() - cpu)
            after = meter.submit(matrix_rate).result()
            rates.append((before + after) / 2)
            shares.append(case.matrix_flops / walls[-1] / rates[-1])
            before = after
    seconds = statistics.median(walls)
    return Timing(
        name=case.name,
        seconds=seconds,
        cpu_seconds=statistics.median(cpus),
        units_per_second=case.units / seconds,
        unit=case.unit,
        gflops=case.matrix_flops / seconds / 1e9,
        matrix_rate=statistics.median(rates) / 1e9,
        share=statistics.median(shares),
        peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    )


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system
