"""Measure: python experiments/benchmark.py {text,vision,speech,input,overlap,overhead,scale} [--json]."""

import sys
from pathlib import Path

# In a checkout the packages lie one level down.
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / root) for root in ("platform", "models", ".")]

from d2v_platform.cli import run  # noqa: E402
from experiments.benchmarks.command import app  # noqa: E402

if __name__ == "__main__":
    run(app)
