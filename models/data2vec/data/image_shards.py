"""Images in tar shards in the WebDataset layout, read in any order."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..errors import DataError
from .image_files import EXTENSIONS
from .names import Names

INDEX_NAME = "index.json"  # beside prepared shards: class names and counts
_LABEL = "cls"
SOURCE_NAME = "name"  # extension of the member that holds the name of the file an image came from
_MOST_TEXT = 4096  # bytes of a label or a name
_MOST_CLASSES = 1_000_000  # a larger number is an identifier of something else


class ShardSource:
    """Tar shards: files that share a name up to the first dot of their last part are one sample.

    An image has one of the known extensions; ``.cls`` holds its class, as a number or a name, and ``.name``
    what its file was called before. Offsets are read from the headers once; images are then read by seeking,
    in any order.
    """

    def __init__(self, shards: Sequence[Path], *, labelled: bool | None = True) -> None:
        self.shards, self.notes = list(shards), []
        keys: list[str] = []
        names: list[str] = []
        rows: list[tuple[int, int, int]] = []
        raw_labels: list[str | None] = []
        for number, shard in enumerate(self.shards):
            samples, cut = _index_shard(shard)
            if cut:
                self.notes.append(
                    f"{shard}: cut off after {len(samples)} whole images, or damaged there; the rest is lost"
                )
            bare = [key for key, sample in samples.items() if sample.label is None]
            if labelled and bare:
                self.notes.append(
                    f"{shard}: {len(bare)} images without .{_LABEL} are not used, first {bare[0]}"
                )
            for key, sample in samples.items():
                if labelled and sample.label is None:
                    continue
                keys.append(key)
                names.append(sample.name or f"{shard.name}:{key}")
                rows.append((number, sample.offset, sample.size))
                raw_labels.append(sample.label)
        if labelled is None:
            labelled = all(label is not None for label in raw_labels)
            with_label = sum(label is not None for label in raw_labels)
            if not labelled and with_label:
                self.notes.append(
                    f"{self.shards[0].parent}: {with_label} of {len(rows)} images have a "
                    f".{_LABEL}; it is not used"
                )
        if not rows:
            raise DataError(
                f"{self.shards[0].parent}: {len(self.shards)} shards hold no usable image"
                + "".join(f"\n  {note}" for note in self.notes[:5])
            )
        self._keys, self._names, self._rows = Names(keys), Names(names), np.array(rows, dtype=np.int64)
        self.notes += _missing(self.shards, len(rows))
        self.classes: list[str] = []
        self.labels = np.full(len(rows), -1)
        if labelled:
            found = [label or "" for label in raw_labels]
            self.classes = _class_names(self.shards[0].parent, found)
            self.labels = _class_ids(found, self.classes)

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """What its file was called before it came into the shard; where that is not known, shard and key."""
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
            digest.update(f"{self._keys[index]}\0{self._rows[index, 2]}\0{self.labels[index]}\n".encode())
        return digest.hexdigest()


class _Sample:
    """Place of an image in its shard, the text of its label, and its name before."""

    def __init__(self) -> None:
        self.offset, self.size = -1, 0
        self.label: str | None = None
        self.name: str | None = None


class _Header(tarfile.TarInfo):
    """A tar header; a negative size, which leads back to members already read, makes it a damaged one."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.HeaderError("a negative size")
        return header


