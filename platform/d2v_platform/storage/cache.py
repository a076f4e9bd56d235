"""Data and models at a URI, brought to this machine once: ``task.data=s3://bucket/x`` reads as a folder.

Models of other programs are here too, as folders of ours: converted once.

::

    <D2V_HOME>/cache/data/
      <key>/                 one folder; the key names the URI and what lies there (sizes, ETags)
      <key>.used             touched whenever it is used
      .<key>.partial/        being fetched
      .<key>.needs           how many bytes it will have
      .<key>.lock, .lock     held by who fetches or deletes it; held by who counts and makes room

A folder is fetched beside its place and renamed, so it is complete or not there; a fetch that was killed goes
on from the files that it has. When the files at the URI change, so does the key. The cache is bounded
(``D2V_CACHE_GB``, default 100): what was used longest ago goes first, never what a living process uses.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import filelock

from data2vec.errors import Data2VecError, DataError
from data2vec.folders import inside, take_place

from ..figures import clock, data_size
from ..home import home_folder
from ..redaction import redact_text
from .locations import Location, Patience, StorageError, is_uri, local_path, open_location

logger = logging.getLogger(__name__)

_DEFAULT_GB = 100.0
_IN_USE: dict[Path, BinaryIO] = {}  # held by this process until it ends
_PARALLEL = 8  # downloads at a time
_TELL_EVERY_S = 10.0
_ABANDONED_S = 86_400.0


def limit_bytes() -> int:
    """How large the cache may be.

    Raises:
        StorageError: ``D2V_CACHE_GB`` is no number.
    """
    asked = os.environ.get("D2V_CACHE_GB")
    try:
        gigabytes = float(asked) if asked else _DEFAULT_GB
    except ValueError:
        raise StorageError(f"D2V_CACHE_GB = {asked!r} must be a number of gigabytes") from None
    return int(gigabytes * 1e9)


def local_data(data: str) -> str:
    """``task.data`` with every URI in it replaced by a local folder of the same content.

    Args:
        data: one folder or several separated by colons, as in the reference.

    Raises:
        DataError: nothing lies at a URI.
        StorageError: it cannot be read, or does not fit the cache.
    """
    return ":".join(str(_local(place)) for place in split_places(data))


def on_this_node(field: str, there: str, name: str, bring: Callable[[str], str] = str) -> str:
    """What the driver has found, as this node has it: at the same path, or brought here by its name.

    Processes of a node share the cache, which lets one of them fetch and the others wait.

    Args:
        field: that names it, for messages.
        there: path on the driver's node, or several separated by colons.
        name: as the user wrote it, or exact.
        bring: finds it here; by default a name is a path.

    Raises:
        Data2VecError: it is on the driver's node alone, with the name of this one.
    """
    if _missing(there) is None:
        return there
    try:
        found = bring(name)
        if (place := _missing(found)) is not None:
            raise DataError(f"{place}: no such file or folder")
    except Data2VecError as error:
        raise Data2VecError(
            f"{field} = {redact_text(name)!r} is not on the node {socket.gethostname()}: {error}; put it "
            "where every node sees it, or name it as s3://... (a model also as models:/NAME@ALIAS, with "
            "MLFLOW_TRACKING_URI set on each node)"
        ) from error
    return found


def _missing(places: str) -> str | None:
    return next((place for place in split_places(places) if not local_path(place).exists()), None)


def split_places(data: str) -> list[str]:
    """Folders separated by colons; the colon of a URI's scheme and port separates nothing."""
    places: list[str] = []
    for part in data.split(":"):
        if places and (part.startswith("//") or _is_port(places[-1], part)):
            places[-1] += f":{part}"
        else:
            places.append(part)
    return places


