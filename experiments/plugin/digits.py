"""Real series that scikit-learn ships: scanned digits, 8 columns as channels over 8 lines as steps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    digits: Any = load_digits()
    x = (digits.images.transpose(0, 2, 1) / 8.0 - 1.0).astype(np.float32)
    order = np.random.default_rng(1).permutation(len(x))
    for subset, rows in (("train", order[:1400]), ("valid", order[1400:])):
        np.savez(folder / f"{subset}.npz", x=x[rows], y=digits.target[rows])
    print(f"{folder}: 1400 series to train on, {len(x) - 1400} to validate, 10 classes")
