"""Who holds the model: every worker all of it, or each its rows of every tensor (PyTorch's FSDP2).

The loop asks either kind for the same few things. Both deal the same micro-batches, sum gradients over them
while the last backward pass runs, and divide once, so that a run may change from one to the other at any
checkpoint.

Sharded, a block's parameters are gathered when it runs and given back afterwards, in both passes, and its
gradients are summed over the workers row by row. All workers therefore run the same blocks equally often:
a worker that is dealt fewer micro-batches repeats one of another's with weight 0, and layer drop multiplies a
block's effect by zero instead of skipping it. The teacher has the same boundaries on the same workers, so its
average needs no communication. What lies outside the blocks (front end, decoder, norms, head) is one group.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from data2vec.audio_events import EventOutput
from data2vec.ctc import CTCOutput
from data2vec.optim import gradient_norm
from data2vec.placing import moved, read
from data2vec.pretraining import PretrainOutput
from data2vec.shards import is_sharded, set_part, whole
from data2vec.transformer import transformer_blocks

from ..tasks.batches import Share
from ..tasks.reduction import GradientSum, add_up, reduce_vector
from .loop_state import Worker

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


@dataclass(frozen=True)
class OwnPass:
    """One forward and backward pass of this worker within an update."""

    index: int  # the micro-batch's place in the update
    counts: bool  # false for a repetition with weight 0
    last: bool  # no further pass of this update follows


class Placement(Protocol):
    """How the model lies on the workers."""

    def own_passes(self, count: int) -> Iterator[OwnPass]:
        """This worker's passes in an update of ``count`` micro-batches."""
        ...

    def own_batches(self, batches: Sequence[np.ndarray], start: int, per_update: int) -> Share:
        """The micro-batches of all its passes from ``start`` on."""
        ...

    def backward(self, loss: torch.Tensor, counts: bool, last: bool) -> None:
        """Add the gradients of a pass to those of the earlier ones.

        Args:
            loss: what its forward pass gave.
            counts: false gives it weight 0.
            last: no further pass of this update follows here.
        """
        ...

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over the workers."""
        ...

    def total(self, vector: torch.Tensor, parameters: Sequence[nn.Parameter]) -> tuple[torch.Tensor, float]:
        """The sum of a vector over the workers and the norm of all gradients: where an update waits.

        A gradient that no worker had is ``None`` from then on.
        """
        ...

    def free_gathered(self) -> None:
        """Forward passes without a backward pass are over."""
        ...

    def snapshot(self, tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
        """Complete copies in memory; every worker calls this, and those that do not ``keep`` get none."""
        ...

    def load(self, module: nn.Module, full: Mapping[str, torch.Tensor]) -> None:
        """Set the state of a module from complete tensors."""
        ...

    def own_moment(self, parameter: nn.Parameter, full: torch.Tensor) -> torch.Tensor:
        """What this worker holds of a parameter's complete moment."""
        ...


