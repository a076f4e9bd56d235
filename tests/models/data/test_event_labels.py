"""Labels of audio events: class names and label lines; every mistake in one report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from data2vec.data.audio import AudioOptions
from data2vec.data.audio_events import EventDataset
from data2vec.data.event_labels import read_classes, read_event_labels
from data2vec.data.manifest import manifest_text
from data2vec.errors import DataError


def test_class_names_with_and_without_header_and_display_names(tmp_path: Path) -> None:
    path = tmp_path / "label_descriptors.csv"
    path.write_text("0,dog\n1,cat\n\n")
    assert read_classes(path) == ["dog", "cat"]
    path.write_text('index,mid,display_name\n1,/m/2,"Cat, meowing"\n0,/m/1,Dog\n')
    assert read_classes(path) == ["Dog", "Cat, meowing"]


def test_malformed_class_names_are_one_report(tmp_path: Path) -> None:
    path = tmp_path / "label_descriptors.csv"
    path.write_text("0,dog\nx,cat\n0,cow\n3,dog\n")
    with pytest.raises(DataError) as caught:
        read_classes(path)
    text = str(caught.value)
    assert all(part in text for part in ("line 2", "index 0 is listed twice", "index 1 is missing", "'dog'"))
    with pytest.raises(DataError, match="do not exist"):
        read_classes(tmp_path / "none.csv")
    path.write_text("")
    with pytest.raises(DataError, match="there are none"):
        read_classes(path)


def test_label_lines(tmp_path: Path) -> None:
    path = tmp_path / "train.lbl"
    path.write_text("0.0\t1.0\t2,0,2\n0\t1\t1\n")
    assert read_event_labels(path, 2, 3) == [(0, 2), (1,)]
    path.write_text("0.0\t1.0\t\n0\t1\t3\n1\n")
    with pytest.raises(DataError) as caught:
        read_event_labels(path, 3, 3)
    text = str(caught.value)
    assert all(part in text for part in ("line 1", "class 3, but there are 3", "line 3"))
    with pytest.raises(DataError, match="3 lines, but the manifest lists 4"):
        read_event_labels(path, 4, 3)


def test_labels_stay_with_their_clips_when_short_ones_are_left_out(tmp_path: Path) -> None:
    lengths = [1600, 400, 2400]
    for index, length in enumerate(lengths):
        sf.write(str(tmp_path / f"{index}.wav"), 0.1 * np.ones(length), 16_000)
    entries = [(f"{index}.wav", length) for index, length in enumerate(lengths)]
    (tmp_path / "train.tsv").write_text(manifest_text(str(tmp_path), entries))
    (tmp_path / "train.lbl").write_text("0\t1\t0\n0\t1\t1\n0\t1\t1,2\n")
    options = AudioOptions(pad=True, min_sample_size=800)
    dataset = EventDataset(tmp_path, "train", options, "lbl", ["a", "b", "c"])
    assert [dataset.events(i) for i in range(2)] == [(0,), (1, 2)]
    batch = dataset.collate([dataset[0], dataset[1]])
    assert batch["label"].tolist() == [[1, 0, 0], [0, 1, 1]] and batch["source"].shape == (2, 2400)
    assert batch["padding_mask"][0].sum() == 800
    (tmp_path / "train.lbl").write_text("0\t1\t0\n0\t1\t1\n0\t1\t1,0\n")
    other = EventDataset(tmp_path, "train", options, "lbl", ["a", "b", "c"])
    assert other.fingerprint() != dataset.fingerprint(), "labels are part of the data"
    renamed = EventDataset(tmp_path, "train", options, "lbl", ["a", "b", "d"])
    assert renamed.fingerprint() != other.fingerprint(), "and so is what they mean"
