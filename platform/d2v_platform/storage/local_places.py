"""Local places that commands write to, checked before any work is done."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import psutil

from data2vec.errors import DataError


def folder_to_write(text: str) -> Path:
    """A folder's path from a command line; need not exist.

    Raises:
        DataError: it is an address such as s3://..., or something else than a folder is there.
    """
    path = path_to_write(text)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise DataError(f"{text} cannot be a folder: {place} is a file")
    return path


def file_to_write(text: str) -> Path:
    """A file's path from a command line; need not exist.

    Raises:
        DataError: it is an address such as s3://..., a folder is there, or its folder cannot be one.
    """
    path = path_to_write(text)
    if path.is_dir():
        raise DataError(f"{text} is a folder; name a file in it")
    folder_to_write(str(path.parent))
    return path


def path_to_write(text: str) -> Path:
    """Of a file or a folder.

    Raises:
        DataError: it is an address such as s3://....
        OSError: nothing can be written there.
    """
    if "://" in text:
        raise DataError(
            f"{text} is an address, and this command writes to local files; copy them there afterwards "
            "(recipes, d2v infer and d2v embed read from s3:// and other addresses)"
        )
    path = Path(text)
    _destination.append(path)
    whole = path.absolute()
    place = next(p for p in (whole if whole.is_dir() else whole.parent, *whole.parents) if p.exists())
    if not os.access(place, os.W_OK):
        closed = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(closed, os.strerror(closed), str(place))
    return path


def on_local_disk(path: Path) -> bool:
    """Whether a place is on a disk of this machine; a file system that is not known counts as a network's."""
    kinds = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    whole = path.resolve()
    mount = next((place for place in (whole, *whole.parents) if place in kinds), None)
    return mount is not None and kinds[mount] in _LOCAL


_LOCAL = (
    *("apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs"),
    *("overlay", "ramfs", "tmpfs", "xfs", "zfs"),
)

_destination: list[Path] = []  # of this command; a write that fails for want of space does not name its file

_OF_PLACES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def path_problem(error: Exception) -> str | None:
    """What is wrong with a place on disk, if an error says so: full, read-only, not allowed; else ``None``.

    Libraries in Rust and C++ tell a full disk in words of their own.
    """
    if isinstance(error, OSError) and error.errno in _OF_PLACES:
        where, words = error.filename2 or error.filename, error.strerror
    elif os.strerror(errno.ENOSPC) in str(error):
        where, words = None, os.strerror(errno.ENOSPC)
    else:
        return None
    where = where or (_destination[-1] if _destination else None)
    return f"{where}: {words}" if where else words
