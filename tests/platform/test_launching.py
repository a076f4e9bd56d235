"""From a recipe to a run: what training is given, what MLflow is told, how every end is recorded."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from d2v_platform import launch as launching
from d2v_platform.recipe.compose import Composed, compose
from d2v_platform.recipe.schema import Recipe
from d2v_platform.registry.model_folders import model_folder, resolve_models
from d2v_platform.tracking.tracker import Tracker
from d2v_platform.training import ray_session, workers
from d2v_platform.training.job import Job, ResolvedModels
from d2v_platform.training.loop_state import Summary, TrainingInterrupted, TrainingStopped, Worker
from d2v_platform.training.plan import make_plan
from d2v_platform.training.preflight import preflight
from d2v_platform.training.ray_session import ClusterInfo, NodeRoom
from d2v_platform.training.run_result import RunResult, result_lines
from d2v_platform.training.run_storage import run_root
from d2v_platform.training.stopping import StopQuestion
from data2vec.errors import ConfigError, Data2VecError
from tests.platform.toy_task import toy_recipe

SUMMARY = Summary(
    update=7, metrics={"train/loss": 0.5, "train/lr": 3.0, "valid/wer": 12.3456, "speed/x": 9.0},
    best=0.25, best_update=5, reason="max_update 7 reached", export=None, facts={"data.fingerprint": "abc"},
    seconds=61.7, bad_updates=2,
)  # fmt: skip


class Trainer:
    """In the place of the loop: keeps what it is given, and leaves a model folder."""

    def __init__(self) -> None:
        self.given: list[Job] = []
        self.act: Callable[[Any], None] = lambda reporter: None

    def __call__(self, job: Job, reporter: Any, worker: Worker, *, stop_asked: Any) -> Summary:
        self.given.append(job)
        self.worker = worker
        reporter.log(7, {"train/loss": 0.5})
        self.act(reporter)
        return replace(SUMMARY, export=str(job.folder / "model"))


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    made = Trainer()
    monkeypatch.setattr(launching, "train", made)
    return made


@pytest.fixture
def named(tiny_recipe: dict[str, Any], tmp_path: Path) -> Callable[..., Composed]:
    """The tiny recipe as a file, with overrides."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    values = tiny_recipe | {"platform": {"num_workers": 0, "experiment": "launches"}}
    (folder / "tiny_run.yaml").write_text("# @package _group_\n" + yaml.safe_dump(values))
    return lambda *overrides: compose("tiny_run", list(overrides), str(folder))


def run_of(name: str) -> Any:
    with Tracker() as tracker:
        found = tracker.find_run("launches", name)
        assert found is not None
        return tracker.client.get_run(found.run_id)


def artifact(run_id: str, path: str) -> str:
    with Tracker() as tracker:
        return Path(tracker.client.download_artifacts(run_id, path)).read_text()


# ---- a run that finishes ----------------------------------------------------------------------------------


