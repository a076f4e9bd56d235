"""``s3://`` for fsspec, over boto3.

Why our own: s3fs pins an older boto3, and pyarrow's client does not read ``endpoint_url`` from the AWS files
and completes a half-written object when its stream is closed by an exception. boto3 finds credentials, region
and endpoint in the environment and in ``~/.aws`` exactly as the AWS command line does; nothing else is read.

An object appears whole or not at all: small ones in one request, large ones as a multipart upload that is
aborted on failure. Nothing is cached, so a listing is what the server says now.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

Result = TypeVar("Result")

_ABSENT = {"404", "NoSuchKey", "NotFound"}
_NO_BUCKET = {"NoSuchBucket"}
_REFUSED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
            "InvalidToken", "AuthorizationHeaderMalformed", "RequestTimeTooSkewed"}  # fmt: skip
_BLOCK: Any = 2**22  # bytes read at once from an open object
_DELETE_AT_ONCE = 1000  # keys in one call; S3's limit


class NoBucketError(FileNotFoundError):
    """The bucket of a URI does not exist: waiting will not make it."""


class S3FileSystem(AbstractFileSystem):
    """Objects of S3 or a server that speaks its protocol, as files."""

    protocol = ("s3", "s3a")
    root_marker = ""
    cachable = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._clients: dict[int, Any] = {}
        self._lock = threading.Lock()

    @property
    def client(self) -> Any:
        """boto3's client; a forked process makes its own, because connections cannot be shared."""
        with self._lock:
            if os.getpid() not in self._clients:
                self._clients = {os.getpid(): _make_client()}
            return self._clients[os.getpid()]

    def __reduce__(self) -> Any:  # the client stays behind
        return type(self), ()

    # ---- looking ------------------------------------------------------------------------------------------

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size and ETag of an object, or that it is a folder."""
        bucket, key = split(str(self._strip_protocol(path)))
        if key:
            try:
                return _entry(bucket, key, self._call("head_object", Bucket=bucket, Key=key))
            except FileNotFoundError:
                pass  # perhaps a folder
        prefix = f"{key}/" if key else ""
        found = self._call("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
        if key and not found.get("KeyCount"):
            raise FileNotFoundError(path)
        return {"name": f"{bucket}/{key}".rstrip("/"), "size": 0, "type": "directory"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Objects and folders directly below a folder."""
        bucket, key = split(str(self._strip_protocol(path)))
        prefix = f"{key}/" if key else ""
        found: list[dict[str, Any]] = []
        for page in self._pages(Bucket=bucket, Prefix=prefix, Delimiter="/"):
            found += [
                {"name": f"{bucket}/{p['Prefix']}".rstrip("/"), "size": 0, "type": "directory"}
                for p in page.get("CommonPrefixes", ())
            ]
            found += [
                _entry(bucket, item["Key"], item)
                for item in page.get("Contents", ())
                if item["Key"] != prefix
            ]
        if not found:
            entry = self.info(path)
            found = [entry] if entry["type"] == "file" else []
        return found if detail else [entry["name"] for entry in found]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """All objects below a folder, in one listing."""
        if maxdepth is not None or withdirs:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail)
        bucket, key = split(str(self._strip_protocol(path)))
        prefix = f"{key}/" if key else ""
        found = {
            f"{bucket}/{item['Key']}": _entry(bucket, item["Key"], item)
            for page in self._pages(Bucket=bucket, Prefix=prefix)
            for item in page.get("Contents", ())
            if not item["Key"].endswith("/")
        }
        if not found and self.isfile(path):
            found = {f"{bucket}/{key}": self.info(path)}
        return found if detail else sorted(found)

    def modified(self, path: str) -> datetime:
        """When an object was written."""
        return self.info(path)["LastModified"]

    # ---- reading ------------------------------------------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes of an object, or a part of them."""
        bucket, key = split(str(self._strip_protocol(path)))
        options: dict[str, Any] = {}
        if start is not None or end is not None:
            size = self.info(path)["size"] if (start or 0) < 0 or (end is not None and end < 0) else 0
            begin = (start or 0) + (size if (start or 0) < 0 else 0)
            last = "" if end is None else str((end + size if end < 0 else end) - 1)
            if last and int(last) < begin:
                return b""
            options["Range"] = f"bytes={begin}-{last}"
        answer = self._call("get_object", Bucket=bucket, Key=key, **options)
        return translated(lambda: answer["Body"].read(), path)

    def get_file(
        self, rpath: str, lpath: Any = None, callback: Any = None, outfile: Any = None, **_: Any
    ) -> None:
        """Download an object; a large one by several connections."""
        bucket, key = split(str(self._strip_protocol(rpath)))
        if outfile is not None:
            translated(lambda: self.client.download_fileobj(bucket, key, outfile), rpath)
        else:
            translated(lambda: self.client.download_file(bucket, key, str(lpath)), rpath)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: Any = None,
        autocommit: bool = True,
        cache_options: Any = None,
        **_: Any,
    ) -> Any:
        if mode == "rb":
            return _Reader(self, path, mode, block_size or _BLOCK, cache_options=cache_options)
        if mode == "wb":
            return _Writer(self, path)
        raise ValueError(f"mode {mode!r}: objects are read ('rb') or written whole ('wb')")

    # ---- writing ------------------------------------------------------------------------------------------

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write an object in one request."""
        self._refuse_existing(path, mode)
        bucket, key = split(str(self._strip_protocol(path)))
        self._call("put_object", Bucket=bucket, Key=key, Body=value)

    def put_file(
        self, lpath: Any, rpath: str, callback: Any = None, mode: str = "overwrite", **_: Any
    ) -> None:
        """Upload a file; a multipart upload that fails is aborted."""
        self._refuse_existing(rpath, mode)
        if Path(lpath).is_dir():
            return  # there are no empty folders
        bucket, key = split(str(self._strip_protocol(rpath)))
        translated(lambda: self.client.upload_file(str(lpath), bucket, key), rpath)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy on the server."""
        (source, source_key), (bucket, key) = (split(str(self._strip_protocol(p))) for p in (path1, path2))
        translated(lambda: self.client.copy({"Bucket": source, "Key": source_key}, bucket, key), path1)

    def rm_file(self, path: str) -> None:
        """Delete one object; that it is gone already is fine."""
        bucket, key = split(str(self._strip_protocol(path)))
        self._call("delete_object", Bucket=bucket, Key=key)

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete objects, and with ``recursive`` everything below."""
        for one in [path] if isinstance(path, str) else path:
            names = self.find(one) if recursive else [str(self._strip_protocol(one))]
            for first in range(0, len(names), _DELETE_AT_ONCE):
                keys = [split(name) for name in names[first : first + _DELETE_AT_ONCE]]
                wanted = {"Objects": [{"Key": key} for _, key in keys], "Quiet": True}
                self._call("delete_objects", Bucket=keys[0][0], Delete=wanted)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Folders exist as soon as something lies in them."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders exist as soon as something lies in them."""

    def _refuse_existing(self, path: str, mode: str) -> None:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)

    # ---- inside -------------------------------------------------------------------------------------------

    def _call(self, operation: str, **arguments: Any) -> Any:
        place = f"s3://{arguments['Bucket']}/{arguments.get('Key', arguments.get('Prefix', ''))}"
        return translated(lambda: getattr(self.client, operation)(**arguments), place)

    def _pages(self, **arguments: Any) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", **arguments, **token)
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}