def _index_shard(shard: Path) -> tuple[dict[str, _Sample], bool]:
    """The whole samples of a shard by key, in order, and whether the file ends too early."""
    samples: dict[str, _Sample] = {}
    length = shard.stat().st_size
    cut, last = False, -1
    try:
        with tarfile.open(shard, "r:", tarinfo=_Header) as tar:
            while (member := tar.next()) is not None:
                if not 0 <= member.size <= length - member.offset_data or member.offset <= last:
                    cut = True
                    break
                last = member.offset
                if not member.isfile():
                    continue
                stem, _, extension = Path(member.name).name.partition(".")
                key = str(Path(member.name).parent / stem)
                if f".{extension.lower()}" in EXTENSIONS:
                    sample = samples.setdefault(key, _Sample())
                    sample.offset, sample.size = member.offset_data, member.size
                elif extension in (_LABEL, SOURCE_NAME):
                    file = tar.extractfile(member)
                    assert file is not None
                    text, sample = file.read(_MOST_TEXT), samples.setdefault(key, _Sample())
                    if extension == _LABEL:
                        sample.label = text.decode(errors="replace").strip()
                    else:
                        sample.name = os.fsdecode(text)
            if not cut:
                with shard.open(
                    "rb"
                ) as file:  # where a whole archive ends there are zeros, no damaged header
                    file.seek(tar.offset)
                    cut = file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE)
    except Exception as error:  # tarfile raises whatever damaged bytes lead it to
        if not samples:
            raise DataError(f"{shard}: no tar archive ({error})") from None
        cut = True
    return {key: sample for key, sample in samples.items() if sample.offset >= 0}, cut


def _missing(shards: Sequence[Path], images: int) -> list[str]:
    """One line if there are fewer shards or images than were prepared."""
    folder = shards[0].parent
    name = shards[0].name.rpartition("-")[0]
    index = _index_of(folder)
    counts = index.splits.get(name, {}) if index else {}
    all_images, all_shards = counts.get("images", 0), counts.get("shards", 0)
    absent = all_shards - len(shards)
    if images >= all_images and absent <= 0:
        return []
    lost = all_images - images
    told = f"{folder}: {lost} of {all_images} images of {name} that {INDEX_NAME} counts are not used"
    return [told + (f"; {absent} of {all_shards} shards are missing" if absent > 0 else "")]


@dataclass(frozen=True)
class ShardIndex:
    """What ``d2v prepare images`` wrote: class names by id, and numbers of images and shards by subset."""

    classes: list[str]
    splits: dict[str, dict[str, int]] = field(default_factory=dict)


def read_index(path: Path) -> ShardIndex:
    """Read an index.

    Raises:
        DataError: it is none; the message says which part is not as it must be.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(index, dict):
            raise ValueError("it must be a mapping")
        classes, splits = index.get("classes"), index.get("splits") or {}
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes must be a list of names")
        if len({*classes}) < len(classes):
            raise ValueError("classes must not repeat a name")
        if not isinstance(splits, dict) or not all(map(_are_counts, splits.values())):
            raise ValueError("splits must hold numbers of images and shards by subset")
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is no index of prepared shards: {error}") from None
    return ShardIndex(classes, splits)


def _are_counts(counts: Any) -> bool:
    return isinstance(counts, dict) and all(type(n) is int and n >= 0 for n in counts.values())


def _index_of(folder: Path) -> ShardIndex | None:
    """The index beside shards, or a folder above them."""
    for place in (folder, folder.parent):
        if (place / INDEX_NAME).is_file():
            return read_index(place / INDEX_NAME)
    return None


def _class_names(folder: Path, labels: Sequence[str]) -> list[str]:
    """Class names by id: those that ``d2v prepare images`` wrote, else what the labels themselves say."""
    if (index := _index_of(folder)) is not None:
        return index.classes
    if all(label.isdecimal() for label in labels):
        largest = max(int(label) for label in labels)
        if largest >= _MOST_CLASSES:
            raise DataError(
                f"{folder}: 1 000 000 classes at most, but a .{_LABEL} holds {str(largest)[:20]}; number the "
                "classes from 0, or write their names"
            )
        return [str(i) for i in range(largest + 1)]
    return sorted(set(labels))


def _class_ids(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Ids of labels: numbers if all of them are, else class names."""
    if all(label.isdecimal() for label in labels):
        numbers = [int(label) for label in labels]
        if (largest := max(numbers, default=-1)) >= len(classes):
            raise DataError(
                f"class {str(largest)[:20]} of a shard is not among the {len(classes)} of {INDEX_NAME}"
            )
        return np.array(numbers, dtype=np.int64)
    ids = {name: index for index, name in enumerate(classes)}
    unknown = sorted({label for label in labels if label not in ids})
    if unknown:
        raise DataError(f"class {unknown[0]!r} of a shard is not among the {len(classes)} of {INDEX_NAME}")
    return np.array([ids[label] for label in labels], dtype=np.int64)
