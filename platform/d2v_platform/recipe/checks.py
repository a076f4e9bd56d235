"""What must hold between the values of a recipe. A rule says what is wrong and what to do; all are told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from data2vec.errors import Problem, nearest_names

from ..redaction import SECRET_IN_NAME, redact_text
from ..tracking.mlflow_access import ALIAS, ALIAS_RULE, REGISTRY_NAME, REGISTRY_NAME_RULE
from .components import (
    NAMES,
    AdamOptions,
    Composite,
    CosineSchedule,
    FixedSchedule,
    PassThrough,
    PolynomialSchedule,
    Schedule,
    TriStageSchedule,
    component_name,
)
from .entries import entry_of
from .groups import MISSING
from .schema import Recipe, split_names

_EXAMPLES = {
    "task.data": "task.data=/path/to/data",
    "model.w2v_path": "model.w2v_path=models:/NAME@ALIAS, a folder, or a reference .pt",
    "checkpoint.restore_file": "checkpoint.restore_file=models:/NAME@ALIAS, a folder, or a reference .pt",
    "model.model_path": "model.model_path=models:/NAME@ALIAS, a folder, or a reference .pt",
}
# lowest allowed value of plain fields
_AT_LEAST: dict[str, float] = {
    "common.seed": 0, "common.log_interval": 1, "common.min_loss_scale": 0, "common.fp16_init_scale": 1,
    "common.fp16_scale_window": 1, "common.threshold_loss_scale": 0,
    "dataset.num_workers": 0, "dataset.max_tokens": 1, "dataset.batch_size": 1, "dataset.max_tokens_valid": 1,
    "dataset.batch_size_valid": 1, "dataset.required_batch_size_multiple": 1, "dataset.validate_interval": 1,
    "dataset.validate_interval_updates": 0, "dataset.validate_after_updates": 0, "dataset.max_valid_steps": 1,
    "dataset.curriculum": 0,
    "optimization.max_epoch": 0, "optimization.max_update": 0, "optimization.stop_time_hours": 0,
    "optimization.stop_cpu_minutes": 0,
    "optimization.clip_norm": 0,
    "checkpoint.save_interval": 1, "checkpoint.save_interval_updates": 0,
    "checkpoint.keep_interval_updates": -1, "checkpoint.keep_last_epochs": -1,
    "checkpoint.keep_best_checkpoints": -1, "checkpoint.patience": -1,
    "distributed_training.distributed_world_size": 1,
    "platform.num_workers": 0, "platform.gpus_per_worker": 0, "platform.threads_per_worker": 1,
    "platform.max_failures": 0, "platform.max_bad_updates": 1, "platform.plan_count": 1,
    "platform.clone_chunk": 1, "checkpoint.save_interval_minutes": 0, "platform.wait_for_resources": 0,
    "platform.collapse_after": 0, "platform.collapse_min_var": 0, "platform.collapse_min_rank": 0,
    "platform.collapse_patience": 0,
}  # fmt: skip


def problems(recipe: Recipe) -> list[Problem]:
    """Everything that is impossible about ``recipe``; an empty list if it can be trained."""
    plain = recipe.to_dict()
    found = [*_missing(plain), *_not_finite(plain), *_too_small(recipe)]
    found += [*_length(recipe), *_batches(recipe), *_optimizer(recipe), *_combination(recipe)]
    found += [*_model(recipe), *entry_of(recipe.task).problems(recipe)]
    found += [*_selection(recipe), *_platform(recipe)]
    return found


def _missing(node: Any, path: str = "") -> Iterator[Problem]:
    for dotted, value in _leaves(node):
        if value == MISSING:
            yield Problem(dotted, value, f"is required; give {_EXAMPLES.get(dotted, dotted + '=...')}")


def _not_finite(node: Any) -> Iterator[Problem]:
    for dotted, value in _leaves(node):
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            yield Problem(dotted, value, "must be a finite number")


def _too_small(recipe: Recipe) -> Iterator[Problem]:
    for dotted, lowest in _AT_LEAST.items():
        group, name = dotted.split(".")
        value = getattr(getattr(recipe, group), name)
        if isinstance(value, int | float) and value < lowest:
            yield Problem(dotted, value, f"must be >= {lowest:g}")
    if recipe.platform.cpus_per_worker is not None and recipe.platform.cpus_per_worker <= 0:
        yield Problem("platform.cpus_per_worker", recipe.platform.cpus_per_worker, "must be > 0")


def _length(recipe: Recipe) -> Iterator[Problem]:
    o = recipe.optimization
    if not any((o.max_update, o.max_epoch, o.stop_time_hours, o.stop_cpu_minutes)):
        yield Problem("optimization.max_update", 0, "the run would never end; give max_update or max_epoch")
    if not o.update_freq:
        yield Problem("optimization.update_freq", [], "needs one number an epoch, for example [1]")
    if any(f < 1 for f in o.update_freq):
        yield Problem("optimization.update_freq", o.update_freq, "each number must be >= 1")


def _batches(recipe: Recipe) -> Iterator[Problem]:
    d = recipe.dataset
    if d.max_tokens is None and d.batch_size is None:
        yield Problem("dataset.batch_size", None, "give dataset.batch_size or dataset.max_tokens")
    subsets = split_names(d.valid_subset)
    if not subsets and not d.disable_validation:
        rule = "names no subset; give one, or dataset.disable_validation=true"
        yield Problem("dataset.valid_subset", d.valid_subset, rule)
    if len(set(subsets)) != len(subsets):
        yield Problem("dataset.valid_subset", d.valid_subset, "names a subset twice")
    if not d.train_subset or "," in d.train_subset:
        yield Problem("dataset.train_subset", d.train_subset, "must name one subset")


def _optimizer(recipe: Recipe) -> Iterator[Problem]:
    lr = recipe.optimization.lr
    if not lr or any(x <= 0 for x in lr):
        yield Problem("optimization.lr", lr, "needs at least one rate, all > 0")
        return
    scheduler = component_name(recipe.lr_scheduler)
    if isinstance(recipe.optimizer, AdamOptions):
        if isinstance(recipe.lr_scheduler, PassThrough):
            rule = "is for optimizer composite; choose cosine, tri_stage, polynomial_decay or fixed"
            yield Problem("lr_scheduler._name", scheduler, rule)
        else:
            yield from _adam(recipe.optimizer, "optimizer")
            yield from _schedule(recipe, recipe.lr_scheduler, tuple(lr), "lr_scheduler", "optimization.lr")
        return
    if not isinstance(recipe.lr_scheduler, PassThrough):
        rule = "the groups of optimizer composite have their own schedules; use lr_scheduler=pass_through"
        yield Problem("lr_scheduler._name", scheduler, rule)
    yield from _composite(recipe, recipe.optimizer)


def _composite(recipe: Recipe, optimizer: Composite) -> Iterator[Problem]:
    known = ("default", "decoder")
    wanted = known if getattr(recipe.model, "decoder_group", False) else known[:1]
    if getattr(recipe.model, "decay_groups", False):
        known = wanted = ("with_decay", "no_decay")
    for name in wanted:
        if name not in optimizer.groups:
            rule = f"has no group {name!r}, but parameters of the model belong to it; configure it"
            yield Problem("optimizer.groups", sorted(optimizer.groups), rule)
    for name, group in optimizer.groups.items():
        path = f"optimizer.groups.{name}"
        if name in known and name not in wanted:
            yield Problem(path, name, "no parameter belongs to it; set model.decoder_group=true or remove it")
        elif name not in known:
            rule = f"no parameter belongs to it; groups are {', '.join(known)}{nearest_names(name, known)}"
            yield Problem(path, name, rule)
        if group.lr_float is not None and group.lr_float <= 0:
            yield Problem(f"{path}.lr_float", group.lr_float, "must be > 0")
        if group.lr is not None and (not group.lr or any(x <= 0 for x in group.lr)):
            yield Problem(f"{path}.lr", group.lr, "needs at least one rate, all > 0")
        yield from _adam(group.optimizer, f"{path}.optimizer")
        peaks = recipe.parameter_groups()[name].peaks
        yield from _schedule(recipe, group.lr_scheduler, peaks, f"{path}.lr_scheduler", f"{path}.lr")


def _adam(adam: AdamOptions, path: str) -> Iterator[Problem]:
    if len(adam.adam_betas) != 2 or any(not 0 <= beta < 1 for beta in adam.adam_betas):
        yield Problem(f"{path}.adam_betas", adam.adam_betas, "needs two numbers in 0 <= beta < 1")
    if adam.adam_eps <= 0:
        yield Problem(f"{path}.adam_eps", adam.adam_eps, "must be > 0")
    if adam.weight_decay < 0:
        yield Problem(f"{path}.weight_decay", adam.weight_decay, "must be >= 0")


def _schedule(
    recipe: Recipe, schedule: Schedule, peaks: tuple[float, ...], path: str, lr_path: str
) -> Iterator[Problem]:
    if len(peaks) > 1 and not isinstance(schedule, PolynomialSchedule | FixedSchedule):
        rule = f"{component_name(schedule)} takes one rate; polynomial_decay and fixed take one an epoch"
        yield Problem(lr_path, list(peaks), rule)
    if isinstance(schedule, TriStageSchedule):
        yield from _tri_stage(schedule, path)
        return
    warmup = schedule.warmup_updates
    if warmup < 0:
        yield Problem(f"{path}.warmup_updates", warmup, "must be >= 0")
    if isinstance(schedule, FixedSchedule):
        return
    if isinstance(schedule, CosineSchedule):
        length, field = schedule.max_update, "max_update"
        if schedule.lr_period_updates > 0:
            return
        if schedule.min_lr < 0 or schedule.t_mult <= 0 or schedule.lr_shrink <= 0:
            yield Problem(path, component_name(schedule), "min_lr must be >= 0, t_mult and lr_shrink > 0")
    else:
        length, field = schedule.total_num_update, "total_num_update"
        if schedule.power <= 0 or schedule.end_learning_rate < 0:
            yield Problem(path, component_name(schedule), "power must be > 0 and end_learning_rate >= 0")
    if length <= 0:
        rule = f"{component_name(schedule)} needs the length of the run; give optimization.max_update"
        yield Problem(f"{path}.{field}", length, rule)
    elif warmup >= length:
        yield Problem(f"{path}.warmup_updates", warmup, f"must be less than the run of {length} updates")


def _tri_stage(schedule: TriStageSchedule, path: str) -> Iterator[Problem]:
    for name in ("init_lr_scale", "final_lr_scale"):
        if getattr(schedule, name) <= 0:
            yield Problem(f"{path}.{name}", getattr(schedule, name), "must be > 0")
    if schedule.phase_ratio is None:
        steps = (schedule.warmup_steps, schedule.hold_steps, schedule.decay_steps)
        if min(steps) < 0 or schedule.decay_steps == 0:
            rule = "give phase_ratio, or three phases in updates with decay_steps > 0"
            yield Problem(f"{path}.decay_steps", schedule.decay_steps, rule)
        return
    ratio = schedule.phase_ratio
    if len(ratio) != 3 or any(part < 0 for part in ratio) or not math.isclose(sum(ratio), 1.0, abs_tol=1e-9):
        yield Problem(f"{path}.phase_ratio", ratio, "needs three fractions that sum to 1")
    elif schedule.max_update <= 0:
        rule = "phase_ratio needs the length of the run; give optimization.max_update"
        yield Problem(f"{path}.max_update", schedule.max_update, rule)
    elif int(ratio[2] * schedule.max_update) == 0:
        yield Problem(f"{path}.phase_ratio", ratio, "leaves no update for the decay")


def _combination(recipe: Recipe) -> Iterator[Problem]:
    """Task, model and criterion that belong together."""
    entry, task = entry_of(recipe.task), component_name(recipe.task)
    for group, wanted in (("model", entry.models), ("criterion", entry.criteria)):
        found = getattr(recipe, group)
        if not isinstance(found, wanted):
            names = " or ".join(NAMES[cls] for cls in wanted)
            yield Problem(f"{group}._name", component_name(found), f"task {task} needs {names}")


def _model(recipe: Recipe) -> Iterator[Problem]:
    """What a model says of its own values."""
    own = getattr(recipe.model, "problems", None)
    if own is not None:
        yield from own("model")


def metrics(recipe: Recipe) -> dict[str, bool]:
    """The metrics that validation reports, with whether larger is better."""
    return {"loss": False} | dict(entry_of(recipe.task).metrics(recipe))


def _selection(recipe: Recipe) -> Iterator[Problem]:
    c, reported = recipe.checkpoint, metrics(recipe)
    name = c.best_checkpoint_metric
    if name not in reported:
        rule = f"validation reports {', '.join(reported)}{nearest_names(name, reported)}"
        yield Problem("checkpoint.best_checkpoint_metric", name, rule)
    if c.patience > 0 and recipe.dataset.disable_validation:
        yield Problem(
            "checkpoint.patience", c.patience, "needs validation; set dataset.disable_validation=false"
        )
    if c.restore_file != type(c).restore_file and c.finetune_from_model is not None:
        yield Problem(
            "checkpoint.finetune_from_model",
            c.finetune_from_model,
            "means the same as restore_file; give one",
        )


def _platform(recipe: Recipe) -> Iterator[Problem]:
    p = recipe.platform
    if recipe.common.fp16 and recipe.common.bf16:
        yield Problem("common.bf16", True, "contradicts common.fp16; give one of them")
    freq = [f for f in recipe.optimization.update_freq if f >= 1]
    if isinstance(p.num_workers, list) and (
        len(p.num_workers) != 2 or not 1 <= p.num_workers[0] <= p.num_workers[1]
    ):
        rule = "must be one number, or two: the fewest workers, at least 1, and the most"
        yield Problem("platform.num_workers", p.num_workers, rule)
    elif p.most_workers is not None and freq and recipe.world_size() >= 1:
        smallest = recipe.world_size() * min(freq)
        if p.most_workers > smallest:
            rule = f"more workers than micro-batches of an update (W*F = {smallest}); use at most {smallest}"
            yield Problem("platform.num_workers", p.num_workers, rule)
    if p.plan_utilisation is not None and not 0 < p.plan_utilisation <= 1:
        yield Problem("platform.plan_utilisation", p.plan_utilisation, "must lie in 0 < share <= 1")
    if p.clone_chunk is not None and not hasattr(recipe.model, "clone_batch"):
        yield Problem(
            "platform.clone_chunk", p.clone_chunk, "is for models with clones: pretraining data2vec 2.0"
        )
    if p.augment_on_device and not hasattr(recipe.task, "probe_bank"):
        rule = "is for image pretraining alone: timm, which augments in fine-tuning, works on Pillow's images"
        yield Problem("platform.augment_on_device", True, rule)
    if p.alias is not None and p.register_as is None:
        yield Problem("platform.alias", p.alias, "needs platform.register_as")
    for name in ("run_name", "register_as"):
        value = getattr(p, name)
        if value is not None and not REGISTRY_NAME.fullmatch(value):
            yield Problem(f"platform.{name}", value, REGISTRY_NAME_RULE)
    if p.alias is not None and not ALIAS.fullmatch(p.alias):
        yield Problem("platform.alias", p.alias, ALIAS_RULE)
    if p.experiment is not None and not p.experiment.strip():
        yield Problem("platform.experiment", p.experiment, "must not be empty")
    for name in ("run_name", "register_as", "alias", "experiment"):
        value = getattr(p, name)
        if value is not None and (shown := redact_text(value)) != value:
            yield Problem(f"platform.{name}", shown, SECRET_IN_NAME)


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node
