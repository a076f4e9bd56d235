"""Block modes against a literal reading of the specification, and what they must preserve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.data.token_blocks import BreakMode, TokenBlocks

EOS = 2
#: lines as the binarizer writes them: some tokens and eos; an empty line is eos alone
LINES = st.lists(st.lists(st.integers(4, 99), max_size=9).map(lambda line: [*line, EOS]), max_size=25)


class Lines:
    """Lines in memory."""

    def __init__(self, lines: list[list[int]]) -> None:
        self.lines = lines
        self.flat = np.asarray([t for line in lines for t in line], dtype=np.int64)
        self.sizes = np.asarray([len(line) for line in lines], dtype=np.int32)
        self.num_tokens = len(self.flat)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(self.lines[index], dtype=np.int64)

    def stream(self, start: int, stop: int) -> np.ndarray:
        return self.flat[start:stop]


def blocks(lines: list[list[int]], size: int, mode: BreakMode) -> list[list[int]]:
    made = TokenBlocks(Lines(lines), size, mode)
    found = [made[i].tolist() for i in range(len(made))]
    assert [len(block) for block in found] == made.sizes.tolist()
    return found


def packed(lines: list[list[int]], size: int, by_document: bool) -> list[list[int]]:
    """The rule, line by line."""
    out: list[list[int]] = []
    current: list[int] = []

    def close() -> None:
        nonlocal current
        if len(current) > (1 if by_document else 0):
            out.append(current)
        current = []

    for line in lines:
        if by_document and len(line) == 1:
            close()
            continue
        if current and len(current) + len(line) > size:
            close()
        current = current + line
    close()
    return out


@settings(max_examples=80, deadline=None)
@given(LINES, st.integers(1, 20))
def test_every_mode_follows_its_rule(lines: list[list[int]], size: int) -> None:
    flat = [t for line in lines for t in line]
    assert blocks(lines, size, "none") == [flat[i : i + size] for i in range(0, len(flat), size)]
    assert blocks(lines, size, "eos") == lines
    assert blocks(lines, size, "complete") == packed(lines, size, False)
    assert blocks(lines, size, "complete_doc") == packed(lines, size, True)


@settings(max_examples=60, deadline=None)
@given(LINES, st.integers(1, 20), st.sampled_from(["none", "complete", "eos", "complete_doc"]))
def test_tokens_are_preserved_and_only_separators_dropped(
    lines: list[list[int]], size: int, mode: BreakMode
) -> None:
    found = [t for block in blocks(lines, size, mode) for t in block]
    kept = [line for line in lines if mode != "complete_doc" or len(line) > 1]
    assert found == [t for line in kept for t in line]


def test_documents_end_blocks() -> None:
    lines = [[5, 6, EOS], [7, EOS], [EOS], [EOS], [8, EOS], [9, 9, 9, 9, 9, 9, EOS], [EOS]]
    assert blocks(lines, 6, "complete_doc") == [[5, 6, EOS, 7, EOS], [8, EOS], [9, 9, 9, 9, 9, 9, EOS]]


def test_mode_none_stores_no_block_starts() -> None:
    made = TokenBlocks(Lines([[4] * 1000]), 7, "none")
    assert made._starts is None


@pytest.mark.parametrize("index", [-1, 2])
def test_a_block_outside_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError):
        TokenBlocks(Lines([[4, 5, EOS]]), 2)[index]
