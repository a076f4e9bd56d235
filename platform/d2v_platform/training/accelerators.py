"""What a processor can do: matrix rates, of GPUs from data sheets and of this CPU by measuring; memory."""

from __future__ import annotations

import functools
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

_ROWS = 128  # of the products that a CPU's rate is measured with
GPU_UTILISATION = 0.4  # share of the peak that such models reach in mixed precision; an assumption, printed
CPU_UTILISATION = 0.75  # share of the measured product rate that whole steps reach here


@dataclass(frozen=True)
class Accelerator:
    """One device."""

    name: str  # as in ``platform.plan_accelerator``
    rates: dict[str, float]  # dense FLOP/s by precision; a precision that is absent is not supported
    memory_bytes: float | None  # its memory; ``None`` if unknown
    utilisation: float  # assumed share of the rate that a step reaches
    measured: bool = False  # the rate was measured and not looked up

    @property
    def device_type(self) -> str:
        """ "cpu" or "cuda"."""
        return "cpu" if self.name == "cpu" else "cuda"

    def precision(self, asked: str, mixed: bool) -> str:
        """What it computes in: the asked precision, or with "auto" mixed precision where it has it."""
        if asked != "auto":
            return asked
        if not mixed or self.device_type == "cpu":
            return "fp32"
        return "bf16" if "bf16" in self.rates else "fp16"

    def rate(self, precision: str) -> float | None:
        """FLOP/s in a precision."""
        return self.rates.get(precision)


def _gpu(name: str, half: float, single: float, gigabytes: float, bf16: bool = True) -> Accelerator:
    rates = {"fp32": single * 1e12, "fp16": half * 1e12} | ({"bf16": half * 1e12} if bf16 else {})
    return Accelerator(name, rates, gigabytes * 1e9, GPU_UTILISATION)


# NVIDIA's data sheets: dense tensor-core rate in half precision, plain fp32 rate, memory.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("v100", 125, 15.7, 32, bf16=False),
        _gpu("a100-40gb", 312, 19.5, 40),
        _gpu("a100", 312, 19.5, 80),
        _gpu("h100", 989, 67, 80),
        _gpu("h200", 989, 67, 141),
    )
}


def named_gpu(title: str) -> Accelerator | None:
    """Our entry for what a driver or Ray calls a GPU ("NVIDIA H100 80GB HBM3", "A100-40G"), if any."""
    words = re.sub(r"[^a-z0-9]+", " ", title.lower())
    for name in sorted(GPUS, key=len, reverse=True):
        family, _, size = name.partition("-")
        if re.search(rf"\b{family}\b", words) and (not size or re.search(rf"\b{size[:-1]}b?\b", words)):
            return GPUS[name]
    return None


def gpu_at_hand(ray_type: str | None) -> Accelerator:
    """The cluster's GPU: from this process's driver, else from the type that Ray reports."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        known = named_gpu(properties.name)
        rates = known.rates if known else {}
        return Accelerator(properties.name, rates, float(properties.total_memory), GPU_UTILISATION)
    known = named_gpu(ray_type) if ray_type else None
    return known or Accelerator(ray_type or "gpu", {}, None, GPU_UTILISATION)


def local_gpus(local_mode: bool) -> int:
    """GPUs that a training in this process may take; none where Ray hands them out."""
    return torch.cuda.device_count() if local_mode and torch.cuda.is_available() else 0


def cpu_at_hand(threads: int, memory_bytes: float | None = None) -> Accelerator:
    """This machine's processor with so many threads, measured."""
    rate = measured_rate(threads)
    memory = machine_memory() if memory_bytes is None else memory_bytes
    return Accelerator("cpu", {"fp32": rate}, memory, CPU_UTILISATION, measured=True)


def device_rate(device: torch.device, precision: str) -> float | None:
    """Matrix rate in FLOP/s of the device that this process computes on; ``None`` for an unknown GPU."""
    if device.type == "cpu":
        return measured_rate(torch.get_num_threads())
    return gpu_at_hand(None).rate(precision)


@functools.cache
def measured_rate(threads: int, repeats: int = 4) -> float:
    """FLOP/s of fp32 matrix products of a transformer's size, once a process.

    The best of some, because others may be busy on the machine too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.ones(_ROWS, 768), torch.ones(768, 3072)
        out, seconds = torch.empty(_ROWS, 3072), []
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            torch.mm(a, b, out=out)
            seconds.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)
    return 2.0 * _ROWS * 768 * 3072 / min(seconds[1:])


def machine_memory() -> float:
    """Bytes of memory that this process may use: the machine's, or its container's limit."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            total = min(total, float(text))
    return total