def cached_folder(
    uri: str, root: Path | None = None, patience: Patience | None = None, what: str = "task.data"
) -> Path:
    """A local copy of the folder (or the one file) at a URI, kept for as long as this process lives.

    Args:
        uri: any fsspec URI.
        root: another cache folder, for tests.
        patience: how long to try when the place does not answer.
        what: the field or option that names the URI, for messages.
    """
    location = open_location(uri)
    stamps = location.stamps(patience)
    shown = f"{what} = {redact_text(uri)!r}"
    if not stamps:
        raise DataError(f"{shown}: nothing lies there")
    key = hashlib.sha256(json.dumps([uri, stamps]).encode()).hexdigest()[:24]
    sizes = {name: int(stamp[0]) for name, stamp in stamps.items()}

    def fetch(beside: Path) -> Path:
        _fetch(location, sizes, beside, patience)
        return beside

    return cached(key, sum(sizes.values()), shown, fetch, root)


def cached(
    key: str, needed: int, shown: str, fetch: Callable[[Path], Path], root: Path | None = None
) -> Path:
    """The folder of a key, fetched unless it is there, and kept for as long as this process lives.

    Args:
        key: names the content, which never changes.
        needed: its bytes.
        shown: what it is, for messages.
        fetch: fills the folder that it is given (which may hold what a killed fetch brought) and returns the
            folder to keep: that one or one in it.
        root: another cache folder, for tests.

    Raises:
        StorageError: it does not fit the cache or the disk.
    """
    cache = root or home_folder("cache") / "data"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    done = cache / key
    with _lock(cache, key):
        if not done.is_dir():
            beside = _make_room(cache, key, needed, shown)
            logger.info("fetching %s (%s) into %s", shown, data_size(needed), done)
            try:
                take_place(fetch(beside), done)
            except (ConnectionError, StorageError):
                raise
            except Data2VecError:
                _drop_partial(cache, key)  # what it is made from is wrong, and what is made of it no better
                raise
            except OSError as error:
                _drop_partial(cache, key)  # the disk is full, most likely
                raise StorageError(
                    f"{shown} cannot be kept in {cache}: {error}; free space there, or set D2V_HOME to a "
                    "larger disk"
                ) from error
            _drop_partial(cache, key)
        _hold(done)
    return done


def keep_if_cached(folder: Path) -> None:
    """A folder of the cache that is named by its path is as much in use as one named by its source."""
    cache = home_folder("cache") / "data"
    if folder.parent == cache and folder.is_dir():
        with _lock(cache, folder.name):
            if folder.is_dir():
                _hold(folder)


def _local(place: str) -> Path:
    return cached_folder(place) if is_uri(place) else local_path(place)


def _is_port(before: str, part: str) -> bool:
    """``memory://host:80/x``: digits right after a URI's host."""
    return is_uri(before) and "/" not in before.split("://", 1)[1] and part[:1].isdigit()


def _fetch(location: Location, sizes: dict[str, int], beside: Path, patience: Patience | None) -> None:
    """Bring every file into ``beside``; those that an earlier, killed fetch brought are kept."""
    progress = _FetchProgress(location.uri, sum(sizes.values()))

    def get(name: str) -> None:
        target = inside(beside, name or Path(location.root).name)
        if not target.is_file() or target.stat().st_size != sizes[name]:
            target.parent.mkdir(parents=True, exist_ok=True)
            half = target.with_name(f"{target.name}.part")  # the next fetch takes it if this one is killed
            location.download(name, half, patience)
            take_place(half, target)
        progress.add(sizes[name])

    try:
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(get, sizes))
    except FileNotFoundError as error:
        raise StorageError(f"{location.uri}: {error} vanished while it was fetched; try again") from error


class _FetchProgress:
    """A line now and then: how much is there, how fast it comes, how long it will take."""

    def __init__(self, uri: str, total: int) -> None:
        self.uri, self.total, self.there = uri, total, 0
        self.begin = self.told = time.monotonic()
        self.lock = threading.Lock()

    def add(self, size: int) -> None:
        with self.lock:
            self.there += size
            now = time.monotonic()
            if now - self.told < _TELL_EVERY_S:
                return
            self.told, rate = now, self.there / (now - self.begin)
            left = (self.total - self.there) / max(rate, 1.0)
            logger.info(
                "fetching %s: %s of %s, %s/s, %s to go",
                self.uri, data_size(self.there), data_size(self.total), data_size(rate), clock(left),
            )  # fmt: skip


