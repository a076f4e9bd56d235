"""The clones of a micro-batch, computed some at a time: the same sums with fewer activations in memory.

::

    for chunk in clone_chunks(clones=16, size=4):
        model(source, update=u, chunk=chunk).loss.backward()

Local features, masks and the teacher's targets are computed with the first chunk and kept for the others. The
front end's backward pass runs once, with the last chunk: until then the gradient of its output is added up.

B samples, M clones, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .masking import MaskSet


class SharedByClones:
    """What the first chunk leaves for the others.

    No dataclass: FSDP would look for tensors in it and put others in their place.

    Attributes:
        local_BTD: local features, with the graph of the front end.
        leaf_BTD: the same values, where gradients of all chunks but the last are added up.
        masks: of all clones.
        targets_BTD: the teacher's.
    """

    def __init__(self) -> None:
        self.local_BTD: torch.Tensor | None = None
        self.leaf_BTD: torch.Tensor | None = None
        self.masks: MaskSet | None = None
        self.targets_BTD: torch.Tensor | None = None


class CloneChunk:
    """Some clones of every sample.

    Args:
        number: of the chunk, from 0.
        clones: which ones.
        of: M.
        shared: what the chunks of this micro-batch share.
    """

    def __init__(self, number: int, clones: range, of: int, shared: SharedByClones) -> None:
        self.number, self.clones, self.of, self.shared = number, clones, of, shared

    @property
    def first(self) -> bool:
        """It computes what the others share."""
        return self.number == 0

    @property
    def last(self) -> bool:
        """Its backward pass goes on into the front end."""
        return self.clones.stop == self.of

    def rows(self, samples: int, device: torch.device) -> torch.Tensor:
        """Its rows among the B * M of the micro-batch."""
        start_B1 = torch.arange(samples, device=device)[:, None] * self.of
        return (start_B1 + torch.arange(self.clones.start, self.clones.stop, device=device)).flatten()

    def local_features(self) -> torch.Tensor:
        """The shared local features, (B, T, D), so that their gradient reaches the front end once."""
        shared = self.shared
        assert shared.local_BTD is not None, "the first chunk comes first"
        if not shared.local_BTD.requires_grad or (self.first and self.last):
            return shared.local_BTD
        if shared.leaf_BTD is None:
            shared.leaf_BTD = shared.local_BTD.detach().requires_grad_()
        leaf_BTD = shared.leaf_BTD
        if not self.last:
            return leaf_BTD
        local_BTD = shared.local_BTD.view_as(shared.local_BTD)
        local_BTD.register_hook(lambda grad: grad if leaf_BTD.grad is None else grad + leaf_BTD.grad)
        return local_BTD


def clone_chunks(clones: int, size: int) -> Iterator[CloneChunk]:
    """Chunks of ``size`` clones, the last one perhaps smaller, for one micro-batch."""
    shared = SharedByClones()
    for number, start in enumerate(range(0, clones, size)):
        yield CloneChunk(number, range(start, min(start + size, clones)), clones, shared)
