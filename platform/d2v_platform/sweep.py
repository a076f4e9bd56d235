"""Sweeps: the entry points that commands and other programs use."""

from __future__ import annotations

from .sweeps.command import report_failures, sweep_main
from .sweeps.engine import SweepResult, Timing, run_sweep
from .sweeps.table import SweepRow
from .sweeps.winners import Winner

__all__ = ["SweepResult", "SweepRow", "Timing", "Winner", "report_failures", "run_sweep", "sweep_main"]
