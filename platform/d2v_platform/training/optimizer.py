"""From a recipe to optimizer groups, schedules and loss scaling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from data2vec.errors import ConfigError, Problem
from data2vec.optim import GroupSettings, ScheduledAdam, parameter_groups
from data2vec.schedules import Cosine, Fixed, PolynomialDecay, Schedule, TriStage

from ..recipe.components import (
    AdamOptions,
    Composite,
    CosineSchedule,
    FixedSchedule,
    PolynomialSchedule,
    TriStageSchedule,
)
from ..recipe.components import Schedule as ScheduleRecipe
from ..recipe.schema import Recipe


def make_optimizer(
    recipe: Recipe, trained: nn.Module, lr_scales: Mapping[str, float] | None = None
) -> ScheduledAdam:
    """Adam with the recipe's groups and schedules over the trainable parameters.

    Args:
        recipe: a checked recipe.
        trained: the module whose parameters are stepped.
        lr_scales: learning-rate factors by parameter name (layer decay), 1 where absent.
    """
    named = recipe.parameter_groups()
    exempt_1d = not recipe.optimization.decay_norm_and_bias
    composite = isinstance(recipe.optimizer, Composite)
    groups = parameter_groups(
        trained,
        dynamic=exempt_1d or (isinstance(recipe.optimizer, Composite) and recipe.optimizer.dynamic_groups),
        decoder_group=getattr(recipe.model, "decoder_group", False),
        decay_groups=composite and getattr(recipe.model, "decay_groups", False),
        lr_scales=lr_scales,
    )
    unknown = sorted({group.name for group in groups} - named.keys())
    if unknown:
        rule = f"must also configure the group {', '.join(unknown)}: the model has parameters in it"
        raise ConfigError([Problem("optimizer.groups", sorted(named), rule)])
    schedules = [
        [
            make_schedule(
                named[group.name].lr_scheduler, peak * group.lr_scale, recipe.optimization.max_update
            )
            for peak in named[group.name].peaks
        ]
        for group in groups
    ]
    settings = {name: _settings(group.optimizer) for name, group in named.items()}
    mixed = recipe.common.fp16 or recipe.common.bf16  # as the recipe says, on a CPU too
    return ScheduledAdam(groups, settings, schedules, exempt_1d=exempt_1d, step_all=mixed)


def make_schedule(schedule: ScheduleRecipe, peak: float, max_update: int) -> Schedule:
    """A learning-rate schedule with its peak filled in."""
    if isinstance(schedule, CosineSchedule):
        return Cosine(
            peak=peak,
            min_lr=schedule.min_lr,
            warmup_updates=schedule.warmup_updates,
            warmup_init_lr=schedule.warmup_init_lr,
            period_updates=schedule.lr_period_updates,
            max_update=schedule.max_update or max_update,
            lr_shrink=schedule.lr_shrink,
            t_mult=schedule.t_mult,
        )
    if isinstance(schedule, TriStageSchedule):
        steps = (schedule.warmup_steps, schedule.hold_steps, schedule.decay_steps)
        if schedule.phase_ratio is not None:
            total = schedule.max_update or max_update
            steps = tuple(int(total * share) for share in schedule.phase_ratio)
        return TriStage(
            peak=peak,
            warmup_steps=steps[0],
            hold_steps=steps[1],
            decay_steps=steps[2],
            init_scale=schedule.init_lr_scale,
            final_scale=schedule.final_lr_scale,
        )
    if isinstance(schedule, PolynomialSchedule):
        return PolynomialDecay(
            peak=peak,
            warmup_updates=schedule.warmup_updates,
            total=schedule.total_num_update or max_update,
            end=schedule.end_learning_rate,
            power=schedule.power,
        )
    assert isinstance(schedule, FixedSchedule)
    return Fixed(peak=peak, warmup_updates=schedule.warmup_updates)


def _settings(adam: AdamOptions) -> GroupSettings:
    first, second = adam.adam_betas
    return GroupSettings(betas=(first, second), eps=adam.adam_eps, weight_decay=adam.weight_decay)


@dataclass(frozen=True)
class Precision:
    """How a worker computes."""

    name: str  # "fp32", "bf16" or "fp16"
    dtype: torch.dtype | None  # autocast type, ``None`` for fp32
    reason: str  # why, for the log and the run's tags


def choose_precision(recipe: Recipe, device: torch.device) -> Precision:
    """The recipe's precision on this device: ``common.fp16`` means bf16 where a GPU has it, fp32 on a CPU."""
    asked = recipe.platform.precision
    if asked == "auto":
        if not (recipe.common.fp16 or recipe.common.bf16):
            return Precision("fp32", None, "the recipe asks for fp32")
        if device.type == "cpu":
            return Precision("fp32", None, "mixed precision is for GPUs; a CPU computes in fp32")
        if recipe.common.bf16 or torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(
                "bf16", torch.bfloat16, "the recipe asks for mixed precision and the GPU has bf16"
            )
        return Precision("fp16", torch.float16, "the recipe asks for mixed precision and the GPU has no bf16")
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    return Precision(asked, dtypes[asked], "platform.precision asks for it")


class LossScale:
    """Dynamic loss scale of fp16: halved on overflow, doubled after a window without one."""

    def __init__(self, recipe: Recipe, micro_batches: int, enabled: bool) -> None:
        common = recipe.common
        self.enabled = enabled
        self.scale = float(common.fp16_init_scale) if enabled else 1.0
        self.window = common.fp16_scale_window or max(1, int(2**14 / micro_batches))
        self.minimum, self.floor = common.min_loss_scale, common.threshold_loss_scale
        self.clean_updates = 0

    def update(self, finite: bool) -> str | None:
        """Adapt after an update; returns a reason to stop when the scale has fallen too low."""
        if not self.enabled:
            return None
        if finite:
            self.clean_updates += 1
            if self.clean_updates % self.window == 0:
                self.scale *= 2.0
            return None
        self.clean_updates = 0
        self.scale /= 2.0
        if self.floor is not None:
            self.scale = max(self.scale, self.floor)
        if self.scale <= self.minimum or math.isclose(self.scale, 0.0):
            return f"the loss scale fell to {self.scale:g} (common.min_loss_scale): the loss diverges"
        return None
