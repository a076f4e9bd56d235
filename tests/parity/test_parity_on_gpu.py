"""The recorded numbers of the reference, computed on a GPU in fp32 with TF32 off."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.timeout(400)
def test_recorded_cases_pass_on_the_gpu() -> None:
    """Committed cases, and the reference's own where they are at hand (D2V_SHARED)."""
    golden = Path(os.environ.get("D2V_SHARED") or HERE.parents[2] / "shared") / "golden"
    folders = [HERE / "cases", *([golden] if golden.is_dir() else [])]
    command = [sys.executable, str(HERE / "check.py"), "--device", "cuda", *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) >= 12, done.stderr
    failed = [line for line in lines if not re.match(r"\S+ PASS ", line)]
    assert not failed, "\n".join(failed)
