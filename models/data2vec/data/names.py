"""Many file names in little memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np


class Names:
    """Many strings in one buffer."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._buffer = b"".join(encoded)
        self._ends = np.cumsum([len(e) for e in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._buffer[start : int(self._ends[index])])
