"""The mmap format: bytes as the reference writes them, round trips, damage."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.data import indexed
from data2vec.data.indexed import (
    HEADER_BYTES,
    CombinedTokens,
    IndexedTokens,
    IndexedTokensWriter,
    ShortenedLines,
    TokenLines,
    open_tokens,
    token_dtype,
)
from data2vec.errors import DataError

LINES = st.lists(st.lists(st.integers(0, 50264), max_size=7), max_size=12)


def write(prefix: Path, lines: list[list[int]], vocab: int = 50265) -> None:
    with IndexedTokensWriter(prefix, vocab) as writer:
        for line in lines:
            writer.add_line(line)


def assert_same(tokens: TokenLines, lines: list[list[int]]) -> None:
    flat = [t for line in lines for t in line]
    assert len(tokens) == len(lines)
    assert tokens.num_tokens == len(flat)
    assert np.asarray(tokens.sizes).tolist() == [len(line) for line in lines]
    for i, line in enumerate(lines):
        assert tokens[i].dtype == np.int64
        assert tokens[i].tolist() == line
    for start in range(0, len(flat) + 1, 3):
        for stop in (start, start + 1, start + 5, len(flat)):
            assert tokens.stream(start, stop).tolist() == flat[start:stop]


def test_the_bytes_are_the_references(tmp_path: Path) -> None:
    write(tmp_path / "train", [[5, 6, 2], [2]])
    assert (tmp_path / "train.bin").read_bytes() == struct.pack("<4H", 5, 6, 2, 2)
    assert (tmp_path / "train.idx").read_bytes() == (
        b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, 8, 2) + struct.pack("<2i", 3, 1) + struct.pack("<2q", 0, 6)
    )


def test_types_follow_the_vocabulary() -> None:
    assert token_dtype(65499) == np.uint16
    assert token_dtype(65500) == np.uint32
    assert token_dtype(2**32) == np.int64


@settings(max_examples=40, deadline=None)
@given(LINES, st.sampled_from([50265, 70000, 2**33]))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, lines: list[list[int]], vocab: int) -> None:
    prefix = tmp_path_factory.mktemp("idx") / "train"
    write(prefix, lines, vocab)
    tokens = IndexedTokens(prefix)
    assert tokens.dtype == token_dtype(vocab)
    assert_same(tokens, lines)
    assert_same(pickle.loads(pickle.dumps(tokens)), lines)  # noqa: S301


@settings(max_examples=40, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=4))
def test_parts_read_as_one(tmp_path_factory: pytest.TempPathFactory, parts: list[list[list[int]]]) -> None:
    folder = tmp_path_factory.mktemp("parts")
    for number, lines in enumerate(parts):
        write(folder / f"train{number or ''}", lines)
    assert_same(CombinedTokens([IndexedTokens(folder / f"train{n or ''}") for n in range(len(parts))]),
                [line for lines in parts for line in lines])  # fmt: skip
    assert_same(open_tokens(folder, "train", combine=True), [line for lines in parts for line in lines])
    assert_same(open_tokens(folder, "train"), parts[0])


@settings(max_examples=40, deadline=None)
@given(LINES, st.integers(1, 5))
def test_shortened_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[list[int]], length: int
) -> None:
    prefix = tmp_path_factory.mktemp("short") / "train"
    write(prefix, lines)
    tokens = IndexedTokens(prefix)
    assert_same(ShortenedLines(tokens, length), [line[:length] for line in lines])
    starts = np.asarray([max(len(line) - length, 0) for line in lines])
    assert_same(ShortenedLines(tokens, length, starts), [line[-length:] for line in lines])


def test_an_exception_while_writing_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "train", [[7, 2]])

    def interrupted() -> None:
        with IndexedTokensWriter(tmp_path / "train", 100) as writer:
            writer.add_line([9, 9, 2])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.bin", "train.idx"]
    assert IndexedTokens(tmp_path / "train")[0].tolist() == [7, 2]


@pytest.mark.parametrize("name", ["train.bin", "train.idx"])
@pytest.mark.parametrize("change", [-1, 1, -8])
def test_truncated_and_longer_files_are_named(tmp_path: Path, name: str, change: int) -> None:
    write(tmp_path / "train", [[5, 6, 2], [2], [8, 9, 2]])
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:change] if change < 0 else content + b"\0")
    with pytest.raises(DataError, match=name):
        IndexedTokens(tmp_path / "train")


def test_other_formats_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train", [[5, 2]])
    good = (tmp_path / "train.idx").read_bytes()
    for content, message in (
        (b"TNTIDX\0\0" + good[8:], "older, unmapped"),
        (good[:20], "truncated"),
        (good[:9] + struct.pack("<Q", 2) + good[17:], "version 2"),
        (good[:17] + b"\x07" + good[18:], "dtype code 7"),
        (good[:17] + b"\x63" + good[18:], "dtype code 99"),
    ):
        (tmp_path / "train.idx").write_bytes(content)
        with pytest.raises(DataError, match=message):
            IndexedTokens(tmp_path / "train")


def test_offsets_that_contradict_the_sizes_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train", [[5, 2], [6, 2]])
    content = bytearray((tmp_path / "train.idx").read_bytes())
    content[-8:] = struct.pack("<q", 2)
    (tmp_path / "train.idx").write_bytes(bytes(content))
    with pytest.raises(DataError, match="contradict"):
        IndexedTokens(tmp_path / "train")


def test_every_byte_of_sizes_and_offsets_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "_CHECKED_AT_ONCE", 3)
    write(tmp_path / "train", [[5, 6, 2], [], [2], [], [7, 8, 9, 2], [1], []])
    assert [len(line) for line in IndexedTokens(tmp_path / "train")] == [3, 0, 1, 0, 4, 1, 0]
    good = (tmp_path / "train.idx").read_bytes()
    for at in range(HEADER_BYTES, len(good)):
        for bits in (0x01, 0x80):
            (tmp_path / "train.idx").write_bytes(good[:at] + bytes([good[at] ^ bits]) + good[at + 1 :])
            with pytest.raises(DataError, match=r"train\.(idx|bin)"):
                IndexedTokens(tmp_path / "train")


def test_a_missing_split_lists_those_that_exist(tmp_path: Path) -> None:
    write(tmp_path / "valid", [[5, 2]])
    with pytest.raises(DataError, match=r"no split 'train'.*it has valid"):
        open_tokens(tmp_path, "train")
    with pytest.raises(DataError, match="does not exist"):
        open_tokens(tmp_path / "nowhere", "train")
    (tmp_path / "valid.bin").unlink()
    with pytest.raises(DataError, match=r"missing data file .*valid\.bin"):
        open_tokens(tmp_path, "valid")
