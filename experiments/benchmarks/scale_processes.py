"""What runs in the processes of the scale test: nothing. They import this file and no library but Ray."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

STEPS = 10
_STEP_S = 1.0


class Idle:
    """A worker that does nothing."""

    def where(self) -> tuple[str, int]:
        """Its node and GPU."""
        import ray

        context = ray.get_runtime_context()
        return context.get_node_id(), int(context.get_accelerator_ids()["GPU"][0])


def trial(config: dict[str, Any], marks: str) -> None:
    """A trial that reports every second; each start leaves a file in ``marks``."""
    from ray import tune

    Path(marks, f"{config['trial']}-{uuid.uuid4().hex}").touch()
    for step in range(STEPS):
        time.sleep(_STEP_S)
        tune.report({"step": step})
