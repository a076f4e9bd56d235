"""Names from outside stay inside; folders appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from data2vec import folders
from data2vec.errors import DataError
from data2vec.folders import file_sha256, inside, take_place, write_text, written_file, written_folder


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a/..", "link/x"])
def test_names_that_leave_their_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leads outside its folder"):
        inside(folder, name)


def test_other_names_are_taken_as_they_are(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b..c/..d") == tmp_path / "a" / "b..c" / "..d"


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_whole_or_stays(
    tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    target = tmp_path / "model"
    for content in ("old", "new"):
        with written_folder(target) as beside:
            (beside / f"{content}.txt").write_text(content)
    assert [path.name for path in target.iterdir()] == ["new.txt"]
    with pytest.raises(RuntimeError):
        _fail_half_way(target)
    assert [path.name for path in target.iterdir()] == ["new.txt"]
    assert list(tmp_path.iterdir()) == [target], "nothing is left beside it"
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is no folder"), written_folder(tmp_path / "file"):
        pass


def test_readers_always_see_a_whole_folder_of_one_writer(tmp_path: Path) -> None:
    target, ends = tmp_path / "model", threading.Event()

    def write(name: str) -> None:
        while not ends.is_set():
            with written_folder(target) as beside:
                for part in ("a", "b"):
                    (beside / part).write_text(name)

    with written_folder(target) as beside:
        for part in ("a", "b"):
            (beside / part).write_text("first")
    writers = [threading.Thread(target=write, args=(name,)) for name in ("one", "two")]
    for writer in writers:
        writer.start()
    try:
        for _ in range(300):
            assert target.is_dir()
    finally:
        ends.set()
        for writer in writers:
            writer.join()
    assert (target / "a").read_text() == (target / "b").read_text()


def test_files_have_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with written_folder(tmp_path / "model") as beside:
            (beside / "weights").touch(mode=0o600)
            (beside / "inner").mkdir(mode=0o700)
        write_text(tmp_path / "text", "x")
    finally:
        os.umask(old)
    made = (tmp_path / name for name in ("model", "model/weights", "model/inner", "text"))
    modes = [path.stat().st_mode & 0o777 for path in made]
    assert [oct(mode) for mode in modes] == ["0o750", "0o640", "0o750", "0o640"]
    write_text(tmp_path / "text", "y")
    assert (tmp_path / "text").read_text() == "y" and len(list(tmp_path.iterdir())) == 2


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    for content in (b"old", b"new"):
        with written_file(target) as beside:
            assert beside.parent == tmp_path and beside.name.startswith(".") and beside.suffix == ".tmp"
            beside.write_bytes(content)
            assert not target.exists() or target.read_bytes() == b"old"
    with pytest.raises(IsADirectoryError), written_file(target) as beside:
        beside.write_text(tmp_path.read_text())
    assert target.read_bytes() == b"new" and list(tmp_path.iterdir()) == [target]
    assert file_sha256(target) == hashlib.sha256(b"new").hexdigest()


def test_a_durable_text_is_on_disk_before_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(folders.os, "fsync", lambda number: told.append("synced"))
    real = os.replace
    monkeypatch.setattr(folders.os, "replace", lambda *names: (told.append("seen"), real(*names)))
    write_text(tmp_path / "a", "x", durable=True)
    write_text(tmp_path / "b", "y")
    assert told == ["synced", "seen", "seen"] and (tmp_path / "a").read_text() == "x"


def test_what_is_complete_takes_its_place(tmp_path: Path) -> None:
    for kind in ("one", "two"):
        (tmp_path / "beside").mkdir(exist_ok=True)
        (tmp_path / "beside" / "kind").write_text(kind)
        take_place(tmp_path / "beside", tmp_path / "folder")
        assert (tmp_path / "folder" / "kind").read_text() == kind
    assert (tmp_path / "beside" / "kind").read_text() == "one", "what was there before"
    (tmp_path / "part").write_text("whole")
    take_place(tmp_path / "part", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "whole" and not (tmp_path / "part").exists()


def _fail_half_way(target: Path) -> None:
    with written_folder(target) as beside:
        (beside / "half.txt").write_text("half")
        raise RuntimeError
