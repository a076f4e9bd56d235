"""Lines of tokens into the blocks that pretraining reads, in the reference's four modes.

==============  ======================================================================================
mode            rule
==============  ======================================================================================
none            everything end to end, cut every ``block_size`` tokens; the last block is shorter
complete        whole lines as long as their sum fits; a longer line is a block of its own
complete_doc    like complete, but an empty line (its eos alone) ends the block and is dropped; blocks of
                length 1 or less are dropped
eos             one line a block
==============  ======================================================================================

In every mode a block is a contiguous range of the token stream, so a block is two numbers, and in mode
``none`` not even those are stored.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from .indexed import TokenLines

BreakMode = Literal["none", "complete", "complete_doc", "eos"]
SEPARATOR_SIZE = 1  # an empty line is its eos


class TokenBlocks:
    """Blocks over ``lines``.

    Args:
        lines: the encoded lines, each ending in eos.
        block_size: most tokens of a block (``tokens_per_sample`` - 1, as ``<s>`` is put before it
        afterwards).
        break_mode: see the module's table.
    """

    def __init__(self, lines: TokenLines, block_size: int, break_mode: BreakMode = "none") -> None:
        assert block_size > 0
        self._lines, self._block = lines, block_size
        self._starts: np.ndarray | None = None
        if break_mode == "none":
            full, rest = divmod(lines.num_tokens, block_size)
            self.sizes = np.full(full + (rest > 0), block_size, dtype=np.int32)
            if rest:
                self.sizes[-1] = rest
            return
        sizes = np.asarray(lines.sizes)
        ends = np.cumsum(sizes, dtype=np.int64)
        if break_mode == "eos":
            self._starts, self.sizes = ends - sizes, sizes.astype(np.int32)
            return
        self._starts, self.sizes = _pack(sizes, ends, block_size, by_document=break_mode == "complete_doc")

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> np.ndarray:
        """Block ``index``, int64."""
        start, size = self.span(index)
        return self._lines.stream(start, start + size)

    def span(self, index: int) -> tuple[int, int]:
        """Where block ``index`` starts in the stream of tokens, and its size."""
        if not 0 <= index < len(self.sizes):
            raise IndexError(index)
        start = index * self._block if self._starts is None else int(self._starts[index])
        return start, int(self.sizes[index])


def _pack(
    sizes: np.ndarray, ends: np.ndarray, block: int, by_document: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy packing of whole lines: token start and size of each block."""
    full = sizes > 0  # a line without tokens belongs to no block
    sizes, ends = sizes[full], ends[full]
    starts = ends - sizes
    n = len(sizes)
    # For every line at once: where a block that began there would have to stop (exclusive line number).
    following = np.maximum(np.searchsorted(ends, starts + block, side="right"), np.arange(1, n + 1))
    if by_document:
        separators = np.flatnonzero(sizes == SEPARATOR_SIZE)
        place = np.searchsorted(separators, np.arange(n), side="left")
        document_end = np.append(separators, n)[place]
        following = np.minimum(following, np.maximum(document_end, np.arange(n)))
    firsts, lasts = _chain(following, n)
    if not len(firsts):
        return np.zeros(0, np.int64), np.zeros(0, np.int32)
    block_starts = starts[firsts]
    block_sizes = ends[lasts - 1] - block_starts  # more than 1 by document: a line of 1 is a separator
    return block_starts, block_sizes.astype(np.int32)


def _chain(following: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Follow the stops from line 0; a line that stops at itself is a separator and is stepped over."""
    steps = memoryview(np.ascontiguousarray(following).data)
    firsts: list[int] = []
    lasts: list[int] = []
    line = 0
    while line < n:
        stop = steps[line]
        if stop == line:
            line += 1
            continue
        firsts.append(line)
        lasts.append(stop)
        line = stop
    return np.asarray(firsts, np.int64), np.asarray(lasts, np.int64)
