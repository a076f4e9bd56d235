"""Places that cannot be written and names that are not UTF-8: told in a line, before work is done."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from rich.console import Console
from safetensors import SafetensorError

from d2v_platform.cli import run
from d2v_platform.inference.image_rows import ImageRows, write_embeddings
from d2v_platform.preparation.audio import ManifestOptions, prepare_manifests
from d2v_platform.preparation.images import BAD_NAME, ImageOptions, prepare_images, summary
from d2v_platform.storage import local_places
from d2v_platform.storage.local_places import file_to_write, folder_to_write, path_to_write
from data2vec.data.image_sources import FolderSource
from data2vec.errors import DataError

LATIN = os.fsdecode(b"caf\xe9")  # from an old archive


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/d/x"), "/d/x: No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "/d"), "/d: Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "/a", None, "/b"), "/b: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "/dest: No space left on device"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            "/dest: No space left on device",
        ),
    ],
)
def test_a_full_or_closed_place_is_no_bug_of_ours(
    error: Exception, told: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_places, "_destination", [Path("/dest")])

    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(command)
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: {told}\n"


def test_other_errors_are() -> None:
    def command() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "/d/x")

    with pytest.raises(FileNotFoundError):
        run(command)


@pytest.mark.parametrize("check", [path_to_write, folder_to_write, file_to_write])
def test_places_are_tried_before_work_is_done(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(str(tmp_path / "new" / "x")) == tmp_path / "new" / "x"
    asked: list[Path] = []
    monkeypatch.setattr(local_places.os, "access", lambda place, mode: asked.append(place))
    with pytest.raises(PermissionError, match=f"Permission denied: '{tmp_path}'"):
        check(str(tmp_path / "new" / "x"))
    assert set(asked) == {tmp_path}


def test_recordings_of_other_encodings_are_left_out_and_named(tmp_path: Path) -> None:
    for name in ("good", LATIN):
        soundfile.write(tmp_path / "x.wav", np.zeros(16000, dtype=np.float32), 16000)
        (tmp_path / "x.wav").rename(tmp_path / f"{name}.wav")
    report = prepare_manifests(tmp_path, tmp_path / "m", ManifestOptions(ext="wav"))
    assert [splits[0] for splits in report.splits.values()].count(1) == 1
    dropped = (tmp_path / "m" / "dropped.tsv").read_text(encoding="utf-8")
    assert dropped == f"{tmp_path}/caf\\xe9.wav\tthe path is not UTF-8\n"


def test_images_of_other_encodings_are_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "hat").mkdir(parents=True)
    for name in ("good", LATIN):
        Image.new("RGB", (32, 32)).save(tmp_path / "train" / "hat" / f"{name}.png")
    source = FolderSource(tmp_path / "train")
    assert len(source) == 1 and "hat/caf\\xe9.png" in "".join(source.notes)
    reports = prepare_images(
        tmp_path, tmp_path / "shards", ["train"], ImageOptions(workers=1), Console(quiet=True)
    )
    assert "hat/caf\\xe9.png\tthe path is not UTF-8" in (tmp_path / "shards" / BAD_NAME).read_text()
    "\n".join(summary(reports, tmp_path)).encode()
    (tmp_path / "train" / LATIN).mkdir()
    with pytest.raises(DataError, match=r"rename caf\\xe9"):
        FolderSource(tmp_path / "train")


def test_names_in_others_shards_are_escaped(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rows = ImageRows(
        names=[LATIN], labels=np.array([-1]), values=np.zeros((1, 4)), classes=None, odd=[], unreadable=0
    )
    write_embeddings(rows, tmp_path / "e.parquet")
    assert pq.read_table(tmp_path / "e.parquet")["file"].to_pylist() == ["caf\\xe9"]
