"""Folders at URIs, on a real S3 server where the protocol matters: whole or absent, patient, and secret."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from d2v_platform.storage import cache
from d2v_platform.storage.cache import cached, cached_folder, local_data, split_places
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
from d2v_platform.storage.s3 import NoBucketError, translated
from data2vec.errors import DataError

BRIEF = Patience(seconds=1.0, first_s=0.1)


def _refusal(code: str, status: int = 400) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


@pytest.fixture(params=["memory", "s3", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "s3":
        return open_location(f"{request.getfixturevalue('s3_bucket')}/some/folder")
    if request.param == "file":
        return open_location(f"file://{tmp_path}/folder")
    return open_location(f"memory://{tmp_path.name}/folder")


def test_every_kind_of_place_has_the_same_verbs(place: Location, tmp_path: Path) -> None:
    assert place.listing() == {}
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 40_000)  # 10 MB: several parts on S3
    place.upload(big, "deep/below/big")
    place.write("small", b"text")
    assert place.listing() == {"deep/below/big": big.stat().st_size, "small": 4}
    assert place.child("deep").listing() == {"below/big": big.stat().st_size}
    place.download("deep/below/big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    before = place.stamps()["small"]
    place.write("small", b"TEXT")
    assert place.read("small") == b"TEXT"
    if not place.uri.startswith("memory"):  # its clock is the moment of creation
        assert place.stamps()["small"] != before
    with pytest.raises(FileNotFoundError):
        place.read("absent")
    place.delete("small", "absent")
    assert list(place.listing()) == ["deep/below/big"]
    check_writable(place)
    assert list(place.listing()) == ["deep/below/big"]


def test_fsspec_opens_s3_in_parts_and_never_publishes_a_failed_write(s3_bucket: str) -> None:
    import fsspec

    place = open_location(f"{s3_bucket}/x")
    files = place.filesystem
    with files.open(f"{s3_bucket}/x/file", "wb") as file:
        file.write(b"0123456789" * 1000)
    opened: Any = fsspec.open(f"{s3_bucket}/x/file", "rb")
    with opened as file:
        file.seek(9_990)
        assert file.read() == b"0123456789"
    with pytest.raises(ValueError, match="as the writer"), files.open(f"{s3_bucket}/x/half", "wb") as file:
        _fail_after_writing(file)
    assert list(place.listing()) == ["file"]
    assert files.cat_file(f"{s3_bucket}/x/file", -10, -8) == b"01"
    assert files.ls(s3_bucket, detail=False) == [f"{s3_bucket[5:]}/x"]
    assert files.isdir(f"{s3_bucket}/x") and not files.exists(f"{s3_bucket}/y")
    files.rm(f"{s3_bucket}/x", recursive=True)
    assert place.listing() == {}


def test_refusals_are_said_at_once_and_without_the_secret(
    s3_bucket: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = time.monotonic()
    with pytest.raises(StorageError, match="the bucket does not exist"):
        open_location("s3://no-such-bucket-here/x").write("a", b"")
    wrong = "wrong" + s3_server.secret_key
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong)
    _forget_clients()
    with pytest.raises(StorageError, match=r"SignatureDoesNotMatch.*AWS_SECRET_ACCESS_KEY") as caught:
        open_location(s3_bucket).listing()
    assert wrong not in str(caught.value)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    _forget_clients()
    with pytest.raises(StorageError, match="credentials"):
        open_location(s3_bucket).listing()
    assert time.monotonic() - begin < 30  # none of the three was tried for a minute


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((_refusal(code), PermissionError) for code in ("AccessDenied", "403", "ExpiredToken")),
        *((_refusal(code), FileNotFoundError) for code in ("404", "NoSuchKey", "NoSuchBucket")),
        (_refusal("SlowDown", 503), ConnectionError), (_refusal("429", 429), ConnectionError),
        (_refusal("InternalError", 500), ConnectionError), (_refusal("InvalidRange", 416), OSError),
        (S3UploadFailedError("Failed to upload: An error occurred (AccessDenied) when ..."), PermissionError),
        (S3UploadFailedError("Failed to upload: An error occurred (SlowDown) when ..."), ConnectionError),
        (S3UploadFailedError("Failed to upload: An error occurred (NoSuchBucket) when ..."), NoBucketError),
        (NoCredentialsError(), PermissionError), (EndpointConnectionError(endpoint_url="x"), ConnectionError),
    ],
)  # fmt: skip
def test_what_the_server_says_decides_whether_waiting_helps(error: Exception, kind: type[Exception]) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(kind) as caught:
        translated(fails, "s3://bucket/x")
    assert "s3://bucket/x" in str(caught.value)
    assert isinstance(caught.value, ConnectionError) == (kind is ConnectionError)
    assert isinstance(caught.value, NoBucketError) == ("NoSuchBucket" in str(error))


def test_credentials_in_a_uri_are_refused() -> None:
    for uri in ("s3://KEY:hunter2hunter2@bucket/x", "s3://bucket/x?access_key=hunter2hunter2"):
        with pytest.raises(StorageError, match="nothing else") as caught:
            open_location(uri)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(StorageError, match="names no bucket"):
        open_location("s3:///x")
    with pytest.raises(StorageError, match="nosuchkind"):
        open_location("nosuchkind://x")


def test_an_absent_server_is_tried_again_and_then_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x" * 16)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y" * 16)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    _forget_clients()
    with pytest.raises(StorageAwayError, match=r"s3://b/x does not answer \(\d attempts"):
        open_location("s3://b/x").listing(BRIEF)
    _forget_clients()


def test_patience_outlasts_a_short_absence() -> None:
    calls: list[float] = []

    def action() -> str:
        calls.append(time.monotonic())
        if len(calls) < 4:
            raise ConnectionError("not now")
        return "done"

    assert with_retries(action, "a place", Patience(seconds=10, first_s=0.05)) == "done"
    pauses = [b - a for a, b in itertools.pairwise(calls)]
    assert len(calls) == 4 and pauses[2] > pauses[0]


def test_names_of_places() -> None:
    assert is_uri("s3://b/x") and is_uri("gs://b") and not is_uri("/x") and not is_uri("file:///x")
    assert local_path("file:///a%20b/c") == Path("/a b/c") and local_path("/a%20b") == Path("/a%20b")
    assert split_places("/a:/b") == ["/a", "/b"]
    assert split_places("s3://b/x:/local:memory://y") == ["s3://b/x", "/local", "memory://y"]


def test_data_is_fetched_once_and_again_when_it_changed(tmp_path: Path, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/data"
    source = open_location(uri)
    source.write("dict.txt", b"a 1\n")
    source.write("deep/train.bin", b"12345")
    first = cached_folder(uri, tmp_path)
    assert (first / "dict.txt").read_bytes() == b"a 1\n"
    assert (first / "deep" / "train.bin").read_bytes() == b"12345"
    stamp = (first / "dict.txt").stat().st_mtime_ns
    assert cached_folder(uri, tmp_path) == first
    assert (first / "dict.txt").stat().st_mtime_ns == stamp
    source.write("dict.txt", b"b 1\n")
    second = cached_folder(uri, tmp_path)
    assert second != first and (second / "dict.txt").read_bytes() == b"b 1\n"


def test_the_cache_is_bounded_and_spares_what_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [f"memory://{tmp_path.name}/{n}" for n in range(4)]
    for uri in uris:
        open_location(uri).write("data", b"x" * 1000)
    monkeypatch.setenv("D2V_CACHE_GB", "2.5e-6")  # room for two of them
    folders = [cached_folder(uris[0], tmp_path), cached_folder(uris[1], tmp_path)]
    with pytest.raises(StorageError, match="what runs here holds"):
        cached_folder(uris[2], tmp_path)  # both are held by this process
    cache._IN_USE.pop(folders[0]).close()
    third = cached_folder(uris[2], tmp_path)
    assert third.is_dir() and folders[1].is_dir() and not folders[0].exists()
    open_location(uris[3]).write("data", b"x" * 3000)
    with pytest.raises(StorageError, match="raise D2V_CACHE_GB"):
        cached_folder(uris[3], tmp_path)
    monkeypatch.setenv("D2V_CACHE_GB", "3e-6")
    assert cache.limit_bytes() == 3000
    assert cached_folder(uris[3], tmp_path / "other").is_dir()  # exactly as large as the cache may be
    monkeypatch.setenv("D2V_CACHE_GB", "much")
    with pytest.raises(StorageError, match="must be a number of gigabytes"):
        cached_folder(uris[0], tmp_path)


def test_one_of_several_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"memory://{tmp_path.name}/shared"
    open_location(uri).write("data", b"x")
    fetched: list[int] = []
    fetch = cache._fetch

    def counted(*arguments: Any) -> None:
        fetched.append(1)
        time.sleep(0.1)
        fetch(*arguments)

    monkeypatch.setattr(cache, "_fetch", counted)
    threads = [threading.Thread(target=cached_folder, args=(uri, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [1]


def test_a_killed_fetch_goes_on_from_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"memory://{tmp_path.name}/many"
    source = open_location(uri)
    for number in range(6):
        source.write(f"{number}.jpg", bytes([number]) * 50)
    asked: list[str] = []
    honest = type(source).download

    def download(self: Any, name: str, file: Path, *more: Any) -> None:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(name)
        honest(self, name, file, *more)

    monkeypatch.setattr(type(source), "download", download)
    monkeypatch.setattr(cache, "_PARALLEL", 1)
    with pytest.raises(KeyboardInterrupt):
        cached_folder(uri, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name[0] != "."]
    (cut,) = tmp_path.glob(".*.partial/1.jpg")
    cut.write_bytes(b"\1" * 30)  # as after a loss of power
    monkeypatch.setattr(type(source), "download", lambda *a: (asked.append(a[1]), honest(*a))[0])
    monkeypatch.setattr(cache, "_TELL_EVERY_S", 0.0)
    caplog.set_level("INFO")
    found = cached_folder(uri, tmp_path)
    assert sorted(asked) == [f"{number}.jpg" for number in (0, 1, 1, 2, 3, 4, 5)], "each once but the cut one"
    assert [(found / f"{n}.jpg").read_bytes() for n in range(6)] == [bytes([n]) * 50 for n in range(6)]
    assert "50 B of 300 B" in caplog.text and "to go" in caplog.text
    left = tmp_path / ".old.partial"
    left.mkdir()
    os.utime(left, (0, 0))
    source.write("6.jpg", b"x")
    cached_folder(uri, tmp_path)
    assert not left.exists() and not list(tmp_path.glob("**/*.part*"))


def test_what_is_being_fetched_counts_and_what_is_being_taken_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2V_CACHE_GB", "2.5e-6")

    def fetch(size: int) -> Callable[[Path], Path]:
        def fill(beside: Path) -> Path:
            (beside / "data").write_bytes(b"x" * size)
            return beside

        return fill

    def let_go(key: str) -> None:
        cache._IN_USE.pop(tmp_path / key).close()

    cached("old", 1000, "old", fetch(1000), tmp_path)
    let_go("old")

    def two_at_once(beside: Path) -> Path:
        # 1000 bytes are there, 1200 are on their way: 1000 more fit only in place of the old ones, and then
        # nothing more fits.
        with cache._lock(tmp_path, "old"), pytest.raises(StorageError, match="or wait"):
            cached("third", 1000, "third", fetch(1000), tmp_path)  # somebody is about to use the old ones
        assert (tmp_path / "old").is_dir()
        cached("third", 1000, "third", fetch(1000), tmp_path)
        assert not (tmp_path / "old").exists()
        with pytest.raises(StorageError, match="raise D2V_CACHE_GB or wait"):
            cached("fourth", 1000, "fourth", fetch(1000), tmp_path)
        return fetch(1200)(beside)

    cached("second", 1200, "second", two_at_once, tmp_path)
    # What a killed fetch left is kept for its successor, unless the room is needed.
    let_go("second"), let_go("third")

    def killed(beside: Path) -> Path:
        fetch(900)(beside)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("killed", 1000, "killed", killed, tmp_path)
    assert (tmp_path / ".killed.partial" / "data").is_file()
    cached("large", 2400, "large", fetch(2400), tmp_path)
    assert not list(tmp_path.glob(".killed.[pn]*")) and (tmp_path / "large" / "data").is_file()


def test_what_cannot_be_made_of_its_source_takes_no_room(tmp_path: Path) -> None:
    def wrong(beside: Path) -> Path:
        (beside / "half").write_bytes(b"x")
        raise DataError("it needs its dictionary")

    with pytest.raises(DataError, match="dictionary"):
        cached("made", 1000, "made", wrong, tmp_path)
    assert not list(tmp_path.glob(".made.[pn]*")) and not (tmp_path / "made").exists()


def test_an_etag_tells_a_change_before_the_time_does() -> None:
    infos = [{"size": 3, "ETag": tag, "LastModified": 5} for tag in ("one", "two")] + [
        {"size": 3, "mtime": 5}
    ]
    found = []
    for info in infos:
        files = SimpleNamespace(find=lambda root, detail, info=info: {"a/f": info})
        found.append(Location("x://a", files, "a").stamps())
    assert found == [{"f": [3, "one"]}, {"f": [3, "two"]}, {"f": [3, "5"]}]


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D2V_CACHE_GB", "3.5e-6")

    def fetch(beside: Path) -> Path:
        (beside / "data").write_bytes(b"x" * 1000)
        return beside

    for used, key in ((300, "a"), (100, "b"), (200, "c")):
        cache._IN_USE.pop(cached(key, 1000, key, fetch, tmp_path)).close()
        os.utime(tmp_path / f"{key}.used", (used, used))
    cached("d", 1000, "d", fetch, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["a", "c", "d"]


def test_the_progress_of_a_fetch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = itertools.count(0.0, 20.0)  # seconds; the first look is at the beginning
    monkeypatch.setattr(cache.time, "monotonic", lambda: next(clock))
    caplog.set_level("INFO")
    progress = cache._FetchProgress("s3://b/x", 4_000_000_000)
    progress.add(1_000_000_000)  # in 20 s
    progress.add(1_000_000_000)
    assert [record.getMessage() for record in caplog.records] == [
        "fetching s3://b/x: 1 GB of 4 GB, 50 MB/s, 0:01:00 to go",
        "fetching s3://b/x: 2 GB of 4 GB, 50 MB/s, 0:00:40 to go",
    ]


def test_an_empty_uri_is_named(home: Path) -> None:
    with pytest.raises(DataError, match=r"memory://nothing-here.*nothing lies there"):
        local_data("/somewhere:memory://nothing-here")


def _fail_after_writing(file: Any) -> None:
    file.write(b"half")
    raise ValueError("as the writer of a large file may")


def _forget_clients() -> None:
    from d2v_platform.storage.s3 import S3FileSystem

    S3FileSystem.clear_instance_cache()
