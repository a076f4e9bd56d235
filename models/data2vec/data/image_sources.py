"""Where images come from: a folder of class folders, or tar shards in the WebDataset layout.

Both give the same thing: a numbered list of images with a class id, whose bytes are read on demand. The list
is kept in two arrays, so that a million names cost their characters and little more.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import DataError, nearest_names
from .image_files import EXTENSIONS

INDEX_NAME = "index.json"  # beside prepared shards: class names and counts
_LABEL = "cls"


class ImageSource(Protocol):
    """A numbered list of images.

    Attributes:
        classes: class names by id; empty without labels.
        labels: (N,) int64 class ids, -1 without.
        notes: what was found wrong with the source, one line each, with counts.
    """

    classes: list[str]
    labels: np.ndarray
    notes: list[str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call an image in messages and tables."""
        ...

    def read(self, index: int) -> bytes:
        """The content of the file."""
        ...

    def fingerprint(self) -> str:
        """Hash of names, sizes and classes: the same wherever the data lies."""
        ...


class Names:
    """Many strings in one buffer."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._buffer = b"".join(encoded)
        self._ends = np.cumsum([len(e) for e in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._buffer[start : int(self._ends[index])])


def open_images(data: str | os.PathLike[str], split: str, *, labelled: bool = True) -> ImageSource:
    """The images of one subset: ``<data>/<split>/<class>/...`` or ``<data>/<split>/*.tar``.

    Shards may also lie beside each other as ``<data>/<split>-000000.tar``; without labels, images may lie in
    ``<data>`` itself where there is no such subset.

    Args:
        data: ``task.data``.
        split: subset.
        labelled: each image must have a class.

    Raises:
        DataError: the folder is missing or holds no image; a class without images.
    """
    root = Path(data)
    if not root.is_dir():
        raise DataError(f"task.data = {os.fspath(data)!r}: no such folder")
    folder = root / split
    shards = sorted(folder.glob("*.tar")) or sorted(root.glob(f"{split}-*.tar"))
    if shards:
        return ShardSource(shards, labelled=labelled)
    if not folder.is_dir():
        if labelled or any(root.glob("*.tar")):
            have = sorted(p.name for p in root.iterdir() if p.is_dir())
            raise DataError(
                f"task.data = {os.fspath(data)!r} has no folder {split!r} (subfolders: "
                f"{', '.join(have[:8]) or 'none'}{nearest_names(split, have)}); images belong in "
                f"{split}/CLASS/, or in shards {split}-000000.tar"
            )
        folder = root
    return FolderSource(folder, labelled=labelled)


class FolderSource:
    """Class folders with images at any depth; class ids are the ranks of the sorted folder names."""

    def __init__(self, folder: Path, *, labelled: bool = True) -> None:
        self.folder, self.notes = folder, []
        found: list[tuple[str, int]] = []
        self.classes = sorted(e.name for e in os.scandir(folder) if e.is_dir()) if labelled else []
        if labelled:
            counts: list[int] = []
            for name in self.classes:
                files = _walk(folder / name)
                found += [(f"{name}/{path}", size) for path, size in files]
                counts.append(len(files))
            empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
            if empty:
                raise DataError(
                    f"{folder}: {len(empty)} of {len(self.classes)} class folders hold no image: "
                    f"{', '.join(empty[:5])}. Remove them, or put images there ({', '.join(EXTENSIONS)})"
                )
            loose = sum(e.is_file() and _is_image(e.name) for e in os.scandir(folder))
            if loose:
                self.notes.append(f"{folder}: {loose} images outside class folders are not used")
            self.labels = np.repeat(np.arange(len(counts)), counts)
        else:
            found = _walk(folder)
            self.labels = np.full(len(found), -1)
        if not found:
            raise DataError(f"{folder} holds no image ({', '.join(EXTENSIONS)}), at any depth")
        self._names = Names([name for name, _ in found])
        self._sizes = np.array([size for _, size in found], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Path below the subset's folder."""
        return self._names[index]

    def read(self, index: int) -> bytes:
        """The file's content."""
        try:
            return (self.folder / self._names[index]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.folder / self._names[index]}: {error.strerror or error}") from error

    def fingerprint(self) -> str:
        """Hash of paths and sizes."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(f"{self._names[index]}\0{self._sizes[index]}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


class ShardSource:
    """Tar shards: files that share a name up to the first dot of their last part are one sample.

    An image has one of the known extensions; ``.cls`` holds its class, as a number or a name. Offsets are
    read from the headers once; images are then read by seeking, in any order.
    """

    def __init__(self, shards: Sequence[Path], *, labelled: bool = True) -> None:
        self.shards, self.notes = list(shards), []
        names: list[str] = []
        rows: list[tuple[int, int, int]] = []
        raw_labels: list[str | None] = []
        for number, shard in enumerate(self.shards):
            samples, cut = _index_shard(shard)
            if cut:
                self.notes.append(f"{shard}: cut off after {len(samples)} whole images; the rest is lost")
            unlabelled = [key for key, sample in samples.items() if sample.label is None]
            if labelled and unlabelled:
                self.notes.append(
                    f"{shard}: {len(unlabelled)} images without .{_LABEL} are not used, first {unlabelled[0]}"
                )
            for key, sample in samples.items():
                if labelled and sample.label is None:
                    continue
                names.append(f"{shard.name}:{key}")
                rows.append((number, sample.offset, sample.size))
                raw_labels.append(sample.label)
        if not rows:
            raise DataError(f"{self.shards[0].parent}: {len(self.shards)} shards hold no usable image")
        self._names, self._rows = Names(names), np.array(rows, dtype=np.int64)
        self.classes: list[str] = []
        self.labels = np.full(len(rows), -1)
        if labelled:
            found = [label or "" for label in raw_labels]
            self.classes = _class_names(self.shards[0].parent, found)
            self.labels = _class_ids(found, self.classes)

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """Shard and key."""
        return self._names[index]

    def read(self, index: int) -> bytes:
        """The member's content, read from its place in the shard."""
        number, offset, size = (int(v) for v in self._rows[index])
        try:
            with self.shards[number].open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise DataError(f"{self.shards[number]}: {error.strerror or error}") from error

    def fingerprint(self) -> str:
        """Hash of keys, sizes and classes."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            key = self._names[index].partition(":")[2]
            digest.update(f"{key}\0{self._rows[index, 2]}\0{self.labels[index]}\n".encode())
        return digest.hexdigest()


class _Sample:
    """Place of an image in its shard, and the text of its label."""

    def __init__(self) -> None:
        self.offset, self.size = -1, 0
        self.label: str | None = None


def _index_shard(shard: Path) -> tuple[dict[str, _Sample], bool]:
    """The whole samples of a shard by key, in order, and whether the file ends too early."""
    samples: dict[str, _Sample] = {}
    length = shard.stat().st_size
    cut = False
    try:
        with tarfile.open(shard, "r:") as tar:
            ended = False
            while (member := tar.next()) is not None:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > length:
                    cut = ended = True
                    break
                stem, _, extension = Path(member.name).name.partition(".")
                key = str(Path(member.name).parent / stem)
                if f".{extension.lower()}" in EXTENSIONS:
                    sample = samples.setdefault(key, _Sample())
                    sample.offset, sample.size = member.offset_data, member.size
                elif extension == _LABEL:
                    file = tar.extractfile(member)
                    assert file is not None
                    samples.setdefault(key, _Sample()).label = (
                        file.read(1000).decode(errors="replace").strip()
                    )
            if not ended:
                with shard.open("rb") as file:  # a whole archive ends in zeros
                    file.seek(max(length - 1024, 0))
                    cut = file.read(1024).strip(b"\0") != b""
    except tarfile.TarError as error:
        if not samples:
            raise DataError(f"{shard}: no tar archive ({error})") from None
        cut = True
    return {key: sample for key, sample in samples.items() if sample.offset >= 0}, cut


def _class_names(folder: Path, labels: Sequence[str]) -> list[str]:
    """Class names by id: those that ``d2v prepare images`` wrote, else what the labels themselves say."""
    for place in (folder, folder.parent):
        path = place / INDEX_NAME
        if path.is_file():
            try:
                return list(json.loads(path.read_text(encoding="utf-8"))["classes"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} is no index of prepared shards: {error}") from None
    if all(label.isdecimal() for label in labels):
        return [str(i) for i in range(max(int(label) for label in labels) + 1)]
    return sorted(set(labels))


def _class_ids(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Ids of labels: numbers if all of them are, else class names."""
    if all(label.isdecimal() for label in labels):
        numbers = np.array([int(label) for label in labels], dtype=np.int64)
        if len(numbers) and numbers.max() >= len(classes):
            raise DataError(
                f"class {numbers.max()} of a shard is not among the {len(classes)} of {INDEX_NAME}"
            )
        return numbers
    ids = {name: index for index, name in enumerate(classes)}
    unknown = sorted({label for label in labels if label not in ids})
    if unknown:
        raise DataError(f"class {unknown[0]!r} of a shard is not among the {len(classes)} of {INDEX_NAME}")
    return np.array([ids[label] for label in labels], dtype=np.int64)


def _walk(folder: Path) -> list[tuple[str, int]]:
    """Images below a folder at any depth, links followed: (path below it, bytes), sorted."""
    found: list[tuple[str, int]] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in files:
            if _is_image(name):
                path = os.path.join(place, name)
                found.append((os.path.relpath(path, folder), os.stat(path).st_size))
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)
