"""Recordings that commands take: a file, a folder at any depth, or a manifest; and what was unreadable."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from data2vec.data.audio_files import SUFFIXES
from data2vec.data.manifest import read_manifest
from data2vec.errors import DataError

if TYPE_CHECKING:
    from data2vec.audio_model import AudioModel

OTHER_SUFFIXES = (
    ".aiff", ".aif", ".aifc", ".au", ".snd", ".mp3", ".opus", ".oga", ".caf", ".w64", ".rf64", ".voc",
    ".nist", ".sph", ".ircam", ".sds",
)  # fmt: skip
KNOWN = (*SUFFIXES, *OTHER_SUFFIXES)
_SHOWN = 20
_SILENCE = 1e-4  # of full scale, from lowest to highest sample: three steps of 16 bits


def find_recordings(source: Path) -> list[Path]:
    """The recordings of a folder or manifest, in order, or the one file.

    Raises:
        DataError: nothing is there.
    """
    if source.is_file():
        if source.suffix == ".tsv":
            manifest = read_manifest(source)
            return [Path(manifest.file(index)) for index in range(len(manifest))]
        return [source]
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder")
    files = sorted(p for p in source.rglob("*") if p.is_file() and p.suffix.lower() in KNOWN)
    if not files:
        raise DataError(f"{source} holds no recordings ({', '.join(KNOWN)})")
    return files


class ReadRecordings:
    """The samples of files, read one after another as they are asked for.

    Args:
        model: what reads them.
        files: in order.

    Attributes:
        done: path and seconds of each that was read, in order.
        failed: path and reason of each that was not.
        silent: those that were read and hold no sound.
    """

    def __init__(self, model: AudioModel, files: Iterable[Path]) -> None:
        self._model, self._files = model, files
        self.done: list[tuple[Path, float]] = []
        self.failed: list[str] = []
        self.silent: set[Path] = set()

    def __iter__(self) -> Iterator[np.ndarray]:
        from data2vec.audio_model import SAMPLE_RATE

        for path in self._files:
            try:
                samples = self._model.samples(path)
            except DataError as error:
                self.failed.append(str(error))
                continue
            self.done.append((path, len(samples) / SAMPLE_RATE))
            if not len(samples) or float(np.ptp(samples)) < _SILENCE:
                self.silent.add(path)
            yield samples


def report_unreadable(failed: list[str], total: int) -> None:
    """Name what could not be read, and end with exit code 2; nothing if all could."""
    if not failed:
        return
    console = Console(markup=False, file=sys.stderr, soft_wrap=True)
    console.print(f"{len(failed)} of {total} recordings could not be read:", highlight=False)
    for line in failed[:_SHOWN]:
        console.print(f"  {line}", highlight=False, markup=False)
    if len(failed) > _SHOWN:
        console.print(f"  ... and {len(failed) - _SHOWN} more", highlight=False)
    raise SystemExit(2)
