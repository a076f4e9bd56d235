"""A local cluster of our own beside those of others on the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SCRIPT = """
import sys
import time

from d2v_platform.training.ray_session import connected

with connected(num_cpus=1):
    import ray
    from ray.util.state import list_actors

    @ray.remote(num_cpus=0)
    class Asker:
        def names(self):
            return [actor.name for actor in list_actors(filters=[("state", "=", "ALIVE")])]

    asker = Asker.options(name=sys.argv[1]).remote()
    ray.get(asker.names.remote())
    print("ready", flush=True)
    sys.stdin.readline()
    print(",".join(ray.get(asker.names.remote())), flush=True)
"""


def test_actors_ask_their_own_cluster_whatever_else_runs(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "ask.py"
    script.write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    clusters = [
        subprocess.Popen(
            [sys.executable, str(script), name], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for name in ("first", "second")
    ]  # fmt: skip
    streams = [(cluster.stdin, cluster.stdout) for cluster in clusters]
    try:
        for _, shown in streams:
            assert shown is not None and shown.readline() == "ready\n"
        said = []
        for asked, shown in streams:
            assert asked is not None and shown is not None
            asked.write("\n")
            asked.flush()
            said.append(shown.readline().strip())
    finally:
        for cluster in clusters:
            cluster.communicate(timeout=60)
    assert said == ["first", "second"]
