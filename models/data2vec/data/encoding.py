"""Raw text lines to BPE ids in bulk: the inner loop of ``d2v prepare``, without torch.

tiktoken's plain call in a loop over lines is its fastest form (1.5-2 million tokens a CPU second); everything
around it works on whole arrays. BPE ids are kept apart from the dictionary, so a dictionary can be counted
from them or changed without encoding again.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from .bpe import GPT2BPE
from .dictionary import Dictionary


@dataclass(frozen=True)
class EncodedLines:
    """BPE ids of many lines, end to end; each line ends in the sentinel ``bpe.size``, which stands for "
    "eos."""

    ids: np.ndarray  # (tokens,) uint16 or uint32
    sizes: np.ndarray  # (lines,) int32, sentinel included


def id_dtype(bpe_size: int) -> np.dtype:
    """Type that holds every BPE id and the sentinel."""
    return np.dtype(np.uint16 if bpe_size < 2**16 else np.uint32)


def encode_lines(bpe: GPT2BPE, lines: Iterable[str], keep_empty: bool = True) -> EncodedLines:
    """Encode lines, each stripped of space at both ends; an empty line is the sentinel alone, or left out."""
    encode, sentinel = bpe.encode_ordinary, bpe.size
    flat: list[int] = []
    ends: list[int] = []
    for line in lines:
        text = line.strip()
        if not text and not keep_empty:
            continue
        flat += encode(text)
        flat.append(sentinel)
        ends.append(len(flat))
    sizes = np.diff(np.asarray(ends, dtype=np.int64), prepend=0).astype(np.int32)
    return EncodedLines(np.asarray(flat, dtype=id_dtype(bpe.size)), sizes)


def model_ids(ids: np.ndarray, dictionary: Dictionary, bpe_size: int) -> np.ndarray:
    """Dictionary ids of :class:`EncodedLines` ids: unknown ones become 3, the sentinel becomes 2."""
    table = np.append(dictionary.bpe_lookup(bpe_size)[:bpe_size], Dictionary.eos)
    return table[ids]


def text_lines(data: bytes, first: bool, source: Path, byte_offset: int = 0) -> list[str]:
    """UTF-8 bytes as lines; ``\\n``, ``\\r\\n`` and ``\\r`` end a line, as in Python's text mode.

    Args:
        data: whole lines.
        first: the data begin the file, so a byte order mark there is left out.
        source: the file, for messages.
        byte_offset: bytes of the file before ``data``.

    Raises:
        DataError: naming file, line and byte of what is not UTF-8.
    """
    if first and data.startswith(codecs.BOM_UTF8):
        data, byte_offset = data[len(codecs.BOM_UTF8) :], byte_offset + len(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = _line_feeds(source, byte_offset) + data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{source}, line {line}: byte {byte_offset + error.start} of the file "
            f"(0x{data[error.start]:02x}) is not "
            f"UTF-8; convert the file, for example with: iconv -f latin1 -t utf-8"
        ) from None
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def chunk_bounds(source: Path, chunk_bytes: int) -> list[tuple[int, int]]:
    """Byte ranges of about ``chunk_bytes`` that end after a line feed; a function of the file alone."""
    size = source.stat().st_size
    bounds: list[tuple[int, int]] = []
    start = 0
    with source.open("rb") as file:
        while start < size:
            end = min(start + chunk_bytes, size)
            if end < size:
                file.seek(end - 1)  # a line feed just before the boundary ends the chunk there
                end += len(file.readline()) - 1
            bounds.append((start, end))
            start = end
    return bounds


def _line_feeds(source: Path, stop: int) -> int:
    """Line feeds in the first ``stop`` bytes of a file; only an error message needs them."""
    lines = 0
    with source.open("rb") as file:
        while stop > 0 and (block := file.read(min(stop, 1 << 24))):
            lines, stop = lines + block.count(b"\n"), stop - len(block)
    return lines
