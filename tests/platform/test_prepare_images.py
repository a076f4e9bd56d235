"""``d2v prepare images``: killed in the middle, run again, repaired images, other subsets, places at URIs."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from d2v_platform.preparation.images import ImageOptions, prepare_images
from d2v_platform.preparation.sole_writer import sole_writer
from data2vec.data.image_sources import FolderSource, open_images
from data2vec.errors import DataError

QUIET = Console(quiet=True)
SMALL = ImageOptions(images_per_shard=5, workers=1)
COMMAND = [sys.executable, "-m", "d2v_platform.cli", "prepare", "images"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.tar"))}


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "train" / "noise").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(60):  # large enough that the command is still at it when it is killed
        picture = Image.fromarray(draw.integers(0, 255, (400, 400, 3), dtype=np.uint8))
        picture.save(raw / "train" / "noise" / f"{number}.png", compress_level=0)
    one = ImageOptions(images_per_shard=1, resize=390, workers=1)
    prepare_images(raw, tmp_path / "whole", [], one, QUIET)
    killed = tmp_path / "killed"
    words = [*COMMAND, str(raw), "--dest", str(killed), "--images-per-shard", "1", "--resize", "390"]
    process = subprocess.Popen(
        [*words, "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(killed.glob("train/.train-*.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    kill_all(process)
    done = len(contents(killed))
    assert 1 <= done < 60 and not (killed / "index.json").exists(), "an unfinished folder has no index"
    (killed / "train" / "train-000059.77.tmp").write_bytes(b"half")  # what a kill leaves behind
    reports = prepare_images(raw, killed, [], one, QUIET)
    assert reports["train"].reused in (done, done - 1)  # the last one's record may be missing
    assert contents(killed) == contents(tmp_path / "whole")
    assert not list(killed.rglob("*.tmp"))
    assert json.loads((killed / "index.json").read_text())["splits"] == {
        "train": {"images": 60, "shards": 60}
    }


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the command and its workers."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_repaired_image_is_taken_in(pictures: Path, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(pictures, tmp_path / "raw"))
    broken = raw / "train" / "red" / "3.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:60])
    first = prepare_images(raw, tmp_path / "out", ["train"], SMALL, QUIET)
    assert first["train"].images == 23
    assert "train\t" in (tmp_path / "out" / "bad_images.tsv").read_text()
    broken.write_bytes(good)
    second = prepare_images(raw, tmp_path / "out", ["train"], SMALL, QUIET)
    assert (second["train"].images, second["train"].reused) == (24, 4), "one shard is made again"
    assert (tmp_path / "out" / "bad_images.tsv").read_text() == ""


def test_the_shorter_side_decides_and_small_images_stay_as_they_are(tmp_path: Path) -> None:
    raw = tmp_path / "raw" / "val" / "one"
    raw.mkdir(parents=True)
    for name, size in (("wide", (90, 30)), ("tall", (40, 80)), ("edge", (31, 90))):
        Image.new("RGB", size, (9, 99, 199)).save(raw / f"{name}.png")
    prepare_images(tmp_path / "raw", tmp_path / "out", [], ImageOptions(resize=30, workers=1), QUIET)
    source = open_images(tmp_path / "out", "val")
    found = {Image.open(io.BytesIO(source.read(i))).size for i in range(3)}
    assert found == {(90, 30), (30, 60), (30, 87)}
    assert sum(source.read(i) == (raw / "wide.png").read_bytes() for i in range(3)) == 1
    assert source.classes == ["one"] and source.labels.tolist() == [0, 0, 0]


def test_a_shard_that_was_cut_is_made_again_and_lists_of_other_subsets_stay(
    pictures: Path, tmp_path: Path
) -> None:
    raw, out = Path(shutil.copytree(pictures, tmp_path / "raw")), tmp_path / "out"
    for split in ("train", "val"):
        (raw / split / "red" / "3.png").write_bytes(b"no image")
    prepare_images(raw, out, [], SMALL, QUIET)
    whole = contents(out)
    shard = out / "val" / "val-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    assert prepare_images(raw, out, ["val"], SMALL, QUIET)["val"].reused == 4
    assert contents(out) == whole
    told = [line.split("\t")[0] for line in (out / "bad_images.tsv").read_text().splitlines()]
    assert told == ["train", "val"]


def test_subsets_of_other_runs_stay(pictures: Path, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(pictures, tmp_path / "raw"))
    out = tmp_path / "out"
    prepare_images(raw, out, ["val"], SMALL, QUIET)
    (raw / "train" / "loose").mkdir()
    shutil.copy(next((raw / "val" / "red").iterdir()), raw / "train" / "loose")
    with pytest.raises(DataError, match="holds val with other classes"):
        prepare_images(raw, out, ["train"], SMALL, QUIET)
    prepare_images(raw, out, ["train"], ImageOptions(images_per_shard=9, unlabelled=True, workers=1), QUIET)
    assert json.loads((out / "index.json").read_text())["splits"].keys() == {"train", "val"}
    assert open_images(out, "val").classes == ["blue", "red"]
    assert len(open_images(out, "train", labelled=False)) == 25
    with sole_writer(out), pytest.raises(DataError, match="another d2v prepare is writing"):
        prepare_images(raw, out, ["val"], SMALL, QUIET)


def test_shards_at_a_uri_are_read_from_a_local_copy(pictures: Path, tmp_path: Path, home: Path) -> None:
    from d2v_platform.storage.cache import local_data
    from d2v_platform.storage.locations import open_location

    prepare_images(pictures, tmp_path / "out", ["val"], SMALL, QUIET)
    place = open_location(f"memory://{tmp_path.name}/shards")
    for path in (p for p in (tmp_path / "out").rglob("*") if p.is_file()):
        place.write(str(path.relative_to(tmp_path / "out")), path.read_bytes())
    there = open_images(local_data(place.uri), "val")
    here = open_images(tmp_path / "out", "val")
    raw = FolderSource(pictures / "val")
    assert sorted(there.name(i) for i in range(len(there))) == [raw.name(i) for i in range(len(raw))]
    contents_of = {raw.name(i): raw.read(i) for i in range(len(raw))}
    assert all(there.read(i) == contents_of[there.name(i)] for i in range(len(there)))
    assert there.classes == here.classes and np.array_equal(there.labels, here.labels)
    assert there.read(7) == here.read(7)
