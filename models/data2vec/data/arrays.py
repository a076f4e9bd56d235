"""Arrays of one shape, each with a class, in an ``.npz`` file a subset: samples of modalities of users.

B samples; the other axes are the samples' own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import DataError


class ArrayDataset:
    """``FOLDER/SUBSET.npz`` with ``x`` (samples first) and ``y`` (their classes), held in memory.

    Args:
        folder: of the files.
        subset: which.
        shape: that every sample must have.

    Raises:
        DataError: the file is missing or damaged, holds other arrays, or has values that are not finite.
    """

    order = "size"

    def __init__(self, folder: Path | str, subset: str, shape: tuple[int, ...] | None = None) -> None:
        file = Path(folder) / f"{subset}.npz"
        if not file.is_file():
            raise DataError(f"{file} does not exist; it should hold the arrays x and y")
        try:
            with np.load(file, allow_pickle=False) as arrays:
                x, y = arrays["x"].astype(np.float32), arrays["y"].astype(np.int64)
        except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
            raise DataError(f"{file} does not hold the arrays x and y: {error}") from error
        if x.ndim < 2 or y.shape != x.shape[:1] or not len(x):
            raise DataError(f"{file}: x has the shape {x.shape}, y {y.shape}; one class a sample of x")
        if shape is not None and x.shape[1:] != shape:
            raise DataError(f"{file}: x has samples of the shape {x.shape[1:]}; the model takes {shape}")
        if not np.isfinite(x).all():
            raise DataError(f"{file}: x has values that are no finite numbers")
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        self.sizes = np.full(len(x), x[0].size)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> int:
        return int(index)

    def collate(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """``id`` (B,), ``source`` (B, ...) and ``target`` (B,)."""
        return {"id": torch.tensor(rows), "source": self.x[list(rows)], "target": self.y[list(rows)]}

    def for_epoch(self, epoch: int) -> ArrayDataset:
        """The same in every epoch."""
        return self

    def fingerprint(self) -> str:
        """SHA-256 of shape and content."""
        parts = (str(tuple(self.x.shape)).encode(), self.x.numpy().tobytes(), self.y.numpy().tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()
