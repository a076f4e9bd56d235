"""Folders that are complete or not there, and names from outside that stay inside theirs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import DataError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def inside(folder: Path, name: str | Path) -> Path:
    """``folder / name`` for a name that comes from elsewhere: a listing, an archive, an index, a manifest.

    Raises:
        DataError: the name is absolute or empty, leaves the folder, or leads out of it through a link.
    """
    path = folder / name
    parts = Path(name).parts
    if not parts or ".." in parts or not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"the name {str(name)!r} leads outside its folder {folder}; it is refused")
    return path


def printable(path: str | Path) -> str:
    r"""A path for text files and terminals: bytes that are not UTF-8 as ``\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file: readers see the old one or the whole new one."""
    number, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(number)
    try:
        Path(beside).write_text(text, encoding="utf-8")
        os.chmod(beside, _usual_mode(path.parent))
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


@contextlib.contextmanager
def written_folder(folder: Path | str) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``folder`` when the block ends without an error.

    Readers see the old folder or the whole new one; after an error the old one is as it was. Of several
    writers at once the last one wins, whole.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield beside
        usual_permissions(beside)
        _take_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _take_place(beside: Path, folder: Path) -> None:
    """Afterwards ``beside`` is gone, or holds what was there before."""
    with contextlib.suppress(OSError):
        beside.rename(folder)  # nothing is there, or an empty folder
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; remove it, or choose another place")
    if _exchange(beside, folder):
        return
    # The file system cannot exchange (some network ones): for a moment there is no folder.
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        folder.rename(old)
        beside.rename(folder)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders at once, where the kernel and the file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and not rename(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
    )


def usual_permissions(folder: Path) -> None:
    """Give a folder what the umask says: temporary folders and safetensors' files are their owner's alone."""
    mode = _usual_mode(folder)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(mode | (mode & 0o444) >> 2 if path.is_dir() else mode)


def _usual_mode(folder: Path) -> int:
    """Of new files. To ask for the umask one must set it, for all threads; a file's mode tells it as well."""
    probe = Path(tempfile.mktemp(prefix=".mode.", dir=folder))
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = probe.stat().st_mode & 0o666
    probe.unlink()
    return mode