def _partial(cache: Path, key: str) -> Path:
    return cache / f".{key}.partial"


def _needs(cache: Path, key: str) -> Path:
    return cache / f".{key}.needs"


def _drop_partial(cache: Path, key: str) -> None:
    shutil.rmtree(_partial(cache, key), ignore_errors=True)
    _needs(cache, key).unlink(missing_ok=True)


def _lock(cache: Path, key: str) -> filelock.BaseFileLock:
    """Several workers of a machine want the same folder: one fetches, the others wait; nobody deletes it."""
    return filelock.FileLock(cache / f".{key}.lock")


@contextlib.contextmanager
def _free(cache: Path, key: str) -> Iterator[bool]:
    """Whether nobody fetches, takes or deletes a folder; nobody else does inside the block then."""
    lock = _lock(cache, key)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _hold(folder: Path) -> None:
    """Mark as just used, and keep other processes from deleting it while this one lives."""
    if folder in _IN_USE:
        return
    used = folder.with_name(f"{folder.name}.used")
    used.touch()
    _IN_USE[folder] = used.open("rb")
    fcntl.flock(_IN_USE[folder], fcntl.LOCK_SH)  # the kernel lets go of it when the process dies


def _in_use(folder: Path) -> bool:
    if folder in _IN_USE:
        return True
    used = folder.with_name(f"{folder.name}.used")
    if not used.is_file():
        return False
    with used.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _last_used(folder: Path) -> float:
    used = folder.with_name(f"{folder.name}.used")
    return used.stat().st_mtime if used.is_file() else 0.0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _drop_partials(cache: Path, older_than_s: float) -> None:
    """Delete what killed fetches left and nobody has touched for some time."""
    for partial in cache.glob(".*.partial"):
        newest = max((p.stat().st_mtime for p in [partial, *partial.rglob("*")]), default=0.0)
        key = partial.name[1:].removesuffix(".partial")
        with _free(cache, key) as free:
            if free and time.time() - newest > older_than_s:
                _drop_partial(cache, key)


def _make_room(cache: Path, key: str, needed: int, shown: str) -> Path:
    """An empty or half-filled folder for ``needed`` bytes; what was used longest ago is deleted for it.

    The caller holds the key's lock.
    """
    limit = limit_bytes()
    if needed > limit:
        raise StorageError(
            f"{shown} holds {data_size(needed)}, and the cache may hold {data_size(limit)}; raise "
            "D2V_CACHE_GB, or copy it to a disk that all workers see"
        )
    with filelock.FileLock(cache / ".lock"):
        _drop_partials(cache, _ABANDONED_S)
        held = _evict(cache, limit - needed - _reserved(cache, key)) + _reserved(cache, key)
        if held + needed > limit:
            _drop_partials(cache, 0.0)
            held = sum(map(_size, _folders(cache))) + _reserved(cache, key)
        if held + needed > limit:
            raise StorageError(
                f"{shown} needs {data_size(needed)} of cache; what runs here holds {data_size(held)} of "
                f"{data_size(limit)}; raise D2V_CACHE_GB or wait"
            )
        beside = _partial(cache, key)
        beside.mkdir(mode=0o700, exist_ok=True)
        _needs(cache, key).write_text(str(needed))
    return beside


def _folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir() and path.name[0] != "."]


def _reserved(cache: Path, key: str) -> int:
    """Bytes that other fetches have or will have."""
    return sum(int(path.read_text() or 0) for path in cache.glob(".*.needs") if path != _needs(cache, key))


def _evict(cache: Path, limit: int) -> int:
    """Delete complete folders, longest unused first, until the limit is kept; returns the bytes left."""
    sizes = {path: _size(path) for path in _folders(cache)}
    total = sum(sizes.values())
    for folder in sorted(sizes, key=_last_used):
        if total <= limit:
            break
        with _free(cache, folder.name) as free:
            if not free or _in_use(folder):
                continue
            total -= sizes[folder]
            logger.info("the cache is full: deleting %s (%s)", folder, data_size(sizes[folder]))
            folder.with_name(f"{folder.name}.used").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    return total
