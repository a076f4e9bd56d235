"""The reference's Adam, its parameter groups, and the sum of gradients over micro-batches.

Decoupled weight decay applies to *every* parameter by default, norms and biases included: the reference tags
1-D parameters for exemption but never honours the tag, so the published models were trained this way.

A parameter without a gradient, as of a block that layer drop spared in a whole update, is left alone in fp32.
In mixed precision the reference steps its fp32 copies, whose gradients are then zero, flattened or not:
weights decay, moments fade and move the parameter, and the step counts. All published models were trained so;
:class:`ScheduledAdam` does it on request.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .schedules import Schedule
from .shards import own_part

_EXEMPT = (".bias", "cls_emb")  # BEiT spares its class token too, which is not 1-D


@dataclass(kw_only=True)
class GroupSettings:
    """Adam's settings for one named group of the recipe."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share learning rate and weight decay.

    Attributes:
        name: the recipe's group ("default", "decoder", ...).
        lr_scale: factor of the group's learning rate (layer decay).
        exempt: 1-D parameters, biases, data2vec 1's class token and ALiBi scales, which the recipe may exempt
            from weight decay.
        names: parameter names.
        params: the parameters.
    """

    name: str
    lr_scale: float
    exempt: bool
    names: list[str]
    params: list[nn.Parameter]


def parameter_groups(
    model: nn.Module,
    *,
    dynamic: bool,
    decoder_group: bool = False,
    decay_groups: bool = False,
    lr_scales: Mapping[str, float] | None = None,
) -> list[ParameterGroup]:
    """Split the trainable parameters as the recipe's optimizer does.

    Args:
        model: its parameter names decide the groups.
        dynamic: one group for each distinct set of tags (the composite optimizer's ``dynamic_groups``): those
            exempt from weight decay apart from the others, and listed ones apart from those that are not.
        decoder_group: parameters with ``decoder`` in their name form the group "decoder".
        decay_groups: the groups are "no_decay", of 1-D parameters and biases, and "with_decay", of others.
        lr_scales: learning-rate factor by parameter name, 1 where absent. Each factor has its own group, with
            every optimizer; the reference stops where groups are not dynamic, and a flat Adam ignores them.
    """
    groups: dict[tuple[str, float, bool, bool], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = "decoder" if decoder_group and "decoder" in name else "default"
        if decay_groups:
            group = "no_decay" if parameter.ndim == 1 or name.endswith(".bias") else "with_decay"
        scale = (lr_scales or {}).get(name, 1.0)
        exempt = dynamic and (parameter.ndim <= 1 or name.endswith(_EXEMPT) or "alibi_scale" in name)
        listed = dynamic and not exempt and name in (lr_scales or {})
        key = (group, scale, exempt, listed)
        if key not in groups:
            groups[key] = ParameterGroup(group, scale, exempt, [], [])
        groups[key].names.append(name)
        groups[key].params.append(parameter)
    return list(groups.values())


class Adam(torch.optim.AdamW):
    """Decoupled Adam whose epsilon is added to the *uncorrected* second moment, as in the reference.

    PyTorch corrects the second moment before adding epsilon, which is the same step with
    ``eps / sqrt(1 - beta2 ** t)``; so PyTorch's fused kernel is used with that value at step t.

    PyTorch wraps its optimizers' methods in calls of its compiler, whose import takes seconds and 150 MB; the
    methods inside the wrappers are called instead.
    """

    def __init__(self, groups: Iterable[dict[str, object]]) -> None:
        super().__init__(groups, lr=0.0, fused=True)  # pyright: ignore[reportArgumentType]
        self._steps: dict[torch.Tensor, int] = {}

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """As PyTorch's."""
        inspect.unwrap(torch.optim.AdamW.add_param_group)(self, param_group)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient; the others are not touched, not even by weight decay."""
        original = self.param_groups
        split: list[dict[str, object]] = []
        for group in original:
            by_step: dict[int, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_step.setdefault(self._next_step(parameter), []).append(parameter)
            for step, params in by_step.items():
                eps = group["eps"] / (1.0 - group["betas"][1] ** step) ** 0.5
                split.append({**group, "params": params, "eps": eps})
        self.param_groups = split
        try:
            inspect.unwrap(torch.optim.AdamW.step)(self)
        finally:
            self.param_groups = original
        for group in split:
            for parameter in group["params"]:  # type: ignore[attr-defined]
                self._steps[parameter] = self._next_step(parameter)

    def state_dict(self) -> dict[str, Any]:
        """As PyTorch's."""
        return inspect.unwrap(torch.optim.AdamW.state_dict)(self)

    def load_state_dict(self, state_dict: dict[str, object]) -> None:  # type: ignore[override]
        """Also forgets the cached step counts."""
        inspect.unwrap(torch.optim.AdamW.load_state_dict)(self, state_dict)
        self._steps.clear()

    def _next_step(self, parameter: torch.Tensor) -> int:
        if parameter not in self._steps:
            state = self.state.get(parameter)
            self._steps[parameter] = int(state["step"]) if state else 0
        return self._steps[parameter] + 1


@dataclass(frozen=True)
class ScheduledGroup:
    """An optimizer group and its learning-rate schedules, one an epoch, the last one repeated."""

    name: str
    schedules: Sequence[Schedule]

    def learning_rate(self, update: int, epoch: int = 1) -> float:
        """Learning rate of the step after ``update`` completed updates."""
        return self.schedules[min(epoch, len(self.schedules)) - 1](update)


class ScheduledAdam:
    """Adam with schedules for each group: what one update of the loop steps.

    Args:
        groups: from :func:`parameter_groups`.
        settings: Adam's settings by group name.
        schedules: for each entry of ``groups`` its schedules by epoch; layer-decay factors are already in
            their peaks.
        exempt_1d: exempt 1-D parameters and biases from weight decay (not what published models did).
        step_all: a parameter without a gradient steps with a gradient of zero instead of not at all.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        settings: Mapping[str, GroupSettings],
        schedules: Sequence[Sequence[Schedule]],
        *,
        exempt_1d: bool = False,
        step_all: bool = False,
    ) -> None:
        self.step_all = step_all
        self.groups = [ScheduledGroup(g.name, s) for g, s in zip(groups, schedules, strict=True)]
        self.adam = Adam(
            {
                "params": group.params,
                "betas": settings[group.name].betas,
                "eps": settings[group.name].eps,
                "weight_decay": 0.0 if exempt_1d and group.exempt else settings[group.name].weight_decay,
            }
            for group in groups
        )

    def learning_rates(self, update: int, epoch: int = 1) -> dict[str, float]:
        """Learning rate by group name (the highest where layer decay splits a group)."""
        rates: dict[str, float] = {}
        for group in self.groups:
            rates[group.name] = max(rates.get(group.name, 0.0), group.learning_rate(update, epoch))
        return rates

    def step(self, update: int, epoch: int = 1) -> None:
        """One step with the learning rates of ``update``."""
        for group, scheduled in zip(self.adam.param_groups, self.groups, strict=True):
            group["lr"] = scheduled.learning_rate(update, epoch)
            for parameter in group["params"] if self.step_all else ():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        self.adam.step()


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter], device: torch.device) -> torch.Tensor:
    """Norm of this worker's parts of all gradients, a number that stays on the device."""
    gradients = [own_part(p.grad) for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=device)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


@torch.no_grad()
def scale_and_clip(
    parameters: Iterable[nn.Parameter], divisor: float, clip_norm: float, *, norm: float | None = None
) -> float:
    """Divide gradients by the global sample size and clip them by their global norm.

    Args:
        parameters: those without a gradient are skipped.
        divisor: sample size; 0 counts as 1.
        clip_norm: 0 only measures.
        norm: of the gradients as they are, of all workers' parts; by default it is measured here.

    Returns:
        The norm after division and before clipping.
    """
    parameters = list(parameters)
    gradients = [own_part(p.grad) for p in parameters if p.grad is not None]
    if norm is None:
        norm = gradient_norm(parameters, torch.device("cpu")).item()
    factor = 1.0 / (divisor or 1.0)
    norm *= factor
    if clip_norm > 0:
        factor *= min(1.0, clip_norm / (norm + 1e-6))
    if gradients:
        torch._foreach_mul_(gradients, factor)
    return norm
