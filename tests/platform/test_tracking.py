"""The tracker against a real MLflow on SQLite: identity, exactly-once metrics, outages, orphans, secrets."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from d2v_platform.tracking.mlflow_access import open_client
from d2v_platform.tracking.run_liveness import HEARTBEAT_TAG, OWNER_TAG, Heartbeat, JobTry
from d2v_platform.tracking.tracker import MetricPoint, NewRun, Tracker
from d2v_platform.tracking.tracker_actor import TrackerService, TrackingReporter
from data2vec.errors import Data2VecError

NewTracker = Callable[..., Tracker]


def points(steps: range, value: float = 0.5, key: str = "train/loss") -> list[MetricPoint]:
    return [MetricPoint(key, step, value + step, 1_700_000_000_000 + step) for step in steps]


def history(tracker: Tracker, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in tracker.client.get_metric_history(run_id, key))


def open_one(tracker: Tracker, name: str = "one", **more: Any) -> str:
    settings = {"experiment": "e", "params": {"a": 1}, "resume_key": name} | more
    return tracker.open_run(NewRun(name=name, **settings)).run_id


def artifact(tracker: Tracker, run_id: str, path: str) -> str:
    return Path(tracker.client.download_artifacts(run_id, path)).read_text()


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = "import sys, d2v_platform.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_has_params_tags_metrics_and_an_end(tracker: Tracker) -> None:
    parent = tracker.open_run(NewRun(experiment="e", name="sweep", params={}))
    run = tracker.open_run(
        NewRun(
            experiment="e",
            name="trial",
            params={"model": {"depth": 4, "norm": None, "layers": [1, 2]}, "lr": 1e-4},
            tags={"recipe.digest": "abc"},
            parent_run_id=parent.run_id,
        )
    )
    tracker.log(run.run_id, points(range(3)))
    tracker.log_dict(run.run_id, {"b": 1}, "tables/result.json")
    assert tracker.finish(run.run_id, "FINISHED") == 0
    stored = tracker.client.get_run(run.run_id)
    assert stored.data.params == {
        "model.depth": "4",
        "model.norm": "null",
        "model.layers": "[1, 2]",
        "lr": "0.0001",
    }
    assert stored.data.tags["recipe.digest"] == "abc"
    assert stored.data.tags["mlflow.parentRunId"] == parent.run_id
    assert stored.info.status == "FINISHED"
    assert abs(stored.info.end_time - 1000 * time.time()) < 600_000
    assert history(tracker, run.run_id) == [(0, 0.5), (1, 1.5), (2, 2.5)]
    assert json.loads(artifact(tracker, run.run_id, "tables/result.json")) == {"b": 1}
    assert str(tracker.home) in str(stored.info.artifact_uri)  # and not in the working directory
    assert not list(tracker.outbox.spool.iterdir())


def test_long_values_are_kept_whole_and_listed(tracker: Tracker) -> None:
    long = "x" * 7000
    run_id = open_one(tracker, params={"task": {"note": long, "short": "y"}}, tags={"difference": "z" * 9000})
    tracker.set_tags(run_id, {"longest": "t" * 8000})
    assert tracker.flush(run_id) == 0
    stored = tracker.client.get_run(run_id)
    assert stored.data.params == {"task.short": "y"}
    assert json.loads(stored.data.tags["d2v.params_in_artifact"]) == ["task.note"]
    assert json.loads(artifact(tracker, run_id, "recipe/params.json"))["task"]["note"] == long
    assert stored.data.tags["difference"] == "9000 characters, see artifact tags/difference.txt"
    assert artifact(tracker, run_id, "tags/difference.txt") == "z" * 9000
    assert stored.data.tags["longest"] == "t" * 8000


def test_more_than_a_batch_of_params_and_metrics(tracker: Tracker) -> None:
    run_id = open_one(tracker, params={f"p{i}": i for i in range(250)})
    tracker.log(run_id, points(range(2500)))
    assert tracker.flush(run_id, 60) == 0
    assert len(tracker.client.get_run(run_id).data.params) == 250
    assert [step for step, _ in history(tracker, run_id)] == list(range(2500))


def test_non_finite_values_arrive(tracker: Tracker) -> None:
    run_id = open_one(tracker)
    values = [math.nan, math.inf, -math.inf]
    tracker.log(run_id, [MetricPoint("m", step, value, 1) for step, value in enumerate(values)])
    assert tracker.flush(run_id) == 0
    got = [value for _, value in history(tracker, run_id, "m")]
    assert math.isnan(got[0])
    assert got[1:] == [sys.float_info.max, -sys.float_info.max]  # MLflow's own substitute for infinities


def test_bad_metric_names_are_refused_before_they_block_the_queue(tracker: Tracker) -> None:
    run_id = open_one(tracker)
    for name in ("a//b", "../a", "loss=1", ""):
        with pytest.raises(ValueError, match="metric name"):
            tracker.log(run_id, [MetricPoint(name, 1, 1.0, 1)])


def test_resume_goes_on_in_the_same_run_without_doubles_even_if_the_queue_is_lost(
    new_tracker: NewTracker,
) -> None:
    first = new_tracker()
    run_id = open_one(first)
    first.log(run_id, points(range(10)))
    first.finish(run_id, "FAILED")
    first.close()
    for file in (first.home / "queue").iterdir():
        if file.is_file():
            file.unlink()
    second = new_tracker()
    again = second.open_run(NewRun(experiment="e", name="one", params={"a": 2, "b": 3}, resume_key="one"))
    assert (again.resumed, again.run_id) == (True, run_id)
    assert second.log(run_id, points(range(5, 15), value=100.0)) == 5
    assert second.finish(run_id, "FINISHED") == 0
    assert history(second, run_id) == [(s, 0.5 + s) for s in range(10)] + [
        (s, 100.0 + s) for s in range(10, 15)
    ]
    stored = second.client.get_run(run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"a": "1", "b": "3"}
    assert json.loads(stored.data.tags["d2v.params_changed_on_resume"]) == {"a": ["1", "2"]}


def test_unsent_points_travel_with_a_checkpoint(new_tracker: NewTracker, tmp_path: Path) -> None:
    """Points 5-9 never left the first machine; its checkpoint carries them to the second."""
    first = new_tracker(send_interval_s=3600)
    run_id = open_one(first)
    first.log(run_id, points(range(5)))
    first.flush(run_id)
    first.log(run_id, points(range(5, 10)))
    exported = json.loads(json.dumps(first.queue.export_unsent(run_id)))
    first.sender.remove_run(run_id)
    first.queue.mark_sent(first.queue.pending(run_id))  # the first machine's disk is gone
    first.finish(run_id, "KILLED")
    first.queue.path.unlink()
    second = new_tracker()
    assert open_one(second) == run_id
    assert second.queue.import_points(exported) == 5
    second.log(run_id, points(range(8, 12), value=50.0))
    assert second.flush(run_id) == 0
    assert history(second, run_id) == [(s, 0.5 + s) for s in range(10)] + [(10, 60.0), (11, 61.0)]


def test_identity_live_finished_and_unknown(new_tracker: NewTracker) -> None:
    tracker = new_tracker()
    assert tracker.find_run("e", "one") is None
    run_id = open_one(tracker)
    for other in (tracker, new_tracker()):
        with pytest.raises(Data2VecError, match=f"'one' is being trained by process {os.getpid()} on "):
            open_one(other)
    tracker.finish(run_id, "FINISHED")
    again = tracker.open_run(NewRun(experiment="e", name="one", params={}, resume_key="one"))
    assert (again.status, again.resumed, again.run_id) == ("FINISHED", False, run_id)
    unnamed = [open_one(tracker, "auto", resume_key=None) for _ in range(2)]
    assert unnamed[0] != unnamed[1]
    newest = tracker.find_run("e", "auto")
    assert newest is not None and newest.run_id == unnamed[1]
    with pytest.raises(Data2VecError, match='run_name = "it\'s"'):
        open_one(tracker, "it's")


def test_another_hosts_run_is_live_while_its_heart_beats(tracker: Tracker) -> None:
    run_id = open_one(tracker)
    tracker.finish(run_id, "KILLED")
    beat = replace(Heartbeat.now(), host="elsewhere", pid=1)
    tracker.client.set_tag(run_id, HEARTBEAT_TAG, beat.to_tag())
    assert not tracker.is_live(tracker.client.get_run(run_id)), "it has just ended there"
    tracker.client.update_run(run_id, status="RUNNING")
    with pytest.raises(Data2VecError, match="process 1 on elsewhere"):
        open_one(tracker)
    tracker.client.set_tag(run_id, HEARTBEAT_TAG, replace(beat, time_s=time.time() - 500).to_tag())
    assert open_one(tracker) == run_id


def test_a_later_try_of_the_same_job_takes_its_run_over_at_once(new_tracker: NewTracker) -> None:
    def as_if_on_another_pod(owner: Tracker, **other: Any) -> str:
        run_id = open_one(owner)
        owner.close()
        there = replace(Heartbeat.now(), host="pod-1", **other)
        owner.client.set_tag(run_id, HEARTBEAT_TAG, there.to_tag())
        return run_id

    first, again = JobTry("ray books", "session_1"), JobTry("ray books", "session_2")
    run_id = as_if_on_another_pod(new_tracker(job=first))
    for other in (None, first, JobTry("ray other", "session_2"), JobTry("slurm a 1", "1")):
        with pytest.raises(Data2VecError, match=r"is being trained by process .* on pod-1"):
            open_one(new_tracker(job=other))
    second = new_tracker(job=again)
    assert second.close_orphans() == ["one"] and open_one(second) == run_id
    parent = psutil.Process(os.getppid())
    near = replace(Heartbeat.now(), pid=parent.pid, started_s=parent.create_time())
    second.client.set_tag(run_id, HEARTBEAT_TAG, near.to_tag())
    third = new_tracker(job=JobTry("ray books", "session_3"))
    with pytest.raises(Data2VecError, match="is being trained"):  # here the process table knows better
        open_one(third)


def test_the_job_of_a_process_is_slurms_or_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CLUSTER_NAME", "SLURM_RESTART_COUNT", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    assert JobTry.own() is None and JobTry.own("session_1") is None
    submitted = {"runtime_env": {}, "metadata": {"job_submission_id": "books", "job_name": "books"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    assert JobTry.own() is None, "which cluster is not known"
    assert JobTry.own("session_1") == JobTry("ray books", "session_1")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}}))
    assert JobTry.own("session_1") is None
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    first = JobTry.own("session_1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = JobTry.own()
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "alps")
    assert first is not None and again is not None and JobTry.own() == JobTry("slurm alps 4711", "1")
    assert again.replaces(first.as_owner("t")) and not again.replaces(again.as_owner("t"))
    for owner in (None, "", "token", "token {}", "token [1]", "token x"):
        assert not again.replaces(owner)


def test_experiment_creation_survives_a_race(mlflow_home: Path, tracker: Tracker) -> None:
    """Eight threads see no experiment at the same moment; seven lose the race and use the winner's."""
    gate = threading.Barrier(8)
    real = open_client(tracker.tracking_uri)

    class Racing:
        def __init__(self) -> None:
            self.asked = False

        def get_experiment_by_name(self, name: str) -> Any:
            found = real.get_experiment_by_name(name)
            if not self.asked:
                self.asked = True
                gate.wait(20)
            return found

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    def make(_: int) -> str:
        return Tracker(home=mlflow_home, client=Racing())._experiment("fresh")  # pyright: ignore

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(make, range(8)))
    assert len(set(ids)) == 1
    assert real.get_experiment(ids[0]).tags == {"mlflow.experimentKind": "custom_model_development"}