class Replicated:
    """Every worker holds everything; gradients are summed in buckets during the last backward pass.

    Args:
        worker: this process.
        module: everything with state.
    """

    def __init__(self, worker: Worker, module: nn.Module) -> None:
        self.worker, self._sum = worker, GradientSum(_backward_order(module))
        self._blocks = transformer_blocks(module)
        self._had = torch.zeros(0, dtype=torch.float64)  # workers that had a gradient, by parameter

    def own_passes(self, count: int) -> Iterator[OwnPass]:
        """Its own micro-batches alone."""
        return _passes(self.own_batches([], 0, count), count)

    def own_batches(self, batches: Sequence[np.ndarray], start: int, per_update: int) -> Share:
        """As :meth:`own_passes`, for the rest of an epoch."""
        return Share(batches, start, per_update, self.worker.rank, self.worker.size)

    def backward(self, loss: torch.Tensor, counts: bool, last: bool) -> None:
        """Gradients stay here until the last pass, which sends them bucket by bucket."""
        if last:
            self._sum.last_pass({p for block in self._blocks if block.spared for p in block.parameters()})
        loss.backward()

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """What the last pass has not sent."""
        self._had = self._sum.finish()

    def total(self, vector: torch.Tensor, parameters: Sequence[nn.Parameter]) -> tuple[torch.Tensor, float]:
        """Every worker holds all gradients."""
        norm = gradient_norm(parameters, vector.device).double()
        found = read(torch.cat([add_up(vector), norm[None], moved(self._had, vector.device)]))
        sums, norm, had = found.split([len(vector), 1, len(self._had)])
        for parameter, workers in zip(self._sum.order, had.tolist(), strict=True):
            if not workers:
                parameter.grad = None
        return sums, norm.item()

    def free_gathered(self) -> None:
        """Nothing was gathered."""

    def snapshot(self, tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
        """Nothing is asked of the others."""
        return {name: _in_memory(tensor) for name, tensor in tensors.items()} if keep else {}

    def load(self, module: nn.Module, full: Mapping[str, torch.Tensor]) -> None:
        """Names and shapes must agree."""
        _set_state(module, full)

    def own_moment(self, parameter: nn.Parameter, full: torch.Tensor) -> torch.Tensor:
        """All of it."""
        return full


class Sharded:
    """Each worker holds its rows of every parameter, gradient and moment, of student and teacher.

    Args:
        module: everything with state; the teacher was built like the student, not copied from it.
        worker: this process; the default process group connects the workers.
        dtype: what autocast computes in; ``None`` for fp32. On a GPU the blocks' weights are gathered in it:
            autocast would keep a copy of each through the backward pass. (Norms then multiply by rounded
            weights, in fp32; the reference computes them in half precision altogether.) Own parts, gradients,
            their sums and everything outside the blocks stay in fp32.
    """

    def __init__(self, module: nn.Module, worker: Worker, dtype: torch.dtype | None = None) -> None:
        # Imported here: a second or two of CPU time, which only a run that shares its model needs.
        from torch.distributed.fsdp import (
            FSDPModule,
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        _let_fsdp_see_outputs()
        # A block's feed-forward output is a view, which nothing here changes in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self.worker = worker
        mesh = init_device_mesh(worker.device.type, (worker.size,))
        self.blocks = transformer_blocks(module)
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        if dtype is not None and worker.device.type != "cpu":  # CPUs have no norm of mixed types
            policy = MixedPrecisionPolicy(
                param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        for block in self.blocks:
            block.in_step = True
            own = MixedPrecisionPolicy(cast_forward_inputs=False) if block.in_fp32 else policy
            fully_shard(block, mesh=mesh, mp_policy=own)
        fully_shard(module, mesh=mesh)
        if hasattr(module, "student_features"):  # entered by the probes, beside ``forward``
            register_fsdp_forward_method(module, "student_features")
        self.root: FSDPModule = cast(Any, module)
        for part in module.modules():
            if isinstance(part, FSDPModule):  # gradients are sums
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        learning = [b for b in self.blocks if any(p.requires_grad for p in b.parameters())]
        if learning:  # else the first to be gathered for the backward pass is the teacher's last block
            self.root.set_modules_to_backward_prefetch([cast(Any, learning[-1])])

    def own_passes(self, count: int) -> Iterator[OwnPass]:
        """Equally many on every worker."""
        return _passes(self.own_batches([], 0, count), count)

    def own_batches(self, batches: Sequence[np.ndarray], start: int, per_update: int) -> Share:
        """As :meth:`own_passes`, for the rest of an epoch."""
        return Share(batches, start, per_update, self.worker.rank, self.worker.size, padded=True)

    def backward(self, loss: torch.Tensor, counts: bool, last: bool) -> None:
        """Gradients are complete here until the last pass, which sums them over the workers."""
        self.root.set_requires_gradient_sync(last)
        (loss if counts else loss * 0.0).backward()

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """The last backward pass has summed them; blocks that every worker dropped stay untouched."""
        flags = torch.tensor([float(block.took_part) for block in self.blocks], dtype=torch.float64)
        for block, took_part in zip(
            self.blocks, reduce_vector(flags, self.worker.device).tolist(), strict=True
        ):
            if not took_part:
                for parameter in block.parameters():
                    parameter.grad = None
            block.took_part = False

    def total(self, vector: torch.Tensor, parameters: Sequence[nn.Parameter]) -> tuple[torch.Tensor, float]:
        """Squares of the parts' norms add up."""
        square = gradient_norm(parameters, vector.device).double().square()
        sums, square = read(add_up(torch.cat([vector, square[None]]))).split([len(vector), 1])
        return sums, square.sqrt().item()

    def free_gathered(self) -> None:
        """Give back what a forward pass has gathered."""
        self.root.reshard()

    def snapshot(self, tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
        """One tensor after the other is gathered and, where it is wanted, moved to memory."""
        kept: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            full = whole(tensor.detach())
            if keep:
                kept[name] = _in_memory(full)
        return kept

    def load(self, module: nn.Module, full: Mapping[str, torch.Tensor]) -> None:
        """Each worker takes its own rows; names and shapes must agree."""
        _set_state(module, full)

    def own_moment(self, parameter: nn.Parameter, full: torch.Tensor) -> torch.Tensor:
        """The rows of the parameter; step counts belong to all."""
        if not is_sharded(parameter) or full.shape != parameter.shape:
            return full
        part = torch.zeros_like(parameter, requires_grad=False)
        set_part(part, full)
        return part


def placement_of(module: nn.Module, worker: Worker, dtype: torch.dtype | None) -> Placement:
    """Put a module where this worker computes, as its plan says.

    Args:
        module: built on the CPU, equal on every worker.
        worker: ``sharded`` or not.
        dtype: what autocast computes in, ``None`` for fp32.
    """
    if worker.sharded:
        placement = Sharded(module, worker, dtype)
        module.to(worker.device)  # buffers of parts without parameters
        return placement
    module.to(worker.device)
    return Replicated(worker, module)


def _backward_order(module: nn.Module) -> list[nn.Parameter]:
    """What learns: the last block's parameters first, at the end those around the blocks, among which are the
    ones that a backward pass comes to last, and a head that it never comes to."""
    blocks = [p for block in transformer_blocks(module) for p in block.parameters()]
    inside = dict.fromkeys(blocks)
    around = [p for p in module.parameters() if p not in inside]
    return [p for p in (*reversed(inside), *reversed(around)) if p.requires_grad]


def _passes(share: Share, count: int) -> Iterator[OwnPass]:
    mine = share.own_indices(count)
    return (OwnPass(index % count, index < count, index == mine[-1]) for index in mine)


def _in_memory(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _set_state(module: nn.Module, full: Mapping[str, torch.Tensor]) -> None:
    """Take a module's state from complete tensors, one after the other."""
    own = module.state_dict()
    if differing := sorted(own.keys() ^ full.keys()):
        raise RuntimeError(f"the state does not fit the model: {', '.join(differing[:5])}")
    for name, tensor in own.items():
        given = full[name]
        if given.shape != tensor.shape:
            raise RuntimeError(f"the state does not fit the model: {name}")
        set_part(tensor, given)


_SEEN: set[type[Any]] = set()


def _let_fsdp_see_outputs() -> None:
    """FSDP hooks the tensors in a module's output, which it finds in dataclasses that PyTorch knows."""
    for kind in (PretrainOutput, CTCOutput, EventOutput):
        if kind not in _SEEN:
            torch.export.register_dataclass(kind)
            _SEEN.add(kind)
