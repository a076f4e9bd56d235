"""Machines that come late, go, or do not see the run's folder: what is saved, awaited, refused, repeated."""

from __future__ import annotations

import logging
import re
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from d2v_platform.recipe.checks import problems
from d2v_platform.recipe.schema import Recipe
from d2v_platform.registry import model_folders
from d2v_platform.storage.locations import open_location
from d2v_platform.tracking.tracker_actor import TrackerService
from d2v_platform.training import ray_session, shared_folder, train_loop, worker_failures, workers
from d2v_platform.training.cadence import SaveClock
from d2v_platform.training.checkpoint import CheckpointStore, Merit, Retention
from d2v_platform.training.checkpoint_writer import Checkpoints
from d2v_platform.training.job import Job, ResolvedModels
from d2v_platform.training.loop_state import Worker
from d2v_platform.training.plan import make_plan
from d2v_platform.training.ray_session import ClusterInfo
from d2v_platform.training.train_loop import TrainingLoop
from d2v_platform.training.waiting import STATE_TAG, Waiting, cluster_in_words
from d2v_platform.training.worker_failures import LostWorkers, StartsAllowed
from data2vec.errors import ConfigError, Data2VecError, DataError
from tests.platform.toy_task import Diary, ToyTask, run_toy, toy_recipe

LOST_PEER = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:4711")


class Ticks:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


# ---- saves between those of the recipe --------------------------------------------------------------------


def test_rank_0s_clock() -> None:
    now = Ticks()
    clock, never = SaveClock(15, now), SaveClock(0, now)
    now.seconds += 899
    assert not clock.save_due()
    now.seconds += 1
    assert clock.save_due() and not never.save_due()
    clock.saved()
    assert not clock.save_due()
    assert [clock.look_due(), clock.look_due()] == [True, False]
    now.seconds += SaveClock.LOOK_S
    assert clock.look_due()


@pytest.fixture
def old_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0's clock says after every update that the last checkpoint is too old."""
    monkeypatch.setattr(SaveClock, "save_due", lambda self: True)
    monkeypatch.setattr(SaveClock, "look_due", lambda self: True)


def quick(**checkpoint: Any) -> dict[str, Any]:
    return toy_recipe(
        optimization={"max_update": 7}, dataset={"disable_validation": False},
        checkpoint={"save_interval_updates": 3, "save_interval": 100,
                    "keep_interval_updates": 2} | checkpoint,
    )  # fmt: skip


@pytest.mark.usefixtures("old_saves")
def test_saves_by_the_clock_change_no_figure_and_stay_only_while_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    honest = CheckpointStore.save

    def save(self: CheckpointStore, update: int, tensors: Any, state: Any, merit: Merit) -> Path:
        seen.append((update, merit.between))
        return honest(self, update, tensors, state, merit)

    monkeypatch.setattr(CheckpointStore, "save", save)
    summary, diary, task = run_toy(quick(), tmp_path / "often", monkeypatch)
    often, seen[:] = seen.copy(), []
    assert [update for update, _ in often] == list(range(1, 8))
    monkeypatch.setattr(SaveClock, "save_due", lambda self: False)
    plain, plain_diary, plain_task = run_toy(quick(), tmp_path / "plain", monkeypatch)
    assert seen == [(update, between) for update, between in often if not between] and len(seen) < 6
    kept = [CheckpointStore(tmp_path / name).updates() for name in ("often", "plain")]
    assert kept[0] == kept[1] and set(kept[0]) < {update for update, _ in seen}
    assert plain_diary.curve() == diary.curve() and plain.metrics == summary.metrics
    assert plain_diary.updates("valid") == diary.updates("valid"), "they validate nothing"
    assert task.exported and plain_task.exported
    assert torch.equal(torch.as_tensor(task.exported[1]["w"]), torch.as_tensor(plain_task.exported[1]["w"]))
    assert run_toy(quick(no_save=True), tmp_path / "none", monkeypatch)[0].update == 7
    assert CheckpointStore(tmp_path / "none").updates() == []