def test_what_training_is_given_and_mlflow_is_told(
    mlflow_home: Path, trainer: Trainer, named: Callable[..., Composed], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, "d2v_platform")
    words = ["common.seed=3", "platform.run_name=one", "platform.threads_per_worker=2",
             "platform.extra_tags={team: speech}", "~dataset.num_workers",
             f"platform.storage={tmp_path / 'disk'}"]  # fmt: skip
    composed = named(*words)
    result = launching.launch(composed)
    (given,) = trainer.given
    run = run_of("one")
    assert result.run_id == run.info.run_id and result.run_name == "one" and result.registered is None
    assert result.folder == given.folder == run_root(str(tmp_path / "disk")) / run.info.run_id
    assert (given.run_id, given.run_name) == (run.info.run_id, "one")
    assert given.recipe == composed.recipe and given.remote is None and given.models == ResolvedModels()
    worker = trainer.worker
    assert (worker.rank, worker.size, worker.device.type, worker.threads) == (0, 1, "cpu", 2)
    assert worker.loader_processes == 0, "a worker with one CPU loads by itself"
    digest = run.data.tags["d2v.recipe_digest"]
    assert given.lineage == {
        "run_id": run.info.run_id, "recipe": "tiny_run", "recipe.digest": digest,
        "code": launching.code_version(),
    }  # fmt: skip
    assert run.info.status == "FINISHED" and run.data.metrics == {"train/loss": 0.5}
    tags = run.data.tags
    assert json.loads(tags["d2v.recipe_difference"]) == {"common.seed": [1, 3]} | {
        key: value for key, value in json.loads(tags["d2v.recipe_difference"]).items() if key != "common.seed"
    }
    assert (tags["d2v.recipe"], tags["team"], tags["d2v.workers"]) == ("tiny_run", "speech", "0")
    assert (tags["d2v.ended"], tags["d2v.bad_updates"], tags["d2v.data.fingerprint"]) == (
        "max_update 7 reached", "2", "abc")  # fmt: skip
    assert run.data.params["common.seed"] == "3" and run.data.params["optimization.max_update"] == "20"
    assert json.loads(artifact(run.info.run_id, "recipe/recipe.json")) == composed.recipe.to_dict()
    assert artifact(run.info.run_id, "recipe/overrides.txt").splitlines() == words
    kept = json.loads((result.folder / "recipe.json").read_text())
    assert kept == composed.recipe.to_dict() and (result.folder / "data.json").is_file()
    text = caplog.text
    assert f"new one ({run.info.run_id})" in text or "new run one" in text
    command = next(line for line in text.splitlines() if "to resume it: " in line)
    assert command.endswith(" platform.run_name=one") and command.count("run_name") == 1
    assert re.search(r"d2v train \S+tiny_run.yaml common.seed=3", command)


def test_fresh_names_are_new_every_time(named: Callable[..., Composed]) -> None:
    assert launching._fresh_name("v2/a/cola") != launching._fresh_name("v2/a/cola")
    assert launching._fresh_name("v2/a/cola").startswith("cola-2")
    composed = named("+common.seed=4", "platform.run_name=x y".replace(" ", "_"))
    assert launching.resume_command(composed, "n") == (
        f"d2v train {composed.source} +common.seed=4 platform.run_name=n")  # fmt: skip


