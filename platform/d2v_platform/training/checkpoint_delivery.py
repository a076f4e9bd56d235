"""Rank 0 reads and verifies a checkpoint, and all workers have it.

The tensors go from rank 0 to the others one by one, as the state takes them up: no other worker opens a file,
or holds more of the checkpoint than its own state and one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from ..tasks.reduction import object_of_first, rank_and_size, tensor_of_first
from .checkpoint import Checkpoint


def delivered(read: Checkpoint | None, device: torch.device) -> Checkpoint | None:
    """What rank 0 has read, on every worker; ``None`` if it could not. All workers call this.

    All must take the same tensors in the same order: taking one waits for rank 0.

    Args:
        read: on rank 0; the others have nothing.
        device: where the workers communicate.
    """
    if rank_and_size()[1] == 1:
        return read
    kinds = read and {
        file: {name: (tensor.shape, tensor.dtype) for name, tensor in group.items()}
        for file, group in read.tensors.items()
    }
    told = object_of_first(read and (read.update, kinds, read.state, read.folder))
    if told is None:
        return None
    update, kinds, state, folder = told
    tensors = {file: _Tensors(kinds[file], read and read.tensors[file], device) for file in kinds}
    return Checkpoint(update, tensors, state, folder)


class _Tensors(Mapping[str, torch.Tensor]):
    """A file's tensors, each delivered when it is asked for."""

    def __init__(
        self,
        kinds: Mapping[str, tuple[torch.Size, torch.dtype]],
        own: Mapping[str, torch.Tensor] | None,
        device: torch.device,
    ) -> None:
        self._kinds, self._own, self._device = kinds, own, device

    def __getitem__(self, name: str) -> torch.Tensor:
        shape, dtype = self._kinds[name]
        if self._own is None:
            return tensor_of_first(torch.empty(shape, dtype=dtype, device=self._device))
        return tensor_of_first(self._own[name].to(self._device).contiguous())

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)
