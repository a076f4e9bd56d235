"""The price of a plan: memory of each worker, work of an update and of the run, hours on a stated device.

A plan that cannot fit is refused before anything starts, naming the switches that would make it fit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data2vec.errors import ConfigError, Problem
from data2vec.flops import StepCost, Storage

from ..figures import data_size, duration
from ..recipe.schema import Recipe
from .accelerators import GPUS, Accelerator, cpu_at_hand, gpu_at_hand, machine_memory
from .plan import Plan
from .ray_session import ClusterInfo
from .workload import Workload, make_workload, smaller_batches

# Beside the tensors: Python, PyTorch, Ray and MLflow in a worker (0.95-1.1 GB seen); CUDA's context on a GPU.
PROCESS_BYTES = {"cpu": 1.0e9, "cuda": 0.6e9}
_USABLE = 0.97  # share of the memory that a plan may fill


@dataclass(frozen=True)
class Forecast:
    """What a recipe costs on a kind of device.

    Attributes:
        workload: model and micro-batches.
        device: the kind of device.
        count: how many compute.
        precision: what they compute in.
        limit_bytes: memory for each worker; ``None`` if unknown.
        workers_per_node: workers that share a CPU's memory.
        largest: samples and length of the micro-batch that needs most memory.
        cost: its cost.
        flops: work of a micro-batch, on average.
        whole_bytes: what a worker would need that held the whole model, where they share it.
    """

    workload: Workload
    device: Accelerator
    count: int
    precision: str
    limit_bytes: float | None
    workers_per_node: int
    largest: tuple[int, int]
    cost: StepCost
    flops: float
    whole_bytes: float | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.workload.recipe

    @property
    def rounds(self) -> int:
        """Micro-batches that the busiest worker computes in an update."""
        return math.ceil(self.recipe.micro_batches(1) / self.count)

    @property
    def memory_bytes(self) -> float:
        """Peak memory of a worker."""
        return self.cost.peak_bytes + PROCESS_BYTES[self.device.device_type]

    @property
    def sharded(self) -> bool:
        """The workers share the model."""
        return self.cost.workers > 1

    @property
    def fits(self) -> bool:
        """The peak leaves a little of the memory free; true where the memory is not known."""
        return self.limit_bytes is None or self.memory_bytes <= _USABLE * self.limit_bytes

    @property
    def updates(self) -> int | None:
        """Updates of the whole run; ``None`` where only the clock or unread data decides."""
        limits, epoch = self.recipe.optimization, self.workload.epoch_micro_batches
        ends = [limits.max_update] if limits.max_update else []
        if limits.max_epoch and epoch is not None:
            ends.append(limits.max_epoch * math.ceil(epoch / self.recipe.micro_batches(1)))
        return min(ends, default=None)

    @property
    def update_flops(self) -> float:
        """Work of an update, all workers together."""
        return self.flops * self.recipe.micro_batches(1)

    @property
    def update_s(self) -> float | None:
        """Seconds of an update at the assumed share of the device's rate."""
        rate = self.device.rate(self.precision)
        return None if rate is None else self.rounds * self.flops / (rate * self.utilisation)

    @property
    def utilisation(self) -> float:
        """Assumed share of the peak rate."""
        return self.recipe.platform.plan_utilisation or self.device.utilisation

    def lines(self) -> list[str]:
        """The forecast in words."""
        return [f"      {line}" for line in self._lines()]

    def _lines(self) -> Iterator[str]:
        cost, (samples, length) = self.cost, self.largest
        shape = self.workload.shape(samples, length)
        seen = f", {shape.clones} clones that see {shape.kept} of them" if self.workload.pretraining else ""
        unread = (
            "" if self.workload.epoch_micro_batches is not None else " (data not read: full size assumed)"
        )
        if self.device.name == self.recipe.platform.plan_accelerator:
            yield f"below: {self.count} x {self.device.name}; above: this cluster"
        yield f"micro-batch: up to {samples} samples of {shape.positions} positions{seen}{unread}"
        teacher = f", teacher {_count(cost.teacher_parameters)}" if cost.teacher_parameters else ""
        yield f"model: {_count(cost.parameters)} parameters{teacher}; computes in {self.precision}"
        yield f"model on the workers: {self._placement()}"
        parts = [
            ("parameters", cost.parameter_bytes),
            ("gradients", cost.gradient_bytes),
            ("optimizer", cost.optimizer_bytes),
            ("teacher", cost.teacher_bytes),
            ("gathered", cost.gathered_bytes),
            ("activations", cost.activation_bytes),
            ("process", PROCESS_BYTES[self.device.device_type]),
        ]
        there = "not known" if self.limit_bytes is None else f"{data_size(self.limit_bytes)}"
        told = ", ".join(f"{name} {data_size(size)}" for name, size in parts if size)
        yield f"memory of each worker: {data_size(self.memory_bytes)} at its peak ({told}); there is {there}"
        total = "" if self.updates is None else f", {_flops(self.update_flops * self.updates)} in all"
        length_told = "" if self.updates is None else f" ({self.updates} updates)"
        yield (
            f"work: {_flops(self.flops)} a micro-batch ({self._shares()}), "
            f"{_flops(self.update_flops)} an update{total}{length_told}"
        )
        yield self._time()

    def _shares(self) -> str:
        """Who does the work of the largest micro-batch."""
        cost, clones = self.cost, self.workload.shape(*self.largest).clones
        decoder = sum(part.forward + part.backward for part in cost.parts if part.name == "decoder")
        student = f"{clones} student clones" if clones > 1 else "student"
        who = student if self.workload.pretraining else "network and head"
        parts = {"teacher": cost.teacher_flops, who: cost.flops - cost.teacher_flops - decoder}
        told = parts | {"head" if self.workload.sees_all else "decoder": decoder}
        return ", ".join(f"{name} {work / cost.flops:.0%}" for name, work in told.items() if work)

    def _placement(self) -> str:
        asked = self.recipe.platform.sharding
        if not self.sharded:
            many = "each holds all of it" if self.count > 1 else "one holds all of it"
            return f"{many} (platform.sharding={asked})"
        told = f"each holds 1/{self.count} of it and of its teacher (FSDP2), because "
        if asked == "full":
            return told + "platform.sharding=full asks for it"
        return told + f"all of it would need {data_size(self.whole_bytes or 0)}"

    def _time(self) -> str:
        rate = self.device.rate(self.precision)
        if rate is None or self.update_s is None:
            return (
                f"time: the rate of {self.device.name} in {self.precision} is not known; "
                f"platform.plan_accelerator takes {', '.join(GPUS)}"
            )
        how = "measured now" if self.device.measured else "data sheet"
        each = f", {self.rounds} micro-batches each " if self.rounds > 1 else " "
        told = (
            f"time: {duration(self.update_s)} an update on {self.count} x {self.device.name}{each}"
            f"({rate / 1e12:.3g} TFLOP/s in {self.precision}, {how}, {self.utilisation:.0%} of it assumed)"
        )
        if self.updates is None:
            return told
        return f"{told}; {duration(self.update_s * self.updates)} in all"

    def refuse_if_too_large(self) -> None:
        """Raise if a worker cannot hold its micro-batches.

        Raises:
            ConfigError: with the switches that would help, each tried.
        """
        if self.fits or self.limit_bytes is None:
            return
        field = "dataset.batch_size" if self.recipe.dataset.batch_size else "dataset.max_tokens"
        value = self.recipe.dataset.batch_size or self.recipe.dataset.max_tokens
        needed = (
            f"a micro-batch needs {data_size(self.memory_bytes)} on each worker, and "
            f"{self.device.name} has {data_size(self.limit_bytes)} for it"
        )
        ways = [f"{words} ({data_size(size)})" for words, size in self._ways()]
        if ways:
            rule = f"{needed}; it fits with {' or with '.join(ways)}"
        else:
            rule = f"{needed}; no switch makes it fit: take a device with more memory, or a smaller model"
        raise ConfigError([Problem(field, value, rule)], "the plan")

    def _ways(self) -> Iterator[tuple[str, float]]:
        """Overrides that would make it fit, with the memory they lead to."""
        recipe = self.recipe
        recomputed = dataclasses.replace(
            recipe, platform=dataclasses.replace(recipe.platform, checkpoint_activations=True)
        )
        yield from self._smaller_chunks()
        starts = [(recipe, "")]
        if not recipe.platform.checkpoint_activations:
            made = self._for_recipe(recomputed)
            if made.fits:
                yield "platform.checkpoint_activations=true", made.memory_bytes
            starts.append((recomputed, "platform.checkpoint_activations=true "))
        for start, words in starts:
            tried = [smaller for f in _FACTORS if (smaller := smaller_batches(start, f)) is not None]
            fitting = ((more, made) for one, more in tried if (made := self._for_recipe(one)).fits)
            if (first := next(fitting, None)) is not None:
                yield words + first[0], first[1].memory_bytes
                break
        if self.device.device_type == "cpu" and self.limit_bytes is not None:
            node = self.limit_bytes * self.workers_per_node
            room = int(_USABLE * node / self.memory_bytes)
            if 0 < room < self.workers_per_node:
                yield f"platform.num_workers={room}", self.memory_bytes

        if self.count > 1 and recipe.platform.sharding == "none":
            shared = dataclasses.replace(
                recipe, platform=dataclasses.replace(recipe.platform, sharding="full")
            )
            made = self._for_recipe(shared)
            if made.fits:
                yield "platform.sharding=full", made.memory_bytes

    def _smaller_chunks(self) -> Iterator[tuple[str, float]]:
        """The largest chunk of clones that fits."""
        recipe, clones = self.recipe, getattr(self.recipe.model, "clone_batch", None)
        if clones is None:
            return
        for size in range((recipe.platform.clone_chunk or clones) - 1, 0, -1):
            chunked = dataclasses.replace(recipe.platform, clone_chunk=size)
            made = self._for_recipe(dataclasses.replace(recipe, platform=chunked))
            if made.fits:
                yield f"platform.clone_chunk={size}", made.memory_bytes
                return

    def _for_recipe(self, recipe: Recipe) -> Forecast:
        return forecast(
            self.workload.for_recipe(recipe), self.device, self.count, self.limit_bytes, self.workers_per_node
        )


