"""``d2v infer``, ``d2v embed`` and ``d2v probe`` on images, as a user calls them."""

from __future__ import annotations

import importlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import data2vec
from d2v_platform.cli import app
from d2v_platform.inference.image_rows import open_any, run_model
from d2v_platform.inference.images import class_names
from data2vec.errors import DataError
from tests.platform.commands import called


def test_infer_shows_and_writes_everything(
    pictures: Path, classifier: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    (data / "val" / "red" / "cut.jpg").write_bytes(b"\xff\xd8 no jpeg")
    place = tmp_path / "results"
    words = [f"task.data={data}", f"common_eval.path={classifier}", "dataset.gen_subset=val"]
    code, shown, said = called(["infer", *words, f"common_eval.results_path={place}"], monkeypatch)
    assert code == 0, said
    summary = json.loads((place / "summary.json").read_text())
    table = pd.read_parquet(place / "predictions.parquet")
    assert summary["top1"] == pytest.approx(100 * (table["label"] == table["predicted"]).mean())
    assert (summary["images"], summary["unreadable"]) == (24, 1)
    assert "red/cut.jpg" in summary["odd"][0]
    assert "recall %" in shown and "top-1 %" in shown and f"{summary['top1']:.2f}" in shown
    confusion = pd.read_csv(place / "confusion.csv", index_col=0)
    assert confusion.to_numpy().sum() == 24 and list(confusion.columns) == ["blue", "red"]
    picture = np.asarray(Image.open(place / "confusion.png").convert("L"))
    assert picture.shape[0] > 200 and picture.min() < 100, "something dark is drawn"


@pytest.mark.parametrize(
    ("spoil", "words", "says"),
    [
        (None, ["dataset.gen_subset=vall"], ["no subset 'vall'", "did you mean 'val'"]),
        (None, [], ["no subset 'test'", "train, val"]),
        (
            lambda d: (d / "val" / "red").rename(d / "val" / "green"),
            ["dataset.gen_subset=val"],
            ["1 of 2 classes of the data are unknown to the model, such as 'green'", "task.labels=null"],
        ),
        (
            lambda d: (shutil.rmtree(d / "val"), (d / "val-1.tar").write_bytes(b"x" * 900)),
            ["dataset.gen_subset=val"],
            ["val-1.tar: no tar archive"],
        ),
        (
            lambda d: [p.write_bytes(b"no image") for p in (d / "val").rglob("*.png")],
            ["dataset.gen_subset=val"],
            ["none of the 24 images can be read"],
        ),
    ],
    ids=["typo", "no subset named", "other classes", "no tar", "nothing readable"],
)  # fmt: skip
def test_wrong_data_is_said_and_not_taken_for_unlabelled(
    pictures: Path, classifier: Path, tmp_path: Path, home: Path, spoil: Any, words: list[str],
    says: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    if spoil:
        spoil(data)
    code, _, said = called(
        ["infer", f"task.data={data}", f"common_eval.path={classifier}", *words], monkeypatch
    )
    assert code == 2 and "Traceback" not in said
    assert all(part in said for part in says), said


def test_folders_name_the_classes_of_a_model_that_came_without_names(caplog: Any) -> None:
    caplog.set_level("INFO", "d2v_platform")
    assert class_names(["0", "1"], ["ape", "bee"]) == ["ape", "bee"]
    assert "2 folders in sorted order" in caplog.text
    assert class_names(["ape", "bee"], ["bee"]) == ["ape", "bee"]
    assert class_names(["0", "1", "10"], ["0", "10"]) == ["0", "1", "10"], "these are its names"
    with pytest.raises(DataError, match="give all 3 class folders"):
        class_names(["0", "1", "2"], ["ape", "bee"])
    with pytest.raises(DataError, match="unknown to the model, such as 'bee'"):
        class_names(["ape", "cow"], ["ape", "bee"])


def test_options_that_images_have_no_use_for_are_named(
    pictures: Path, classifier: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level("INFO", "d2v_platform")
    words = ["infer", f"task.data={pictures}", f"common_eval.path={classifier}", "dataset.gen_subset=val",
             f"common_eval.results_path={tmp_path / 'out'}", "dataset.batch_size=5"]  # fmt: skip
    assert called([*words, "platform.num_workers=2", "decoding.beam=5"], monkeypatch)[0] == 0
    assert "platform.num_workers = 2: no effect on images" in caplog.text
    assert "decoding.beam = 5: no effect on images" in caplog.text and "batch_size" not in caplog.text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prepare", "images", "{data}", "--dest", "s3://bucket/x"], "s3://bucket/x is an address"),
        (["prepare", "images", "{data}", "--dest", "{file}"], "is a file"),
        (["prepare", "images", "{data}", "--dest", "{data}/x", "--workers", "-3"], "--workers"),
        (["embed", "{data}/val", "--model", "{model}", "--dest", "s3://b/e.parquet"], "is an address"),
        (["embed", "{data}/val", "--model", "{model}", "--dest", "{data}"], "is a folder"),
        (
            ["embed", "{file}", "--model", "{model}", "--dest", "{data}/e.parquet"],
            "takes the images of a folder",
        ),
    ],
)
def test_places_to_write_are_checked_before_the_work(
    pictures: Path, classifier: Path, tmp_path: Path, home: Path, words: list[str], says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.jpg"
    file.write_bytes(b"here")
    monkeypatch.setenv("COLUMNS", "300")
    result = CliRunner().invoke(
        app, [word.format(data=pictures, model=classifier, file=file) for word in words]
    )
    assert result.exit_code != 0 and isinstance(result.exception, SystemExit | DataError)
    assert says in f"{result.output} {result.exception}"
    assert [path.name for path in tmp_path.iterdir() if path.name != "d2v_home"] == ["file.jpg"]


def test_plain_folders_are_classified_without_labels(
    pictures: Path, classifier: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    album = tmp_path / "album"
    shutil.copytree(pictures / "val" / "red", album)
    base = ["infer", f"task.data={album}", f"common_eval.path={classifier}"]
    code, shown, said = called([*base, f"common_eval.results_path={tmp_path / 'a'}"], monkeypatch)
    assert code == 0 and "recall" not in shown, said
    found = pd.read_csv(tmp_path / "a" / "predictions.csv")
    assert len(found) == 12 and set(found["predicted"]) <= {"blue", "red"}
    assert bool(np.all(found["label"].isna()))
    (album / "2026").mkdir()
    shutil.copy(next(album.glob("*.png")), album / "2026")
    source = open_any(album, None)
    assert len(source) == 13 and not source.classes
    assert "folders are not taken as classes" in source.notes[0]
    for image in album.glob("*.png"):
        image.unlink()
    code, _, said = called(base, monkeypatch)
    assert code == 2 and "'2026'" in said
    assert called([*base, "task.labels=null"], monkeypatch)[0] == 0


def test_the_served_model_names_the_row_that_is_wrong(pictures: Path, classifier: Path) -> None:
    entry = importlib.import_module("d2v_platform.registry.pyfunc_image_entry").ImagePyfunc()
    entry.load_context(SimpleNamespace(artifacts={"model": str(classifier)}))
    good = next((pictures / "val" / "red").glob("*.png")).read_bytes()
    assert len(entry.predict(None, pd.DataFrame({"file": [good, good]}))) == 2
    with pytest.raises(DataError, match="row 1: "):
        entry.predict(None, pd.DataFrame({"file": [good, good[:100]]}))
    with pytest.raises(DataError, match="there is neither"):
        entry.predict(None, pd.DataFrame())  # what MLflow makes of columns that it does not know


def test_a_served_table_of_pixels_is_checked_and_agrees_with_the_file(classifier: Path) -> None:
    entry = importlib.import_module("d2v_platform.registry.pyfunc_image_entry").ImagePyfunc()
    entry.load_context(SimpleNamespace(artifacts={"model": str(classifier)}))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
    by_pixels = entry.predict(None, pd.DataFrame({"image": [pixels.tolist()]}))
    by_file = entry.predict(None, pd.DataFrame({"file": [buffer.getvalue()]}))
    pd.testing.assert_frame_equal(by_pixels, by_file)
    scores = by_file.filter(like="score_").iloc[0]
    assert by_file["score"][0] == scores.max() and scores.idxmax() == f"score_{by_file['label'][0]}"
    for wrong in (-1, 256, 1000.0):
        table = pd.DataFrame({"image": [pixels.tolist(), [[[0, 0, wrong]]]]})
        with pytest.raises(DataError, match=r"row 1: values of an image must lie in 0 \.\.\. 255"):
            entry.predict(None, table)
    embedded = entry.predict(None, pd.DataFrame({"file": [buffer.getvalue()]}), {"output": "embedding"})
    by_class_token = entry.predict(
        None, pd.DataFrame({"file": [buffer.getvalue()]}), {"output": "embedding", "pooling": "cls"}
    )
    assert list(embedded) == ["embedding"] and embedded["embedding"][0] != by_class_token["embedding"][0]
    for params in ({"output": "nothing"}, {"output": "embedding", "pooling": "max"}):
        with pytest.raises(DataError, match="must be one of"):
            entry.predict(None, pd.DataFrame({"file": [buffer.getvalue()]}), params)


def test_embed_takes_any_layer_and_pooling(
    pictures: Path, pretrained: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ["embed", str(pictures), "--subset", "val", "--model", str(pretrained)]
    rows = {}
    for name, more in {
        "last": [],
        "cls": ["--pooling", "cls"],
        "none": ["--unlabelled", "--pooling", "none"],
    }.items():
        file = tmp_path / f"{name}.parquet"
        code, _, said = called([*base, "--dest", str(file), *more], monkeypatch)
        assert code == 0, said
        rows[name] = pd.read_parquet(file)
    assert list(rows["last"].columns) == ["file", "label", "embedding"]
    assert rows["none"]["label"].isna().all() and set(rows["last"]["label"]) == {"blue", "red"}
    assert not np.allclose(rows["last"]["embedding"][0], rows["cls"]["embedding"][0])
    patches = np.stack([np.stack(list(one)) for one in rows["none"]["embedding"]])
    assert patches.shape == (24, 16, 32)
    assert np.allclose(patches.mean(1), np.stack(list(rows["last"]["embedding"])), atol=1e-5)
    whole = ["embed", str(pictures), "--model", str(pretrained), "--dest", "x.parquet"]
    code, _, said = called(whole, monkeypatch)
    assert code == 2 and "holds the subsets train, val: choose one" in said, said
    code, _, said = called([*base, "--dest", "x.parquet", "--layer", "7"], monkeypatch)
    assert code == 2 and "layer = 7 must lie in -1 ... 0" in said


def test_probe_judges_random_weights_beside_the_model(
    pictures: Path, pretrained: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["probe", str(pictures), "--model", str(pretrained), "--neighbours", "3", "--random-weights", "2"]
    code, shown, said = called(words, monkeypatch)
    assert code == 0, said
    rows = [line for line in shown.splitlines() if "train" in line]
    assert len(rows) == 3 and "random 2" in rows[2]
    model = data2vec.load(pretrained)
    one, again, other = model.untrained(1), model.untrained(1), model.untrained(2)
    source = open_any(pictures, "val")
    features = [run_model(m, source, "features").values for m in (model, one, again, other)]
    assert np.array_equal(features[1], features[2])
    assert not np.allclose(features[1], features[3]) and not np.allclose(features[0], features[1])
    code, _, said = called([*words[:-1], "-1"], monkeypatch)
    assert code == 2 and "--random-weights -1 must be >= 0" in said
    with pytest.raises(DataError, match="no folder 'bank'"):
        open_any(pictures, "bank", True)


def test_a_probe_needs_the_same_classes_but_training_images_may_have_others(
    pictures: Path, image_runs: Any, tmp_path: Path
) -> None:
    from d2v_platform.recipe.schema import Recipe
    from d2v_platform.tasks import check_data

    data = tmp_path / "data"
    shutil.copytree(pictures / "train", data / "bank")
    shutil.copytree(pictures / "val", data / "val")
    (data / "train").mkdir()
    for split, name in (("train", "from-train"), ("val", "from-val")):
        (data / "train" / name).symlink_to(pictures / split)
    recipe = image_runs.pretraining(
        data,
        task={"probe_bank": "bank", "probe_neighbours": 3},
        dataset={"disable_validation": False, "valid_subset": "val"},
        optimization={"max_update": 2},
    )
    check_data(Recipe.from_dict(recipe), None)
    _, recorder = image_runs.run(recipe, tmp_path / "run")
    assert recorder.curve("val/knn")
    (data / "val" / "red").rename(data / "val" / "green")
    with pytest.raises(DataError, match=r"val has other classes than bank.*a probe needs a bank"):
        check_data(Recipe.from_dict(recipe), None)
