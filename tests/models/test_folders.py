"""Names from outside stay inside; folders appear whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from data2vec import folders
from data2vec.errors import DataError
from data2vec.folders import inside, write_text, written_folder


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


def _fail_half_way(target: Path) -> None:
    with written_folder(target) as beside:
        (beside / "half.txt").write_text("half")
        raise RuntimeError
