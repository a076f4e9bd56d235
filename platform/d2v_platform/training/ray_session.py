"""Connecting to Ray: the job's cluster, the one named by ``RAY_ADDRESS``, or a local one.

A cluster of ours asks for a token and listens on the loopback interface only, the metrics' ports too. That
takes ``LOOPBACK``: Ray 2.60 turns ``--node-ip-address 127.0.0.1`` back into the machine's own address.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data2vec.errors import Data2VecError

from ..home import home_folder
from ..recipe import user_code
from . import ray_output
from .process_settings import CACHE_LIMIT

logger = logging.getLogger(__name__)

# Ray's switch "several machines", named after the systems where it is off. Read when Ray is imported.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

START_A_HEAD = f"RAY_AUTH_MODE=token {LOOPBACK}=0 ray start --head"

_HEAD_ASKED_S, _HEAD_MISSED = 5.0, 3  # it is gone when it has not answered so often

# Values that workers and actors need from the driver. An allow-list: runtime environments are visible in the
# dashboard, so credentials must come from the nodes' own environment.
_PASSED_ON = ("D2V_HOME", "D2V_LOG_LEVEL", "HF_HUB_OFFLINE", "CUDA_DEVICE_ORDER", CACHE_LIMIT)


@dataclass(frozen=True)
class NodeRoom:
    """One node of the cluster: CPUs and GPUs that it has in all."""

    cpus: float
    gpus: float

    def holds(self, cpus: float, gpus: float) -> int:
        """How many processes of so many CPUs and GPUs fit; a fraction of a GPU never spans two."""
        by_gpu = math.inf
        if gpus:
            by_gpu = int(self.gpus) * math.floor(1 / gpus + 1e-9) if gpus <= 1 else self.gpus // gpus
        by_cpu = (self.cpus + 1e-9) // cpus if cpus else math.inf
        fit = min(by_cpu, by_gpu)
        return int(fit) if fit < math.inf else sys.maxsize


@dataclass(frozen=True)
class ClusterInfo:
    """What the cluster has.

    Attributes:
        cpus: CPUs in all.
        gpus: GPUs in all.
        nodes: nodes that are alive.
        node_memory: bytes of memory of the smallest node, as Ray counts them; ``None`` if it does not say.
        gpu_type: what Ray calls the GPUs.
        rooms: each node's own; not given: equal ones.
    """

    cpus: float
    gpus: float
    nodes: int
    node_memory: float | None = None
    gpu_type: str | None = None
    rooms: tuple[NodeRoom, ...] = ()

    def by_node(self) -> tuple[NodeRoom, ...]:
        """What each node has: a process never spans two."""
        return self.rooms or (NodeRoom(self.cpus / self.nodes, self.gpus / self.nodes),) * self.nodes

    def holds(self, cpus: float, gpus: float) -> int:
        """How many processes of so many CPUs and GPUs the nodes hold together."""
        return min(sum(node.holds(cpus, gpus) for node in self.by_node()), sys.maxsize)

    def cpus_beside(self, gpus: float) -> float:
        """The CPUs that a process with so many GPUs may take so that every GPU can be used."""
        return min(node.cpus / node.gpus for node in self.by_node() if node.gpus) * gpus

    def line(self) -> str:
        """Its nodes in words, equal ones counted: "2 nodes of 8 CPUs, 1 of 16 CPUs and 4 GPUs"."""
        counted = Counter(self.by_node())
        told = [
            f"{count} node{'s' * (count > 1)} of {node.cpus:g} CPUs"
            + f" and {node.gpus:g} GPUs" * bool(node.gpus)
            for node, count in counted.items()
        ]
        return ", ".join(told)


@contextlib.contextmanager
def connected(num_cpus: int | None = None) -> Iterator[ClusterInfo]:
    """Be connected to Ray inside the block; a local cluster that we started is stopped after it.

    Args:
        num_cpus: CPUs of a local cluster, by default the machine's.
    """
    _prepare_environment()
    import ray

    if ray.is_initialized():
        yield cluster_info()
        return
    # The Tracker's actor and a sweep's trials are many small processes: quiet and on the loopback interface.
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": worker_environment()},
        "log_to_driver": True,
        "configure_logging": False,
    }
    if folders := user_code.folders():
        options["runtime_env"]["py_modules"] = folders
    ours = not on_cluster()
    if ours:
        port = _free_port()
        os.environ["RAY_GCS_SERVER_PORT"] = str(port)
        # Ray Train's own actors ask "the" cluster of their machine for their controller: this one.
        options["runtime_env"]["env_vars"]["RAY_ADDRESS"] = f"{ray.util.get_node_ip_address()}:{port}"
        options |= {
            "address": "local",  # not the cluster of somebody else on this machine
            "num_cpus": num_cpus,
            "dashboard_host": "127.0.0.1",
            "include_dashboard": True,
            "object_store_memory": 200_000_000,  # training passes no large objects through Ray
        }
    else:
        _refuse_no_head(os.environ.get("RAY_ADDRESS", ""))
        if address := _seen_by_others(os.environ.get("RAY_ADDRESS", "")):
            options["runtime_env"]["env_vars"]["RAY_ADDRESS"] = address
    where = "on this machine" if ours else f"at {os.environ.get('RAY_ADDRESS', 'the address of the job')}"
    logger.info("%s Ray %s", "starting" if ours else "connecting to", where)
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises bare ones, for example when a busy machine starts it too slowly
        mend = "try again when the machine is less busy" if ours else f"start one with: {START_A_HEAD}"
        raise Data2VecError(f"no Ray {where}: {error}; {mend}") from error
    finally:
        if ours:
            os.environ.pop("RAY_GCS_SERVER_PORT", None)
    over = threading.Event()
    head = ray.get_runtime_context().gcs_address
    threading.Thread(target=_watch_head, args=(head, over), name="d2v-head", daemon=True).start()
    try:
        with ray_output.filtered():
            yield cluster_info()
    finally:
        over.set()
        ray.shutdown()


def _watch_head(address: str, over: threading.Event) -> None:
    """Say that the head is gone: a minute later Ray ends this process, and nothing more can be said."""
    host, _, port = address.rpartition(":")
    missed = 0
    while missed < _HEAD_MISSED and not over.wait(_HEAD_ASKED_S):
        missed = 0 if answers(host.strip("[]"), int(port)) else missed + 1
    if missed == _HEAD_MISSED:
        logger.error(
            "Ray's head at %s does not answer; without it Ray ends this process within a minute. With "
            "a head again, the same command with the same name goes on from the newest checkpoint",
            address,
        )


def _seen_by_others(address: str) -> str | None:
    """``HOST:PORT`` of the head as every node may write it; ``None`` where it is no such address."""
    import ray

    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdecimal():
        return None
    if host in ("127.0.0.1", "localhost", "[::1]") and not on_loopback_only(address):
        host = ray.util.get_node_ip_address()
    return f"{host}:{port}"


def _refuse_no_head(address: str) -> None:
    """Ray itself would try a head node that is gone for twelve minutes.

    Raises:
        Data2VecError: the address is the dashboard's, or nobody answers there.
    """
    if address.startswith(("http://", "https://")):
        raise Data2VecError(
            f"RAY_ADDRESS = {address!r} is the dashboard's address, for ray job submit; unset "
            "RAY_ADDRESS, or give the head node's HOST:6379"
        )
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdecimal():
        return  # auto, local, ray://...
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise Data2VecError(
            f"no Ray cluster at RAY_ADDRESS = {address!r} ({error.strerror or error}); start one with "
            f"{START_A_HEAD}, or unset RAY_ADDRESS to train on this machine alone"
        ) from error


def on_loopback_only(address: str) -> bool:
    """Whether the head at HOST:PORT is reached through the loopback interface and in no other way."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost", "[::1]") or not port.isdecimal():
        return False
    return answers(host.strip("[]"), int(port)) and not answers(own_address(), int(port))