def test_retention_counts_the_recipes_own_saves_only() -> None:
    manifests = {update: {"between": update % 5 != 0} for update in range(1, 13)}
    assert Retention(interval=1).kept(manifests, None) == {10, 12}
    assert Retention(interval=-1).kept(manifests, None) == {5, 10, 12}
    assert Retention(interval=0).kept(manifests, best=7) == {7, 12}
    assert Retention(interval=2).kept({3: {}, 4: {}}, None) == {3, 4}, "those of earlier versions"


class Member(Diary):
    """A reporter of a group of workers."""

    def __init__(self, goes_from: int | None = None) -> None:
        super().__init__()
        self.resumes: list[int] = []
        self.asked = 0
        self.goes_from = goes_from

    def resumed(self, update: int) -> None:
        self.resumes.append(update)

    def preempted(self) -> bool:
        self.asked += 1
        return self.goes_from is not None and self.asked >= self.goes_from


def test_a_node_that_goes_away_is_saved_from_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SaveClock, "look_due", lambda self: True)
    saved: list[int] = []
    monkeypatch.setattr(
        TrainingLoop, "_save_between", lambda self, epoch_end: saved.append(self.state.update)
    )
    member = Member(goes_from=3)
    run_toy(quick(), tmp_path, monkeypatch, reporter=member)
    assert saved == [3] and member.asked == 3 and member.resumes == [0]
    assert caplog.text.count("about to be taken away") == 1
    monkeypatch.setattr(SaveClock, "look_due", lambda self: False)
    blind = Member(goes_from=1)
    run_toy(quick(), tmp_path / "blind", monkeypatch, reporter=blind)
    assert blind.asked == 0, "all workers wait for each other there: only now and then"


def test_a_resumed_group_says_from_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_toy(quick(), tmp_path, monkeypatch)
    member = Member()
    run_toy(quick(), tmp_path, monkeypatch, reporter=member)
    assert member.resumes == [7]


# ---- one folder for all nodes -----------------------------------------------------------------------------


def test_checkpoints_that_the_workers_do_not_share_are_no_new_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_toy(quick(), tmp_path, monkeypatch)

    def with_others(*others: Any) -> None:
        monkeypatch.setattr(
            train_loop,
            "gather_objects",
            lambda mine: [mine, *others] if isinstance(mine, list | set) else [mine],
        )
        run_toy(quick(), tmp_path, monkeypatch, reporter=member)

    member = Member()
    with pytest.raises(
        Data2VecError, match=r"begin anew: worker 0 has that of update 7, worker 1 has none"
    ) as told:
        with_others([])
    assert str(tmp_path) in str(told.value) and "all nodes share" in str(told.value)
    with pytest.raises(Data2VecError, match="worker 2 has that of update 3"):
        with_others([6, 7], [3])
    assert member.resumes == []
    with_others([6, 7])
    assert member.resumes == [7]


def test_a_uri_is_asked_for_checkpoints_by_rank_0_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, asked = Recipe.from_dict(quick()), list[tuple[int, bool]]()
    monkeypatch.setattr(train_loop, "gather_objects", lambda mine: [set(), mine])
    for rank, uri in ((0, True), (1, True), (1, False)):
        loop = TrainingLoop(recipe, ToyTask(recipe, 1, None), tmp_path, Diary(), Worker(rank, 2))
        loop.checkpoints = Checkpoints(loop.store, open_location("memory://runs") if uri else None)
        monkeypatch.setattr(
            loop.checkpoints, "available", lambda r=rank, u=uri: asked.append((r, u)) or set[int]()
        )
        loop.resume()
    assert asked == [(0, True), (1, False)]


def job(folder: Path, **platform: Any) -> Job:
    recipe = Recipe.from_dict(toy_recipe(platform={"storage": "/mnt/runs", "num_workers": 2} | platform))
    return Job(recipe, folder, run_id="r1")


