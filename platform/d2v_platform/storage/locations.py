"""A folder anywhere: on this machine, in ``s3://`` or at any other URI that fsspec knows.

Credentials and endpoint come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...) or the
usual AWS files, never from a recipe: recipes are stored and shown. What fails for a moment is tried again
with growing pauses; what can never succeed (refused, no such bucket) is said at once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

from data2vec.errors import Data2VecError

from ..redaction import redact_text
from ..retries import Patience, try_again

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_LASTING = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
    ValueError,
    TypeError,
    ImportError,
    NotImplementedError,
)
_HOW = (
    "credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
    "AWS_ENDPOINT_URL, AWS_PROFILE, ...) or the usual AWS files"
)


class StorageError(Data2VecError):
    """A place cannot be read or written, and waiting will not help."""


class StorageAwayError(StorageError):
    """A place did not answer for as long as we were ready to wait."""


def is_uri(text: str) -> bool:
    """Whether a place is named by a URI that is not simply a local file."""
    return bool(_SCHEME.match(text)) and not text.startswith("file://")


def local_path(text: str) -> Path:
    """A local place, also written ``file:///...``."""
    if text.startswith("file://"):
        return Path(unquote(urlparse(text).path))
    return Path(text).expanduser()


def with_retries(action: Callable[[], Result], what: str, patience: Patience | None = None) -> Result:
    """Run ``action`` until it succeeds.

    Args:
        action: may run several times.
        what: the place, for messages.
        patience: how long; a minute by default.

    Raises:
        FileNotFoundError: the file is not there (the bucket missing is a :class:`StorageError`).
        StorageError: refused, or no such bucket.
        StorageAwayError: it went on failing.
    """
    from .s3 import NoBucketError

    shown, begin, failed = redact_text(what), time.monotonic(), 0

    def waiting(error: Exception, pause: float) -> None:
        nonlocal failed
        failed += 1
        logger.debug("%s: %s; trying again in %.1f s", shown, _short(error), pause)

    try:
        return try_again(
            action, patience or Patience(), lambda error: not isinstance(error, _LASTING), waiting
        )
    except NoBucketError as error:
        raise StorageError(f"{shown}: the bucket does not exist; make it, or correct its name") from error
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise StorageError(f"{shown}: {redact_text(str(error))}; {_HOW}") from error
    except _LASTING as error:
        raise StorageError(f"{shown}: {_short(error)}") from error
    except Exception as error:
        waited = time.monotonic() - begin
        raise StorageAwayError(
            f"{shown} does not answer ({failed + 1} attempts in {waited:.0f} s): {_short(error)}"
        ) from error


@dataclass(frozen=True)
class Location:
    """A folder at a URI."""

    uri: str  # as the user wrote it, without a slash at its end
    filesystem: Any  # fsspec's
    root: str  # the folder in the file system's own words

    def child(self, *parts: str) -> Location:
        """A folder below."""
        return Location("/".join([self.uri, *parts]), self.filesystem, "/".join([self.root, *parts]))

    def listing(self, patience: Patience | None = None) -> dict[str, int]:
        """Every file below, by its path relative to this folder, with its size in bytes."""

        def look() -> dict[str, int]:
            found = self.filesystem.find(self.root, detail=True)
            start = len(self.root.rstrip("/")) + 1
            return {path[start:]: int(info.get("size") or 0) for path, info in sorted(found.items())}

        try:
            return with_retries(look, self.uri, patience)
        except FileNotFoundError:
            return {}

    def stamps(self, patience: Patience | None = None) -> dict[str, list[Any]]:
        """Every file below with what changes when it does: its size and its ETag or time."""

        def look() -> dict[str, list[Any]]:
            found = self.filesystem.find(self.root, detail=True)
            start = len(self.root.rstrip("/")) + 1
            return {path[start:]: _stamp(info) for path, info in sorted(found.items())}

        try:
            return with_retries(look, self.uri, patience)
        except FileNotFoundError:
            return {}

    def read(self, name: str, patience: Patience | None = None) -> bytes:
        """A small file.

        Raises:
            FileNotFoundError: it is not there.
            StorageError: see :func:`with_retries`; so for all verbs.
        """
        return with_retries(lambda: self.filesystem.cat_file(self._path(name)), self._shown(name), patience)

    def write(self, name: str, content: bytes, patience: Patience | None = None) -> None:
        """Write a small file at once."""

        def put() -> None:
            self._make_parent(name)
            self.filesystem.pipe_file(self._path(name), content)

        with_retries(put, self._shown(name), patience)

    def upload(self, file: Path, name: str, patience: Patience | None = None) -> None:
        """Copy a local file there."""

        def put() -> None:
            self._make_parent(name)
            self.filesystem.put_file(str(file), self._path(name))

        with_retries(put, self._shown(name), patience)

    def download(self, name: str, file: Path, patience: Patience | None = None) -> None:
        """Copy a file from there."""
        with_retries(
            lambda: self.filesystem.get_file(self._path(name), str(file)), self._shown(name), patience
        )

    def delete(self, *names: str, patience: Patience | None = None) -> None:
        """Delete files, in this order; those that are gone already are fine."""
        for name in names:
            remove = functools.partial(self.filesystem.rm_file, self._path(name))
            with contextlib.suppress(FileNotFoundError):
                with_retries(remove, self._shown(name), patience)

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def _shown(self, name: str) -> str:
        return f"{self.uri}/{name}" if name else self.uri

    def _make_parent(self, name: str) -> None:
        self.filesystem.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)


def open_location(uri: str) -> Location:
    """The folder at a URI; nothing is read yet.

    Raises:
        StorageError: an unknown kind of URI, or one that carries credentials.
    """
    import fsspec

    from . import s3

    s3.register_filesystem()
    clean = uri.rstrip("/")
    if clean.startswith(("s3://", "s3a://")):
        if "@" in clean.split("/")[2] or "?" in clean:
            raise StorageError(f"{redact_text(uri)}: write s3://BUCKET/FOLDER and nothing else; {_HOW}")
        if not clean.split("/")[2]:
            raise StorageError(f"{uri}: names no bucket; write s3://BUCKET/FOLDER")
    try:
        filesystem, root = fsspec.core.url_to_fs(clean)
    except (ImportError, ValueError) as error:
        raise StorageError(f"{redact_text(uri)}: {_short(error)}") from error
    return Location(clean, filesystem, str(root).rstrip("/"))


def check_writable(location: Location, patience: Patience | None = None) -> None:
    """Write, read and delete a small file.

    Raises:
        StorageError: it cannot be written, with what to do.
    """
    name = f".d2v-probe-{time.time_ns()}"
    location.write(name, b"d2v", patience)
    try:
        if location.read(name, patience) != b"d2v":
            raise StorageError(f"{location.uri}: a file just written reads back differently")
    except FileNotFoundError:
        raise StorageError(f"{location.uri}: a file just written is not there") from None
    finally:
        location.delete(name, patience=patience)


def _stamp(info: dict[str, Any]) -> list[Any]:
    when = info.get("ETag") or info.get("mtime") or info.get("LastModified") or info.get("created") or ""
    return [int(info.get("size") or 0), str(when)]


def _short(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return redact_text(f"{type(error).__name__}: {first}")[:300]
