"""Figures about images from tables made by hand: by class, in probes, in Parquet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from d2v_platform.inference import images
from d2v_platform.inference.image_probes import probe
from d2v_platform.inference.image_rows import ImageRows, write_embeddings
from d2v_platform.inference.images import _show_classes, class_table
from data2vec.errors import DataError


def test_recall_precision_and_confusions_by_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    confusion = np.array([[3, 1, 0], [0, 6, 4], [0, 0, 0]])  # rows are what the images show
    table = class_table(["ape", "bee", "cow"], confusion)
    assert table["images"].tolist() == [4, 10, 0]
    assert table["recall_pct"].tolist() == pytest.approx([75.0, 60.0, 0.0])
    assert table["precision_pct"].tolist() == pytest.approx([100.0, 100 * 6 / 7, 0.0])
    assert table["most_confused_with"].tolist() == ["bee", "cow", ""]
    table.to_csv(tmp_path / "per_class.csv", index=False)
    _show_classes(tmp_path, "val", Console(width=120))
    shown = capsys.readouterr().out
    first = [line.split()[1] for line in shown.splitlines() if line.startswith("│")]
    assert first == ["bee", "ape", "cow"], "the classes with the most images first"
    assert "85.7" in shown and "more classes" not in shown


def test_rows_of_the_confusions_are_what_the_images_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.array([[0.0, 1.0, 2.0], [0.0, 9.0, 1.0], [1.0, 3.0, 0.0]])
    found = ImageRows(["1", "2", "3"], np.array([0, 0, 1]), logits, ["bee", "ape"], [])
    monkeypatch.setattr(images, "run_model", lambda *args, **options: found)
    model: Any = SimpleNamespace(classes=["ape", "bee", "cow"], classifier=True)
    source: Any = SimpleNamespace(classes=["bee", "ape"])
    summary = images.classify_folder(model, source, tmp_path)
    assert summary["top1"] == pytest.approx(100 / 3)
    table = pd.read_csv(tmp_path / "confusion.csv", index_col=0)
    assert list(table.index) == ["ape", "bee", "cow"] == list(table.columns)
    assert table.to_numpy().tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0]]
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    assert predictions["label"].tolist() == ["bee", "bee", "ape"]
    assert predictions["predicted"].tolist() == ["cow", "bee", "bee"]


@pytest.fixture
def rows() -> ImageRows:
    """Class 0 twice at one place, class 1 three times at the opposite one, turned further and further."""
    angles = np.array([0.0, 0.1, 3.0, 2.9, 2.8])
    values = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return ImageRows([f"{i}.png" for i in range(5)], np.array([0, 0, 1, 1, 1]), values, ["ape", "bee"], [])


def test_a_probe_asks_as_many_neighbours_as_it_was_told(rows: ImageRows) -> None:
    queries = replace(rows, names=["q.png"], labels=np.array([0]), values=rows.values[:1])
    assert probe(rows, queries, 1) == {"knn": 100.0, "linear_probe": 100.0}
    angles = np.array([0.0, 0.0, 0.01, 0.01, 0.01])  # the nearest two are of class 0, and hardly nearer
    near = replace(rows, values=np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    assert [probe(near, queries, k)["knn"] for k in (2, 5)] == [100.0, 0.0]
    for bank, asked in (
        (replace(rows, classes=[]), replace(queries, classes=[])),
        (rows, replace(queries, classes=["ape"])),
    ):
        with pytest.raises(DataError, match="class folders, the same in both"):
            probe(bank, asked, 1)


def test_embeddings_carry_the_names_of_their_classes(rows: ImageRows, tmp_path: Path) -> None:
    write_embeddings(replace(rows, labels=np.array([0, -1, 1, 1, 1])), tmp_path / "new" / "e.parquet")
    table = pd.read_parquet(tmp_path / "new" / "e.parquet")
    assert table["label"].fillna("?").tolist() == ["ape", "?", "bee", "bee", "bee"]
    assert np.array_equal(np.stack(list(table["embedding"])), rows.values)
