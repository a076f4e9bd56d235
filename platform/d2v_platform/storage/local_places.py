"""Local places that commands write to, checked before any work is done."""

from __future__ import annotations

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
    """
    if "://" in text:
        raise DataError(
            f"{text} is an address, and this command writes to local files; copy them there afterwards "
            "(recipes, d2v infer and d2v embed read from s3:// and other addresses)"
        )
    return Path(text)