# ---- other ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "KILLED"), (TrainingStopped("collapse"), "FAILED"), (None, "KILLED")],
)
def test_every_end_is_recorded_and_the_name_goes_on(
    error: BaseException | None,
    status: str,
    mlflow_home: Path,
    trainer: Trainer,
    named: Callable[..., Composed],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(reporter: Any) -> None:
        if error is None:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise error

    before = signal.getsignal(signal.SIGTERM)
    trainer.act = fail
    with pytest.raises(type(error) if error is not None else SystemExit):
        launching.launch(named("platform.run_name=ends"))
    assert signal.getsignal(signal.SIGTERM) is before
    run = run_of("ends")
    assert run.info.status == status and run.data.metrics == {"train/loss": 0.5}
    assert "d2v.ended" not in run.data.tags
    trainer.act = lambda reporter: None
    caplog.set_level(logging.INFO, "d2v_platform")
    again = launching.launch(named("platform.run_name=ends"))
    assert again.run_id == run.info.run_id and run_of("ends").info.status == "FINISHED"
    assert trainer.given[0].folder == trainer.given[1].folder == again.folder
    assert "resuming run ends" in caplog.text


def test_the_last_words() -> None:
    result = RunResult("id", "name", Path("/runs/id"), SUMMARY, "models:/m/3")
    assert result_lines(result) == [
        "done: max_update 7 reached; 7 updates in 1.03 min",
        "      train/loss 0.5  valid/wer 12.35",
        "      best 0.25 at update 5",
        "      model folder /runs/id/model",
        "      registered as models:/m/3",
    ]
    plain = replace(SUMMARY, best=None, best_update=None)
    assert len(result_lines(replace(result, summary=plain, registered=None))) == 3


def test_a_run_on_several_nodes_needs_shared_storage(tmp_path: Path) -> None:
    def refused(
        storage: str | None, nodes: int, tracking: str | None = "http://mlflow:5000", **more: Any
    ) -> bool:
        recipe = Recipe.from_dict(toy_recipe(platform={"storage": storage, "tracking_uri": tracking}))
        told: list[str] = []
        try:
            launching.refuse_node_local(recipe, ClusterInfo(4, 0, nodes) if nodes else None, **more)
        except ConfigError as error:
            told.append(str(error))
        assert all(f"{nodes} nodes" in text for text in told)
        assert all(("platform.tracking_uri" in text) == (tracking is None) for text in told)
        return any("platform.storage" in text for text in told)

    assert [refused(None, nodes) for nodes in (0, 1, 2)] == [False, False, True]
    assert not refused("s3://b/x", 3) and not refused(str(tmp_path), 3)
    assert refused("s3://b/x", 2, uri_serves=False) and not refused(str(tmp_path), 2, uri_serves=False)
    assert not refused("s3://b/x", 1, uri_serves=False)
    # A file of one node as MLflow's store: refused beside shared storage too.
    recipe = Recipe.from_dict(
        toy_recipe(platform={"storage": "s3://b/x", "tracking_uri": "sqlite:////x/m.db"})
    )
    with pytest.raises(ConfigError, match=r"2 nodes, and sqlite is a file on one of them.*mlflow server"):
        launching.refuse_node_local(recipe, ClusterInfo(4, 0, 2))
    launching.refuse_node_local(recipe, ClusterInfo(4, 0, 1))


def test_the_code_is_named_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    version = launching.code_version()
    root = Path(launching.__file__).resolve().parents[3]
    if (root / ".git").exists():
        head = subprocess.check_output(["git", "-C", str(root), "rev-parse", "HEAD"], text=True)
        assert head.startswith(version.split()[-1].removesuffix("+changes"))

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("no git")

    monkeypatch.setattr(subprocess, "run", fail)
    assert launching.code_version() == version.split()[0]


# ---- on Ray, without Ray ----------------------------------------------------------------------------------


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In the place of Ray Train's trainer: what it was given, and what it gives back."""
    import ray.train.torch

    made = SimpleNamespace(given={}, returned=asdict(SUMMARY), error=None)

    class Trainer:
        def __init__(self, worker: Any, **given: Any) -> None:
            made.given, made.worker = given, worker

        def fit(self) -> Any:
            if made.error is not None:
                raise made.error
            return SimpleNamespace(return_value=made.returned, error="it says")

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    return made


def on_ray(tmp_path: Path, recipe: Recipe, cluster: ClusterInfo, **more: Any) -> Summary:
    plan, tracker = make_plan(recipe, cluster), SimpleNamespace(name="tracker-1")
    job = Job(recipe, tmp_path / "run", run_id="r1").planned(plan)
    return launching.train_on_ray(job, plan, tracker, **more)  # type: ignore[arg-type]


def test_ray_train_is_given_the_plan_and_the_workers_their_assignment(
    fit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.train import UserCallback

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}])
    values = toy_recipe(
        distributed_training={"distributed_world_size": 4},
        platform={"num_workers": 2, "cpus_per_worker": 3, "max_failures": 5, "gpus_per_worker": 1,
                  "sharding": "full"},
        dataset={"num_workers": 1},
    )  # fmt: skip
    recipe, cluster = Recipe.from_dict(values), ClusterInfo(8, 2, 1)
    from d2v_platform.training.worker_failures import LostWorkers

    callback, of_killed = UserCallback(), tmp_path / "run" / "ray" / "r1-before"
    of_killed.mkdir(parents=True)
    made = on_ray(tmp_path, recipe, cluster, callbacks=[callback])
    assert not of_killed.exists(), "what Ray wrote for a driver that was killed"
    assert made == SUMMARY and fit.worker is launching.run_on_node
    told = fit.given["train_loop_config"]
    attempt = told["attempt"]
    job = Job(
        recipe, tmp_path / "run", run_id="r1", threads=3, loader_processes=1, sharded=True, compiled=True
    )
    assert told == {"job": job.to_dict(), "tracker": "tracker-1", "attempt": attempt}
    scaling, run = fit.given["scaling_config"], fit.given["run_config"]
    assert (scaling.num_workers, scaling.use_gpu) == (2, True)
    assert scaling.resources_per_worker == {"CPU": 3, "GPU": 1}
    assert fit.given["torch_config"].backend == "nccl"
    assert run.failure_config.max_failures == 5
    assert isinstance(run.callbacks[0], LostWorkers) and run.callbacks[1:] == [callback]
    assert run.name == f"r1-{attempt}" and run.storage_path == str(tmp_path / "run" / "ray")
    values["platform"] |= {"gpus_per_worker": 0}
    on_ray(tmp_path, Recipe.from_dict(values), cluster)
    assert fit.given["train_loop_config"]["attempt"] != attempt
    assert fit.given["torch_config"].backend == "gloo"
    assert fit.given["scaling_config"].resources_per_worker == {"CPU": 3}


