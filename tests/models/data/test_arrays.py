"""Array samples of users: what a file may hold, and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data2vec.data.arrays import ArrayDataset
from data2vec.errors import DataError

X, Y = np.arange(24, dtype=np.float64).reshape(4, 2, 3), np.array([0, 1, 1, 2])


def test_samples_come_by_their_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=X, y=Y)
    data = ArrayDataset(tmp_path, "train")
    assert len(data) == 4 and data.sizes.tolist() == [6] * 4
    batch = data.collate([data[3], data[1]])
    assert batch["id"].tolist() == [3, 1] and batch["target"].tolist() == [2, 1]
    assert np.array_equal(batch["source"].numpy(), X[[3, 1]].astype(np.float32))


def test_the_fingerprint_is_of_shape_values_and_classes(tmp_path: Path) -> None:
    found = set()
    for name, x, y in (("a", X, Y), ("b", X + 1, Y), ("c", X, Y[::-1]), ("d", X.reshape(4, 3, 2), Y)):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
        found.add(ArrayDataset(tmp_path, name).fingerprint())
    np.savez(tmp_path / "again.npz", x=X, y=Y)
    assert len(found) == 4 and ArrayDataset(tmp_path, "again").fingerprint() in found


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X}, "does not hold the arrays x and y"),
        ({"x": X, "y": Y[:3]}, r"x has the shape \(4, 2, 3\), y \(3,\); one class a sample of x"),
        ({"x": X[:0], "y": Y[:0]}, "one class a sample"),
        ({"x": np.where(X == 5, np.nan, X), "y": Y}, "no finite numbers"),
        ({"x": np.array([{}], dtype=object), "y": Y[:1]}, "does not hold"),
    ],
    ids=["no classes", "too few classes", "empty", "NaN", "pickled"],
)
def test_what_does_not_fit_is_told(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(DataError, match=said):
        ArrayDataset(tmp_path, "train")
    with pytest.raises(DataError, match=r"valid\.npz does not exist"):
        ArrayDataset(tmp_path, "valid")


def test_samples_must_have_the_shape_that_the_model_takes(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=X, y=Y)
    data = ArrayDataset(tmp_path, "train", (2, 3))
    assert len(data) == 4 and data.for_epoch(2) is data
    with pytest.raises(DataError, match=r"samples of the shape \(2, 3\); the model takes \(3, 2\)"):
        ArrayDataset(tmp_path, "train", (3, 2))