def forecast(
    workload: Workload, device: Accelerator, count: int, limit_bytes: float | None, workers_per_node: int = 1
) -> Forecast:
    """Price a workload on so many devices, which share the model where the recipe asks for it or must.

    Args:
        workload: model and micro-batches.
        device: the kind of device.
        count: how many.
        limit_bytes: memory for each worker; ``None`` if unknown.
        workers_per_node: workers that share a CPU's memory.
    """
    recipe = workload.recipe
    mixed = recipe.common.fp16 or recipe.common.bf16
    precision = device.precision(recipe.platform.precision, mixed)
    storage = Storage.on(device.device_type, precision)
    accumulates, flops = recipe.micro_batches(1) > count, workload.mean_flops()

    def priced(workers: int, whole_bytes: float | None = None) -> Forecast:
        largest, cost = workload.largest(storage, accumulates, workers)
        return Forecast(
            workload=workload,
            device=device,
            count=count,
            precision=precision,
            limit_bytes=limit_bytes,
            workers_per_node=workers_per_node,
            largest=largest,
            cost=cost,
            flops=flops,
            whole_bytes=whole_bytes,
        )

    asked = recipe.platform.sharding
    if asked == "full":
        return priced(count)
    whole = priced(1)
    if asked == "none" or whole.fits or count == 1:
        return whole
    shared = priced(count, whole.memory_bytes)
    return shared if shared.fits else whole


