"""Images that are wrong, and sources that are: nothing is lost, and each is said once, with counts."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from d2v_platform.cli import app, run
from d2v_platform.preparation.images import ImageOptions, prepare_images, summary
from d2v_platform.recipe.schema import Recipe
from d2v_platform.storage.cache import cached_folder
from d2v_platform.storage.locations import open_location
from d2v_platform.tasks import check_data
from data2vec.data.image_sources import open_images


@pytest.fixture
def spoilt(pictures: Path, tmp_path: Path) -> Path:
    """A copy of good pictures, to be spoilt."""
    return Path(shutil.copytree(pictures, tmp_path / "spoilt"))


def said_by(words: list[str]) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(io.StringIO()):
        try:
            run(lambda: app(words, prog_name="d2v", standalone_mode=False))
        except SystemExit as ended:
            return int(ended.code or 0), " ".join(shown.getvalue().split())
    return 0, " ".join(shown.getvalue().split())


def odd_images(folder: Path) -> dict[str, str]:
    """One of every odd kind in a class folder: file name -> what must be said of it."""
    good = Image.open(next(folder.glob("*.png"))).convert("RGB").resize((64, 48))
    good.save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:400])
    good.resize((1, 1)).save(folder / "dot.png")
    deep = (np.arange(48 * 64, dtype=np.uint32) * 21 % 65536).astype(np.uint16).reshape(48, 64)
    Image.fromarray(deep).save(folder / "deep.png")
    good.convert("CMYK").save(folder / "print.jpg")
    good.save(folder / "moves.webp", save_all=True, append_images=[good.rotate(90)])
    (folder / "notes.txt").write_text("no image")
    return {
        "cut.jpg": "unreadable",
        "dot.png": "a side of less than 8 pixels: enlarged",
        "deep.png": "more than 8 bits a channel: scaled to 8",
        "print.jpg": "CMYK colours: converted",
        "moves.webp": "animated: the first frame is taken",
    }


def test_odd_images_train_and_each_is_said_once(
    image_runs: Any, spoilt: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wanted = odd_images(spoilt / "train" / "red")
    recipe = image_runs.pretraining(spoilt, optimization={"max_update": 9})  # three epochs of 29 images
    check_data(Recipe.from_dict(recipe), None)
    _, recorder = image_runs.run(recipe, tmp_path / "run")
    assert np.isfinite(recorder.curve()).all()
    assert sum(recorder.curve("train/unreadable_images")) >= 3, "met in each epoch, and counted"
    text = caplog.text
    assert text.count("image red/cut.jpg is left out: unreadable") == 1
    assert text.count("1 files are no images by their names and are not used (1 .txt)") == 1
    for name, kind in wanted.items():
        assert text.count(f"images of this run: 1 image {kind} (red/{name})") == 1, text


def test_what_several_workers_met_is_told_together(image_runs: Any, spoilt: Path, tmp_path: Path) -> None:
    for number in range(4):
        (spoilt / "train" / "red" / f"cut{number}.jpg").write_bytes(b"\xff\xd8 no jpeg")
    recipe = image_runs.pretraining(spoilt, optimization={"max_update": 6})
    image_runs.shared_curve(recipe, tmp_path / "two", 2)
    log = (tmp_path / "two" / "log.0").read_text()
    assert log.count("images of this run: 4 images unreadable") == 1, log
    assert "unreadable" not in (tmp_path / "two" / "log.1").read_text()


def test_a_cut_shard_trains_with_what_is_whole(
    image_runs: Any, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = tmp_path / "shards"
    prepare_images(
        pictures, data, ["train"], ImageOptions(images_per_shard=12, workers=1), Console(quiet=True)
    )
    shard = data / "train" / "train-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with tarfile.open(data / "train" / "train-000000.tar") as first:
        assert len(first.getnames()) == 36  # picture, name and class of each
    recipe = image_runs.pretraining(data, optimization={"max_update": 3})
    check_data(Recipe.from_dict(recipe), None)
    _, recorder = image_runs.run(recipe, tmp_path / "run")
    assert np.isfinite(recorder.curve()).all() and not recorder.curve("train/unreadable_images")
    assert caplog.text.count("train-000001.tar: cut off after") == 1
    found = len(open_images(data, "train"))
    counted = json.loads((data / "index.json").read_text())["splits"]["train"]["images"]
    assert caplog.text.count(f"{counted - found} of {counted} images of train that index.json counts") == 1


def test_missing_shards_and_links_that_lead_nowhere_are_counted(spoilt: Path, tmp_path: Path) -> None:
    data = tmp_path / "shards"
    (spoilt / "train" / "red" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (spoilt / "train" / "note.txt").write_text("nothing")
    console = Console(quiet=True)
    reports = prepare_images(spoilt, data, ["train"], ImageOptions(images_per_shard=6, workers=1), console)
    told = summary(reports, data)
    assert any("1 images cannot be opened and are not used, first" in line for line in told), told
    before = open_images(data, "train")
    assert not before.notes
    for shard in sorted((data / "train").glob("*.tar"))[1:3]:
        shard.unlink()
    (note,) = open_images(data, "train").notes
    assert note.endswith(
        f"12 of {len(before)} images of train that index.json counts are not used; "
        f"2 of {reports['train'].shards} shards are missing"
    )


@pytest.fixture
def restarted(s3_server: Any) -> Iterator[Any]:
    """The S3 server; up again at the end whatever happens."""
    timers: list[threading.Timer] = []

    def away(seconds: float) -> None:
        s3_server.stop()
        timers.append(threading.Timer(seconds, s3_server.start))
        timers[-1].start()

    yield away
    for timer in timers:
        timer.join()


@pytest.mark.slow
def test_s3_gone_for_twenty_seconds_while_images_come(
    pictures: Path, tmp_path: Path, s3_bucket: str, restarted: Any, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    uri = f"{s3_bucket}/images"
    location = open_location(uri)
    files = sorted(path for path in (pictures / "train").rglob("*.png"))
    for path in files:
        location.write(str(path.relative_to(pictures)), path.read_bytes())
    honest, fetched = type(location).download, []

    def download(self: Any, name: str, *arguments: Any) -> Any:
        fetched.append(name)
        if len(fetched) == 10:
            restarted(20)
        return honest(self, name, *arguments)

    monkeypatch.setattr(type(location), "download", download)
    found = cached_folder(uri, tmp_path / "cache")
    assert len(fetched) == len(files) == 24, "nothing is fetched twice"
    for path in files:
        assert (found / path.relative_to(pictures)).read_bytes() == path.read_bytes()


def test_shards_and_models_at_s3(
    pictures: Path, pretrained: Path, tmp_path: Path, s3_bucket: str, mlflow_home: Path
) -> None:
    """Fine-tuning from a bucket: its images come through the cache, its pretrained model too."""
    shards = tmp_path / "shards"
    prepare_images(pictures, shards, [], ImageOptions(images_per_shard=9, workers=1), Console(quiet=True))
    for name, folder in (("data", shards), ("model", pretrained)):
        place = open_location(f"{s3_bucket}/{name}")
        for path in (p for p in folder.rglob("*") if p.is_file()):
            place.write(str(path.relative_to(folder)), path.read_bytes())
    words = [
        f"task.data={s3_bucket}/data", f"model.model_path={s3_bucket}/model", "model.num_classes=2",
        "task.input_size=20", "platform.num_workers=0", "optimization.max_update=4", "dataset.batch_size=12",
        "optimizer.groups.default.lr_scheduler.warmup_updates=1", "platform.run_name=far",
    ]  # fmt: skip
    code, said = said_by(["train", "tiny/image_finetuning", *words])
    assert code == 0, said
    cached = [path for path in (mlflow_home / "cache" / "data").iterdir() if path.is_dir()]
    held = sorted((len(list(path.rglob("*.tar"))), (path / "config.json").is_file()) for path in cached)
    assert held == [(0, True), (6, False)], "the model and the images, each in a folder of its own"
    (run_folder,) = (mlflow_home / "runs").iterdir()
    assert json.loads((run_folder / "model" / "config.json").read_text())["task"]["labels"] == ["blue", "red"]


TRAIN = ("train", "tiny/image_pretraining", "platform.num_workers=0")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: shutil.move(d / "train", d / "trian"), ["no folder 'train'", "did you mean 'trian'"]),
        (lambda d: shutil.rmtree(d), ["task.data", "does not exist", "train/CLASS"]),
        (lambda d: [p.unlink() for p in (d / "train").rglob("*.png")], ["holds no image"]),
    ],
    ids=["no train folder", "no folder at all", "no image"],
)
def test_data_that_is_not_there(spoilt: Path, home: Path, spoil: Any, says: list[str]) -> None:
    spoil(spoilt)
    code, said = said_by([*TRAIN, f"task.data={spoilt}"])  # stops before any model is built
    assert code == 2 and "Traceback" not in said
    assert all(part in said for part in says), said


def test_a_class_without_images_is_named_before_anything_starts(
    spoilt: Path, home: Path, pretrained: Path
) -> None:
    (spoilt / "train" / "green").mkdir()
    words = [
        f"task.data={spoilt}",
        f"model.model_path={pretrained}",
        "model.num_classes=3",
        "task.input_size=16",
    ]
    code, said = said_by(
        ["train", "tiny/image_finetuning", "platform.num_workers=0", "task.input_size=16", *words]
    )
    assert code == 2 and "1 of 3 class folders hold no image: green" in said, said
