"""Files over HTTP: resumed after an interruption, verified, and published only when complete.

A download grows in ``<file>.part`` beside ``<file>.part.json``, which remembers what the server said about
the file; if that changes, the download starts again. Only a complete file with the right checksum gets its
name.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests

from data2vec.errors import DataError
from data2vec.folders import file_sha256, inside, take_place, written_file

from ..retries import Patience, try_again

BLOCK_BYTES = 1 << 16  # what a broken connection can lose at most
_PATIENCE = Patience(seconds=math.inf, first_s=1, attempts=5)
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if known


@dataclass(frozen=True)
class Downloaded:
    """A file that is there."""

    path: Path
    bytes: int
    sha256: str
    verified: bool  # compared with a checksum that the user gave
    resumed_from: int  # bytes that an earlier attempt had left
    cached: bool = False  # it was there already


class _Interrupted(Exception):
    """The connection broke; what came so far is kept."""


def download(
    url: str,
    dest: Path,
    sha256: str | None = None,
    progress: Progress | None = None,
    *,
    timeout_s: float = 30.0,
    patience: Patience = _PATIENCE,
) -> Downloaded:
    """Fetch ``url`` to the file ``dest``.

    Args:
        url: http or https.
        dest: the file to make; if it is there and its checksum is right (or none is given), nothing is
        fetched.
        sha256: expected SHA-256 in hexadecimal; ``None`` accepts the file and says so in ``verified``.
        progress: called with the bytes so far and the total.
        timeout_s: longest silence of the server.
        patience: how often a broken connection is taken up again in one call.

    Raises:
        DataError: no network, the server refuses, the connection broke too often (the partial file stays for
            the
            next call), or the checksum is wrong (the partial file is removed).
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"cannot download {url}: only http and https addresses are supported")
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise DataError(f"{sha256!r} is not a SHA-256: 64 hexadecimal digits")
    if dest.is_file():
        return _existing(url, dest, sha256)
    dest.parent.mkdir(parents=True, exist_ok=True)
    part = dest.with_name(f"{dest.name}.part")
    resumed_from = part.stat().st_size if part.is_file() else 0
    try:
        try_again(
            lambda: _fetch(url, part, progress, timeout_s),
            patience,
            lambda error: isinstance(error, _Interrupted),
        )
    except _Interrupted as error:
        got = part.stat().st_size if part.is_file() else 0
        raise DataError(
            f"cannot download {url}: {error}; {got} bytes are kept in {part}, the same command continues "
            "there. Without network, fetch the file elsewhere and give its path"
        ) from error
    found = file_sha256(part)
    if sha256 is not None and found != sha256.lower():
        _forget(part)
        raise DataError(f"{url} has SHA-256 {found}, expected {sha256.lower()}; the file was discarded")
    take_place(part, dest)
    _forget(part)
    return Downloaded(dest, dest.stat().st_size, found, sha256 is not None, resumed_from)


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Extract a zip file into ``folder`` (names that leave the folder are refused).

    Raises:
        DataError: not a zip file, or damaged, or with such names.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            names = [n for n in zipped.namelist() if not n.endswith("/")]
            for name in names:
                inside(folder, name)
            if broken := zipped.testzip():
                raise DataError(f"{archive} is damaged at {broken!r}; remove it and download it again")
            zipped.extractall(folder)
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive} is not a zip file ({error}); remove it and download it again") from error
    return [folder / name for name in names]


def download_text(
    url: str, folder: Path, sha256: str | None = None, progress: Progress | None = None
) -> Path:
    """Fetch a text file; ``.gz`` and a ``.zip`` with one file are unpacked.

    Raises:
        DataError: see :func:`download`; or the archive is damaged or holds several files.
    """
    archive = download(url, folder / file_name(url), sha256, progress).path
    if archive.suffix == ".gz":
        target = archive.with_suffix("")
        if not target.is_file():
            try:
                with gzip.open(archive) as source, written_file(target) as beside, beside.open("wb") as file:
                    shutil.copyfileobj(source, file)
            except (gzip.BadGzipFile, EOFError) as error:
                raise DataError(f"{archive} is damaged ({error}); remove it and download it again") from error
        return target
    if archive.suffix == ".zip":
        files = unpack(archive, archive.with_suffix(""))
        if len(files) != 1:
            raise DataError(f"{archive} holds {len(files)} files; unpack it and give the text file's path")
        return files[0]
    return archive


def file_name(url: str) -> str:
    """Last part of an address, as a safe file name."""
    name = unquote(Path(urlsplit(url).path).name).replace("/", "_").replace("\\", "_")
    if name in ("", ".", ".."):
        raise DataError(f"{url} does not name a file")
    return name


def _fetch(url: str, part: Path, progress: Progress | None, timeout_s: float) -> None:
    """Bring ``part`` to its full length, from where it stands."""
    note = part.with_name(f"{part.name}.json")
    have = part.stat().st_size if part.is_file() else 0
    known = _read_note(note)
    headers = {"Accept-Encoding": "identity"}  # byte ranges are of the file, not of a compressed transfer
    if have and known.get("url") == url and known.get("validator"):
        headers |= {"Range": f"bytes={have}-", "If-Range": str(known["validator"])}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout_s) as answer:
            if answer.status_code == 416:  # nothing beyond what we have: complete, or the file shrank
                if known.get("total") != have:
                    _forget(part)
                    raise _Interrupted("the file changed on the server")
                return
            if answer.status_code >= 500:
                raise _Interrupted(f"the server answered {answer.status_code} {answer.reason}")
            if answer.status_code not in (200, 206):
                raise DataError(
                    f"cannot download {url}: the server answered {answer.status_code} {answer.reason}"
                )
            resumed = answer.status_code == 206
            have = have if resumed else 0
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length is not None else None
            validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            if validator is not None and validator.startswith("W/"):
                validator = None  # a weak validator does not promise equal bytes
            note.write_text(
                json.dumps({"url": url, "validator": validator, "total": total}), encoding="utf-8"
            )
            with part.open("ab" if resumed else "wb") as file:
                for block in answer.iter_content(BLOCK_BYTES):
                    file.write(block)
                    have += len(block)
                    if progress is not None:
                        progress(have, total)
            if total is not None and have != total:
                raise _Interrupted(f"the connection ended after {have} of {total} bytes")
    except requests.exceptions.ConnectionError as error:
        raise _Interrupted(f"no connection to {urlsplit(url).hostname} ({_reason(error)})") from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise _Interrupted("the connection broke off") from error
    except requests.exceptions.RequestException as error:
        raise _Interrupted(f"{type(error).__name__}: {_reason(error)}") from error


def _existing(url: str, dest: Path, sha256: str | None) -> Downloaded:
    found = file_sha256(dest)
    if sha256 is not None and found != sha256.lower():
        raise DataError(
            f"{dest} is there with SHA-256 {found}, expected {sha256.lower()}; remove it to download {url} "
            "again"
        )
    return Downloaded(dest, dest.stat().st_size, found, sha256 is not None, 0, cached=True)


def _read_note(note: Path) -> dict[str, object]:
    try:
        values = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """The innermost cause, short."""
    cause: BaseException = error
    while isinstance(cause.args[0] if cause.args else None, BaseException):
        cause = cause.args[0]
    return str(getattr(cause, "reason", None) or cause)[:150]
