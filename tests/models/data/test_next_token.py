"""Data of language models: every token is predicted once, from the one before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data2vec.data.dictionary import Dictionary
from data2vec.data.indexed import IndexedTokensWriter
from data2vec.data.next_token import NextTokenDataset
from data2vec.errors import ConfigError, DataError

LINES = [[5, 6, 7, 2], [8, 2], [9, 10, 11, 12, 13, 2], [4, 2]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Dictionary([f"w{i}" for i in range(12)], [1] * 12).save(tmp_path / "dict.txt")
    for split in ("train", "valid"):
        with IndexedTokensWriter(tmp_path / split, 16) as writer:
            for line in LINES:
                writer.add_lines(np.asarray(line), np.asarray([len(line)]))
    return tmp_path


def test_blocks_of_the_stream_read_one_token_back(folder: Path) -> None:
    data = NextTokenDataset(folder, "train", tokens_per_sample=5)
    samples = [data[i] for i in range(len(data))]
    targets = np.concatenate([s["target"].numpy() for s in samples])
    sources = np.concatenate([s["source"].numpy() for s in samples])
    stream = np.concatenate(LINES)
    assert targets.tolist() == stream.tolist(), "every token is predicted once, in order"
    assert sources.tolist() == [2, *stream[:-1]], "from the one before, </s> at the very beginning"
    assert data.sizes.tolist() == [5, 5, 4] and len(data.dictionary) == 16
    batch = data.collate([samples[0], samples[2]])
    assert batch["target"].shape == (2, 5) and batch["target"][1, -1] == Dictionary.pad


def test_a_sentence_a_block(folder: Path) -> None:
    data = NextTokenDataset(folder, "valid", tokens_per_sample=6, sample_break_mode="eos")
    assert [data[i]["target"].tolist() for i in range(len(data))] == LINES
    assert all(int(data[i]["source"][0]) == 2 for i in range(len(data)))


def test_long_lines_are_cut_left_out_or_refused(folder: Path) -> None:
    short = {"tokens_per_sample": 4, "sample_break_mode": "eos"}
    assert len(NextTokenDataset(folder, "train", **short)) == 3
    with pytest.raises(DataError, match="1 of 4 samples are longer than 4"):
        NextTokenDataset(folder, "valid", **short)
    cut = NextTokenDataset(folder, "valid", shorten_method="truncate", **short)
    assert cut[2]["target"].tolist() == [9, 10, 11, 12]
    crops = NextTokenDataset(folder, "train", shorten_method="random_crop", **short)
    assert crops.for_epoch(1) is crops and crops.for_epoch(2) is not crops


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokens_per_sample"):
        NextTokenDataset(folder, "train", tokens_per_sample=1)
    with pytest.raises(DataError, match="no split 'test'"):
        NextTokenDataset(folder, "test")
    first = NextTokenDataset(folder, "train").fingerprint()
    (folder / "dict.txt").write_text("a 1\nb 1\n")
    with pytest.raises(DataError, match="do not belong together"):
        NextTokenDataset(folder, "train")
    assert first != ""
