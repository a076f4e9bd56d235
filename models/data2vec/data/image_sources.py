"""Where images come from: a folder of class folders, or tar shards in the WebDataset layout.

Both give the same thing: a numbered list of images with a class id, whose bytes are read on demand.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import DataError, nearest_names
from ..folders import printable
from .image_files import EXTENSIONS
from .image_shards import ShardSource
from .names import Names

SUBSETS = ("train", "val", "valid", "test")  # usual names


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


def open_images(data: str | os.PathLike[str], split: str, *, labelled: bool | None = True) -> ImageSource:
    """The images of one subset: ``<data>/<split>/<class>/...`` or ``<data>/<split>/*.tar``.

    Shards may also lie beside each other as ``<data>/<split>-000000.tar``; with ``labelled=False``, images
    may lie in ``<data>`` itself where there is no such subset.

    Args:
        data: ``task.data``.
        split: subset; "." is ``<data>`` itself.
        labelled: each image must have a class; ``False`` takes images at any depth, without classes;
            ``None`` goes by what is there: classes where all images lie in folders (of which some may be
            empty), or where all images of shards have one.

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
        have = sorted(p.name for p in root.iterdir() if p.is_dir())
        near = nearest_names(split, have)
        # A folder of pictures may be given as it is, but no folder of subsets of which this one is missing.
        if labelled is not False or near or any(root.glob("*.tar")) or {*SUBSETS} & {*have}:
            raise DataError(
                f"task.data = {os.fspath(data)!r} has no folder {split!r} (subfolders: "
                f"{', '.join(have[:8]) or 'none'}{near}); images belong in "
                f"{split}/CLASS/, or in shards {split}-000000.tar"
            )
        folder = root
    return FolderSource(folder, labelled=labelled)


class FolderSource:
    """Class folders with images at any depth; class ids are the ranks of the sorted folder names."""

    def __init__(self, folder: Path, *, labelled: bool | None = True) -> None:
        self.folder, self.notes = folder, []
        self._ignored: Counter[str] = Counter()
        self._broken: list[str] = []
        self.not_utf8: list[str] = []  # paths, printable; left out, for names go into text files
        self._circles: list[str] = []
        found: list[tuple[str, int]] = []
        strict, labelled = labelled is True, self._has_classes() if labelled is None else labelled
        self.classes = sorted(e.name for e in os.scandir(folder) if e.is_dir()) if labelled else []
        if wrong := [printable(name) for name in self.classes if printable(name) != name]:
            raise DataError(f"{folder}: class folders need names in UTF-8; rename {', '.join(wrong)}")
        if labelled:
            counts: list[int] = []
            for name in self.classes:
                files = self._files(folder / name)
                found += [(f"{name}/{path}", size) for path, size in files]
                counts.append(len(files))
            empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
            if empty:
                told = (
                    f"{folder}: {len(empty)} of {len(self.classes)} class folders hold no image: "
                    f"{', '.join(empty[:5])}"
                )
                if strict:
                    raise DataError(f"{told}. Remove them, or put images there ({', '.join(EXTENSIONS)})")
                self.notes.append(told)
            loose = sum(e.is_file() and _is_image(e.name) for e in os.scandir(folder))
            if loose:
                self.notes.append(f"{folder}: {loose} images outside class folders are not used")
            self.labels = np.repeat(np.arange(len(counts)), counts)
        else:
            found = self._files(folder)
            self.labels = np.full(len(found), -1)
        if self._broken:
            self.notes.append(
                f"{folder}: {len(self._broken)} images cannot be opened and are not used, "
                f"first {self._broken[0]}"
            )
        if self.not_utf8:
            self.notes.append(
                f"{printable(folder)}: paths of {len(self.not_utf8)} images are not UTF-8, not used: "
                f"{', '.join(self.not_utf8[:5])}"
            )
        if self._circles:
            self.notes.append(
                f"{folder}: {len(self._circles)} links to folders that are read anyway or hold this one are "
                f"not followed, first {self._circles[0]}"
            )
        if not found:
            raise DataError(f"{folder} holds no image ({', '.join(EXTENSIONS)}), at any depth")
        if self._ignored:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self._ignored.most_common(4))
            self.notes.append(
                f"{folder}: {self._ignored.total()} files are no images by their names and are not used "
                f"({kinds})"
            )
        self._names = Names([name for name, _ in found])
        self._sizes = np.array([size for _, size in found], dtype=np.int64)

    def _files(self, folder: Path) -> list[tuple[str, int]]:
        """Images below a folder at any depth, links followed: (path below it, bytes), sorted.

        Each real folder is read once, and no link leads up and out again, to images of other classes or
        subsets.
        """
        found: list[tuple[str, int]] = []
        root = Path(os.path.realpath(self.folder))
        seen = {str(place) for place in (root, *root.parents)} | {
            os.path.realpath(root / name) for name in self.classes
        }
        for place, folders, files in os.walk(folder, followlinks=True):
            for name in sorted(folders):
                real = os.path.realpath(os.path.join(place, name))
                if real in seen:
                    folders.remove(name)
                    self._circles.append(os.path.join(place, name))
                seen.add(real)
            folders.sort()
            for name in files:
                if _is_image(name):
                    path = os.path.join(place, name)
                    if printable(path) != path:
                        self.not_utf8.append(printable(path))
                        continue
                    try:
                        found.append((os.path.relpath(path, folder), os.stat(path).st_size))
                    except OSError as error:  # most often a link that leads nowhere
                        self._broken.append(f"{path} ({error.strerror})")
                elif not name.startswith("."):
                    self._ignored[Path(name).suffix.lower() or "without extension"] += 1
        return sorted(found)

    def _has_classes(self) -> bool:
        """Whether the folder holds folders and no image beside them."""
        folders, loose = 0, 0
        for entry in os.scandir(self.folder):
            folders += entry.is_dir()
            loose += entry.is_file() and _is_image(entry.name)
        if folders and loose:
            self.notes.append(
                f"{self.folder}: {loose} images lie beside {folders} folders, so folders are "
                "not taken as classes"
            )
        return folders > 0 and loose == 0

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Path below the subset's folder."""
        return self._names[index]

    def size(self, index: int) -> int:
        """Bytes of the file when it was listed."""
        return int(self._sizes[index])

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


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)
