"""Audio manifests: ``<split>.tsv`` with a root folder on the first line, then ``path<TAB>samples`` a line.

Millions of paths are kept as one block of bytes and one array of offsets: lists of strings would be copied
into every loader process as soon as they are touched.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from ..errors import DataError

_SHOWN = 10


class Manifest:
    """Paths and lengths of one split.

    Attributes:
        root: folder that paths are relative to.
        frames: (N,) int64, samples of each file.
        lines: (N,) int64, number of each entry in the file, 0 for the line after the root.
        path: the manifest itself.
    """

    def __init__(
        self, path: Path, root: str, blob: bytes, offsets: np.ndarray, frames: np.ndarray, lines: np.ndarray
    ) -> None:
        self.path, self.root, self.frames, self.lines = path, root, frames, lines
        self._blob = np.frombuffer(blob, dtype=np.uint8)
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self.frames)

    def name(self, index: int) -> str:
        """Path of an entry relative to the root."""
        line = self.lines[index]
        return bytes(self._blob[self._offsets[line] : self._offsets[line + 1]]).decode("utf-8")

    def file(self, index: int) -> str:
        """Path of an entry; an absolute name stands for itself, whatever the root."""
        return os.path.join(self.root, self.name(index))

    def keep(self, chosen: np.ndarray) -> Manifest:
        """The entries at some positions, in that order."""
        return Manifest(
            self.path, self.root, self._blob.tobytes(), self._offsets, self.frames[chosen], self.lines[chosen]
        )

    def fingerprint(self) -> str:
        """SHA-256 over paths and lengths, wherever the root lies."""
        digest = hashlib.sha256(self._blob.tobytes())
        digest.update(self._offsets.tobytes())
        digest.update(self.frames.tobytes())
        digest.update(self.lines.tobytes())
        return digest.hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; every malformed line is reported at once.

    Raises:
        DataError: the file is missing, not UTF-8, empty, or has malformed lines.
    """
    if not path.is_file():
        found = sorted(p.stem for p in path.parent.glob("*.tsv")) if path.parent.is_dir() else []
        hint = f"; {path.parent} has {', '.join(found)}" if found else ""
        raise DataError(f"manifest {path} does not exist{hint}; make it with d2v prepare audio-manifest")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"manifest {path}: byte {error.start} is not UTF-8") from None
    root, _, body = text.partition("\n")
    root = root.removesuffix("\r")
    if "\t" in root:
        raise DataError(f"manifest {path}: the first line must be the root folder, not {root[:60]!r}")
    names: list[bytes] = []
    frames: list[int] = []
    wrong: list[str] = []
    lines = body.split("\n")  # names may hold every other kind of line end, and blanks
    for number, line in enumerate(lines if lines[-1] else lines[:-1], start=2):
        fields = line.removesuffix("\r").split("\t")
        if len(fields) != 2 or not fields[0] or not _is_length(fields[1].strip()):
            wrong.append(f"line {number}: {line[:60]!r} is not '<path><TAB><samples>'")
            continue
        names.append(fields[0].encode())
        frames.append(int(fields[1]))
    if wrong:
        more = f"\n  ... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise DataError(f"manifest {path} is malformed:\n  " + "\n  ".join(wrong[:_SHOWN]) + more)
    if not names:
        raise DataError(f"manifest {path} lists no files")
    offsets = np.concatenate([[0], np.cumsum([len(name) for name in names])]).astype(np.int64)
    return Manifest(
        path, root, b"".join(names), offsets, np.asarray(frames, dtype=np.int64), np.arange(len(names))
    )


def _is_length(text: str) -> bool:
    return text.isdecimal() and len(text) <= 15 and int(text) > 0  # 15 digits: two thousand years


def manifest_text(root: str, entries: list[tuple[str, int]]) -> str:
    """The content of a manifest, byte for byte as the reference's script writes it."""
    return "".join([f"{root}\n", *(f"{name}\t{frames}\n" for name, frames in entries)])
