"""Durations and sizes have the unit that suits, with three figures."""

from __future__ import annotations

import pytest

from d2v_platform.figures import clock, data_size, duration


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(6e-5, "0.06 ms"), (0.00196, "1.96 ms"), (0.9994, "999 ms"), (1.0, "1 s"), (14.508, "14.5 s"),
     (61.7, "1.03 min"), (3599.0, "60 min"), (14472.0, "4.02 h"), (86400.0, "24 h"), (172800.0, "2 days"),
     (3.2e7, "370 days")],
)  # fmt: skip
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 B"), (999, "999 B"), (610_000, "610 kB"), (1_320_000, "1.32 MB"), (12.64e9, "12.6 GB"),
     (141e9, "141 GB"), (2e12, "2 TB")],
)  # fmt: skip
def test_sizes(count: float, told: str) -> None:
    assert data_size(count) == told


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]