def test_a_deleted_experiment_is_named_with_the_fix(tracker: Tracker) -> None:
    open_one(tracker)
    experiment = tracker.client.get_experiment_by_name("e")
    assert experiment is not None
    tracker.client.delete_experiment(experiment.experiment_id)
    with pytest.raises(Data2VecError, match="'e' was deleted in MLflow; choose another name"):
        open_one(tracker, "two")


class Flaky:
    """A client whose server is away while ``away`` is set, or loses answers after having stored a batch."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.away = False
        self.lose_answers = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.real, name)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.away:
                raise ConnectionError("refused")
            result = call(*args, **kwargs)
            if name == "log_batch" and self.lose_answers:
                self.lose_answers -= 1
                raise ConnectionError("connection reset while reading the answer")
            return result

        return guarded


@pytest.fixture
def flaky(mlflow_home: Path, new_tracker: NewTracker) -> tuple[Tracker, Flaky]:
    client = Flaky(open_client(f"sqlite:///{mlflow_home / 'mlflow' / 'mlflow.db'}"))
    return new_tracker(client=client, heartbeat_interval_s=0.05), client


def test_training_goes_on_while_the_server_is_away(
    flaky: tuple[Tracker, Flaky], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="d2v_platform")
    tracker, client = flaky
    run_id = open_one(tracker)
    tracker.log(run_id, points(range(5)))
    assert tracker.flush(run_id) == 0
    client.away = True
    start = time.monotonic()
    for step in range(5, 25):
        tracker.log(run_id, points(range(step, step + 1)))
    tracker.set_tags(run_id, {"phase": "late"})
    tracker.log_text(run_id, "hello", "note.txt")
    assert time.monotonic() - start < 5
    assert tracker.flush(run_id, 1.0) == 22
    client.away = False
    assert tracker.flush(run_id, 30) == 0
    assert history(tracker, run_id) == [(s, 0.5 + s) for s in range(25)]
    assert tracker.client.get_run(run_id).data.tags["phase"] == "late"
    assert artifact(tracker, run_id, "note.txt") == "hello"
    said = [r.message for r in caplog.records if r.name == "d2v_platform.tracking.metric_sender"]
    assert len(said) == 2
    assert "does not answer (ConnectionError: refused); training goes on" in said[0]
    assert "answers again after" in said[1]


def test_a_lost_answer_does_not_double_points(flaky: tuple[Tracker, Flaky]) -> None:
    """The tracker must ask before it sends again; that SQLite drops identical points must not hide it."""
    tracker, client = flaky
    run_id = open_one(tracker)
    sent: list[int] = []
    real_log_batch = client.real.log_batch

    def count(run: str, metrics: Any = (), **kwargs: Any) -> Any:
        sent.extend(m.step for m in metrics)
        return real_log_batch(run, metrics=metrics, **kwargs)

    client.real.log_batch = count
    client.lose_answers = 2
    for step in range(20):
        tracker.log(run_id, points(range(step, step + 1)))
        time.sleep(0.01)
    assert tracker.flush(run_id, 30) == 0
    assert client.lose_answers == 0
    assert sorted(sent) == list(range(20))


def test_a_run_that_finished_while_the_server_was_away_is_finished(
    flaky: tuple[Tracker, Flaky], new_tracker: NewTracker
) -> None:
    tracker, client = flaky
    run_id = open_one(tracker)
    client.away = True
    tracker.log(run_id, points(range(3)))
    assert tracker.finish(run_id, "FINISHED", timeout_s=0.2) >= 4
    tracker.close(timeout_s=1)
    later = new_tracker()
    assert later.find_run("e", "one").state == "finished"  # pyright: ignore
    assert len(history(later, run_id)) == 3


def test_a_deleted_run_does_not_block_the_others(tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    gone, good = open_one(tracker, "gone"), open_one(tracker, "good")
    tracker.flush(gone)
    tracker.client.delete_run(gone)
    tracker.log(gone, points(range(3)))
    tracker.log(good, points(range(3)))
    assert tracker.flush(good) == 0
    assert tracker.flush(gone, 20) == 3
    assert len([r for r in caplog.records if "takes no more metrics" in r.message]) == 1


def test_a_killed_driver_is_closed_and_its_points_arrive(tracker: Tracker, mlflow_home: Path) -> None:
    """SIGKILL right after log() returned: the points are on disk, the next start sends them."""
    script = textwrap.dedent("""
        import sys, time
        from d2v_platform.tracking.tracker import MetricPoint, NewRun, Tracker
        tracker = Tracker(send_interval_s=3600)
        new = NewRun(experiment="e", name="victim", params={}, resume_key="victim")
        run = tracker.open_run(new)
        tracker.log(run.run_id, [MetricPoint("loss", s, float(s), s) for s in range(7)])
        print(run.run_id, flush=True)
        time.sleep(600)
    """)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    run_id = child.stdout.readline().strip()
    assert tracker.find_run("e", "victim").state == "live"  # pyright: ignore
    assert tracker.close_orphans() == []
    mine = open_one(tracker, "mine")
    foreign = tracker.client.create_run(tracker.client.get_run(mine).info.experiment_id)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert tracker.find_run("e", "victim").state == "unfinished"  # pyright: ignore
    assert tracker.close_orphans() == ["victim"]
    assert tracker.close_orphans() == []
    run = tracker.client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert "its driver died: process" in run.data.tags["d2v.closed_because"]
    assert history(tracker, run_id, "loss") == [(s, float(s)) for s in range(7)]
    for alive in (mine, foreign.info.run_id):  # our open run and another program's run
        assert tracker.client.get_run(alive).info.status == "RUNNING"


def test_leftovers_of_a_vanished_host_are_sent(new_tracker: NewTracker) -> None:
    tracker = new_tracker()
    run_id = open_one(tracker)
    tracker.finish(run_id, "KILLED")
    abandoned = tracker.queue.path.with_name(tracker.queue_pattern.replace("*", "oldhost"))
    tracker.queue.path.with_name("x").write_text("not a queue")
    from d2v_platform.tracking.metric_queue import MetricQueue

    queue = MetricQueue(abandoned)
    queue.put(run_id, points(range(4)))
    queue.close()
    tracker.close_orphans()
    assert history(tracker, run_id) == []  # its host may be alive: the file is fresh
    long_ago = time.time() - 5000
    os.utime(abandoned, (long_ago, long_ago))
    tracker.close_orphans()
    assert len(history(tracker, run_id)) == 4


def within(seconds: float, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_owner_that_lost_its_run_stops_and_leaves_it_alone(flaky: tuple[Tracker, Flaky]) -> None:
    tracker, client = flaky
    run_id, other = open_one(tracker), Heartbeat.now()
    tracker.log(run_id, points(range(2)))
    elsewhere = replace(other, host="pod-2", time_s=other.time_s - 3600)  # clocks apart
    with tracker._owning:  # not between two steps of a heartbeat
        client.real.set_tag(run_id, OWNER_TAG, "of the other")
        client.real.set_tag(run_id, HEARTBEAT_TAG, elsewhere.to_tag())

    def refused() -> bool:
        try:
            tracker.log(run_id, points(range(2, 3)))
        except Data2VecError as error:
            return "taken over by process" in str(error) and "pod-2" in str(error)
        return False

    within(20, refused)
    assert tracker.finish(run_id, "FAILED") == 0
    run = client.real.get_run(run_id)
    assert run.info.status == "RUNNING" and run.data.tags[OWNER_TAG] == "of the other"
    assert run.data.tags[HEARTBEAT_TAG] == elsewhere.to_tag(), "the other's heartbeat is not overwritten"


def test_an_end_that_is_told_again_keeps_its_time(tracker: Tracker) -> None:
    run_id = open_one(tracker)
    tracker.finish(run_id, "FAILED")
    first = tracker.client.get_run(run_id).info.end_time
    time.sleep(0.01)
    tracker.finish(run_id, "FAILED", tags={"status": "failed"})
    again = tracker.client.get_run(run_id)
    assert again.info.end_time == first and again.data.tags["status"] == "failed"
    tracker.finish(run_id, "FINISHED")
    assert tracker.client.get_run(run_id).info.status == "FINISHED"


def test_a_live_run_that_was_taken_for_dead_is_running_again(flaky: tuple[Tracker, Flaky]) -> None:
    tracker, client = flaky
    run_id = open_one(tracker)
    client.real.set_terminated(run_id, "KILLED")
    within(20, lambda: client.real.get_run(run_id).info.status == "RUNNING")
    assert "alive" in client.real.get_run(run_id).data.tags["d2v.closed_because"]
    tracker.finish(run_id, "FINISHED")
    time.sleep(0.2)
    assert client.real.get_run(run_id).info.status == "FINISHED"


def test_after_an_outage_the_heart_beats_at_once(
    mlflow_home: Path, new_tracker: NewTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, failed = Flaky(open_client(f"sqlite:///{mlflow_home / 'mlflow' / 'mlflow.db'}")), list[float]()
    monkeypatch.setattr("d2v_platform.tracking.tracker._AGAIN_S", 0.02)
    tracker = new_tracker(client=client, heartbeat_interval_s=1.0)
    honest = tracker._still_own

    def noted(run_id: str) -> bool:
        failed.append(time.monotonic())
        return honest(run_id)

    monkeypatch.setattr(tracker, "_still_own", noted)
    open_one(tracker)
    client.away = True
    within(30, lambda: len(failed) >= 6)
    assert failed[5] - failed[0] < 4


def test_a_run_that_ends_during_a_heartbeat_stays_ended(
    flaky: tuple[Tracker, Flaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, client = flaky
    run_id = open_one(tracker)
    honest, ended = tracker._still_own, threading.Event()

    def end_first(run: str) -> bool:
        if not ended.is_set():
            ended.set()
            threading.Thread(target=tracker.finish, args=(run_id, "KILLED"), daemon=True).start()
            time.sleep(0.5)
        return honest(run)

    monkeypatch.setattr(tracker, "_still_own", end_first)
    within(20, ended.is_set)
    within(20, lambda: client.real.get_run(run_id).info.status == "KILLED")
    time.sleep(0.7)
    assert client.real.get_run(run_id).info.status == "KILLED"


def test_heartbeat_is_renewed(flaky: tuple[Tracker, Flaky]) -> None:
    tracker, _ = flaky
    run_id = open_one(tracker)

    def beat() -> float:
        found = Heartbeat.from_tag(tracker.client.get_run(run_id).data.tags[HEARTBEAT_TAG])
        assert found is not None
        return found.time_s

    first, deadline = beat(), time.monotonic() + 20
    while beat() == first and time.monotonic() < deadline:
        time.sleep(0.05)
    assert beat() > first


def test_no_secret_reaches_mlflow(tracker: Tracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = "hunter2-very-secret"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/home/user/.aws/credentials")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsefalse")
    file = tmp_path / "config.yaml"
    file.write_text(f"key: {secret}\nurl: postgresql://me:{secret}x@db/mlflow\n")
    run_id = open_one(
        tracker,
        params={
            "task": {"data": f"s3://key:{secret}@bucket/a", "init_token": 0, "tokens_per_sample": 512},
            "auth": {"password": "short", "api_key": "k", "hf_token": "t"},
            "file": "/home/user/.aws/credentials",
            "flag": "falsefalse",
        },
        tags={"note": f"made with {secret}"},
    )
    tracker.log_artifact(run_id, file)
    tracker.log_text(run_id, f"https://b.s3/x?X-Amz-Signature=abc{secret}&v=1", "url.txt")
    assert tracker.flush(run_id) == 0
    run = tracker.client.get_run(run_id)
    assert run.data.params == {
        "task.data": "s3://***@bucket/a",
        "task.init_token": "0",
        "task.tokens_per_sample": "512",
        "auth.password": "***",
        "auth.api_key": "***",
        "auth.hf_token": "***",
        "file": "/home/user/.aws/credentials",
        "flag": "falsefalse",
    }
    assert run.data.tags["note"] == "made with ***"
    assert artifact(tracker, run_id, "url.txt") == "https://b.s3/x?X-Amz-Signature=***&v=1"
    for path in tracker.home.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_a_server_that_never_answers_is_a_clear_error(mlflow_home: Path) -> None:
    tracker = Tracker("http://me:pw@127.0.0.1:9", home=mlflow_home)
    with pytest.raises(
        Data2VecError, match=r"MLflow at http://\*\*\*@127.0.0.1:9 cannot be used.*start the server"
    ):
        open_one(tracker)


def test_a_run_that_another_process_left_open_can_be_ended(new_tracker: Callable[..., Tracker]) -> None:
    """A sweep ends the trials that were over when its driver was killed; no later start is needed for it."""
    first, second = new_tracker(), new_tracker()
    run_id = first.open_run(
        NewRun(experiment="left", name="trial", params={}, tags={"status": "running"})
    ).run_id
    first.close()
    assert second.finish(run_id, "FINISHED", tags={"status": "finished"}) == 0
    run = second.client.get_run(run_id)
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "finished")


def test_what_workers_leave_with_the_service(
    new_tracker: NewTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = TrackerService(None)
    tracker = local.tracker
    run_id = local.open_run(NewRun(experiment="e", name="w", params={}, resume_key="w")).run_id
    reporter = TrackingReporter(local, run_id)
    reporter.log(7, {"train/loss": 2.0})
    unsent = {"format": 1, "run_id": "f" * 32, "marks": {}, "points": [["k", 8, 1.5, 1_700_000_000_000]]}
    reporter.take_over(unsent)  # of another run: a checkpoint that was copied by hand
    assert tracker.queue.num_pending("f" * 32) == 0
    reporter.take_over(unsent | {"run_id": run_id})
    for message in ("first", "second"):
        local.leave_mistake("attempt", message)
    assert (local.mistake_of("attempt"), local.mistake_of("other")) == ("first", None)
    local.close()  # a run that is not over is sent and stays open
    other = new_tracker()
    assert history(other, run_id) == [(7, 2.0)] and history(other, run_id, "k") == [(8, 1.5)]
    monkeypatch.setattr(other.queue, "dropped", lambda run_id: 3)
    assert other.finish(run_id, "FAILED", tags={"error": "boom"}) == 0
    tags = other.client.get_run(run_id).data.tags
    assert (tags["d2v.metrics_dropped"], tags["error"]) == ("3", "boom")
