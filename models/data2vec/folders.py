"""Files and folders that are complete or not there, their hash, and names from outside that stay inside."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
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


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a whole file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a small UTF-8 file: readers see the old one or the whole new one.

    Args:
        path: the file.
        text: its content.
        durable: on disk before it is visible, as what others rely on after a crash of the machine.
    """
    with written_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def written_file(path: Path | str) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` when the block ends without an error."""
    path = Path(path)
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(number)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(_usual_mode(path.parent))
        take_place(beside, path)
    finally:
        beside.unlink(missing_ok=True)


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
        take_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def take_place(beside: Path, path: Path) -> None:
    """Publish a file or folder that is complete, in one step; the other name lies in the same file system.

    What was there before is gone, or, of folders, in ``beside``.
    """
    if beside.is_dir():
        _folder_takes_place(beside, path)
    else:
        os.replace(beside, path)


def _folder_takes_place(beside: Path, folder: Path) -> None:
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
