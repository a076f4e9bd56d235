"""What placing work on 4 nodes x 8 GPUs takes, and a lost node costs: no GPU is there, nothing is trained.

Raylets of this machine state GPUs that they do not have. The plans and the room for trials are the platform's
own, groups of workers are placed as Ray Train places them, trials run on Ray Tune; each process is empty.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from d2v_platform.markdown import table
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.schema import Recipe
from d2v_platform.recipe.sweep_definition import SweepDefinition
from d2v_platform.sweeps.capacity import capacity
from d2v_platform.training.plan import Plan, make_plan
from d2v_platform.training.ray_session import cluster_info, connected

from . import scale_processes

_CPUS_A_GPU = 2
_STORE_BYTES = 80_000_000
_PATIENCE_S = 900
_STARTS = 4


@dataclass(frozen=True)
class Phase:
    """One thing that happened.

    Attributes:
        name: in words.
        processes: that were placed in the end.
        placed_s: until Ray had reserved their places.
        started_s: until all of them answered.
        lost: trials without a result.
        leaked: placement groups that were left behind.
        note: what else was seen.
    """

    name: str
    processes: int
    placed_s: float | None
    started_s: float
    lost: int
    leaked: int
    note: str = ""


def recipe_for(workers: int, *overrides: str) -> Recipe:
    """A recipe whose update has a micro-batch for each worker."""
    words = ["task.data=/nowhere", f"distributed_training.distributed_world_size={workers}"]
    return compose("v2/base_text_only_task", [*words, *overrides]).recipe


@contextlib.contextmanager
def fake_cluster(nodes: int, gpus: int) -> Iterator[FakeCluster]:
    """A head without CPUs and nodes with GPUs that are not there, connected to as the platform does."""
    with tempfile.TemporaryDirectory(prefix="d2v") as folder, _environment(folder):
        from ray.cluster_utils import Cluster

        Path(folder, "ray").mkdir()
        cluster = started(
            Cluster,
            initialize_head=True,
            head_node_args={"num_cpus": 0, "num_gpus": 0, "object_store_memory": _STORE_BYTES,
                            "include_dashboard": False},
        )  # fmt: skip
        made = FakeCluster(cluster, gpus)
        try:
            for _ in range(nodes):
                made.add()
            os.environ["RAY_ADDRESS"] = str(cluster.address)
            with connected():
                made.wait_for(nodes)
                yield made
        finally:
            cluster.shutdown()


@contextlib.contextmanager
def _environment(folder: str) -> Iterator[None]:
    """Variables that Ray reads when it is imported and started; put back afterwards."""
    values = {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_raylet_start_wait_time_s": "60",
        "RAY_worker_register_timeout_seconds": "600",  # 32 start at once
        "RAY_ADDRESS": "",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    del os.environ["RAY_ADDRESS"]
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def started(start: Callable[..., Any], **options: Any) -> Any:
    """Start a raylet; it ends itself where a busy machine does not start its agent within half a minute."""
    for left in reversed(range(_STARTS)):
        try:
            return start(**options)
        except Exception:
            if not left:
                raise
    raise AssertionError("not reached")


class FakeCluster:
    """Nodes that come and go."""

    def __init__(self, cluster: Any, gpus: int) -> None:
        self._cluster, self._gpus = cluster, gpus
        self.nodes: list[Any] = []

    def add(self) -> None:
        """Another node; from the main thread alone."""
        has = {"num_cpus": _CPUS_A_GPU * self._gpus, "num_gpus": self._gpus}
        self.nodes.append(started(self._cluster.add_node, **has, object_store_memory=_STORE_BYTES))

    def kill(self) -> None:
        """The last node and all of its processes die at once."""
        self._cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def wait_for(self, nodes: int) -> None:
        """Until the cluster counts so many nodes with GPUs."""
        until(lambda: cluster_info().gpus == nodes * self._gpus, f"{nodes} nodes")


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for something true."""
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_PATIENCE_S} s: {what}")
        time.sleep(0.05)