def test_every_node_sees_what_the_driver_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folder, "_SEEN_S", 0.0)
    monkeypatch.setattr(shared_folder, "own_address", lambda: "10.0.0.1")
    here = job(tmp_path / "runs" / "r1")
    shared_folder.leave_token(here, "a1")
    shared_folder.see_shared_folder(here, "a1")
    for folder, attempt in ((tmp_path / "elsewhere", "a1"), (here.folder, "a2")):  # a2: of another launch
        with pytest.raises(Data2VecError, match=r"'/mnt/runs'.*10\.0\.0\.1\).*NFS"):
            shared_folder.see_shared_folder(job(folder), attempt)
    # One blind node is enough, and every worker says it.
    others = [("b", "10.0.0.2", False), ("b", "10.0.0.2", False), ("c", "10.0.0.3", True)]
    monkeypatch.setattr(shared_folder, "gather_objects", lambda mine: [mine, *others])
    with pytest.raises(Data2VecError, match=r"is not there on b \(10\.0\.0\.2\); it"):
        shared_folder.see_shared_folder(here, "a1")
    elsewhere = Job(here.recipe, tmp_path / "copies", remote="s3://b/runs/r1")
    shared_folder.see_shared_folder(elsewhere, "a1")


def test_a_head_that_is_gone_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_session, "_HEAD_ASKED_S", 0.001)
    asked, over = list[tuple[str, int]](), threading.Event()
    replies = iter([True, False, False, True, False, False, False])
    monkeypatch.setattr(ray_session, "answers", lambda *where: asked.append(where) or next(replies))
    ray_session._watch_head("10.0.0.1:6379", over)
    assert asked == [("10.0.0.1", 6379)] * 7, "two that are missed may be a busy head"
    assert [r.levelname for r in caplog.records] == ["ERROR"] and "at 10.0.0.1:6379 does not" in caplog.text
    over.set()
    ray_session._watch_head("10.0.0.1:6379", over)
    assert len(asked) == 7 and len(caplog.records) == 1


# ---- which failures are tried again, and how often --------------------------------------------------------


@pytest.mark.parametrize("error", [LOST_PEER, OSError("Stale file handle"), ConnectionResetError("gone")])
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert workers.lasting(error) is None


