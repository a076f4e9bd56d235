"""What takes the tracker's place where a test calls the training loop itself."""

from __future__ import annotations

from collections.abc import Mapping


class Recorder:
    """A reporter that keeps what it is told.

    Attributes:
        points: values by name and update.
    """

    def __init__(self) -> None:
        self.points: dict[str, dict[int, float]] = {}

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.points.setdefault(name, {})[update] = value

    def flush(self) -> None: ...

    def evaluated(self, update: int, metrics: Mapping[str, float]) -> bool:
        return False

    def curve(self, name: str = "train/loss") -> list[float]:
        """Values of a metric by update."""
        return [value for _, value in sorted(self.points.get(name, {}).items())]

    @property
    def last(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: self.curve(name)[-1] for name in self.points}
