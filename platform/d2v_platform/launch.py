"""From a composed recipe to a finished, tracked and (if asked) registered training."""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data2vec.errors import ConfigError, Data2VecError, Problem

from .home import default_tracking_uri
from .recipe.compose import Composed
from .recipe.difference import digest
from .recipe.local_data import with_local_data
from .recipe.schema import Recipe
from .registry.model_folders import models_on_this_node, resolve_models
from .registry.model_versions import PARENT_TAG
from .registry.registration import Trained, register_summary
from .storage.locations import is_uri
from .tracking.interface import RunTracker
from .tracking.tracker import FinalStatus, NewRun
from .tracking.tracker_actor import RemoteTracker, TrackerService, TrackingReporter
from .training import ray_session
from .training.accelerators import local_gpus
from .training.continuation import Continuation, continue_run, resume_command
from .training.forecast import Forecast, forecast_as_stated, forecast_at_hand, placed
from .training.job import Job, ResolvedModels
from .training.loop_state import Summary, TrainingInterrupted, TrainingStopped
from .training.plan import Plan, make_plan
from .training.preflight import preflight
from .training.run_description import (
    NOTE_TAG,
    code_version,
    description,
    log_datasets,
    recipe_tags,
    summary_tags,
)
from .training.run_result import RunResult, finished_before
from .training.run_storage import (
    RayNotes,
    bring_model,
    check_storage,
    keep_end,
    keep_start,
    remote_folder,
    run_root,
)
from .training.shared_folder import leave_token
from .training.start_times import start_part_over
from .training.stopping import Stop, in_a_thread, stoppable
from .training.train_loop import train
from .training.waiting import Waiting
from .training.workers import head_lost, run_worker, why_it_failed

logger = logging.getLogger(__name__)


def launch(composed: Composed) -> RunResult:
    """Train a composed recipe where ``platform.num_workers`` says.

    Raises:
        Data2VecError: anything that is the user's to mend.
    """
    recipe = composed.recipe
    for note in composed.notes:
        logger.info("note: %s", note)
    local = with_local_data(recipe)
    models = resolve_models(local)
    preflight(local, models.pretrained)
    start_part_over("data and models checked")
    with contextlib.ExitStack() as stack:
        cluster, stop = None, stack.enter_context(stoppable())
        if recipe.platform.num_workers != 0:
            cluster = stack.enter_context(ray_session.connected())
            stop.listen()
            start_part_over("cluster connected")
        plan = make_plan(recipe, cluster, local_gpus(cluster is None))
        refuse_node_local(recipe, cluster)
        costs = _forecasts(local, plan, cluster, models)
        plan = placed(plan, costs[0] if costs else None)
        for line in [*plan.lines(), *_forecast_lines(costs)]:
            logger.info("%s", line)
        tracker = open_tracker(recipe.platform.tracking_uri, local=plan.num_workers == 0)
        stack.callback(tracker.close)
        data = costs[0].workload.fingerprint() if costs else None
        size = costs[0].workload.data_size() if costs else None
        job = _open_run(composed, tracker, plan, models, data, size)
        if isinstance(job, RunResult):
            return job
        start_part_over("run opened in MLflow")
        with _finishing(tracker, job.run_id, resume_command(composed, job.run_name)) as outcome:
            summary = _train(job, plan, tracker, stop)
            bring_model(job.folder, job.remote)
            tracker.set_tags(job.run_id, summary_tags(summary))
            log_datasets(tracker, job.run_id, recipe, summary.facts)
            registered = register_summary(
                tracker, composed, Trained(job.run_id, job.folder / "model", summary, models.pretrained_uri)
            )
            keep_end(job.folder, job.remote, summary, registered)
            outcome.status = "FINISHED"
    return RunResult(job.run_id, job.run_name, job.folder, summary, registered)


# ---- the run --------------------------------------------------------------------------------------------


