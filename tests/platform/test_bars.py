"""Progress of long work where nobody sees bars."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from d2v_platform import bars


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_says_now_and_then_how_far_it_is(terminal: bool, caplog: Any, monkeypatch: Any) -> None:
    caplog.set_level("INFO", "d2v_platform")
    now = [100.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    console = Console(force_terminal=terminal, quiet=terminal)
    with bars.Bars(console=console, get_time=lambda: now[0], transient=True) as shown:
        task = shown.add_task("train: images", total=4000)
        for done in range(4):
            now[0] += 20.0
            shown.advance(task, 1000) if done % 2 else shown.update(task, completed=1000 * (done + 1))
    told = (
        []
        if terminal
        else ["train: images: 2,000 of 4,000, eta 0:00:40", "train: images: 4,000 of 4,000, eta 0:00:00"]
    )
    assert caplog.messages == told