def answers(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def own_address() -> str:
    """The address under which other machines reach this one; the loopback interface's if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it asks the routing table
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def cluster_info() -> ClusterInfo:
    """Resources of the connected cluster."""
    import ray

    total = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    memory = [
        node["Resources"].get("memory", 0.0) + node["Resources"].get("object_store_memory", 0.0)
        for node in nodes
        if node["Resources"].get("CPU")
    ]
    kinds = [name.partition(":")[2] for name in total if name.startswith("accelerator_type:")]
    return ClusterInfo(
        total.get("CPU", 0.0),
        total.get("GPU", 0.0),
        len(nodes),
        min(memory, default=0.0) or None,
        kinds[0] if kinds else None,
        tuple(
            NodeRoom(has.get("CPU", 0.0), has.get("GPU", 0.0))
            for has in (node["Resources"] for node in nodes)
            if has.get("CPU") or has.get("GPU")
        ),
    )


def this_machine() -> ClusterInfo:
    """What a cluster started here would have, without starting it; a machine without GPUs."""
    import joblib

    return ClusterInfo(cpus=float(joblib.cpu_count()), gpus=0.0, nodes=1)


def in_job() -> bool:
    """Whether this process is the entry point of ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def on_cluster() -> bool:
    """Whether there is a cluster to connect to; without one, Ray is started on this machine."""
    return "RAY_ADDRESS" in os.environ or in_job()


def worker_environment() -> dict[str, str]:
    """Environment variables that workers need to import us, and those passed on to them.

    Under ``ray job submit --working-dir .`` only the uploaded folder's root is importable; the source roots
    one level down are given relative to the working directory, which differs on every node.
    """
    variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if folders := user_code.folders():
        variables[user_code.VARIABLE] = os.pathsep.join(folders)
    root = Path(__file__).resolve().parents[3]
    if (root / "models" / "data2vec").is_dir():
        roots = ["platform", "models"] if in_job() else [str(root / "platform"), str(root / "models")]
        present = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if roots[0] not in present:
            variables["PYTHONPATH"] = os.pathsep.join([*roots, *filter(None, present)])
    return variables


def _prepare_environment() -> None:
    """Settings that Ray reads when it is imported or started; the user's own values win."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # a report waits for the next check
    os.environ.setdefault("RAY_worker_niceness", "0")  # training is the work, not a background task
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", ray_output.colours())
    if not on_cluster():
        os.environ.setdefault(LOOPBACK, "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(_token_file()))
    elif on_loopback_only(os.environ.get("RAY_ADDRESS", "")):
        os.environ.setdefault(LOOPBACK, "0")  # else Ray would look for it at the machine's own address
    if in_job():
        # The job may name the same variables (--runtime-env-json); ours hold the job's own values.
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    # `ray` and workers start the `python` that is first on PATH.
    folder = str(Path(sys.executable).parent)
    if folder not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = folder + os.pathsep + os.environ.get("PATH", "")


def _token_file() -> Path:
    """A token of our own for local clusters, so that nothing is written into the user's ``~/.ray``."""
    path = home_folder("cache") / "ray_token"
    if not path.is_file():
        path.write_text(secrets.token_hex(32), encoding="utf-8")
        path.chmod(0o600)
    return path
