"""Pretraining data: samples, padding, several folders, long samples, fingerprints, wrong folders."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from data2vec.data.dictionary import Dictionary
from data2vec.data.indexed import IndexedTokensWriter
from data2vec.data.masked_lm import TextBlocksDataset
from data2vec.errors import ConfigError, DataError

LINES = [[10, 11, 12, 2], [2], [13, 2], [14, 15, 16, 17, 18, 2]]


def folder_with(path: Path, lines: list[list[int]] = LINES, split: str = "train", symbols: int = 40) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    words = Dictionary([str(i) for i in range(symbols)], [1] * symbols)
    words.save(path / "dict.txt")
    with IndexedTokensWriter(path / split, len(words)) as writer:
        for line in lines:
            writer.add_line(line)
    return path


def sources(data: TextBlocksDataset) -> list[list[int]]:
    return [data[i]["source"].tolist() for i in range(len(data))]


def test_blocks_begin_with_bos_and_are_padded_on_the_right(tmp_path: Path) -> None:
    data = TextBlocksDataset(folder_with(tmp_path), "train", tokens_per_sample=6)
    assert sources(data) == [[0, 10, 11, 12, 2, 2], [0, 13, 2, 14, 15, 16], [0, 17, 18, 2]]
    assert data.sizes.tolist() == [6, 6, 4]
    batch = data.collate([data[1], data[2]])
    assert batch["id"].tolist() == [1, 2]
    assert batch["source"].tolist() == [[0, 13, 2, 14, 15, 16], [0, 17, 18, 2, 1, 1]]
    assert batch["padding_mask"].tolist() == [[False] * 6, [False] * 4 + [True] * 2]
    assert batch["source"].dtype == torch.int64
    assert len(data.dictionary) == 45  # with <mask>


@pytest.mark.parametrize("at", [0, -1])
def test_ids_of_another_dictionary_are_found_at_both_ends(tmp_path: Path, at: int) -> None:
    line = [10] * 70_000
    line[at] = 45  # 40 symbols, 4 specials and <mask>
    with pytest.raises(DataError, match="45"):
        TextBlocksDataset(folder_with(tmp_path, [line]), "train")


def test_more_training_files_are_read_with_the_first(tmp_path: Path) -> None:
    folder_with(tmp_path)
    folder_with(tmp_path, [[19, 2]], "train1")
    assert sources(TextBlocksDataset(tmp_path, "train", sample_break_mode="eos"))[-1] == [0, 19, 2]
    folder_with(tmp_path, [[9, 2]], "valid")
    folder_with(tmp_path, [[8, 2]], "valid1")
    assert sources(TextBlocksDataset(tmp_path, "valid", sample_break_mode="eos")) == [[0, 9, 2]]


def test_too_long_blocks_are_left_out_of_training_and_refused_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder_with(tmp_path)
    folder_with(tmp_path, split="valid")
    with caplog.at_level(logging.WARNING):
        data = TextBlocksDataset(tmp_path, "train", tokens_per_sample=6, sample_break_mode="complete")
    assert "1 of 3 samples are longer than 6 tokens (longest 7; the first is number 2)" in caplog.text
    assert data.num_dropped == 1
    assert all(len(s) <= 6 for s in sources(data))
    with pytest.raises(DataError, match="skip_invalid_size_inputs_valid_test"):
        TextBlocksDataset(tmp_path, "valid", tokens_per_sample=6, sample_break_mode="complete")
    kept = TextBlocksDataset(
        tmp_path, "valid", tokens_per_sample=6, sample_break_mode="complete", skip_invalid=True
    )
    assert kept.num_dropped == 1


def test_ids_stay_those_of_the_file_when_samples_are_left_out(tmp_path: Path) -> None:
    folder_with(tmp_path, [[10, 11, 12, 13, 14, 2], [15, 2], [16, 2]])
    data = TextBlocksDataset(tmp_path, "train", tokens_per_sample=4, sample_break_mode="eos")
    assert [data[i]["id"] for i in range(len(data))] == [1, 2]


def test_max_tokens_limits_samples_too(tmp_path: Path) -> None:
    data = TextBlocksDataset(folder_with(tmp_path), "train", tokens_per_sample=6, max_tokens=5)
    assert data.sizes.tolist() == [4]


def test_lines_are_shortened_before_blocks_are_built(tmp_path: Path) -> None:
    folder_with(tmp_path, [list(range(4, 24)), [2]])
    data = TextBlocksDataset(
        tmp_path, "train", tokens_per_sample=5, sample_break_mode="complete", shorten_method="truncate"
    )
    assert data.num_dropped == 1  # the shortened line still is one token too long beside <s>
    other = TextBlocksDataset(tmp_path, "train", tokens_per_sample=5, shorten_method="truncate")
    assert sources(other) == [[0, 4, 5, 6, 7], [0, 8, 2]]
    unlisted = TextBlocksDataset(
        tmp_path, "train", tokens_per_sample=5, shorten_method="truncate", shorten_data_split_list="valid"
    )
    assert len(unlisted) == 6


def test_random_crops_depend_on_seed_and_epoch_and_reach_the_last_place(tmp_path: Path) -> None:
    folder_with(tmp_path, [list(range(4, 12))] * 40)
    options = {"tokens_per_sample": 6, "sample_break_mode": "none", "shorten_method": "random_crop"}
    data = TextBlocksDataset(tmp_path, "train", **options)  # pyright: ignore[reportArgumentType]
    again = TextBlocksDataset(tmp_path, "train", **options)  # pyright: ignore[reportArgumentType]
    assert sources(data) == sources(again)
    assert sources(data.for_epoch(2)) != sources(data)
    assert sources(data.for_epoch(2)) == sources(again.for_epoch(2))
    firsts = {
        t[0] for t in torch.tensor([t for s in sources(data) for t in s[1:]])[: 40 * 6].view(-1, 6).tolist()
    }
    assert firsts == {4, 5, 6}


def test_epochs_walk_through_the_folders(tmp_path: Path) -> None:
    a = folder_with(tmp_path / "a", [[10, 2]])
    b = folder_with(tmp_path / "b", [[11, 2]])
    data = TextBlocksDataset(f"{a}:{b}", "train")
    assert sources(data) == [[0, 10, 2]]
    assert sources(data.for_epoch(2)) == [[0, 11, 2]]
    assert sources(data.for_epoch(3)) == [[0, 10, 2]]
    assert data.for_epoch(1) is data
    alone = TextBlocksDataset(a, "train")
    assert alone.for_epoch(7) is alone
    assert data.fingerprint() == data.for_epoch(2).fingerprint() != alone.fingerprint()


def test_folders_with_different_dictionaries_are_refused(tmp_path: Path) -> None:
    a, b = folder_with(tmp_path / "a"), folder_with(tmp_path / "b", symbols=41)
    with pytest.raises(DataError, match="another dictionary"):
        TextBlocksDataset(f"{a}:{b}", "train")
    (b / "dict.txt").unlink()  # the first folder's dictionary serves
    assert len(TextBlocksDataset(f"{a}:{b}", "train")) == 1


def test_the_fingerprint_is_of_content_not_of_place(tmp_path: Path) -> None:
    first = TextBlocksDataset(folder_with(tmp_path / "a"), "train").fingerprint()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert TextBlocksDataset(tmp_path / "b", "train").fingerprint() == first
    content = bytearray((tmp_path / "b" / "train.bin").read_bytes())
    content[0] += 1
    (tmp_path / "b" / "train.bin").write_bytes(bytes(content))
    assert TextBlocksDataset(tmp_path / "b", "train").fingerprint() != first


def test_a_swapped_dictionary_is_refused(tmp_path: Path) -> None:
    folder_with(tmp_path)
    words = Dictionary.load(tmp_path / "dict.txt")
    (tmp_path / "card.json").write_text(json.dumps({"dictionary": words.digest()}), encoding="utf-8")
    assert len(TextBlocksDataset(tmp_path, "train")) == 1
    Dictionary([*reversed(words.symbols[4:])], [1] * 40).save(tmp_path / "dict.txt")
    with pytest.raises(DataError, match="is not the dictionary this data was prepared"):
        TextBlocksDataset(tmp_path, "train")


def test_tokens_beyond_the_dictionary_are_refused(tmp_path: Path) -> None:
    folder_with(tmp_path, [[10, 70, 2]])
    with pytest.raises(DataError, match=r"token 70, but its dict\.txt gives 45 ids"):
        TextBlocksDataset(tmp_path, "train")


def test_loader_workers_get_a_copy(tmp_path: Path) -> None:
    data = TextBlocksDataset(folder_with(tmp_path), "train", tokens_per_sample=6)
    assert sources(pickle.loads(pickle.dumps(data))) == sources(data)  # noqa: S301


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "task.data is empty"),
        ("/nowhere/a:/nowhere/b", r"/nowhere/a: no such folder\n  /nowhere/b: no such folder"),
        ("s3://bucket/data", "s3://bucket/data: remote data cannot be memory-mapped"),
    ],
)
def test_folders_that_cannot_be_used(data: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TextBlocksDataset(data, "train")


def test_impossible_options_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        TextBlocksDataset(
            tmp_path,
            "train",
            tokens_per_sample=1,
            sample_break_mode="doc",  # pyright: ignore[reportArgumentType]
            shorten_method="cut",  # pyright: ignore[reportArgumentType]
            epoch=0,
        )
    assert len(error.value.problems) == 4
