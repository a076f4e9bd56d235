"""What ``s3://`` asks of the server, call by call: ranges, pages, folders, deletion and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from d2v_platform.storage import s3
from d2v_platform.storage.local_places import file_to_write, folder_to_write
from d2v_platform.storage.locations import (
    Location,
    Patience,
    StorageAwayError,
    StorageError,
    check_writable,
    is_uri,
    local_path,
    open_location,
    with_retries,
)
from d2v_platform.storage.s3 import NoBucketError, S3FileSystem, split, translated
from data2vec.errors import DataError


class Body:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self) -> bytes:
        return self.content


class Server:
    """A bucket of few objects that lists two keys a page and remembers what it was asked."""

    def __init__(self, **objects: bytes) -> None:
        self.objects = {name.replace("__", "/"): content for name, content in objects.items()}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def head_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        if Key not in self.objects:
            raise ClientError({"Error": {"Code": "404"}}, "HeadObject")
        return {"ContentLength": len(self.objects[Key]), "ETag": "tag", "LastModified": "then"}

    def list_objects_v2(self, Bucket: str, Prefix: str, **more: Any) -> dict[str, Any]:
        self.asked.append(("list", {"Prefix": Prefix, **more}))
        keys = sorted(key for key in self.objects if key.startswith(Prefix))
        folders: list[str] = []
        if "Delimiter" in more:
            below = {key: key[len(Prefix) :].partition("/") for key in keys}
            folders = sorted({f"{Prefix}{first}/" for first, slash, _ in below.values() if slash})
            keys = [key for key, (_, slash, _) in below.items() if not slash]
        start = int(more.get("ContinuationToken", 0))
        page = keys[start : start + min(more.get("MaxKeys", 2), 2)]
        answer: dict[str, Any] = {"KeyCount": len(page), "IsTruncated": start + 2 < len(keys)}
        answer["Contents"] = [{"Key": key, "Size": len(self.objects[key]), "ETag": f"e{key}"} for key in page]
        answer["CommonPrefixes"] = [{"Prefix": folder} for folder in folders] if not start else []
        return answer | ({"NextContinuationToken": str(start + 2)} if answer["IsTruncated"] else {})

    def get_object(self, Bucket: str, Key: str, **more: Any) -> dict[str, Any]:
        self.asked.append(("get", {"Key": Key, **more}))
        return {"Body": Body(self.objects[Key])}

    def delete_objects(self, Bucket: str, Delete: dict[str, Any]) -> None:
        keys = [entry["Key"] for entry in Delete["Objects"]]
        self.asked.append(("delete", {"Bucket": Bucket, "Keys": keys}))
        for key in keys:
            self.objects.pop(key, None)

    def put_object(self, Bucket: str, Key: str, Body: bytes) -> None:
        self.objects[Key] = Body


def served(monkeypatch: pytest.MonkeyPatch, **objects: bytes) -> tuple[Server, S3FileSystem]:
    server = Server(**objects)
    monkeypatch.setattr(s3, "_make_client", lambda: server)
    return server, S3FileSystem(skip_instance_cache=True)


def test_parts_of_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    server, files = served(monkeypatch, a__b=b"0123456789")

    def asked(*where: int | None) -> Any:
        server.asked.clear()
        content = files.cat_file("s3://bucket/a/b", *where)
        return server.asked[-1][1].get("Range") if server.asked else content

    assert asked() is None
    assert asked(2, 5) == "bytes=2-4"
    assert asked(2) == "bytes=2-"
    assert asked(None, 5) == "bytes=0-4"
    assert asked(0, 1) == "bytes=0-0"
    assert asked(-3) == "bytes=7-"
    assert asked(-3, -1) == "bytes=7-8"
    assert asked(1, -2) == "bytes=1-7"
    assert asked(4, 4) == b"" and asked(5, 4) == b""
    assert split("/bucket/a/b/") == ("bucket", "a/b") and split("bucket") == ("bucket", "")


def test_listings_go_through_all_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = {"f__a": b"1", "f__b": b"22", "f__c": b"333", "f__d__e": b"4444", "f__d__g": b"5", "f__": b"",
               "fa": b"6", "z__": b""}  # fmt: skip
    server, files = served(monkeypatch, **objects)
    found = files.find("s3://bucket/f", detail=True)
    assert {name: info["size"] for name, info in found.items()} == {
        "bucket/f/a": 1,
        "bucket/f/b": 2,
        "bucket/f/c": 3,
        "bucket/f/d/e": 4,
        "bucket/f/d/g": 1,
    }
    assert found["bucket/f/a"]["ETag"] == "ef/a" and found["bucket/f/a"]["type"] == "file"
    assert files.find("bucket/f") == sorted(found)
    assert files.find("bucket/fa") == ["bucket/fa"] and files.find("bucket/none") == []
    assert sorted(files.ls("bucket/f", detail=False)) == [f"bucket/f/{name}" for name in "abcd"]
    kinds = {entry["name"]: entry["type"] for entry in files.ls("bucket/f")}
    assert kinds["bucket/f/d"] == "directory" and kinds["bucket/f/a"] == "file"
    assert files.ls("bucket/fa", detail=False) == ["bucket/fa"]
    assert files.ls("bucket/z", detail=False) == []
    with pytest.raises(FileNotFoundError):
        files.ls("bucket/none")
    assert {entry[1]["Prefix"] for entry in server.asked} <= {"f/", "fa/", "none/", "z/"}
    info = files.info("bucket/f/b")
    assert (info["size"], info["type"], info["ETag"], info["name"]) == (2, "file", "tag", "bucket/f/b")
    assert files.info("bucket/f/d") == {"name": "bucket/f/d", "size": 0, "type": "directory"}
    assert files.info("bucket")["type"] == "directory"
    assert files.modified("bucket/f/a") == "then"
    assert served(monkeypatch)[1].info("bucket")["type"] == "directory", "an empty one is there too"


def test_deletion_is_in_calls_of_a_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3._DELETE_AT_ONCE == 1000
    monkeypatch.setattr(s3, "_DELETE_AT_ONCE", 2)
    server, files = served(monkeypatch, a__1=b"", a__2=b"", a__3=b"", b=b"")
    files.rm("s3://bucket/a", recursive=True)
    deleted = [entry[1] for entry in server.asked if entry[0] == "delete"]
    assert deleted == [{"Bucket": "bucket", "Keys": ["a/1", "a/2"]}, {"Bucket": "bucket", "Keys": ["a/3"]}]
    assert list(server.objects) == ["b"]
    files.rm(["bucket/b"])
    assert not server.objects


def test_what_exists_is_not_written_again_if_so_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    server, files = served(monkeypatch, a=b"old")
    with pytest.raises(FileExistsError):
        files.pipe_file("bucket/a", b"new", mode="create")
    files.pipe_file("bucket/b", b"new", mode="create")
    files.pipe_file("bucket/a", b"newer")
    assert server.objects == {"a": b"newer", "b": b"new"}
    for mode in ("ab", "r+b"):
        with pytest.raises(ValueError, match=r"read \('rb'\) or written whole"):
            files.open("bucket/a", mode)
    make, given = files.__reduce__()
    assert isinstance(make(*given), S3FileSystem)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(500, ConnectionError), (408, ConnectionError), (429, ConnectionError), (0, ConnectionError),
     (499, OSError), (400, OSError)],
)  # fmt: skip
def test_the_status_decides_where_the_code_is_unknown(status: int, kind: type[Exception]) -> None:
    def fails() -> None:
        answer: Any = {"Error": {"Code": "Odd"}, "ResponseMetadata": {"HTTPStatusCode": status}}
        raise ClientError(answer, "GetObject")

    with pytest.raises(OSError, match="the place: Odd") as caught:
        translated(fails, "the place")
    assert isinstance(caught.value, ConnectionError) == (kind is ConnectionError)


def test_the_client_waits_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    made: list[Any] = []

    class Session:
        def client(self, name: str, config: Any) -> None:
            made.append((name, config))

    monkeypatch.setattr(boto3, "Session", Session)
    for name in ("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"):
        monkeypatch.delenv(name, raising=False)
    s3._make_client()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    s3._make_client()
    monkeypatch.setenv("AWS_RETRY_MODE", "adaptive")
    s3._make_client()
    retries = [config.retries for _, config in made]
    assert retries == [{"total_max_attempts": 2, "mode": "standard"}, {"mode": "standard"}, {}]
    name, config = made[0]
    assert (name, config.connect_timeout, config.read_timeout, config.tcp_keepalive) == ("s3", 5, 60, True)


# --- patience and names -----------------------------------------------------------------------------------


def test_pauses_double_up_to_the_longest_and_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("random.uniform", lambda low, high: high * (low == 0.7))

    def away() -> None:
        raise ConnectionError("first line\nsecond line")

    with pytest.raises(StorageAwayError) as caught:
        with_retries(away, "s3://b/x", Patience(seconds=10.0, first_s=0.5, longest_s=3.0))
    assert pauses == [0.5, 1.0, 2.0, 3.0, 3.0]  # one more would go beyond ten seconds
    wanted = "s3://b/x does not answer (6 attempts in 10 s): ConnectionError: first line"
    assert str(caught.value) == wanted
    pauses.clear()
    with pytest.raises(StorageAwayError):
        with_retries(away, "x")
    assert pauses[:6] == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0] and 30 < sum(pauses) <= 60


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (NoBucketError("b"), StorageError, "the bucket does not exist; make it"),
        (FileNotFoundError("b"), FileNotFoundError, "b"),
        (PermissionError("refused"), StorageError, "refused; credentials and endpoint come from"),
        *((kind("odd"), StorageError, f"place: {kind.__name__}: odd") for kind in (
            IsADirectoryError, NotADirectoryError, FileExistsError, ValueError, TypeError, ImportError,
            NotImplementedError)),
    ],
)  # fmt: skip
def test_what_waiting_does_not_mend_is_said_at_once(
    error: Exception, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waited"))

    def fails() -> None:
        raise error

    with pytest.raises(kind, match=words) as caught:
        with_retries(fails, "place")
    assert not isinstance(caught.value, StorageAwayError)


def test_names_of_local_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("file:///a%20b/c") == Path("/a b/c")
    assert local_path("~/x") == tmp_path / "x" and local_path("x") == Path("x")
    assert is_uri("memory://x") and not is_uri("a:b") and not is_uri("file:///x")
    place = open_location("memory://one/two/")
    assert (
        place.uri == "memory://one/two" and place.child("three", "four").uri == "memory://one/two/three/four"
    )
    (tmp_path / "file").write_text("")
    assert folder_to_write(str(tmp_path / "new/deep")) == tmp_path / "new/deep"
    assert file_to_write(str(tmp_path / "new/deep.txt")) == tmp_path / "new/deep.txt"
    assert file_to_write(str(tmp_path / "file")) == tmp_path / "file"
    for refused in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(DataError, match=r"cannot be a folder: .*file is a file"):
            folder_to_write(str(refused))
    with pytest.raises(DataError, match="cannot be a folder"):
        file_to_write(str(tmp_path / "file/below"))
    with pytest.raises(DataError, match="is a folder; name a file in it"):
        file_to_write(str(tmp_path))
    for check in (folder_to_write, file_to_write):
        with pytest.raises(DataError, match="is an address"):
            check("s3://bucket/x")


def test_a_place_that_does_not_keep_what_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = open_location(f"memory://{tmp_path.name}/probe")
    check_writable(place)
    assert place.listing() == {}
    monkeypatch.setattr(Location, "read", lambda *_: b"other")
    with pytest.raises(StorageError, match="reads back differently"):
        check_writable(place)
    assert place.listing() == {}

    def gone(*_: Any) -> bytes:
        raise FileNotFoundError

    monkeypatch.setattr(Location, "read", gone)
    with pytest.raises(StorageError, match="a file just written is not there"):
        check_writable(place)
    assert place.listing() == {}