def test_what_workers_return_becomes_an_error_of_its_kind(
    fit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}])
    recipe = Recipe.from_dict(toy_recipe(platform={"max_failures": 4}))
    cluster = ClusterInfo(1, 0, 1)
    for returned, kind, words in (
        ({"error": "collapsed", "stopped": True}, TrainingStopped, "^collapsed$"),
        ({"error": "no such file"}, Data2VecError, "^no such file$"),
        (None, Data2VecError, "workers of run r1 ended without a result: it says"),
    ):
        fit.returned = returned
        with pytest.raises(Data2VecError, match=words) as caught:
            on_ray(tmp_path, recipe, cluster)
        assert type(caught.value) is kind
    fit.returned = {"interrupted": (12, True)}
    with pytest.raises(TrainingInterrupted, match="stopped at update 12; a checkpoint of it is saved"):
        on_ray(tmp_path, recipe, cluster)
    assert "nothing is saved (checkpoint.no_save)" in str(TrainingInterrupted(12, False))
    fit.error = RayError("trace\nthe node is gone\n")
    with pytest.raises(Data2VecError, match=r"head was lost \(the node is gone\); .* goes on from .*/run$"):
        on_ray(tmp_path, recipe, cluster)
    fit.error = TrainingFailedError("x\ngave up\n")
    with pytest.raises(Data2VecError, match=r"max_failures = 4 allows \(gave up\).*/run; Ray"):
        on_ray(tmp_path, recipe, cluster)
    failed = SimpleNamespace(worker_failures={1: ValueError("x\nno disk"), 0: ValueError()})
    told = workers.why_it_failed(failed, 2, tmp_path)  # type: ignore[arg-type]
    assert "(worker 0: ValueError; worker 1: no disk)" in told


def test_a_run_gets_its_end_though_what_was_sent_before_failed() -> None:
    ended: list[tuple[Any, ...]] = []

    def fails() -> None:
        raise Data2VecError("the disk of the queue is full")

    tracker: Any = SimpleNamespace(wait_for_sent=fails, finish=lambda *given: ended.append(given))
    with (
        pytest.raises(Data2VecError, match="is full"),
        launching._finishing(tracker, "r", "again") as outcome,
    ):
        outcome.status = "FINISHED"
    assert ended == [("r", "FINISHED")]


