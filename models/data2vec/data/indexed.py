"""The reference's memory-mapped token files, ``<split>.bin`` and ``<split>.idx``.

Index (little-endian): magic ``MMIDIDX\\0\\0`` (9 bytes), uint64 version 1, uint8 dtype code, uint64 N,
int32 sizes[N], int64 byte offsets[N]. The data file holds the bare tokens. Readers return int64.

Every reader here is a :class:`TokenLines`: lines of tokens that can also be read as one stream, which is what
block building needs; nothing is copied until a slice is asked for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import DataError
from ..folders import take_place

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPES = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float64,
    8: np.uint16, 9: np.uint32, 10: np.uint64,
}  # fmt: skip
_HEADER = struct.Struct("<QBQ")
HEADER_BYTES = len(MAGIC) + _HEADER.size
_CHECKED_AT_ONCE = 1 << 20  # lines: the check needs no memory of the whole index


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that the reference uses for a vocabulary: u16 below 65500, u32, i64 from 2^32."""
    if vocab_size < 65500:
        return np.dtype(np.uint16)
    return np.dtype(np.uint32 if vocab_size < 2**32 else np.int64)


class TokenLines(Protocol):
    """Lines of tokens, also readable as one stream."""

    @property
    def sizes(self) -> np.ndarray:
        """Tokens in each line, ``(N,)``."""
        ...

    @property
    def num_tokens(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray:
        """One line, int64."""
        ...

    def stream(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``start`` to ``stop`` of all lines put end to end, int64."""
        ...


class IndexedTokens:
    """One ``.bin``/``.idx`` pair, memory-mapped.

    Args:
        prefix: path without ``.bin``/``.idx``.

    Raises:
        DataError: a file is missing, truncated, of another format, or the two do not belong together.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = str(prefix)
        index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        missing = [str(p) for p in (index, data) if not p.is_file()]
        if missing:
            raise DataError(
                f"missing data file {' and '.join(missing)}; make it with d2v prepare or fairseq-preprocess"
            )
        self.dtype, n = _read_header(index)
        expected = HEADER_BYTES + 12 * n
        actual = index.stat().st_size
        if actual != expected:
            kind = "truncated" if actual < expected else "too long"
            raise DataError(
                f"{index} is {kind}: {actual} bytes, but {n} lines need {expected}; copy or prepare it again"
            )
        # An index without lines cannot be mapped, and needs not be.
        self._sizes = np.memmap(index, "<i4", "r", HEADER_BYTES, (n,)) if n else np.zeros(0, np.int32)
        self._offsets = (
            np.memmap(index, "<i8", "r", HEADER_BYTES + 4 * n, (n,)) if n else np.zeros(0, np.int64)
        )
        self.num_tokens = int(self._sizes.sum(dtype=np.int64))
        self._check_data(data, index)
        stored = self.dtype.newbyteorder("<")
        self._tokens = np.memmap(data, stored, "r") if self.num_tokens else np.zeros(0, stored)

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens in each line, ``(N,)`` int32, mapped."""
        return self._sizes

    def __getitem__(self, index: int) -> np.ndarray:
        start = int(self._offsets[index]) // self.dtype.itemsize
        return self._tokens[start : start + int(self._sizes[index])].astype(np.int64)

    def stream(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``start`` to ``stop`` of the whole file, int64."""
        return self._tokens[start:stop].astype(np.int64)

    def __reduce__(self) -> tuple[type[IndexedTokens], tuple[str]]:
        return type(self), (self.prefix,)  # loader workers map the files themselves

    def _check_data(self, data: Path, index: Path) -> None:
        wanted, actual = self.num_tokens * self.dtype.itemsize, data.stat().st_size
        if actual != wanted:
            kind = "truncated" if actual < wanted else "longer than its index says"
            raise DataError(
                f"{data} is {kind}: {actual} bytes, but {index.name} describes {self.num_tokens} tokens of "
                f"{self.dtype.itemsize} bytes = {wanted}; the pair does not belong together or was cut "
                "while copying"
            )
        end = 0
        for first in range(0, len(self._sizes), _CHECKED_AT_ONCE):
            sizes, offsets = (part[first : first + _CHECKED_AT_ONCE] for part in (self._sizes, self._offsets))
            ends = np.cumsum(sizes, dtype=np.int64)
            ends *= self.dtype.itemsize
            ends += end
            if sizes.min() < 0 or offsets[0] != end or not np.array_equal(offsets[1:], ends[:-1]):
                raise DataError(
                    f"{index} is damaged: its sizes and offsets contradict each other in lines "
                    f"{first + 1} ... {first + len(sizes)}; copy or prepare it again"
                )
            end = int(ends[-1])


class CombinedTokens:
    """Several token files as one, in order (``train``, ``train1``, ``train2``, ...)."""

    def __init__(self, parts: Sequence[TokenLines]) -> None:
        assert parts
        self.parts = list(parts)
        self._sizes = np.concatenate([part.sizes for part in parts])
        self._line_starts = np.cumsum([0] + [len(part) for part in parts])
        self._token_starts = np.cumsum([0] + [part.num_tokens for part in parts])
        self.num_tokens = int(self._token_starts[-1])

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens in each line of all parts, ``(N,)``."""
        return self._sizes

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._line_starts, index, side="right")) - 1
        return self.parts[part][index - int(self._line_starts[part])]

    def stream(self, start: int, stop: int) -> np.ndarray:
        """Tokens of the parts put end to end."""
        first = max(int(np.searchsorted(self._token_starts, start, side="right")) - 1, 0)
        pieces: list[np.ndarray] = []
        for part, origin in zip(self.parts[first:], self._token_starts[first:-1].tolist(), strict=True):
            if origin >= stop:
                break
            pieces.append(part.stream(max(start - origin, 0), min(stop - origin, part.num_tokens)))
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


class ShortenedLines:
    """Lines cut to at most ``length`` tokens: ``shorten_method`` applied before blocks are built.

    Args:
        lines: the full lines.
        length: most tokens a line keeps.
        starts: ``(N,)`` first kept token of each line; ``None`` keeps the beginning (``truncate``).
    """

    def __init__(self, lines: TokenLines, length: int, starts: np.ndarray | None = None) -> None:
        self._lines, self._from = lines, starts
        self._sizes = np.minimum(lines.sizes, length)
        self._ends = np.cumsum(self._sizes, dtype=np.int64)
        self.num_tokens = int(self._ends[-1]) if len(self._ends) else 0

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens kept of each line, ``(N,)``."""
        return self._sizes

    def __getitem__(self, index: int) -> np.ndarray:
        start = int(self._from[index]) if self._from is not None else 0
        return self._lines[index][start : start + int(self._sizes[index])]

    def stream(self, start: int, stop: int) -> np.ndarray:
        """Tokens of the shortened lines put end to end."""
        stop = min(stop, self.num_tokens)
        if start >= stop:
            return np.zeros(0, np.int64)
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        origin = int(self._ends[first]) - int(self._sizes[first])
        joined = np.concatenate([self[i] for i in range(first, last + 1)])
        return joined[start - origin : stop - origin]


class IndexedTokensWriter:
    """Write a ``.bin``/``.idx`` pair; it appears under its name only when complete.

    Use as a context manager; an exception inside leaves no files.

    Args:
        prefix: path without ``.bin``/``.idx``.
        vocab_size: decides the stored type, see :func:`token_dtype`.
    """

    def __init__(self, prefix: str | os.PathLike[str], vocab_size: int) -> None:
        self.prefix = str(prefix)
        self.dtype = token_dtype(vocab_size)
        self.num_tokens = 0
        self._sizes: list[np.ndarray] = []
        Path(self.prefix).parent.mkdir(parents=True, exist_ok=True)
        self._partial = Path(f"{self.prefix}.bin.partial")
        self._file = self._partial.open("wb")

    def add_line(self, tokens: np.ndarray | Sequence[int]) -> None:
        """Append one line."""
        self.add_lines(np.asarray(tokens), np.asarray([len(tokens)]))

    def add_lines(self, tokens: np.ndarray, sizes: np.ndarray) -> None:
        """Append many lines: their tokens end to end, and the size of each."""
        assert int(sizes.sum()) == len(tokens)
        self._file.write(tokens.astype(self.dtype.newbyteorder("<"), copy=False).tobytes())
        self._sizes.append(sizes.astype(np.int32))
        self.num_tokens += len(tokens)

    def close(self) -> None:
        """Write the index and publish both files."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sizes = np.concatenate(self._sizes) if self._sizes else np.zeros(0, np.int32)
        ends = np.cumsum(sizes, dtype=np.int64) * self.dtype.itemsize
        offsets = np.concatenate([np.zeros(min(len(ends), 1), np.int64), ends[:-1]])
        code = next(code for code, kind in DTYPES.items() if kind == self.dtype.type)
        index = Path(f"{self.prefix}.idx")
        partial = Path(f"{index}.partial")
        with partial.open("wb") as file:
            file.write(MAGIC + _HEADER.pack(VERSION, code, len(sizes)))
            file.write(sizes.astype("<i4").tobytes())
            file.write(offsets.astype("<i8").tobytes())
        # The old index goes first: an interrupted replacement is a missing file, never a wrong pair.
        index.unlink(missing_ok=True)
        take_place(self._partial, Path(f"{self.prefix}.bin"))
        take_place(partial, index)

    def abort(self) -> None:
        """Give up; nothing stays behind."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> IndexedTokensWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close() if kind is None else self.abort()


def open_tokens(folder: str | os.PathLike[str], split: str, combine: bool = False) -> TokenLines:
    """Tokens of a split; with ``combine`` also ``<split>1``, ``<split>2``, ... as long as they exist.

    Raises:
        DataError: the split does not exist (the message lists those that do) or a file is damaged.
    """
    folder = Path(folder)
    if not (folder / f"{split}.idx").is_file():
        if not folder.is_dir():
            raise DataError(f"data folder {folder} does not exist")
        found = splits_in(folder)
        there = f"it has {', '.join(found)}" if found else "it holds no .bin/.idx files at all"
        raise DataError(f"{folder} has no split {split!r} ({split}.bin, {split}.idx); {there}")
    parts = [IndexedTokens(folder / split)]
    if combine:
        for number in count(1):
            if not (folder / f"{split}{number}.idx").is_file():
                break
            parts.append(IndexedTokens(folder / f"{split}{number}"))
    return parts[0] if len(parts) == 1 else CombinedTokens(parts)


def splits_in(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the splits in a folder."""
    return sorted(path.stem for path in Path(folder).glob("*.idx"))


def _read_header(index: Path) -> tuple[np.dtype, int]:
    with index.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if head[: len(MAGIC)] != MAGIC:
        old = " (this is the reference's older, unmapped format)" if head.startswith(b"TNTIDX") else ""
        raise DataError(
            f"{index} is not a memory-mapped index{old}: it starts with {head[:9]!r}; prepare the data again"
        )
    if len(head) < HEADER_BYTES:
        raise DataError(f"{index} is truncated: {len(head)} bytes, the header alone has {HEADER_BYTES}")
    version, code, n = _HEADER.unpack(head[len(MAGIC) :])
    if version != VERSION:
        raise DataError(f"{index} has format version {version}; only version {VERSION} is known")
    dtype = DTYPES.get(code)
    if dtype is None or not np.issubdtype(dtype, np.integer):
        raise DataError(
            f"{index} has dtype code {code}, which is no integer type; token files use codes 1-5 and 8-10"
        )
    return np.dtype(dtype), n