def forecast_at_hand(
    recipe: Recipe, plan: Plan, cluster: ClusterInfo | None, pretrained: Path | None
) -> Forecast | None:
    """What a plan costs on the devices that it will run on; ``None`` for a model that we cannot price."""
    workload = make_workload(recipe, pretrained)
    if workload is None:
        return None
    workers = max(plan.num_workers, 1)
    if plan.gpus_per_worker:
        device = gpu_at_hand(cluster.gpu_type if cluster else None)
        limit = device.memory_bytes * min(plan.gpus_per_worker, 1.0) if device.memory_bytes else None
        return forecast(workload, device, workers, limit)
    nodes = max(cluster.nodes, 1) if cluster else 1
    memory = cluster.node_memory if cluster and nodes > 1 else machine_memory()
    together = math.ceil(workers / nodes)
    device = cpu_at_hand(plan.threads, memory)
    return forecast(workload, device, workers, memory / together if memory else None, together)


def placed(plan: Plan, made: Forecast | None) -> Plan:
    """The plan with the placement of the model that its forecast has come to."""
    return plan if made is None else dataclasses.replace(plan, sharded=made.sharded)


def forecast_as_stated(recipe: Recipe, plan: Plan, pretrained: Path | None) -> Forecast | None:
    """What it costs on ``platform.plan_accelerator``; ``None`` without one.

    Raises:
        ConfigError: more devices than micro-batches.
    """
    name, micro = recipe.platform.plan_accelerator, recipe.micro_batches(1)
    if name is None and recipe.platform.plan_count is None:
        return None
    workload = make_workload(recipe, pretrained)
    if workload is None:
        return None
    count = recipe.platform.plan_count or min(max(plan.num_workers, 1), micro)
    if count > micro:
        rule = f"an update has {micro} micro-batches, so at most {micro} devices have work"
        raise ConfigError([Problem("platform.plan_count", count, rule)])
    device = GPUS.get(name or "cpu") or cpu_at_hand(plan.threads)
    return forecast(workload, device, count, device.memory_bytes)


_FACTORS = (2, 4, 8, 16, 32, 64)


def _count(number: float) -> str:
    return f"{number / 1e6:.1f} M"


def _flops(work: float) -> str:
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if work >= size:
            return f"{work / size:.3g} {unit}"
    return f"{work / 1e9:.3g} GFLOP"