class FakeTracker:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.mistake: str | None = None

    def __call__(self, name: str) -> FakeTracker:
        self.name = name
        return self

    def mistake_of(self, attempt: str) -> str | None:
        self.calls.append(("mistake_of", attempt))
        return self.mistake

    def workers_started(self, attempt: str) -> None:
        self.calls.append(("workers_started", attempt))

    def leave_mistake(self, *given: Any) -> None:
        self.calls.append(("leave_mistake", *given))

    def log(self, run_id: str, points: Any) -> None:
        self.calls.append(("log", run_id, [(p.key, p.step, p.value) for p in points]))

    def wait_for_sent(self) -> None:
        self.calls.append(("wait_for_sent",))


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 2), (1, 2)])
def test_a_workers_part(
    rank: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: dict[str, Any]
) -> None:
    import ray.train
    import ray.train.torch
    import torch

    context = SimpleNamespace(get_world_rank=lambda: rank, get_world_size=lambda: size)
    reported: list[dict[str, Any]] = []
    tracker, given = FakeTracker(), {}
    outcome: list[Any] = [SUMMARY]

    def train(job: Job, reporter: Any, worker: Worker, stop_asked: Any) -> Summary:
        given.update(job=job, worker=worker, stop_asked=stop_asked)
        if rank == 0:
            reporter.log(3, {"valid/loss": 0.5, "train/loss": 1.0})
        reporter.flush()
        assert reporter.evaluated(3, {"valid/loss": 0.5}) is False
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "report", reported.append)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("meta"))
    monkeypatch.setattr(workers, "RemoteTracker", tracker)
    monkeypatch.setattr(workers, "train", train)
    job = Job(
        Recipe.from_dict(tiny_recipe), tmp_path / "run", ResolvedModels(Path("/m"), "m", Path("/i")),
        run_id="r", run_name="n", lineage={"x": "1"}, remote="s3://r", evaluations=tmp_path / "e.jsonl",
        threads=2, loader_processes=1, sharded=True, wait_for_checkpoints=True,
    )  # fmt: skip
    told = {"job": job.to_dict(), "tracker": "t", "attempt": "a1"}
    json.dumps(told, default=str)  # no class of ours or of a user's package
    assert workers.run_worker(told) == asdict(SUMMARY)
    assert given.pop("worker") == Worker(rank, size, torch.device("meta"), 2, 1, True)
    assert isinstance(given.pop("stop_asked"), StopQuestion)
    assert given == {"job": job}
    assert reported == [{"update": 3, "valid/loss": 0.5}]
    assert tracker.name == "t" and tracker.calls[0] == ("mistake_of", "a1")
    if rank == 0:
        points = [("valid/loss", 3, 0.5), ("train/loss", 3, 1.0)]
        assert tracker.calls[1:] == [("workers_started", "a1"), ("log", "r", points), ("wait_for_sent",)]
        assert '"valid/loss": 0.5' in (tmp_path / "e.jsonl").read_text()
    else:
        assert len(tracker.calls) == 1 and not (tmp_path / "e.jsonl").exists()
    note = json.loads((tmp_path / "run" / "workers.jsonl").read_text())
    assert note == {"attempt": "a1", "rank": rank, "of": size, "pid": os.getpid()}
    outcome[0] = TrainingInterrupted(3, True)
    assert workers.run_worker(told) == {"interrupted": (3, True)}
    outcome[0] = TrainingStopped("collapsed")
    assert workers.run_worker(told) == {"error": "collapsed", "stopped": True}
    outcome[0] = Data2VecError("no such file")
    tracker.calls.clear()
    if size == 1:
        assert workers.run_worker(told) == {"error": "no such file"}
        assert ("leave_mistake", "a1", "no such file") not in tracker.calls
    else:  # the others wait for this one
        with pytest.raises(Data2VecError):
            workers.run_worker(told)
        assert ("leave_mistake", "a1", "no such file") in tracker.calls
    tracker.mistake = "no such file"
    given.clear()
    assert workers.run_worker(told) == {"error": "no such file"} and given == {}


# ---- the cluster ------------------------------------------------------------------------------------------