def test_what_would_only_come_again_is_not() -> None:
    assert workers.lasting(Data2VecError("no such file")) == "no such file"
    assert "not started again: TypeError: x" in (workers.lasting(TypeError("x")) or "")
    memory = (
        workers.lasting(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")) or ""
    )
    assert "Tried to allocate 2 GiB. Lower dataset.max_tokens" in memory and "more" not in memory


def test_only_starts_in_a_row_without_progress_count() -> None:
    service = TrackerService.__new__(TrackerService)
    service._begun_at, service._groups, service._there, service._failed = {}, {}, set(), set()
    counted = []
    for update in (0, 0, 0, 340, 340, 500, 500, 500):
        counted.append(service.goes_on_from("a", update))
        service.workers_lost("a")
    assert counted == [0, 1, 2, 0, 1, 0, 1, 2]
    assert service.goes_on_from("a", 500) == 3
    assert service.goes_on_from("a", 500) == 3, "a group of another size was no failure"
    assert service.goes_on_from("b", 500) == 0, "another attempt"
    assert not service.workers_there("a")
    assert service.goes_on_from("b", 500) == 0
    service.workers_started("a")
    assert service.workers_there("a") and service.times_started("a") == 1 and not service.workers_there("b")
    service.workers_lost("a")
    service.workers_started("a")
    assert service.times_started("a") == 2 and service.times_started("b") == 0


def test_a_group_that_never_gets_on_is_given_up(tmp_path: Path) -> None:
    counts = iter([0, 2, 3])
    tracker: Any = SimpleNamespace(goes_on_from=lambda attempt, update: next(counts))
    reporter = workers.RayTrainReporter(tracker, job(tmp_path, max_failures=2), "a")
    reporter.resumed(7)
    reporter.resumed(7)
    with pytest.raises(Data2VecError, match=r"3 times in a row from update 7 .*max_failures = 2"):
        reporter.resumed(7)
    workers.RayTrainReporter(None, job(tmp_path, max_failures=2), "a").resumed(7)  # rank 0 asks for all


def test_ray_gives_up_only_groups_that_never_begin(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray
    from ray.train.v2._internal.execution.failure_handling import FailureDecision, create_failure_policy
    from ray.train.v2.api.exceptions import WorkerGroupError

    begun, lost = [0], []
    actor = SimpleNamespace(times_started=lambda attempt: begun[0], workers_lost=lost.append)
    monkeypatch.setattr(worker_failures, "RemoteTracker", lambda name: actor)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    allowed = StartsAllowed(2, "tracker-1", "a")
    error = WorkerGroupError("lost", {0: LOST_PEER})
    policy = create_failure_policy(allowed)
    for _ in range(20):  # each of these has begun; whether it got on is the workers' own question
        begun[0] += 1
        assert policy.make_decision(error) == FailureDecision.RETRY
    assert [policy.make_decision(error) for _ in range(3)] == [
        FailureDecision.RETRY, FailureDecision.RETRY, FailureDecision.RAISE,
    ]  # fmt: skip
    LostWorkers("tracker-1", "a").after_exception(None, {0: LOST_PEER})
    assert lost == ["a"] and "the workers lost the connection" in caplog.text
    caplog.clear()
    LostWorkers("tracker-1", "a").after_exception(None, {0: LOST_PEER, 1: DataError("no such file")})
    assert lost == ["a", "a"] and not caplog.text, "the driver tells it"
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert StartsAllowed(4, "tracker-1", "a").max_failures == 4, "the driver makes it before Ray runs"


# ---- waiting ----------------------------------------------------------------------------------------------


class Told:
    """In the tracker's place."""

    def __init__(self) -> None:
        self.tags: list[str] = []
        self.there = False

    def workers_there(self, attempt: str) -> bool:
        return self.there

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        assert run_id == "r1"
        self.tags.append(tags[STATE_TAG])


def waiting(tmp_path: Path, now: Ticks, told: Any, **platform: Any) -> Waiting:
    made = job(tmp_path, **platform)
    values = made.recipe.to_dict() | {"distributed_training": {"distributed_world_size": 2}}
    plan = make_plan(Recipe.from_dict(values), ClusterInfo(8, 0, 1))
    return Waiting(made, plan, told, "a", now, lambda: "free are 0 of 2 CPUs; held by raysubmit_x 2 CPUs")


def test_waiting_is_said_every_half_minute_and_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now, told = Ticks(), Told()
    look = waiting(tmp_path, now, told)
    for _ in range(95):
        look()
        now.seconds += 1
    lines = [record.message for record in caplog.records]
    assert len(lines) == 3
    assert lines[0].startswith(
        "waiting for 2 workers of 1 CPU since 30 s; free are 0 of 2 CPUs; held by raysubmit_x"
    )
    assert told.tags == ["waiting for 2 workers of 1 CPU"]
    told.there = True
    for _ in range(60):
        look()
        now.seconds += 1
    assert len(caplog.records) == 3 and told.tags[1:] == ["training"]
    told.there = False  # a node is lost, and nothing takes its place
    for _ in range(40):
        look()
        now.seconds += 1
    assert len(caplog.records) == 4 and told.tags[2:] == ["waiting for 2 workers of 1 CPU"]


def test_a_start_without_waiting_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now, told = Ticks(), Told()
    told.there = True
    look = waiting(tmp_path, now, told)
    look()
    now.seconds += 300
    look()
    assert told.tags == [] and not caplog.records


def test_elastic_workers_wait_for_the_fewest(tmp_path: Path) -> None:
    now, told = Ticks(), Told()
    look = waiting(tmp_path, now, told, num_workers=[1, 2])
    now.seconds += 31
    look()
    assert told.tags == ["waiting for 1 to 2 workers of 1 CPU"]


def test_waiting_ends(tmp_path: Path) -> None:
    now = Ticks()
    look = waiting(tmp_path, now, Told(), wait_for_resources=2)
    now.seconds += 119
    look()
    now.seconds += 3
    with pytest.raises(
        Data2VecError, match=r"2 workers of 1 CPU did not fit within .* = 2 minutes; free are"
    ):
        look()


def test_workers_that_do_not_fit_yet_are_planned_only_when_they_may_be_waited_for() -> None:
    values = toy_recipe(platform={"num_workers": 4}, distributed_training={"distributed_world_size": 4})
    with pytest.raises(ConfigError, match="use at most 2"):
        make_plan(Recipe.from_dict(values), ClusterInfo(2, 0, 1))
    values["platform"] |= {"wait_for_resources": 10, "gpus_per_worker": 1}
    plan = make_plan(Recipe.from_dict(values), ClusterInfo(2, 0, 1))
    assert (plan.num_workers, plan.gpus_per_worker) == (4, 1)
    assert plan.notes[0] == "now fit 0 of 4 workers: waiting for the others"
    assert not any(
        "waiting" in note for note in make_plan(Recipe.from_dict(values), ClusterInfo(8, 4, 1)).notes
    )


def test_workers_ask_the_cluster_of_their_driver_not_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a second Ray on a machine its own actors would not know which is meant."""
    import ray.util

    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.5")
    monkeypatch.setattr(ray_session, "on_loopback_only", lambda address: address.endswith(":1"))
    told = {
        "10.0.0.9:6379": "10.0.0.9:6379",
        "127.0.0.1:6379": "10.0.0.5:6379",  # on other nodes this host is another
        "localhost:6379": "10.0.0.5:6379",
        "127.0.0.1:1": "127.0.0.1:1",  # one machine: it listens nowhere else
        "auto": None,
        "": None,
        "ray://head:10001": None,
    }
    assert {address: ray_session._seen_by_others(address) for address in told} == told


# ---- as many as there are ---------------------------------------------------------------------------------


def elastic(cluster: ClusterInfo, workers: Any, **platform: Any) -> Any:
    values = toy_recipe(
        platform={"num_workers": workers} | platform, distributed_training={"distributed_world_size": 4}
    )
    return make_plan(Recipe.from_dict(values), cluster)


def test_between_the_fewest_and_the_most_workers() -> None:
    plan = elastic(ClusterInfo(3, 0, 3), [1, 4])
    assert (plan.num_workers, plan.elastic) == (3, (1, 4))
    assert "1 to 4 workers, as nodes go and come; now 3" in plan.notes
    assert elastic(ClusterInfo(9, 0, 1), [1, 4]).num_workers == 4
    fixed = elastic(ClusterInfo(9, 0, 1), [2, 2])
    assert (fixed.num_workers, fixed.elastic) == (2, None)
    with pytest.raises(ConfigError, match="use at most 1"):
        elastic(ClusterInfo(1, 0, 1), [2, 4])
    late = elastic(ClusterInfo(1, 0, 1), [2, 4], wait_for_resources=5)
    assert (late.num_workers, late.elastic) == (2, (2, 4))


@pytest.mark.parametrize("workers", [[0, 2], [3, 2], [1], [1, 2, 3], [1, 5], -1])
def test_wrong_numbers_of_workers(workers: Any) -> None:
    values = toy_recipe(platform={"num_workers": workers}, distributed_training={"distributed_world_size": 4})
    found = [problem for problem in problems(Recipe.from_dict(values)) if "num_workers" in problem.field]
    assert [(problem.field, problem.value) for problem in found] == [("platform.num_workers", workers)]


# ---- models where a node has them -------------------------------------------------------------------------


def test_a_model_that_the_driver_resolved_is_brought_to_every_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, here = tmp_path / "seen", tmp_path / "cache"
    for folder in (seen, here):
        folder.mkdir()
    asked: list[tuple[str, str]] = []

    def fetch(name: str, data: str) -> tuple[Path, str]:
        asked.append((name, data))
        if name.startswith("/"):
            raise Data2VecError(f"model {name!r}: no such file or folder")
        return here, name

    monkeypatch.setattr(model_folders, "model_folder", fetch)
    data = f"{seen}:{here}"
    recipe = Recipe.from_dict(toy_recipe(task={"data": data}))
    both = ResolvedModels(seen, "models:/m/3", seen, "s3://b/m")
    assert model_folders.models_on_this_node(both, recipe) == both and asked == []
    assert model_folders.models_on_this_node(ResolvedModels(), recipe) == ResolvedModels()
    gone = ResolvedModels(tmp_path / "driver", "models:/m/3", tmp_path / "driver2", "s3://b/m")
    assert model_folders.models_on_this_node(gone, recipe) == ResolvedModels(
        here, "models:/m/3", here, "s3://b/m"
    )
    assert asked == [("models:/m/3", data), ("s3://b/m", data)]
    node = re.escape(socket.gethostname())
    told = rf"checkpoint.restore_file = '/m' is not on the node {node}: .*no such file.*models:/NAME@ALIAS"
    with pytest.raises(Data2VecError, match=told):
        model_folders.models_on_this_node(ResolvedModels(tmp_path / "m", "/m"), recipe)
    told = rf"checkpoint.restore_file = '{tmp_path}/m2' is not on the node {node}"
    with pytest.raises(Data2VecError, match=told):  # a trial of an earlier version knows no name of it
        model_folders.models_on_this_node(ResolvedModels(initial=tmp_path / "m2"), recipe)


def test_data_of_the_drivers_node_alone_is_named_with_the_node(tmp_path: Path) -> None:
    def see(data: str) -> None:
        recipe = Recipe.from_dict(toy_recipe(task={"data": data}))
        model_folders.models_on_this_node(ResolvedModels(), recipe)

    see(f"{tmp_path}:{tmp_path}")
    see("s3://bucket/books")  # each node fetches it
    told = rf"task.data = '{tmp_path}:/no' is not on the node {re.escape(socket.gethostname())}: /no: no such"
    with pytest.raises(Data2VecError, match=told):
        see(f"{tmp_path}:/no")


# ---- who holds the cluster --------------------------------------------------------------------------------


def test_who_holds_the_cluster_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    import ray.util.state as state

    def group(job: str, *sizes: tuple[float, float]) -> Any:
        bundles = [{"unit_resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in sizes]
        return SimpleNamespace(creator_job_id=job, bundles=bundles)

    groups = [group("02", (2, 1), (2, 1)), group("03", (1, 0))]
    submitted = {"02": "raysubmit_x", "03": None}
    jobs = [SimpleNamespace(job_id=job, submission_id=name) for job, name in submitted.items()]
    monkeypatch.setattr(state, "list_placement_groups", lambda **asked: groups)
    monkeypatch.setattr(state, "list_jobs", lambda **asked: jobs)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0, "GPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    context = SimpleNamespace(get_job_id=lambda: "01")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert cluster_in_words() == (
        "free are 1 of 6 CPUs and 0 of 2 GPUs; held by raysubmit_x 4 CPUs and 2 GPUs, job 03 1 CPUs"
    )
    context.get_job_id = lambda: "03"
    assert cluster_in_words() == "they have their places and are starting"
    monkeypatch.setattr(state, "list_placement_groups", lambda **asked: 1 / 0)
    assert cluster_in_words() == "free are 1 of 6 CPUs and 0 of 2 GPUs"
