"""A vocabulary of the user's own goes with the data into the model, and from there to fine-tuning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import data2vec
from d2v_platform.preparation.glue import prepare_glue
from d2v_platform.preparation.text import TextOptions, prepare_text
from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks import check_data
from d2v_platform.training.job import Job
from d2v_platform.training.loop_state import Worker
from d2v_platform.training.train_loop import train
from data2vec.artifact import read_artifact
from data2vec.data.bpe import GPT2BPE, shared_bpe
from data2vec.errors import DataError
from tests.platform.recorder import Recorder

MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "d"), ("o", "g"), ("Ġd", "og")]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``encoder.json`` and ``vocab.bpe``: GPT-2's bytes and six merges."""
    folder = tmp_path_factory.mktemp("own")
    official = json.loads(shared_bpe().encoder_json.read_text(encoding="utf-8"))
    pieces = [*sorted((p for p, number in official.items() if number < 256), key=official.__getitem__)]
    pieces += ["".join(pair) for pair in MERGES]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    (folder / "encoder.json").write_text(json.dumps(numbers), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / "vocab.bpe").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def prepared(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text in that vocabulary."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.txt").write_text("the dog and the other dog\n" * 40, encoding="utf-8")
    options = TextOptions(
        build_dict=True, encoder_json=own / "encoder.json", vocab_bpe=own / "vocab.bpe", workers=1
    )
    prepare_text({"train": folder / "train.txt"}, folder / "data", options)
    return folder / "data"


def test_it_goes_with_the_data_into_the_model_and_on(
    own: Path, prepared: Path, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = {
        **tiny_recipe, "task": {**tiny_recipe["task"], "data": str(prepared)},
        "optimization": {**tiny_recipe["optimization"], "max_update": 1},
    }  # fmt: skip
    summary = train(Job(Recipe.from_dict(recipe), tmp_path / "run"), Recorder(), Worker(threads=1))
    model = data2vec.load(Path(str(summary.export)))
    wanted = GPT2BPE.load(own)
    assert model.tokenizer.bpe.digest() == wanted.digest() != shared_bpe().digest()
    assert len(model.embed("the dog", "none")) == 1 + len(wanted.encode("the dog")) + 1 == 4

    raw = tmp_path / "raw" / "RTE"
    raw.mkdir(parents=True)
    rows = "".join(
        f"{n}\tthe dog\tthe other dog\t{('entailment', 'not_entailment')[n % 2]}\n" for n in range(8)
    )
    for split in ("train", "dev"):
        (raw / f"{split}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + rows)
    there = Path(str(summary.export)) / "tokenizer"
    tuning = {
        "task": {"_name": "sentence_prediction", "num_classes": 2, "max_positions": 32},
        "dataset": {"batch_size": 4, "valid_subset": "valid"},
        "criterion": {"_name": "sentence_prediction"}, "optimization": {"max_update": 1, "lr": [1e-3]},
        "model": {"_name": "data2vec_text_classification", "model_path": str(summary.export)},
        "optimizer": {"_name": "adam"}, "lr_scheduler": {"_name": "fixed"},
    }  # fmt: skip
    for name, files in (("own", (there / "encoder.json", there / "vocab.bpe")), ("official", (None, None))):
        prepare_glue(
            tmp_path / "raw", tmp_path / name, ["rte"], dictionary=there / "dict.txt",
            encoder_json=files[0], vocab_bpe=files[1],
        )  # fmt: skip
        tuning["task"]["data"] = str(tmp_path / name / "RTE-bin")  # pyright: ignore
        if name == "own":
            check_data(Recipe.from_dict(tuning), Path(str(summary.export)))
            continue
        with pytest.raises(DataError, match=r"encoded with another vocabulary .* --encoder-json"):
            check_data(Recipe.from_dict(tuning), Path(str(summary.export)))
    assert read_artifact(Path(str(summary.export))).tokenizer is not None


@pytest.mark.parametrize(
    ("lost", "rule"),
    [(["vocab.bpe"], "vocab.bpe"), (["encoder.json", "vocab.bpe"], "another vocabulary than GPT-2's")],
)
def test_data_without_its_vocabulary_is_refused(
    lost: list[str], rule: str, prepared: Path, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "data"))
    for name in lost:
        (folder / name).unlink()
    recipe = Recipe.from_dict({**tiny_recipe, "task": {**tiny_recipe["task"], "data": str(folder)}})
    with pytest.raises(DataError, match=rule):
        check_data(recipe, None)