def test_what_a_cluster_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def node(alive: bool, **resources: float) -> dict[str, Any]:
        return {"Alive": alive, "Resources": resources}

    nodes = [node(True, CPU=4, memory=8e9, object_store_memory=2e9), node(True, CPU=2, GPU=2, memory=6e9),
             node(False, CPU=1, memory=1e9), node(True, memory=1e9)]  # fmt: skip
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    total = {"CPU": 6.0, "GPU": 2.0, "accelerator_type:A100": 1.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    assert ray_session.cluster_info() == ClusterInfo(
        6.0, 2.0, 3, 6e9, "A100", (NodeRoom(4, 0), NodeRoom(2, 2))
    )
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(ray, "nodes", lambda: [node(True, CPU=1)])
    assert ray_session.cluster_info() == ClusterInfo(1.0, 0.0, 1, None, None, (NodeRoom(1, 0),))


def test_workers_get_a_few_variables_and_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "PYTHONPATH", "D2V_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("D2V_HOME", "/h")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    found = ray_session.worker_environment()
    root = str(Path(ray_session.__file__).resolve().parents[3])
    assert found["D2V_HOME"] == "/h" and "AWS_SECRET_ACCESS_KEY" not in found and "D2V_LOG_LEVEL" not in found
    assert found["PYTHONPATH"] == f"{root}/platform:{root}/models"
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert ray_session.worker_environment()["PYTHONPATH"] == f"{root}/platform:{root}/models:/mine"
    monkeypatch.setenv("PYTHONPATH", f"{root}/platform:/mine")
    assert "PYTHONPATH" not in ray_session.worker_environment()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert ray_session.in_job()
    assert ray_session.worker_environment()["PYTHONPATH"].startswith("platform:models:")


def test_the_users_ray_settings_win(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_worker_niceness", "7")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    before = set(os.environ)
    ray_session._prepare_environment()
    made = {name: os.environ[name] for name in set(os.environ) - before}
    for name in made:
        monkeypatch.setenv(name, made[name])  # so that they go again
    assert "RAY_worker_niceness" not in made
    token = Path(made["RAY_AUTH_TOKEN_PATH"])
    assert made["RAY_AUTH_MODE"] == "token" and token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) == 64 and token.is_relative_to(home)
    assert made["RAY_USAGE_STATS_ENABLED"] == made[ray_session.LOOPBACK] == "0"
    # Another's cluster has a token of its own.
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.delenv(ray_session.LOOPBACK)
    monkeypatch.setenv("RAY_ADDRESS", "host:1")
    ray_session._prepare_environment()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", ray_session.LOOPBACK):
        assert name not in os.environ


def test_a_head_on_the_loopback_interface_is_looked_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray turns 127.0.0.1 into the machine's own address unless it is told not to."""
    monkeypatch.setenv(ray_session.LOOPBACK, "")  # what is set is undone after the test
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        for own, only in (("127.0.0.2", True), ("127.0.0.1", False)):  # 127.0.0.2 does not answer
            monkeypatch.delenv(ray_session.LOOPBACK, raising=False)
            monkeypatch.setattr(ray_session, "own_address", lambda own=own: own)
            assert ray_session.on_loopback_only(address) is only
            monkeypatch.setenv("RAY_ADDRESS", address)
            ray_session._prepare_environment()
            assert (os.environ.get(ray_session.LOOPBACK) == "0") is only
    for other in (address, "ray://127.0.0.1:10001", "10.0.0.1:6379", "auto", "http://127.0.0.1:8265"):
        assert not ray_session.on_loopback_only(other), other


# ---- models and data that a recipe names ------------------------------------------------------------------


def test_models_that_a_recipe_names(tiny_glue: Any, tmp_path: Path) -> None:
    model = tiny_glue.model
    pretraining = toy_recipe()
    assert resolve_models(Recipe.from_dict(pretraining)) == ResolvedModels()
    for field in ("restore_file", "finetune_from_model"):
        pretraining["checkpoint"] = {field: str(model)}
        found = resolve_models(Recipe.from_dict(pretraining))
        assert (found.pretrained, found.initial) == (None, model), field
    pretraining["checkpoint"] = {"restore_file": "/a/checkpoint_last.pt"}
    assert resolve_models(Recipe.from_dict(pretraining)).initial is None
    given = ["task.data=/x", f"model.model_path={model}"]
    tuned = compose("v2/text_finetuning/cola", given).recipe
    assert resolve_models(tuned) == ResolvedModels(model, str(model), None)
    assert model_folder(str(model)) == (model, str(model))
    with pytest.raises(Data2VecError, match="no such file or folder"):
        model_folder(str(tmp_path / "nothing"))


def test_missing_data_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recipe = Recipe.from_dict(toy_recipe(task={"data": f"{tmp_path / 'a'}:{tmp_path / 'file'}:{tmp_path}"}))
    with pytest.raises(ConfigError) as caught:
        preflight(recipe, None)
    first, second = caught.value.problems
    assert first.value == str(tmp_path / "a") and f"does not exist ({tmp_path} does)" in first.rule
    assert second.value == str(tmp_path / "file") and second.rule.startswith("is a file; ")
    assert "d2v prepare text" in first.rule
