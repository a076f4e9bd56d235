"""Tests and speed on this machine's GPU: python experiments/gpu_check.py [--out FOLDER] (make gpu-check)."""

import sys
from pathlib import Path

# In a checkout the packages lie one level down.
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / root) for root in ("platform", "models", ".")]

from experiments.benchmarks.device_check import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
