"""``experiments/benchmark.py``: how fast we are on this machine, in ratios that survive a noisy one."""