def _open_run(
    composed: Composed,
    tracker: RunTracker,
    plan: Plan,
    models: ResolvedModels,
    data: str | None,
    size: str | None,
) -> Job | RunResult:
    """Create the MLflow run, or go on with the one of this name; its result if it has finished.

    Raises:
        ConfigError: the run of this name has another recipe or other data.
    """
    recipe, platform = composed.recipe, composed.recipe.platform
    name = platform.run_name or _fresh_name(composed.named_recipe)
    root, going_on = run_root(platform.storage), Continuation()
    existing = tracker.find_run(recipe.experiment(), name) if platform.run_name else None
    check_storage(platform.storage, new=existing is None)
    tags = dict(platform.extra_tags)
    if existing is None:  # later it is the user's
        tags = {NOTE_TAG: description(composed, models.pretrained_uri, size)} | tags
    if existing is not None:
        places = root / existing.run_id, remote_folder(platform.storage, existing.run_id)
        going_on = continue_run(composed, existing, *places, data)
        if going_on.nothing_left:
            return finished_before(existing, *places)
        for line in going_on.lines:
            logger.info("%s", line)
        if going_on.raised:
            longer = [f"{field} {c.before} -> {c.after}" for field, c in going_on.raised.items()]
            tags["d2v.longer"] = "; ".join([*filter(None, [existing.tags.get("d2v.longer")]), *longer])
    handle = tracker.open_run(
        NewRun(
            experiment=recipe.experiment(),
            name=name,
            params=recipe.to_dict(),
            tags=recipe_tags(composed)
            | _plan_tags(plan)
            | {PARENT_TAG: models.pretrained_uri or "none"}
            | tags,
            resume_key=name,
            reopen_finished=going_on.reopen,
        )
    )
    if handle.status == "FINISHED":
        raise Data2VecError(f"platform.run_name = {name!r} has just been finished by another process")
    folder = root / handle.run_id
    folder.mkdir(parents=True, exist_ok=True)
    remote = remote_folder(platform.storage, handle.run_id)
    if going_on.reopen and remote is not None:
        shutil.rmtree(folder / "model", ignore_errors=True)  # the new one may be made on another machine
    keep_start(folder, remote, recipe, data)
    if not handle.resumed:
        tracker.log_dict(handle.run_id, recipe.to_dict(), "recipe/recipe.json")
        tracker.log_text(handle.run_id, "\n".join(composed.overrides), "recipe/overrides.txt")
        if data is not None:
            known = {"data.train_fingerprint": data} | ({"data.size": size} if size else {})
            log_datasets(tracker, handle.run_id, recipe, known)
    logger.info(
        "%s run %s (%s), state in %s", "resuming" if handle.resumed else "new", name, handle.run_id, folder
    )
    if remote:
        logger.info("checkpoints are copied to %s", remote)
    logger.info("to resume it: %s", resume_command(composed, name))
    lineage = {"run_id": handle.run_id, "recipe": composed.named_recipe, "recipe.digest": digest(recipe)}
    job = Job(
        recipe=recipe,
        folder=folder,
        models=models,
        run_id=handle.run_id,
        run_name=name,
        lineage=lineage | {"code": code_version()},
        remote=remote,
    )
    return job.planned(plan)


def _fresh_name(recipe_name: str) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return f"{recipe_name.rpartition('/')[2]}-{stamp}-{secrets.token_hex(2)}"


def _plan_tags(plan: Plan) -> dict[str, str]:
    return {"d2v.plan": " ".join(plan.lines()), "d2v.workers": str(plan.num_workers)}


# ---- training -------------------------------------------------------------------------------------------


def _train(job: Job, plan: Plan, tracker: RunTracker, stop: Stop) -> Summary:
    try:
        summary = _train_there(job, plan, tracker, stop)
    except TrainingInterrupted as interrupted:
        logger.info("%s", interrupted)
        stop.end()
    if stop.asked():  # it has just ended by itself
        stop.end()
    return summary


