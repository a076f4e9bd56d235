"""``d2v import`` and ``d2v export`` as a user types them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image
from typer.testing import CliRunner

import data2vec
from d2v_platform.cli import app
from d2v_platform.home import default_tracking_uri
from d2v_platform.importing.command import downloads_folder
from d2v_platform.importing.importing import ImportRequest, has_collapsed, import_lineage_tags, import_model
from d2v_platform.registry.model_folders import model_folder
from d2v_platform.registry.register import get_version
from d2v_platform.registry.reload_check import CHECK_FILE
from d2v_platform.storage import cache
from d2v_platform.tracking.tracker import Tracker
from data2vec.artifact import read_artifact, save_artifact
from data2vec.config import Data2VecMultiConfig, ImageHeadConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.data.dictionary import Dictionary
from data2vec.errors import ConfigError, Data2VecError, DataError
from data2vec.image_heads import ImageClassifier
from data2vec.image_model import ImageModel
from data2vec.interop.export import export_fairseq


def d2v(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: object) -> Data2VecError:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, Data2VecError), result.output
    return result.exception


@pytest.fixture
def checkpoint(tiny_glue: Any, tmp_path: Path, home: Path) -> Path:
    """A fairseq file of a small v2 text model, with its dict.txt beside it."""
    export_fairseq(read_artifact(tiny_glue.model), tmp_path / "fs" / "nlp_base.pt", half=True)
    return tmp_path / "fs" / "nlp_base.pt"


def test_a_dry_run_says_what_is_inside_and_writes_nothing(checkpoint: Path, home: Path) -> None:
    before = sorted(home.rglob("*"))
    out = d2v("import", checkpoint, "--dry-run")
    for words in ("container: zip", "float16", "data2vec_multi, TEXT: 2 blocks, width 32, 2 heads",
                  "v2 text, pretrained:", "missing: ", "no dictionary given"):  # fmt: skip
        assert words in out, out
    assert sorted(home.rglob("*")) == before


def test_import_writes_a_model_that_embeds(checkpoint: Path, tiny_glue: Any, tmp_path: Path) -> None:
    out = d2v("import", checkpoint, "--out", tmp_path / "model")
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert f"sha256 {digest}" in out and "model folder:" in out
    texts = ["the old mill", "a committee"]
    mine, theirs = data2vec.load(tmp_path / "model").embed(texts), data2vec.load(tiny_glue.model).embed(texts)
    for a, b in zip(mine, theirs, strict=True):
        assert a == pytest.approx(b, abs=2e-2)  # it went through fp16
    origin = json.loads((tmp_path / "model" / "config.json").read_text())["origin"]
    assert origin["imported.sha256"] == digest and origin["licence.if_published"] == ""


def test_a_registered_import_keeps_origin_licence_and_hash(checkpoint: Path, mlflow_home: Path) -> None:
    out = d2v("import", checkpoint, "--register", "imported-text")
    assert "registered: models:/imported-text/1" in out, out
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    with Tracker() as tracker:
        version = get_version(tracker, "imported-text", 1)
        assert version.tags["import.sha256"] == digest
        assert version.tags["import.file"] == "nlp_base.pt" and version.tags["import.licence"] == "unknown"
        assert version.tags["collapse"] == "false" and not version.missing_lineage()
        assert digest in version.description and "Not recorded in the file" in version.description
    shown = d2v("registry", "show", "imported-text", "--version", "1")
    assert digest[:40] in shown.replace("\n", "") and "import.sha256" in shown


@pytest.mark.parametrize("to", ["fairseq", "huggingface", "safetensors"])
def test_export_and_back(to: str, tiny_glue: Any, tmp_path: Path, home: Path) -> None:
    place = tmp_path / ("out.pt" if to == "fairseq" else "out")
    if to == "huggingface":  # our tiny model's epsilon is not theirs
        assert "norm_eps" in str(refused("export", tiny_glue.model, "--to", to, "--out", place))
        return
    assert "written to" in d2v("export", tiny_glue.model, "--to", to, "--out", place)
    before = read_artifact(tiny_glue.model).state
    if to == "fairseq":
        d2v("import", place, "--out", tmp_path / "again")
    folder = tmp_path / "again" if to == "fairseq" else place
    after = read_artifact(folder).state
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give a file, --list or --download"),
        (("x.pt", "--weights", "best"), "student or teacher"),
        (("x.pt", "--alias", "champion"), "needs --register"),
        (("x.pt", "--sha256", "12"), "64 hexadecimal digits"),
        (("x.pt",), "does not exist"),
        (("--download", "nothing.pt"), "is no published file"),
        (("--download", "nlp_base.pt"), "is no published file"),  # both generations have one
        (("--download", "data2vec_vision/base_800"), "fetch it by hand"),
        (("x.pt", "--download", "nlp_base.pt"), "contradicts --download"),
        (("x.pt", "--dry-run", "--register", "m"), "contradicts --dry-run"),
        (("--download", "a", "--download", "b", "--sha256", "0" * 64), "download them one by one"),
    ],
)
def test_mistakes_are_told(words: tuple[str, ...], message: str, home: Path) -> None:
    assert message in str(refused("import", *words))


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (("--to", "safetensors", "--out", "x", "--half"), ["--half"]),
        (("--to", "huggingface", "--out", "x", "--half"), ["--half"]),
        (("--to", "fairseq", "--out", "x", "--half"), ["--out"]),
        (("--to", "onnx", "--out", "x.pt", "--half"), ["--to", "--half"]),
    ],
)
def test_mistakes_of_an_export_are_told_before_the_model_is_looked_for(
    words: tuple[str, ...], fields: list[str]
) -> None:
    error = refused("export", "/no/model", *words)
    assert isinstance(error, ConfigError) and [problem.field for problem in error.problems] == fields


def test_the_folder_of_an_import_belongs_to_what_was_asked(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, names = tmp_path / "tuned.pt", tmp_path / "names.txt"
    export_fairseq(read_artifact(small_classifier(tmp_path / "ours")), file)
    names.write_text("red\ngreen\nblue\n")
    monkeypatch.setattr("d2v_platform.importing.importing.with_teacher_weights", lambda imported: imported)
    asked: list[dict[str, Any]] = [{}, {"classes": names}, {"weights": "teacher"}, {}]
    found = [import_model(ImportRequest(file, **more)).folder for more in asked]
    assert found[0] == found[3] and len(set(found)) == 3, found


def test_converted_models_lie_in_the_one_bounded_cache(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, data = [tmp_path / f"{name}.pt" for name in "abc"], home / "cache" / "data"
    for file in files:
        export_fairseq(read_artifact(small_classifier(tmp_path / "ours")), file)
    first, uri = model_folder(str(files[0]))
    taken = import_model(ImportRequest(files[1])).folder
    assert {first.parent, taken.parent} == {data} and uri == str(files[0])
    with monkeypatch.context() as again:
        again.setattr("d2v_platform.registry.model_folders.import_file", None)
        assert model_folder(str(files[0])) == (first, uri), "converted once"
    for folder in (first, taken):
        cache._IN_USE.pop(folder).close()  # as after their processes
    os.utime(data / f"{taken.name}.used", (0, 0))
    assert model_folder(str(taken)) == (taken, str(taken))
    bytes_for_two = sum(map(cache._size, (first, taken))) + files[2].stat().st_size - 1
    monkeypatch.setenv("D2V_CACHE_GB", str(bytes_for_two / 1e9))
    third, _ = model_folder(str(files[2]))
    left = {path for path in data.iterdir() if path.is_dir()}
    assert left == {taken, third}, "the one that a path names is in use"
    assert {path.name for path in (home / "cache").iterdir()} == {"data"}


@pytest.mark.parametrize(
    ("rows", "collapsed"),
    [
        ([[1.0, -5.0, 3.0]] * 2, True),  # two inputs, one answer
        ([[1.0, -5.0, 3.0], [1.0, -4.9, 3.0]], False),
        ([[[7.0], [7.0]], [[-7.0], [-7.0]]], False),
        ([[1e6, 1e6], [1e6 + 1, 1e6 + 1]], True),  # as good as one
        ([[0.0], [0.0]], True),
    ],
)
def test_a_model_that_answers_all_inputs_alike_has_collapsed(
    rows: Any, collapsed: bool, tmp_path: Path
) -> None:
    (tmp_path / CHECK_FILE).write_text(json.dumps({"expected": rows}))
    assert has_collapsed(tmp_path) is collapsed


def test_wrong_checksums_dictionaries_and_hostile_files_are_refused(
    checkpoint: Path, tmp_path: Path, mlflow_home: Path
) -> None:
    assert "expected 00" in str(refused("import", checkpoint, "--sha256", "0" * 64))
    wrong = tmp_path / "dict.txt"
    wrong.write_text("1 1\n2 1\n")
    assert "give the dict.txt that belongs to it" in str(refused("import", checkpoint, "--dict", wrong))
    assert "no teacher" in str(refused("import", checkpoint, "--weights", "teacher"))
    mark = tmp_path / "it_ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(mark), "w")

    torch.save({"model": {}, "cfg": Trap()}, tmp_path / "trap.pt")
    for words in ((), ("--dry-run",)):
        error = refused("import", tmp_path / "trap.pt", *words)
        assert "open" in str(error) and not mark.exists()


class Site(BaseHTTPRequestHandler):
    """One file, with byte ranges; the first answer breaks off half-way."""

    content, cuts = b"", [0]

    def do_GET(self) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        cut = self.cuts.pop() if self.cuts else len(self.content)
        self.wfile.write(self.content[start : start + cut])

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def address(checkpoint: Path) -> Iterator[str]:
    Site.content = checkpoint.read_bytes()
    Site.cuts = [len(Site.content) // 2]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/nlp_base.pt"
    server.shutdown()
    server.server_close()


def test_a_download_resumes_is_verified_listed_and_imported(
    address: str, checkpoint: Path, home: Path, tmp_path: Path
) -> None:
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    name = "data2vec2/nlp_base.pt"
    out = d2v("import", "--download", name, "--address", address, "--sha256", digest)
    assert (
        digest in out and "checksum as given" in out and "licence: MIT" in out and "gpt2_bpe/dict.txt" in out
    )
    assert (downloads_folder() / name).read_bytes() == checkpoint.read_bytes()
    listed = d2v("import", "--list")
    assert (
        digest in listed
        and listed.count("CC-BY-NC") == 11
        and "vision/finetuning/mae_imagenet_huge_clean" in listed
    )
    (downloads_folder() / "data2vec2" / "dict.txt").write_bytes((checkpoint.parent / "dict.txt").read_bytes())
    done = d2v("import", "--download", name, "--address", address, "--out", tmp_path / "out")
    assert "model folder:" in done and read_artifact(tmp_path / "out").kind == "pretrained"


@pytest.mark.parametrize(("updates", "told"), [(0, "0"), (7, "7"), (None, "unknown")])
def test_an_untrained_file_has_update_0_and_not_an_unknown_one(updates: int | None, told: str) -> None:
    imported: Any = SimpleNamespace(num_updates=updates, dictionary=None)
    tags = import_lineage_tags(imported, {"imported.sha256": "ab", "recipe": ""}, "1.0")
    assert tags["run.update"] == told


def test_without_network_the_refusal_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    error = refused("import", "--download", "data2vec2/base_libri.pt", "--address", "http://127.0.0.1:9/x.pt")
    assert "no connection" in str(error) and "fetch the file elsewhere and give its path" in str(error)
    assert not isinstance(error, ConfigError)


def small_recogniser(folder: Path) -> Path:
    config = Data2VecMultiConfig.from_dict({
        "embed_dim": 16, "num_heads": 2, "depth": 1, "average_top_k_layers": 1, "supported_modality": "AUDIO",
        "ema_encoder_only": False,
        "modalities": {"text": None, "audio": {"prenet_depth": 0, "conv_pos_groups": 2,
                       "feature_encoder_spec": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2"}},
    })  # fmt: skip
    head, letters = CTCConfig(), Dictionary(["|", "E", "T"], [3, 2, 1])
    state = CTCModel(config, head, num_symbols=7).state_dict()
    task = {"num_symbols": 7, "normalize": True}
    return save_artifact(
        folder, kind="ctc", model_config=config, state=state, head_config=head, letters=letters, task=task
    )


def small_classifier(folder: Path) -> Path:
    config = Data2VecMultiConfig.from_dict({
        "embed_dim": 16, "num_heads": 2, "depth": 1, "average_top_k_layers": 1, "supported_modality": "IMAGE",
        "ema_encoder_only": False,
        "modalities": {"text": None, "image": {"prenet_depth": 0, "input_size": 16, "patch_size": 4,
                                               "embed_dim": 16, "num_extra_tokens": 1}},
    })  # fmt: skip
    head = ImageHeadConfig(num_classes=3)
    state, task = ImageClassifier(config, head).state_dict(), {"labels": ["0", "1", "2"]}
    return save_artifact(
        folder, kind="image_classifier", model_config=config, state=state, head_config=head, task=task
    )


def wave_bytes() -> bytes:
    out = io.BytesIO()
    soundfile.write(out, 0.3 * np.sin(np.arange(8000) / 5), 16_000, format="FLAC")
    return out.getvalue()


def picture_bytes() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 90, 30)).save(out, format="PNG")
    return out.getvalue()


def heard(model: Any, content: bytes) -> tuple[str, float]:
    transcript = model.transcribe([content])[0]
    return transcript.text, transcript.score


def seen(model: Any, content: bytes) -> tuple[str, float]:
    names, scores = model.classify([content])
    return names[scores[0].argmax()], scores[0].max()


def test_classes_of_a_fairseq_file_get_names(tmp_path: Path, home: Path) -> None:
    file, names = tmp_path / "tuned.pt", tmp_path / "names.txt"
    export_fairseq(read_artifact(small_classifier(tmp_path / "ours")), file)
    names.write_text("red\n\ngreen\nblue\n")
    d2v("import", file, "--out", tmp_path / "named", "--classes", names)
    model = data2vec.load(tmp_path / "named")
    assert isinstance(model, ImageModel) and model.classes == ["red", "green", "blue"]
    names.write_text("red\nred\nblue\n")
    with pytest.raises(DataError, match="2 different classes in 3 lines; the model has 3"):
        import_model(ImportRequest(file, classes=names))
    speech = tmp_path / "speech.pt"
    export_fairseq(read_artifact(small_recogniser(tmp_path / "speech")), speech)
    with pytest.raises(DataError, match="a model of this kind has no classes"):
        import_model(ImportRequest(speech, classes=names))


@pytest.mark.timeout(400)  # clean processes import torch and mlflow: slow beside other work
@pytest.mark.parametrize(
    ("make", "content", "use", "column"),
    [(small_recogniser, wave_bytes, heard, "text"), (small_classifier, picture_bytes, seen, "label")],
    ids=["speech", "image"],
)
def test_imported_speech_and_image_models_predict_from_the_registry(
    make: Any,
    content: Any,
    use: Any,
    column: str,
    tmp_path: Path,
    mlflow_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, file = make(tmp_path / "ours"), tmp_path / "fs" / "tuned.pt"
    export_fairseq(read_artifact(ours), file)
    letters = file.with_name("dict.ltr.txt")
    words = ["--dict", letters] if letters.is_file() else []
    out = d2v("import", file, "--register", "taken-in", "--alias", "champion", *words)
    assert "registered: models:/taken-in/1 (taken-in@champion)" in out, out
    with Tracker() as tracker:
        version = get_version(tracker, "taken-in", 1)
        assert version.tags["import.file"] == "tuned.pt" and not version.missing_lineage()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_tracking_uri())
    loaded = mlflow.pyfunc.load_model("models:/taken-in@champion")
    answer = loaded.predict(pd.DataFrame({"file": [content()]})).iloc[0]
    name, score = use(data2vec.load(ours), content())
    assert answer[column] == name and answer["score"] == pytest.approx(score, abs=1e-5)
