"""A head and a second node on one machine: two raylets, of which the second has folders of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import _free_port

RAY = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
STARTED_S = 240
_AGENTS = {  # options of ray start, and the files in which a raylet looks for what the agents have opened
    "dashboard-agent-grpc-port": "metrics_agent_port",
    "metrics-export-port": "metrics_export_port",
    "dashboard-agent-listen-port": "dashboard_agent_listen_port",
    "runtime-env-agent-port": "runtime_env_agent_port",
}


class TwoNodes:
    """Raylets of one CPU each (or what is asked for), that can be killed and started again.

    Args:
        folder: for logs and Ray's own files; short, because sockets lie in it.
        port: of the head.
        own: folders that the second node sees empty: what is written there is not shared.
    """

    def __init__(self, folder: Path, port: int, own: Sequence[Path] = ()) -> None:
        self.folder, self.port, self.own = folder, port, list(own)
        self.address = f"127.0.0.1:{port}"
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start_head(self, *, cpus: int = 1, gpus: int = 0) -> None:
        """Returns when it answers."""
        self._up("head", 1, [
            "--head", f"--port={self.port}", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.port + 1}", f"--ray-client-server-port={self.port + 2}",
            f"--temp-dir={self.folder}/ray",
        ], cpus, gpus)  # fmt: skip

    def start_second(self, *, cpus: int = 1, gpus: int = 0) -> None:
        """Returns when the head knows it."""
        self._up("second", 2, [f"--address={self.address}"], cpus, gpus)

    def runs(self, name: str) -> bool:
        """Whether this node was started and has not been killed."""
        return name in self._nodes

    def kill(self, name: str) -> None:
        """SIGKILL to the raylet and everything that it has started; nothing where it does not run."""
        node = self._nodes.pop(name, None)
        if node is None:
            return
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def stop(self) -> None:
        """Kill what is left."""
        for name in list(self._nodes):
            self.kill(name)

    def _up(self, name: str, nodes: int, options: list[str], cpus: int, gpus: int) -> None:
        """Once more where Ray gives itself up: some of its own time limits are short on a busy machine."""
        for last in (False, False, True):
            self.kill(name)
            self._start(name, options, cpus, gpus)
            if self._is_there(name, nodes, must=last):
                return

    def _start(self, name: str, options: list[str], cpus: int, gpus: int) -> None:
        command = [
            RAY, "start", *options, f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--block",
            "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        # Not on loopback alone, and with time to start.
        environment = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "RAY_raylet_start_wait_time_s": "120"}
        if name != "head":
            for path in self.own:
                path.mkdir(parents=True, exist_ok=True)
            hidden = [f"mount -t tmpfs own {shlex.quote(str(path))}" for path in self.own]
            command += self._agents(environment)
            command = ["unshare", "-m", "bash", "-c", " && ".join([*hidden, f"exec {shlex.join(command)}"])]
        with (self.folder / f"{name}.log").open("wb") as log:
            self._nodes[name] = subprocess.Popen(
                command,
                env=os.environ | environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _agents(self, environment: dict[str, str]) -> list[str]:
        """Ports of a node's agents; its raylet, which gives itself up after 15 s without, is told them."""
        node, ports = secrets.token_hex(28), {name: _free_port() for name in _AGENTS}
        environment["RAY_OVERRIDE_NODE_ID_FOR_TESTING"] = node
        for name, port in ports.items():
            (self.folder / "ray" / "session_latest" / f"{_AGENTS[name]}_{node}").write_text(str(port))
        return [f"--{name}={port}" for name, port in ports.items()]

    def _is_there(self, name: str, nodes: int, *, must: bool) -> bool:
        """Wait until the head knows so many nodes; false if this one has ended.

        Who asks imports Ray, and slows the start down: not before the node says that it runs.
        """
        log = self.folder / f"{name}.log"
        deadline = time.monotonic() + STARTED_S
        asked = (
            "import ray, sys; ray.init(sys.argv[1], logging_level=40); "
            "print(sum(node['Alive'] for node in ray.nodes()))"
        )
        while True:
            if self._nodes[name].poll() is not None:
                assert not must, log.read_text()[-3000:]
                return False
            assert time.monotonic() < deadline, f"{nodes} nodes do not come: {log.read_text()[-2000:]}"
            if "Ray runtime started" not in log.read_text():
                time.sleep(0.5)
                continue
            found = subprocess.run(
                [sys.executable, "-c", asked, self.address],
                capture_output=True, text=True, timeout=2 * STARTED_S, check=False,
            )  # fmt: skip
            if found.stdout.strip() == str(nodes):
                return True
            time.sleep(2)  # a lost one counts until the head has missed it


def may_unshare() -> bool:
    """Whether this user may give a process a file system view of its own."""
    tried = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return tried.returncode == 0


needs_unshare = pytest.mark.skipif(not may_unshare(), reason="no right to unshare -m: run as root")
