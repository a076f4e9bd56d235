"""What micro-batches report, added up over an update, over workers and over a logging interval.

Everything here is a sum, so that figures do not depend on how the micro-batches were dealt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from data2vec.placing import moved
from data2vec.pretraining import Moments


@dataclass(frozen=True)
class Layout:
    """Names and widths of the sums, the same on every worker, also on one without a micro-batch."""

    scalars: tuple[str, ...]  # names of scalar sums
    moments: Mapping[str, int] = field(default_factory=dict)  # name and number of channels of vector moments


class Sums:
    """Sums in the order of a layout, kept in one float64 vector.

    What a GPU computes is added up there until somebody asks for it.
    """

    def __init__(self, layout: Layout, vector: torch.Tensor | None = None) -> None:
        self.layout = layout
        size = len(layout.scalars) + sum(1 + 2 * dim for dim in layout.moments.values())
        self.vector = torch.zeros(size, dtype=torch.float64) if vector is None else vector
        self._elsewhere: torch.Tensor | None = None

    def add(
        self, scalars: Mapping[str, float | torch.Tensor], moments: Mapping[str, Moments] | None = None
    ) -> None:
        """Take in one micro-batch; names that it does not report add nothing."""
        for index, name in enumerate(self.layout.scalars):
            value = scalars.get(name, 0.0)
            place = self._beside(value) if isinstance(value, torch.Tensor) else self.vector
            place[index] += value
        offset = len(self.layout.scalars)
        for name, dim in self.layout.moments.items():
            if moments and name in moments:
                part = moments[name]
                self.vector[offset] += part.count
                place = self._beside(part.total_D)
                place[offset + 1 : offset + 1 + dim] += part.total_D
                place[offset + 1 + dim : offset + 1 + 2 * dim] += part.square_D
            offset += 1 + 2 * dim

    def on(self, device: torch.device) -> torch.Tensor:
        """The vector on the device whose numbers were added; nothing waits for it."""
        here = moved(self.vector, device)
        return here if self._elsewhere is None else here + self._elsewhere

    def _beside(self, value: torch.Tensor) -> torch.Tensor:
        """The vector that a device adds to."""
        if value.device.type == "cpu":
            return self.vector
        if self._elsewhere is None:
            self._elsewhere = torch.zeros_like(self.vector, device=value.device)
        return self._elsewhere

    def merge(self, other: Sums) -> None:
        """Add the sums of another update."""
        self.vector += other.vector

    def __getitem__(self, name: str) -> float:
        """A scalar sum."""
        return float(self.vector[self.layout.scalars.index(name)])

    def deviation(self, name: str) -> float:
        """Mean per-channel standard deviation of a vector moment."""
        offset = len(self.layout.scalars)
        for key, dim in self.layout.moments.items():
            if key == name:
                start = offset + 1
                total, square = self.vector[start : start + dim], self.vector[start + dim : start + 2 * dim]
                return Moments(int(self.vector[offset]), total, square).deviation()
            offset += 1 + 2 * dim
        raise KeyError(name)