class Group:
    """The workers of a plan in one placement group, as Ray Train makes it.

    Attributes:
        placed_s: until the places were reserved.
        started_s: until every process answered.
    """

    def __init__(self, plan: Plan) -> None:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        begin = time.perf_counter()
        each = {"CPU": plan.cpus_per_worker, "GPU": plan.gpus_per_worker}
        self._places = placement_group([each] * plan.num_workers, strategy="PACK")
        if not self._places.wait(_PATIENCE_S):
            raise TimeoutError(f"{plan.num_workers} workers were not placed")
        self.placed_s = time.perf_counter() - begin
        kind: Any = ray.remote(num_cpus=each["CPU"], num_gpus=each["GPU"])(scale_processes.Idle)
        self.workers = [
            kind.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._places, placement_group_bundle_index=rank
                )
            ).remote()
            for rank in range(plan.num_workers)
        ]
        self.where = ray.get([worker.where.remote() for worker in self.workers], timeout=_PATIENCE_S)
        self.started_s = time.perf_counter() - begin

    def lost(self) -> int:
        """How many of the workers are dead."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        found = 0
        for answer in [worker.where.remote() for worker in self.workers]:
            try:
                ray.get(answer, timeout=10)
            except (RayActorError, GetTimeoutError):
                found += 1
        return found

    def end(self) -> None:
        """As Ray Train ends a group."""
        import ray
        from ray.util.placement_group import remove_placement_group

        for worker in self.workers:
            ray.kill(worker)
        remove_placement_group(self._places)

    def spread(self) -> str:
        """How many workers each node has; every GPU has one."""
        if len(set(self.where)) != len(self.where):
            raise AssertionError(f"a GPU was given twice: {self.where}")
        counts = Counter(node for node, _ in self.where)
        return " + ".join(map(str, sorted(counts.values(), reverse=True)))


def leaked() -> int:
    """Placement groups that still hold something when everything is free again, or a minute is over."""
    import ray
    from ray.util import placement_group_table

    def left() -> int:
        return sum(group["state"] != "REMOVED" for group in placement_group_table().values())

    def free() -> bool:
        names = ("CPU", "GPU")
        total, available = ray.cluster_resources(), ray.available_resources()
        return not left() and all(total.get(name, 0) == available.get(name, 0) for name in names)

    deadline = time.monotonic() + 60
    while not free() and time.monotonic() < deadline:
        time.sleep(0.2)
    return left() or int(not free())


def launch_and_lose(cluster: FakeCluster) -> Iterator[Phase]:
    """A group on all GPUs; a node dies; the group shrinks; the node returns; the group grows."""
    nodes = len(cluster.nodes)
    most = int(cluster_info().gpus)
    recipe = recipe_for(most, f"platform.num_workers=[{most // nodes},{most}]")

    def placed(name: str, since: float | None = None) -> Phase:
        nonlocal group
        group = Group(make_plan(recipe, cluster_info()))
        before = 0.0 if since is None else time.perf_counter() - since - group.started_s
        return Phase(
            name, len(group.workers), before + group.placed_s, before + group.started_s, 0, 0,
            f"workers a node: {group.spread()}",
        )  # fmt: skip

    group: Any = None
    yield placed("launch")
    begin = time.perf_counter()
    cluster.kill()
    cluster.wait_for(nodes - 1)
    dead = group.lost()
    seen_s = time.perf_counter() - begin
    group.end()
    yield Phase("a node dies: noticed", most - dead, None, seen_s, 0, 0, f"{dead} workers dead")
    yield placed("elastic: shrunk, since the death", begin)
    cluster.add()
    begin = time.perf_counter()
    cluster.wait_for(nodes)
    group.end()
    grown = placed("elastic: grown, since the return", begin)
    group.end()
    yield replace(grown, leaked=leaked())  # of the three groups


def run_trials(cluster: FakeCluster, trials: int) -> Phase:
    """Trials on Ray Tune, as many at a time as the platform has room for; a node dies and returns."""
    from d2v_platform.sweeps.tune_run import set_environment

    set_environment()
    from ray import tune

    recipes = [recipe_for(1, "platform.num_workers=1")] * trials
    room = capacity(SweepDefinition(), recipes, cluster_info())
    outcome: list[Any] = []
    nodes = len(cluster.nodes)
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder, "begun")
        marks.mkdir()
        trainable = tune.with_parameters(scale_processes.trial, marks=str(marks))
        tuner = tune.Tuner(
            tune.with_resources(trainable, room.resources),
            param_space={"trial": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(max_concurrent_trials=room.slots, reuse_actors=room.workers == 1),
            run_config=tune.RunConfig(
                name="scale", storage_path=str(Path(folder, "tune")), verbose=0,
                failure_config=tune.FailureConfig(max_failures=3),
            ),
        )  # fmt: skip
        begin = time.perf_counter()
        running = threading.Thread(target=lambda: outcome.append(tuner.fit()))
        running.start()
        until(lambda: len(list(marks.iterdir())) >= room.slots, "the first trials")
        started_s = time.perf_counter() - begin
        cluster.kill()
        cluster.wait_for(nodes - 1)
        cluster.add()
        running.join()
        wall_s = time.perf_counter() - begin
        starts = len(list(marks.iterdir()))
    if errors := outcome[0].errors:
        raise RuntimeError(f"{len(errors)} of {trials} trials ended with an error, the first: {errors[0]}")
    # By hand: get_dataframe() reads files of Tune's loggers, which the platform switches off.
    done = sum((result.metrics or {}).get("step") == scale_processes.STEPS - 1 for result in outcome[0])
    note = (
        f"{room.line()}; a node died and returned: began again: {starts - trials}; all done after "
        f"{wall_s:.0f} s"
    )
    return Phase(f"{trials} trials", room.slots, None, started_s, trials - done, leaked(), note)


def measure(nodes: int, gpus: int, trials: int) -> Iterator[Phase]:
    """All phases on one cluster, each as soon as it is over."""
    begin = time.perf_counter()
    with fake_cluster(nodes, gpus) as cluster:
        up = Phase(
            "the cluster", nodes, None, time.perf_counter() - begin, 0, 0, f"{cluster_info().line()}, faked"
        )
        yield up
        yield from launch_and_lose(cluster)
        yield run_trials(cluster, trials)


def as_markdown(phases: list[Phase]) -> str:
    """The table."""
    columns = ["", "processes", "placed, s", "all started, s", "trials lost", "groups leaked", ""]
    rows = [
        [p.name, str(p.processes), "-" if p.placed_s is None else f"{p.placed_s:.2f}", f"{p.started_s:.1f}",
         str(p.lost), str(p.leaked), p.note]
        for p in phases
    ]  # fmt: skip
    return table(columns, rows)


def write(phases: list[Phase], folder: Path) -> None:
    """``scale.json`` and ``scale.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.json").write_text(json.dumps([asdict(p) for p in phases], indent=1) + "\n", "utf-8")
    (folder / "scale.md").write_text(as_markdown(phases) + "\n", encoding="utf-8")