class _Reader(AbstractBufferedFile):
    """Reads ranges as they are asked for."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)


class _Writer(io.IOBase):
    """Collects on disk and uploads when closed, unless an exception ended the block."""

    def __init__(self, filesystem: S3FileSystem, path: str) -> None:
        self._filesystem, self._path = filesystem, path
        self._file = tempfile.NamedTemporaryFile(prefix="d2v_s3_")  # noqa: SIM115 - closed in close()

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if self.closed:
            return
        self._file.flush()
        try:
            self._filesystem.put_file(self._file.name, self._path)
        finally:
            self.discard()

    def discard(self) -> None:
        """Close without uploading."""
        self._file.close()
        super().close()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:  # a forgotten writer publishes nothing
        self._file.close()


def split(path: str) -> tuple[str, str]:
    """Bucket and key."""
    bucket, _, key = path.strip("/").partition("/")
    return bucket, key


def translated(action: Callable[[], Result], place: str) -> Result:
    """Run ``action``, with botocore's errors as the ones that Python has for files.

    Raises:
        FileNotFoundError: no such object (:class:`NoBucketError`: no such bucket).
        PermissionError: refused, or no credentials.
        ConnectionError: the server does not answer, or answers that it cannot now.
    """
    from boto3.exceptions import Boto3Error

    try:
        return action()
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _NO_BUCKET:
            raise NoBucketError(f"{place}: the bucket does not exist") from error
        if code in _ABSENT:
            raise FileNotFoundError(place) from error
        if code in _REFUSED:
            raise PermissionError(f"{place}: refused ({code})") from error
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        kind = ConnectionError if status >= 500 or status in (408, 429) or not status else OSError
        raise kind(f"{place}: {code or status}: {error}") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise PermissionError(f"{place}: {error}") from error
    except Boto3Error as error:  # transfers wrap the error in text
        text = str(error)
        if any(code in text for code in _NO_BUCKET):
            raise NoBucketError(f"{place}: the bucket does not exist") from error
        if any(f"({code})" in text for code in _REFUSED):
            raise PermissionError(f"{place}: {error}") from error
        raise ConnectionError(f"{place}: {error}") from error
    except BotoCoreError as error:
        raise ConnectionError(f"{place}: {error}") from error


def register_filesystem() -> None:
    """Make ``s3://`` mean this file system for every user of fsspec in this process."""
    for protocol in S3FileSystem.protocol:
        fsspec.register_implementation(protocol, S3FileSystem, clobber=True)


def _make_client() -> Any:
    import boto3

    # What the user set (AWS_MAX_ATTEMPTS, AWS_RETRY_MODE) wins; we wait longer than botocore would ourselves.
    retries: dict[str, Any] = {}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = 2
    if "AWS_RETRY_MODE" not in os.environ:
        retries["mode"] = "standard"
    settings = Config(retries=retries, connect_timeout=5, read_timeout=60, tcp_keepalive=True)  # pyright: ignore[reportArgumentType]
    return boto3.Session().client("s3", config=settings)


def _entry(bucket: str, key: str, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"{bucket}/{key}",
        "size": int(found.get("ContentLength", found.get("Size", 0))),
        "type": "file",
        "ETag": found.get("ETag"),
        "LastModified": found.get("LastModified"),
    }
