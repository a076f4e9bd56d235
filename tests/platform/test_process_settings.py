"""Settings of the training process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from d2v_platform.training.process_settings import CACHE_LIMIT, CACHED_CONVOLUTIONS, limit_memory
from d2v_platform.training.ray_session import worker_environment

GROWTH = """
import sys, torch
from pathlib import Path
from d2v_platform.training.process_settings import limit_memory

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

if sys.argv[1] == "limited":
    limit_memory()
torch.set_num_threads(1)
convolution = torch.nn.Conv1d(64, 64, 3, stride=2)

def convolve(lengths):
    for length in lengths:
        convolution(torch.randn(1, 64, length)).sum().backward()

convolve((3000, 1000))
before = resident()
convolve(range(1000, 2500, 5))
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ever_new_lengths_do_not_fill_the_memory() -> None:
    environment = {k: v for k, v in os.environ.items() if k != CACHE_LIMIT}
    grown: dict[str, int] = {}
    for kind in ("limited", "free"):
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, kind], env=environment, capture_output=True, text=True, check=True
        )
        grown[kind] = int(done.stdout)
    assert grown["limited"] < 40 < grown["free"]  # MB


def test_workers_get_the_limit_and_the_users_own_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_LIMIT, "7")
    limit_memory()
    assert worker_environment()[CACHE_LIMIT] == "7"
    monkeypatch.delenv(CACHE_LIMIT)
    limit_memory()
    assert worker_environment()[CACHE_LIMIT] == str(CACHED_CONVOLUTIONS)
