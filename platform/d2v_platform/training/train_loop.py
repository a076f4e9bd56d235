"""The one training loop: every recipe, every modality, on one process or many.

An update consumes W * F micro-batches of the epoch's list, where W and F are the recipe's; the k workers
at hand share them out. Gradients are sums, reduced once, during the last backward pass, and divided by the
global sample size, and all randomness is a function of (seed, update, sample), so that results do not depend
on k, and a run that was killed ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from data2vec.compilation import compile_regions, has_compiler
from data2vec.errors import Data2VecError
from data2vec.optim import scale_and_clip
from data2vec.placing import moved
from data2vec.randomness import seed_dropout
from data2vec.transformer import recompute_activations

from ..figures import duration
from ..recipe.local_data import with_local_data
from ..recipe.schema import Recipe
from ..storage.locations import open_location
from ..tasks import make_task
from ..tasks.batches import Ahead, Share, make_loader, to_device
from ..tasks.reduction import barrier, gather_objects
from ..tasks.statistics import Sums
from ..tasks.task import TrainingTask, floor_facts, size_facts
from .accelerators import device_rate
from .cadence import SaveClock, due_after
from .checkpoint import Checkpoint, CheckpointStore, Merit, Retention
from .checkpoint_delivery import delivered
from .checkpoint_writer import Checkpoints
from .collapse import CollapseWatch
from .job import Job
from .loop_state import (
    GroupMember,
    LoopState,
    MetricCarrier,
    Reporter,
    Summary,
    TrainingInterrupted,
    TrainingStopped,
    Worker,
)
from .optimizer import LossScale, Precision, choose_precision, make_optimizer
from .process_settings import be_deterministic
from .progress import Progress
from .sharding import Placement, placement_of
from .start_times import start_part_over
from .workload import matrix_work

logger = logging.getLogger(__name__)


def train(
    job: Job,
    reporter: Reporter,
    worker: Worker | None = None,
    *,
    stop_asked: Callable[[], bool] = lambda: False,
) -> Summary:
    """Train a recipe to its end, resuming from the newest whole checkpoint in the job's folder.

    Args:
        job: what to train.
        reporter: receives figures.
        worker: this process; by default the only one.
        stop_asked: rank 0's answer, at every update, makes all workers save and stop there.

    Raises:
        TrainingStopped: collapse or divergence.
        TrainingInterrupted: it was asked to stop.
    """
    worker = worker or job.worker()
    if worker.threads:
        torch.set_num_threads(worker.threads)
    recipe = with_local_data(job.recipe)
    task = make_task(recipe, job.models.pretrained)
    if recipe.platform.deterministic:
        be_deterministic(strict=task.deterministic and worker.device.type == "cuda")
    if job.models.initial is not None:
        task.initialise_from(job.models.initial)
    loop = TrainingLoop(recipe, task, job.folder, reporter, worker)
    loop.stop_asked = stop_asked
    run = open_location(job.remote) if job.remote else None
    loop.checkpoints = Checkpoints(loop.store, run, wait=job.wait_for_checkpoints)
    with contextlib.closing(loop.checkpoints):
        loop.resume()
        start_part_over("model, data and optimizer built")
        reason = loop.run()
        return loop.finish(reason, dict(job.lineage))


class TrainingLoop:
    """State of one run on one worker."""

    def __init__(
        self, recipe: Recipe, task: TrainingTask, run_folder: Path, reporter: Reporter, worker: Worker
    ) -> None:
        self.recipe, self.task, self.reporter, self.worker = recipe, task, reporter, worker
        self.run_folder = run_folder
        self.state = LoopState()
        self.precision: Precision = choose_precision(recipe, worker.device)
        self.placement = placement_of(task.module, worker, self.precision.dtype)
        task.module.train()
        recompute_activations(task.module, recipe.platform.checkpoint_activations)
        if worker.compiled and _can_compile(recipe):
            compile_regions(task.module, sizes_change=task.sizes_change)
        self.parameters = [p for p in task.trained.parameters() if p.requires_grad]
        if not self.parameters:
            raise Data2VecError("nothing is left to learn: all parameters are frozen (model.freeze_regex)")
        self.optimizer = make_optimizer(recipe, task.trained, task.lr_scales)
        self.loss_scale = LossScale(recipe, recipe.micro_batches(1), enabled=self.precision.name == "fp16")
        self.store = CheckpointStore(run_folder, Retention.of(recipe.checkpoint))
        self.checkpoints = Checkpoints(self.store)
        self.interval = Sums(task.layout)
        self.interval_updates, self.interval_norm, self.interval_clipped = 0, 0.0, 0
        self.watch = CollapseWatch(recipe, task.watched)
        rate = device_rate(worker.device, self.precision.name)
        self.progress = Progress(recipe, worker, matrix_work(recipe, task.module), rate)
        self.last_saved = -1
        self.stop_asked: Callable[[], bool] = lambda: False
        self.clock = SaveClock(recipe.checkpoint.save_interval_minutes)
        self.stopping = self.saving = self.looking = False  # rank 0's answers, as every worker has them
        self.warned = False  # of a node that goes away

    # ---- resuming -----------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Continue from the newest checkpoint that all workers see and rank 0 finds whole, if any."""
        first = self.worker.rank == 0
        # Those at a URI concern rank 0 alone, which reads; a folder must look the same to all.
        mine = self.checkpoints.available() if first or self.checkpoints.remote is None else None
        found = [known for known in gather_objects(mine) if known is not None]
        common = set.intersection(*found)
        if not common and any(found):
            raise Data2VecError(
                f"no checkpoint is known to all workers, so the run would begin anew: {_who_has(found)} "
                f"below {self.run_folder}. platform.storage must be a folder that all nodes share, or s3://..."
            )
        for update in sorted(common, reverse=True):
            read = self.checkpoints.load_or_warn(update) if first else None
            checkpoint = delivered(read, self.worker.device)
            if checkpoint is None:
                continue
            self._restore(checkpoint)
            if first:
                logger.info("resumed at update %d from %s", checkpoint.update, checkpoint.folder)
                if self.state.best_update in self.store.updates():
                    self.store.mark_best(self.state.best_update)
            break
        if isinstance(self.reporter, GroupMember):
            self.reporter.resumed(self.state.update)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.placement.load(self.task.module, checkpoint.tensors["model"])
        adam = self.optimizer.adam
        adam.load_state_dict(_optimizer_state(adam, checkpoint.tensors["optimizer"], self.placement))
        saved = dict(checkpoint.state)
        self.interval.vector = torch.tensor(saved.pop("interval"), dtype=torch.float64)
        self.interval_updates, self.interval_norm, self.interval_clipped = saved.pop("interval_counts")
        self.loss_scale.scale, self.loss_scale.clean_updates = saved.pop("loss_scale")
        self.task.restore(saved.pop("task"))
        unsent = saved.pop("unsent", None)
        if unsent and self.worker.rank == 0 and isinstance(self.reporter, MetricCarrier):
            self.reporter.take_over(unsent)
        self.state = LoopState(**saved)
        self.last_saved = self.state.update

    # ---- the loop -----------------------------------------------------------------------------------------

    def run(self) -> str:
        """Train until a limit is reached; returns which one."""
        self.progress.start(self.state)
        self.clock.saved()
        while (reason := self._stop_reason()) is None:
            reason = self._epoch()
            if reason is not None:
                break
        self._log_interval(force=True)
        if self.last_saved != self.state.update:
            self._validate_and_save(epoch_end=False, at_end=True)
        return reason

    def _epoch(self) -> str | None:
        """The rest of the current epoch; returns a reason to stop, or ``None`` at its end."""
        state, recipe = self.state, self.recipe
        batches = self.task.batches(recipe.dataset.train_subset, state.epoch, training=True)
        per_update = recipe.micro_batches(state.epoch)
        end = len(batches)
        if recipe.optimization.skip_remainder_batch:
            end -= end % per_update
        loader = self._loader(state.epoch, batches[:end], per_update)
        self.progress.epoch_length = max(1, math.ceil(end / per_update))
        while state.cursor < end:
            count = min(per_update, end - state.cursor)
            self._update(loader, count, batches[state.cursor : state.cursor + count])
            state.cursor += count
            if reason := self._after_update(epoch_end=state.cursor >= end):
                return reason
        state.epoch += 1
        state.cursor = 0
        return None

    def _update(self, loader: Ahead, count: int, batches: Sequence[np.ndarray]) -> None:
        """One optimizer update from ``count`` micro-batches, of which this worker computes its share."""
        state, task, recipe = self.state, self.task, self.recipe
        sums = Sums(task.layout)
        task.begin_update(state.update)
        task.watching = self.watch.begin(state.update)
        for parameter in self.parameters:
            parameter.grad = None
        for one in self.placement.own_passes(count):
            batch = next(loader)
            self.progress.micro_batch(batch)
            passes = task.passes(batch, state.update)
            for number, compute in enumerate(passes):
                key = (recipe.common.seed, state.update, one.index, *([number] if number else []))
                seed_dropout("dropout", *key)
                with self._autocast():
                    result = compute()
                last = one.last and number == len(passes) - 1
                self.placement.backward(result.loss * self.loss_scale.scale, one.counts, last)
                if one.counts:
                    sums.add(result.scalars, result.moments)
                    self.watch.add(result.stages)
            loader.fetch()
        task.watching = False
        self.placement.reduce(self.parameters)
        first = self.worker.rank == 0
        asked = [
            first and self.stop_asked(),
            first and self.clock.save_due(),
            first and self.clock.look_due(),
        ]
        answers = moved(torch.tensor(asked, dtype=torch.float64), self.worker.device)
        reduced, norm = self.placement.total(
            torch.cat([sums.on(self.worker.device), answers]), self.parameters
        )
        sums = Sums(task.layout, reduced[: -len(asked)])
        self.stopping, self.saving, self.looking = (bool(answer) for answer in reduced[-len(asked) :])
        divisor = sums["sample_size"] * self.loss_scale.scale
        norm = scale_and_clip(self.parameters, divisor, recipe.optimization.clip_norm, norm=norm)
        finite = math.isfinite(norm) and math.isfinite(sums["loss"])
        if stop := self.loss_scale.update(finite):
            raise TrainingStopped(f"update {state.update}: {stop}")
        if not finite:
            self._skip(norm, sums["loss"], batches)
            return
        self.watch.finish(self.worker.device)
        self.optimizer.step(state.update, state.epoch)
        state.update += 1
        if state.update == 1:
            start_part_over("first update done")
        state.bad_in_a_row = 0
        clip = recipe.optimization.clip_norm
        self.interval.merge(sums)
        self.interval_updates += 1
        self.interval_norm += norm
        self.interval_clipped += int(0 < clip < norm)

    def _skip(self, norm: float, loss: float, batches: Sequence[np.ndarray]) -> None:
        """A non-finite loss or gradient: count it, leave the weights alone, stop after too many in a row."""
        state, limit = self.state, self.recipe.platform.max_bad_updates
        state.bad_updates += 1
        state.bad_in_a_row += 1
        for parameter in self.parameters:
            parameter.grad = None
        ids = ", ".join(str(i) for i in np.concatenate(list(batches))[:16])
        told = f"loss {loss:g}, gradient norm {norm:g} at update {state.update}; sample ids {ids}"
        if self.worker.rank == 0:
            logger.warning("skipped an update (%d in a row): %s", state.bad_in_a_row, told)
        if state.bad_in_a_row >= limit and self.precision.name != "fp16":
            raise TrainingStopped(
                f"{limit} updates in a row (platform.max_bad_updates) had a non-finite loss or gradient: "
                f"{told}. "
                "Lower optimization.lr or set optimization.clip_norm"
            )

    def _after_update(self, epoch_end: bool) -> str | None:
        """Log, validate, save; returns a reason to stop."""
        state = self.state
        self._log_interval()
        due = due_after(
            self.recipe, state.update, state.epoch, epoch_end=epoch_end, skipped=state.bad_in_a_row > 0
        )
        stop = self._stop_reason(epoch_end=epoch_end, pause=bool(due) or epoch_end)
        if due and not stop:
            stop = self._validate_and_save(epoch_end=epoch_end, validate=due.validate, save=due.save)
        if self.stopping and not stop:
            self._save_and_interrupt(epoch_end)
        elif not stop and (self._node_goes_away() or self.saving):
            self._save_between(epoch_end)
        return stop

    def _node_goes_away(self) -> bool:
        """Whether Ray has announced it, once for each start of the group."""
        if not self.looking or self.warned or not isinstance(self.reporter, GroupMember):
            return False
        self.warned = self.reporter.preempted()
        if self.warned and self.worker.rank == 0:
            logger.warning("a node of this training is about to be taken away: saving")
        return self.warned

    def _save_between(self, epoch_end: bool) -> None:
        """A checkpoint between two of the recipe's, for a lost machine; nothing is validated or logged."""
        if self.state.update > max(self.last_saved, 0) and not self.recipe.checkpoint.no_save:
            self._save(epoch_end, None, best=False, between=True)

    def _save_and_interrupt(self, epoch_end: bool) -> NoReturn:
        """A checkpoint between two of the recipe's; no figure is logged that an undisturbed run has not."""
        state, saves = self.state, not self.recipe.checkpoint.no_save
        self._save_between(epoch_end)
        if self.worker.rank == 0:
            self.reporter.flush()
            self.checkpoints.finish()
        barrier()
        raise TrainingInterrupted(state.update, saves)

    def _stop_reason(self, epoch_end: bool = False, pause: bool = False) -> str | None:
        state, limits = self.state, self.recipe.optimization
        if limits.max_update and state.update >= limits.max_update:
            return f"max_update {limits.max_update} reached"
        finished_epochs = state.epoch if epoch_end else state.epoch - 1
        if limits.max_epoch and finished_epochs >= limits.max_epoch:
            return f"max_epoch {limits.max_epoch} reached"
        if limits.stop_time_hours and pause:
            # Clocks differ between workers, so rank 0 decides for all, at epoch ends, saves and validations.
            hours = (state.elapsed_s + self.progress.since_start()) / 3600
            if gather_objects(hours)[0] > limits.stop_time_hours:
                return f"stop_time_hours {limits.stop_time_hours:g} reached"
        if limits.stop_cpu_minutes and (pause or state.update % self.recipe.common.log_interval == 0):
            minutes = (state.cpu_s + self.progress.cpu_since_start()) / 60
            if gather_objects(minutes)[0] >= limits.stop_cpu_minutes:
                return f"stop_cpu_minutes {limits.stop_cpu_minutes:g} reached"
        if epoch_end and limits.stop_min_lr >= 0:
            if max(self.optimizer.learning_rates(state.update, state.epoch).values()) <= limits.stop_min_lr:
                return f"stop_min_lr {limits.stop_min_lr:g} reached"
        return None

    # ---- data ---------------------------------------------------------------------------------------------

    def _loader(self, epoch: int, batches: Sequence[np.ndarray], per_update: int) -> Ahead:
        """This worker's micro-batches from the cursor on, decoded ahead where there are loader processes."""
        share = self.placement.own_batches(batches, self.state.cursor, per_update)
        dataset = self.task.dataset(self.recipe.dataset.train_subset, epoch)
        return self._read(dataset, share, self.progress.waited)

    def _read(self, dataset: Any, share: Share, waited: Callable[[float], None] = lambda _: None) -> Ahead:
        worker, on_cpu = self.worker, self.task.on_cpu
        finish = getattr(dataset, "finish", lambda batch: batch)
        read = make_loader(dataset, share, worker.loader_processes, pinned=worker.device.type == "cuda")
        return Ahead(read, lambda b: finish(to_device(b, worker.device, on_cpu)), worker.device, waited)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.worker.device.type, dtype=self.precision.dtype)

    # ---- figures, validation, checkpoints -----------------------------------------------------------------

    def _log_interval(self, force: bool = False) -> None:
        """The figures since the last line: one log line and one point for each metric, from rank 0."""
        state, interval = self.state, self.recipe.common.log_interval
        due = state.update % interval == 0 and state.bad_in_a_row == 0
        if not self.interval_updates or not (due or force):
            return
        metrics = self.task.metrics(self.interval)
        metrics["gnorm"] = self.interval_norm / self.interval_updates
        if self.recipe.optimization.clip_norm > 0:
            metrics["clip"] = 100.0 * self.interval_clipped / self.interval_updates
        rates = self.optimizer.learning_rates(max(state.update - 1, 0), state.epoch)
        metrics["lr"] = rates.get("default", max(rates.values()))
        metrics |= {f"lr_{name}": rate for name, rate in rates.items() if name != "default"}
        if self.loss_scale.enabled:
            metrics["loss_scale"] = self.loss_scale.scale
        metrics["epoch"] = self._epoch_position()
        if state.bad_updates:
            metrics["bad_updates"] = float(state.bad_updates)
        if state.first_loss is None:
            state.first_loss = metrics["loss"]
        state.metrics |= {f"train/{name}": value for name, value in (metrics | self.watch.figures).items()}
        self.progress.line(state, metrics, self.interval)
        if self.worker.rank == 0:
            points = {f"train/{name}": value for name, value in (metrics | self.watch.figures).items()}
            self.reporter.log(state.update, points | self.progress.speed_metrics())
        self.interval = Sums(self.task.layout)
        self.interval_updates, self.interval_norm, self.interval_clipped = 0, 0.0, 0
        self.progress.reset_interval(state)
        stop = self.task.guard(metrics, state.update)
        if stop := stop or self.watch.judge(state, speaks=self.worker.rank == 0):
            raise TrainingStopped(stop)

    def _epoch_position(self) -> float:
        """Whole epochs, and the share of this one's updates that are done."""
        done = math.ceil(self.state.cursor / self.recipe.micro_batches(self.state.epoch))
        return self.state.epoch - 1 + done / self.progress.epoch_length

    def _validate_and_save(
        self, *, epoch_end: bool, validate: bool = True, save: bool = True, at_end: bool = False
    ) -> str | None:
        """Evaluate, note whether it is the best, publish a checkpoint, tell the reporter."""
        state, rules, data = self.state, self.recipe.checkpoint, self.recipe.dataset
        scores: dict[str, float] = {}
        improved, metric, patience_spent = False, None, False
        if validate and not data.disable_validation:
            subsets = [name.strip() for name in data.valid_subset.split(",") if name.strip()]
            before = self.progress.clock()
            for subset in subsets:
                found = self.evaluate(subset)
                scores |= {f"{subset}/{name}": value for name, value in found.items()}
            self.progress.leave_out(before)
            metric = scores[f"{subsets[0]}/{rules.best_checkpoint_metric}"]
            improved = self._note_best(metric)
            scores[f"{subsets[0]}/best_{rules.best_checkpoint_metric}"] = (
                state.best if state.best is not None else metric
            )
            state.metrics |= scores
            patience_spent = 0 < rules.patience <= state.validations_without_gain
            self.progress.validation(state, scores)
            if self.worker.rank == 0:
                self.reporter.log(state.update, scores)
        if save or improved or at_end or patience_spent:
            if not rules.no_save:
                self._save(epoch_end, metric, improved)
            self.last_saved = state.update
        stop = self.reporter.evaluated(state.update, state.metrics)
        if patience_spent:
            return f"no improvement in {rules.patience} validations (checkpoint.patience)"
        return "the scheduler stopped it" if stop else None

    def _note_best(self, metric: float) -> bool:
        """Ties count as the best, as in the reference, but not as an improvement for patience."""
        state, maximize = self.state, self.recipe.checkpoint.maximize_best_checkpoint_metric
        if math.isnan(metric):
            state.validations_without_gain += 1
            return False
        gain = state.best is None or (metric > state.best if maximize else metric < state.best)
        state.validations_without_gain = 0 if gain else state.validations_without_gain + 1
        if gain or metric == state.best:
            state.best, state.best_update = metric, state.update
            return True
        return False

    @torch.no_grad()
    def evaluate(self, subset: str) -> dict[str, float]:
        """Metrics of a whole subset; the workers share the batches and every one gets the result."""
        module, task = self.task.module, self.task
        batches = task.batches(subset, 1, training=False)
        if self.recipe.dataset.max_valid_steps is not None:
            batches = batches[: self.recipe.dataset.max_valid_steps]
        mine = self.placement.own_batches(batches, 0, max(len(batches), 1))
        module.eval()
        results: list[dict[str, Any]] = []
        ahead = self._read(task.dataset(subset), mine)
        for index, batch in zip(mine.own_indices(len(batches)), ahead, strict=True):
            with self._autocast():
                found = task.predict(batch)
            results += found if index < len(batches) else []
        module.train()
        everyone = [result for part in gather_objects(results) for result in part]
        scores = task.score(subset, sorted(everyone, key=lambda result: result["id"]))
        self.placement.free_gathered()
        return scores

    def _save(self, epoch_end: bool, metric: float | None, best: bool, between: bool = False) -> None:
        begin, writes = time.perf_counter(), self.worker.rank == 0
        if writes:
            self.checkpoints.wait()  # so that at most one snapshot exists beside the model
        tensors = {
            "model": self.placement.snapshot(self.task.module.state_dict(), keep=writes),
            "optimizer": self.placement.snapshot(
                _optimizer_tensors(self.optimizer.adam.state_dict()), keep=writes
            ),
        }
        if writes:
            # Metrics up to here must be safe before the checkpoint that skips their recomputation is visible.
            self.reporter.flush()
            state = asdict(self.state)
            state["elapsed_s"] += self.progress.since_start()
            state["cpu_s"] += self.progress.cpu_since_start()
            if epoch_end:
                state["epoch"], state["cursor"] = self.state.epoch + 1, 0
            state["interval"] = self.interval.vector.tolist()
            state["interval_counts"] = [self.interval_updates, self.interval_norm, self.interval_clipped]
            state["loss_scale"] = [self.loss_scale.scale, self.loss_scale.clean_updates]
            state["task"] = self.task.counters()
            if isinstance(self.reporter, MetricCarrier):
                state["unsent"] = self.reporter.unsent()
            merit = Merit(epoch_end, metric, best, between)
            self.checkpoints.save(self.state.update, tensors, state, merit, owned=True)
            self.clock.saved()
        self.progress.checkpoint_s = time.perf_counter() - begin

    def finish(self, reason: str, origin: dict[str, Any]) -> Summary:
        """Export the best weights (the last ones of pretraining or without validation) and sum up."""
        state, export = self.state, None
        self.task.close()
        comparable = self.task.exports_best and not self.recipe.checkpoint.no_save
        best = state.best_update if comparable else None
        weights = self.placement.snapshot(self.task.module.state_dict(), keep=self.worker.rank == 0)
        if self.worker.rank == 0:
            self.checkpoints.wait()
            if best is not None and best != state.update:
                weights = self.checkpoints.load(best).tensors["model"]
            origin |= {"update": best if best is not None else state.update}
            export = str(self.task.export(self.run_folder / "model", origin, weights))
            self.reporter.flush()
            self.checkpoints.finish(Path(export))
        barrier()
        metrics = dict(state.metrics)
        if state.first_loss is not None:
            metrics["train/first_loss"] = state.first_loss
        seconds = state.elapsed_s + self.progress.since_start()
        if self.worker.rank == 0:
            logger.info("finished at update %d after %s: %s", state.update, duration(seconds), reason)
        return Summary(
            update=state.update,
            metrics=metrics,
            best=state.best,
            best_update=state.best_update,
            reason=reason,
            export=export,
            facts=self.task.facts() | size_facts(self.task) | floor_facts(self.task),
            seconds=seconds,
            bad_updates=state.bad_updates,
        )