def _train_there(job: Job, plan: Plan, tracker: RunTracker, stop: Stop) -> Summary:
    if plan.num_workers == 0:
        worker = job.worker(device="cuda" if plan.gpus_per_worker else "cpu")
        with stop.gently():
            return train(job, TrackingReporter(tracker, job.run_id), worker, stop_asked=stop.asked)
    assert isinstance(tracker, RemoteTracker)
    return train_on_ray(job, plan, tracker, stop=stop)


def train_on_ray(
    job: Job, plan: Plan, tracker: RemoteTracker, *, callbacks: Sequence[Any] = (), stop: Stop | None = None
) -> Summary:
    """A Ray Train run that restarts its workers from our newest checkpoint when one is lost.

    Args:
        job: what to train.
        plan: its workers.
        tracker: receives rank 0's figures.
        callbacks: Ray Train callbacks (a sweep's trial reports to Ray Tune).
        stop: the driver's signals; without it (a sweep's trial) they are not this run's affair.

    Raises:
        TrainingInterrupted: a signal asked for it.
        TrainingStopped: collapse or divergence.
        Data2VecError: a user's mistake that a worker met.
    """
    from ray.exceptions import RayError
    from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from .training.worker_failures import LostWorkers, StartsAllowed

    allowed = job.recipe.platform.max_failures
    attempt = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    name, notes = f"{job.run_id}-{attempt}", RayNotes.of(job.folder, job.remote)
    resources: dict[str, float] = {"CPU": plan.cpus_per_worker}
    if plan.gpus_per_worker:
        resources["GPU"] = plan.gpus_per_worker
    trainer = TorchTrainer(
        run_on_node,
        train_loop_config={"job": job.to_dict(), "tracker": tracker.name, "attempt": attempt},
        scaling_config=ScalingConfig(
            num_workers=plan.elastic or plan.num_workers,
            use_gpu=plan.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(backend="nccl" if plan.gpus_per_worker else "gloo", timeout_s=1800),
        run_config=RunConfig(
            name=name,
            storage_path=notes.path,
            storage_filesystem=notes.filesystem(),
            callbacks=[LostWorkers(tracker.name, attempt), *callbacks],
            failure_config=StartsAllowed(allowed, tracker.name, attempt),
            logging_config=LoggingConfig(log_level="WARNING"),  # its own lines repeat ours
        ),
    )
    leave_token(job, attempt)
    waiting = Waiting(job, plan, tracker, attempt)
    try:
        result = trainer.fit() if stop is None else in_a_thread(trainer.fit, stop, tracker, attempt, waiting)
    except TrainingFailedError as error:
        raise Data2VecError(why_it_failed(error, allowed, job.folder)) from error
    except RayError as error:
        raise Data2VecError(head_lost(error, job.folder)) from error
    finally:
        notes.remove(name)
    notes.remove()  # those of this run's killed drivers
    returned = result.return_value
    if not isinstance(returned, dict):
        raise Data2VecError(f"the workers of run {job.run_id} ended without a result: {result.error}")
    if "interrupted" in returned:
        raise TrainingInterrupted(*returned["interrupted"])
    if "error" in returned:
        raise (TrainingStopped if returned.get("stopped") else Data2VecError)(returned["error"])
    return Summary(**returned)


def run_on_node(told: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs: its part of the training, with the models as this node has them."""
    return run_worker(told, models_on_this_node)


def open_tracker(tracking_uri: str | None, local: bool) -> RunTracker:
    """The driver's tracker: in this process, or an actor beside it; runs of dead drivers are closed."""
    if local:
        tracker: RunTracker = TrackerService(tracking_uri)
    else:
        name = f"tracker-{secrets.token_hex(6)}"
        tracker = RemoteTracker(name, create=True, tracking_uri=tracking_uri)
    for orphan in tracker.close_orphans():
        logger.info("closed the run %s of a process that died (KILLED; its name resumes it)", orphan)
    return tracker


@dataclass
class _Outcome:
    status: FinalStatus = "FAILED"


@contextlib.contextmanager
def _finishing(tracker: RunTracker, run_id: str, again: str) -> Iterator[_Outcome]:
    """Whatever happens, the run gets its final status; SIGTERM and Ctrl-C end as KILLED."""
    outcome = _Outcome()
    try:
        yield outcome
    except (KeyboardInterrupt, SystemExit):
        outcome.status = "KILLED"
        logger.info("interrupted; to resume it: %s", again)
        raise
    finally:
        try:
            tracker.wait_for_sent()
        finally:
            tracker.finish(run_id, outcome.status)


def refuse_node_local(
    recipe: Recipe, cluster: ray_session.ClusterInfo | None, *, uri_serves: bool = True
) -> None:
    """With several nodes a restarted worker or driver may land where a file of another node is not.

    Args:
        recipe: its ``platform.storage`` and ``platform.tracking_uri`` decide.
        cluster: how many nodes there are.
        uri_serves: an object store will do (a sweep needs a folder).
    """
    if cluster is None or cluster.nodes < 2:
        return
    problems, several = [], f"the cluster has {cluster.nodes} nodes, and"
    storage, tracking = recipe.platform.storage, recipe.platform.tracking_uri or default_tracking_uri()
    if storage is None or (is_uri(storage) and not uri_serves):
        rule = (
            f"{several} checkpoints under D2V_HOME are on one of them; set platform.storage to "
            f"{'s3://BUCKET/FOLDER or ' if uri_serves else ''}a folder that all nodes share"
        )
        problems.append(Problem("platform.storage", storage, rule))
    if not tracking.startswith(("http://", "https://", "postgresql", "mysql", "mssql")):
        rule = (
            f"{several} {tracking.partition(':')[0]} is a file on one of them; give the address of an MLflow "
            "server (mlflow server), here or as MLFLOW_TRACKING_URI"
        )
        problems.append(Problem("platform.tracking_uri", recipe.platform.tracking_uri, rule))
    if problems:
        raise ConfigError(problems)


def show_plan(composed: Composed) -> None:
    """Print the plan of a recipe, and train nothing.

    Raises:
        ConfigError: it cannot fit on the devices at hand or on the stated ones.
    """
    recipe, cluster = composed.recipe, None
    for note in composed.notes:
        logger.info("note: %s", note)
    with contextlib.ExitStack() as stack:
        if recipe.platform.num_workers != 0:
            # Only Ray knows a cluster, and what it calls a GPU; starting it takes longer than all the rest.
            known = not ray_session.on_cluster() and not local_gpus(local_mode=True)
            cluster = ray_session.this_machine() if known else stack.enter_context(ray_session.connected())
        plan, local = make_plan(recipe, cluster, local_gpus(cluster is None)), with_local_data(recipe)
        costs = _forecasts(local, plan, cluster, resolve_models(local), plan_only=True)
        for line in [*plan.lines(), *_forecast_lines(costs)]:
            logger.info("%s", line)


def _forecasts(
    recipe: Recipe,
    plan: Plan,
    cluster: ray_session.ClusterInfo | None,
    models: ResolvedModels,
    *,
    plan_only: bool = False,
) -> list[Forecast]:
    """What the plan costs here and, if one is stated, on another device; refused where it cannot fit.

    A stated device replaces the one at hand only where nothing is trained.
    """
    stated = forecast_as_stated(recipe, plan, models.pretrained)
    made = stated if plan_only and stated else forecast_at_hand(recipe, plan, cluster, models.pretrained)
    if made is None:
        return []
    made.refuse_if_too_large()
    return [made] if stated in (None, made) else [made, stated]


def _forecast_lines(costs: Sequence[Forecast]) -> list[str]:
    if not costs:
        return ["      memory and work: not known for this kind of model"]
    return [*costs[0].lines(), *(cost.lines()[-1] for cost in costs[1:])]
