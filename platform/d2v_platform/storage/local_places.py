"""Local places that commands write to, checked before any work is done."""

from __future__ import annotations

import errno
import os
from pathlib import Path

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