def _can_compile(recipe: Recipe) -> bool:
    """Images for production have no compiler: ``auto`` does without, ``true`` is refused."""
    if has_compiler():
        return True
    lacking = "torch.compile needs a C compiler (cc, gcc or clang), and this machine has none"
    if recipe.platform.compile is True:
        raise Data2VecError(f"platform.compile=true: {lacking}; install one, or give platform.compile=false")
    logger.warning("platform.compile=auto: %s; the network is not compiled", lacking)
    return False


def _who_has(found: Sequence[Collection[int]]) -> str:
    """Which worker knows which checkpoint, in words."""
    told = [
        f"worker {rank} has {f'that of update {max(has)}' if has else 'none'}"
        for rank, has in enumerate(found)
    ]
    return ", ".join(told[:8]) + (f" and {len(told) - 8} more" if len(told) > 8 else "")


def _optimizer_tensors(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Adam's state as flat named tensors: ``<parameter index>.<name>``."""
    return {
        f"{index}.{name}": tensor
        for index, values in state["state"].items()
        for name, tensor in values.items()
    }


def _optimizer_state(
    adam: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], placement: Placement
) -> dict[str, Any]:
    parameters = [p for group in adam.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = placement.own_moment(parameters[int(index)], tensor)
    return adam.state_dict() | {"state": state}
