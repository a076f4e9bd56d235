"""Downloads against a local server that knows byte ranges: resume, checksums, changed files, no network."""

from __future__ import annotations

import gzip
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from d2v_platform.preparation import glue as glue_module
from d2v_platform.preparation.download import BLOCK_BYTES, download, download_text, unpack
from d2v_platform.preparation.glue import GlueArchive, download_task
from d2v_platform.retries import Patience
from data2vec.data.glue import GLUE_TASKS
from data2vec.errors import DataError

ONCE, QUICK = Patience(attempts=1), Patience(first_s=0.01, attempts=5)

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """What the server holds and how it behaves."""

    files: dict[str, bytes] = field(default_factory=lambda: {"/data.bin": CONTENT})
    cut_after: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    ranges: bool = True
    etag: str | None = '"one"'
    statuses: list[int] = field(default_factory=list)  # of the next answers
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range header
    url: str = ""


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            content = state.files.get(self.path)
            if state.statuses or content is None:
                self.send_error(state.statuses.pop(0) if state.statuses else 404)
                return
            start = 0
            fresh = self.headers.get("If-Range") in (None, state.etag)
            if wanted and state.ranges and fresh:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            if state.etag:
                self.send_header("ETag", state.etag)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            body = content[start:]
            self.wfile.write(body[: state.cut_after.pop(0)] if state.cut_after else body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_verified_download(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    got = download(
        f"{site.url}/data.bin", tmp_path / "d" / "data.bin", SHA256, lambda n, of: seen.append((n, of))
    )
    assert got.path.read_bytes() == CONTENT
    assert (got.sha256, got.verified, got.cached) == (SHA256, True, False)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert len(seen) > 1
    assert names(tmp_path / "d") == ["data.bin"]


def test_without_a_checksum_it_is_not_verified(site: Site, tmp_path: Path) -> None:
    got = download(f"{site.url}/data.bin", tmp_path / "data.bin")
    assert (got.sha256, got.verified) == (SHA256, False)


def test_a_file_that_is_there_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(CONTENT)
    assert download(f"{site.url}/data.bin", tmp_path / "data.bin", SHA256).cached
    assert site.requests == []
    with pytest.raises(DataError, match="remove it to download"):
        download(f"{site.url}/data.bin", tmp_path / "data.bin", "0" * 64)


def test_a_broken_connection_is_taken_up_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.cut_after = [300_000, 400_000]
    got = download(f"{site.url}/data.bin", tmp_path / "data.bin", SHA256, patience=QUICK)
    assert got.path.read_bytes() == CONTENT
    first = 300_000 - 300_000 % BLOCK_BYTES
    second = first + 400_000 - 400_000 % BLOCK_BYTES
    assert [wanted for _, wanted in site.requests] == [None, f"bytes={first}-", f"bytes={second}-"]


def test_the_next_call_continues_an_abandoned_download(site: Site, tmp_path: Path) -> None:
    site.cut_after = [300_000]
    kept = 300_000 - 300_000 % BLOCK_BYTES
    with pytest.raises(
        DataError, match=rf"the connection broke off; {kept} bytes are kept in .*data\.bin\.part"
    ):
        download(f"{site.url}/data.bin", tmp_path / "data.bin", SHA256, patience=ONCE)
    assert not (tmp_path / "data.bin").exists()
    got = download(f"{site.url}/data.bin", tmp_path / "data.bin", SHA256, patience=ONCE)
    assert got.resumed_from == kept
    assert site.requests[-1][1] == f"bytes={kept}-"
    assert got.path.read_bytes() == CONTENT
    assert names(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("reason", ["changed", "no ranges", "no validator", "weak validator"])
def test_it_starts_again_when_the_rest_would_not_fit(site: Site, tmp_path: Path, reason: str) -> None:
    if reason == "no validator":
        site.etag = None
    if reason == "weak validator":  # means the same, but not byte by byte
        site.etag = 'W/"one"'
    site.cut_after = [300_000]
    with pytest.raises(DataError):
        download(f"{site.url}/data.bin", tmp_path / "data.bin", patience=ONCE)
    if reason == "changed":
        site.etag, site.files["/data.bin"] = '"two"', CONTENT[::-1]
    if reason == "weak validator":
        site.files["/data.bin"] = CONTENT[::-1]
    if reason == "no ranges":
        site.ranges = False
    seen: list[tuple[int, int | None]] = []
    got = download(
        f"{site.url}/data.bin", tmp_path / "data.bin", None, lambda n, of: seen.append((n, of)), patience=ONCE
    )
    assert got.path.read_bytes() == site.files["/data.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT)), "what was thrown away does not count"


def test_a_complete_part_needs_only_its_name(site: Site, tmp_path: Path) -> None:
    site.cut_after = [len(CONTENT) - 1]
    with pytest.raises(DataError):
        download(f"{site.url}/data.bin", tmp_path / "data.bin", patience=ONCE)
    part = tmp_path / "data.bin.part"
    part.write_bytes(CONTENT)
    assert (
        download(f"{site.url}/data.bin", tmp_path / "data.bin", SHA256, patience=ONCE).path.read_bytes()
        == CONTENT
    )
    assert site.requests[-1][1] == f"bytes={len(CONTENT)}-"


def test_a_wrong_checksum_publishes_nothing(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"has SHA-256 {SHA256}, expected {'0' * 64}"):
        download(f"{site.url}/data.bin", tmp_path / "data.bin", "0" * 64)
    assert names(tmp_path) == []
    with pytest.raises(DataError, match="64 hexadecimal digits"):
        download(f"{site.url}/data.bin", tmp_path / "data.bin", "abc")


def test_server_errors_are_retried_and_refusals_are_not(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 500]
    assert download(f"{site.url}/data.bin", tmp_path / "data.bin", patience=QUICK).bytes == len(CONTENT)
    site.requests.clear()
    with pytest.raises(DataError, match="the server answered 404"):
        download(f"{site.url}/nothing", tmp_path / "nothing", patience=QUICK)
    assert len(site.requests) == 1


def test_without_network_the_refusal_is_clear(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no connection to 127\.0\.0\.1.*fetch the file elsewhere"):
        download("http://127.0.0.1:9/x.zip", tmp_path / "x.zip", patience=Patience(first_s=0.01, attempts=2))
    with pytest.raises(DataError, match=r"no connection to nowhere\.invalid"):
        download("http://nowhere.invalid/x.zip", tmp_path / "x.zip", patience=ONCE)
    with pytest.raises(DataError, match="only http and https"):
        download("ftp://x/y", tmp_path / "y")


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_text_is_unpacked(site: Site, tmp_path: Path) -> None:
    site.files = {
        "/a.txt": b"plain",
        "/b.txt.gz": gzip.compress(b"packed"),
        "/c.zip": zipped({"inner.txt": b"zipped"}),
        "/two.zip": zipped({"1": b"", "2": b""}),
        "/bad.gz": b"no gzip",
        "/bad.zip": b"no zip",
    }
    texts = [download_text(f"{site.url}/{n}", tmp_path).read_bytes() for n in ("a.txt", "b.txt.gz", "c.zip")]
    assert texts == [b"plain", b"packed", b"zipped"]
    for name, message in (
        ("two.zip", "holds 2 files"),
        ("bad.gz", "is damaged"),
        ("bad.zip", "is not a zip file"),
    ):
        with pytest.raises(DataError, match=message):
            download_text(f"{site.url}/{name}", tmp_path)


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "evil.zip").write_bytes(zipped({"../evil.txt": b"x"}))
    with pytest.raises(DataError, match="leads outside its folder"):
        unpack(tmp_path / "evil.zip", tmp_path / "in")
    assert not (tmp_path / "evil.txt").exists()


def test_a_task_is_downloaded_and_its_checksum_told(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped({"CoLA/train.tsv": b"x\t1\t\ta\n", "CoLA/dev.tsv": b"x\t1\t\tb\n"})
    site.files = {"/CoLA.zip": archive}
    monkeypatch.setitem(glue_module.GLUE_ARCHIVES, "cola", GlueArchive((f"{site.url}/CoLA.zip",)))
    console = Console(record=True, width=200, file=io.StringIO())
    download_task(GLUE_TASKS["cola"], tmp_path, None, console)
    assert (tmp_path / "CoLA" / "train.tsv").read_bytes() == b"x\t1\t\ta\n"
    text = console.export_text()
    assert hashlib.sha256(archive).hexdigest() in text
    assert "not verified" in text


def test_mrpc_is_put_together(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = b"\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    site.files = {
        "/train.txt": header + b'1\t10\t11\t"a\tb\n0\t12\t13\tc\td\n1\t14\t15\te\tf\n',
        "/test.txt": header + b"1\t20\t21\tg\th\n",
        "/ids.tsv": b"12\t13\n",
    }
    urls = tuple(f"{site.url}{path}" for path in site.files)
    monkeypatch.setitem(glue_module.GLUE_ARCHIVES, "mrpc", GlueArchive(urls))
    download_task(GLUE_TASKS["mrpc"], tmp_path, None, Console(quiet=True))
    folder = tmp_path / "MRPC"
    assert (folder / "train.tsv").read_text(encoding="utf-8").splitlines()[1:] == [
        '1\t10\t11\t"a\tb', "1\t14\t15\te\tf"]  # fmt: skip
    assert (folder / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:] == ["0\t12\t13\tc\td"]
    assert (folder / "test.tsv").read_text(encoding="utf-8").splitlines() == [
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t20\t21\tg\th"]  # fmt: skip
