"""Probes of audio and text pretraining: the features of the model that would be exported, classes, errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

import data2vec
from d2v_platform.recipe import checks
from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks import make_task
from d2v_platform.tasks.labelled_probe import (
    NEIGHBOURS,
    both_sides,
    judge,
    read_recordings,
    read_texts,
    taught_and_judged,
)
from d2v_platform.training.job import Job
from d2v_platform.training.train_loop import train
from data2vec.data.manifest import manifest_text
from data2vec.errors import DataError
from data2vec.probes import knn_predict, linear_probe, top1
from tests.platform.commands import called
from tests.platform.recorder import Recorder

SPEC = "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] * 2"
V2 = {
    "_name": "data2vec_multi", "supported_modality": "AUDIO", "embed_dim": 32, "num_heads": 2, "depth": 2,
    "average_top_k_layers": 2, "clone_batch": 2, "instance_norm_target_layer": True,
    "ema_encoder_only": False,
    "modalities": {"text": None, "audio": {
        "feature_encoder_spec": SPEC, "prenet_depth": 1, "mask_prob": 0.5, "mask_prob_adjust": 0.05,
        "conv_pos_width": 15, "conv_pos_depth": 3, "conv_pos_groups": 2, "use_alibi_encoder": True,
        "decoder": {"decoder_dim": 16, "decoder_groups": 2, "decoder_layers": 2}}},
}  # fmt: skip
V1 = {
    "_name": "data2vec_audio", "extractor_mode": "layer_norm", "encoder_layers": 2, "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 2, "conv_pos": 15, "conv_pos_groups": 2,
    "conv_feature_layers": SPEC, "pos_conv_depth": 3, "average_top_k_layers": 2,
    "instance_norm_target_layer": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of three pitches, with their names as classes."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    for side, count in (("train", 18), ("valid", 9)):
        entries = []
        for index in range(count):
            length = 6400 + 200 * index
            wave = np.sin(2 * np.pi * (250, 900, 2000)[index % 3] * np.arange(length) / 16_000)
            sf.write(str(folder / f"{side}{index}.wav"), 0.3 * wave + 0.05 * rng.normal(size=length), 16_000)
            entries.append((f"{side}{index}.wav", length))
        (folder / f"{side}.tsv").write_text(manifest_text(str(folder), entries))
        (folder / f"{side}.wrd").write_text("".join(f"tone {'abc'[i % 3]}\n" for i in range(count)))
    return folder


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """Two classes of texts that differ in a word."""
    for side, count in (("train", 12), ("valid", 6)):
        rows = [
            ("no", f"a man {n} sat") if n % 2 else ("yes", f"the dog number {n} ran") for n in range(count)
        ]
        (tmp_path / f"{side}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    return tmp_path


def audio(tones: Path, model: dict[str, Any], **task: Any) -> dict[str, Any]:
    return {
        "task": {"_name": "audio_pretraining", "data": str(tones), "normalize": True,
                 "max_sample_size": 8000, "probe_data": str(tones), **task},
        "model": model,
        "criterion": {"_name": "model"},
        "optimizer": {"_name": "adam", "adam_betas": [0.9, 0.98]},
        "lr_scheduler": {"_name": "cosine", "warmup_updates": 1},
        "common": {"log_interval": 1},
        "dataset": {"max_tokens": 40_000, "required_batch_size_multiple": 1, "num_workers": 0},
        "optimization": {"max_update": 2, "lr": [1e-3]},
    }  # fmt: skip


def text(tiny_recipe: dict[str, Any], sentences: Path, **task: Any) -> dict[str, Any]:
    dataset = {**tiny_recipe["dataset"], "disable_validation": False, "valid_subset": "train"}
    task = {**tiny_recipe["task"], "probe_data": str(sentences), **task}
    return tiny_recipe | {"task": task, "dataset": dataset}


def by_hand(task: Any, folder: Path, layer: int) -> dict[str, float]:
    """The same figures from the model folder that the task exports, as a user would compute them."""
    recipe = task.recipe
    model: Any = data2vec.load(task.export(folder, {}, task.module.state_dict()))
    read = read_texts if recipe.task.__class__.__name__ == "MaskedLMTask" else read_recordings
    taught, judged = (read(recipe.task.probe_data, side) for side in ("train", "valid"))
    names = sorted(set(taught.classes))
    x, y = (torch.from_numpy(np.stack(model.embed(s.inputs, layer=layer))) for s in (taught, judged))
    labels, wanted = (torch.tensor([names.index(c) for c in s.classes]) for s in (taught, judged))
    votes = knn_predict(x, labels, y, NEIGHBOURS, len(names))
    logits = linear_probe(x, labels, y, len(names), seed=recipe.common.seed)
    return {"knn": top1(votes, wanted), "linear_probe": top1(logits, wanted)}


@pytest.mark.parametrize("kind", ["v2", "v1", "text"])
def test_the_probes_are_those_of_the_exported_model_and_disturb_nothing(
    kind: str, tones: Path, sentences: Path, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    layer = -2
    if kind == "text":
        plain = text(tiny_recipe, sentences, probe_layer=layer)
    else:
        plain = audio(tones, V2 if kind == "v2" else V1, probe_layer=layer)
    recipe = Recipe.from_dict(plain)
    assert checks.problems(recipe) == []
    task = make_task(recipe, None)
    with torch.no_grad():
        for parameter in task.module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.manual_seed(3)))
    task.module.train()
    state = torch.get_rng_state()
    (subset,) = recipe.valid_subsets()
    found = task.score(subset, [{"id": 0, "loss": 6.0, "sample_size": 3}])
    assert torch.equal(torch.get_rng_state(), state) and task.module.training
    assert found == {"loss": 2.0} | by_hand(task, tmp_path / "model", layer)
    assert task.score("another", [{"id": 0, "loss": 6.0, "sample_size": 3}]) == {"loss": 2.0}
    floor = task.floor(subset, "linear_probe")
    start = make_task(recipe, None).score(subset, [])
    assert floor is not None and (floor.metric, floor.value) == ("linear_probe", start["linear_probe"])
    assert task.floor(subset, "loss").metric == "knn"  # pyright: ignore[reportOptionalMemberAccess]


def test_training_logs_the_probes_and_what_is_wrong_is_said_before(tones: Path, tmp_path: Path) -> None:
    plain = audio(tones, V2)
    plain["checkpoint"] = {"best_checkpoint_metric": "knn", "maximize_best_checkpoint_metric": True}
    recorder = Recorder()
    train(Job(Recipe.from_dict(plain), tmp_path, threads=1), recorder)
    assert recorder.points["valid/linear_probe"][2] >= 100 / 3 and 2 in recorder.points["valid/best_knn"]
    silent = Recipe.from_dict({**plain, "dataset": {**plain["dataset"], "disable_validation": True}})
    told = {p.field: p.rule for p in checks.problems(silent)}
    assert "set dataset.disable_validation=false" in told["task.probe_data"]
    deep = Recipe.from_dict(audio(tones, V2, probe_layer=2))
    assert [(p.field, p.rule) for p in checks.problems(deep)] == [
        ("task.probe_layer", "must lie in -2 ... 1")
    ]
    without = Recipe.from_dict(audio(tones, V2, probe_data=None))
    assert checks.metrics(without) == {"loss": False} and "knn" in checks.metrics(Recipe.from_dict(plain))
    assert make_task(without, None).floor("valid", "knn") is None


def test_a_labelled_set_that_cannot_be_used_is_named(tones: Path, sentences: Path, tmp_path: Path) -> None:
    def refused(read: Any, folder: Path, plain: dict[str, Any], said: str) -> None:
        plain = {**plain, "task": {**plain["task"], "probe_data": str(folder)}}
        with pytest.raises(DataError, match=said):
            both_sides(Recipe.from_dict(plain), read)

    plain = audio(tones, V2)
    refused(read_recordings, tmp_path / "no", plain, "train.tsv does not exist")
    lame = tmp_path / "lame"
    lame.mkdir()
    for name in ("train.tsv", "valid.tsv", "train.wrd", "valid.wrd"):
        (lame / name).write_text((tones / name).read_text())
    (lame / "valid.wrd").write_text("tone a\n" * 8)
    refused(read_recordings, lame, plain, r"valid.wrd has 8 lines for 9 recordings")
    (lame / "valid.wrd").write_text("tone a\n" * 8 + "tone x\n")
    refused(read_recordings, lame, plain, "valid has the class 'tone x', train has not")
    for side in ("train", "valid"):
        (sentences / f"{side}.tsv").write_text("no\tone\n")
    refused(read_texts, sentences, plain, "train has one class only")
    (sentences / "valid.tsv").write_text("no\tone\nno two\n")
    refused(read_texts, sentences, plain, "valid.tsv: line 2 is no class<TAB>text")


def test_the_command_judges_text_beside_random_weights(
    tiny_glue: Any, sentences: Path, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["probe", str(sentences), "--model", str(tiny_glue.model)]
    code, shown, said = called([*words, "--neighbours", "3", "--random-weights", "2"], monkeypatch)
    assert code == 0, said
    rows = [line.split("│") for line in shown.splitlines() if "train" in line]
    assert [row[1].strip() for row in rows] == ["model", "random 1", "random 2"]
    model = data2vec.load(tiny_glue.model)
    sides = taught_and_judged(str(sentences), ("train", "valid"), read_texts, "the probe")
    for row, one in zip(rows, (model, model.untrained(1), model.untrained(2)), strict=True):
        scores = judge(one, *sides, layer=-1, neighbours=3, seed=1)
        assert [row[3].strip(), row[5].strip()] == ["12", "6"]
        assert [float(x) for x in row[6:8]] == pytest.approx(
            [scores["knn"], scores["linear_probe"]], abs=0.01
        )
    kept = model.embed("a man")
    assert np.array_equal(model.untrained(1).embed("a man"), model.untrained(1).embed("a man"))
    assert not np.allclose(model.untrained(1).embed("a man"), model.untrained(2).embed("a man"))
    assert np.array_equal(model.embed("a man"), kept), "the model itself stays"
    code, _, said = called([*words, "--subset", "test"], monkeypatch)
    assert code == 2 and "test.tsv cannot be read" in said
    code, _, said = called([*words, "--pooling", "cls"], monkeypatch)
    assert code == 2 and "--pooling cls: these features are the mean over positions" in said


def test_words_are_judged_as_they_stand_in_their_texts(tiny_glue: Any, tmp_path: Path) -> None:
    rows = [("noun", "the  dog ran", 2), ("verb", "the dog ran", 3), ("noun", "unbelievable dogs sat", 2),
            ("verb", "dogs unbelievably ran", 3)]  # fmt: skip
    for side in ("train", "valid"):
        (tmp_path / f"{side}.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    model = data2vec.load(tiny_glue.model)
    labelled = read_texts(str(tmp_path), "train")
    assert labelled.words == [2, 3, 2, 3]
    found = model.embed_words(labelled.inputs, labelled.words, batch_size=1)
    for vector, (_, text, number) in zip(found, rows, strict=True):
        words = text.split()
        ids = [model.tokenizer.bpe.encode((" " if at else "") + word) for at, word in enumerate(words)]
        first = 1 + sum(map(len, ids[: number - 1]))
        wanted = model.embed(" ".join(words), "none")[first : first + len(ids[number - 1])].mean(axis=0)
        assert vector == pytest.approx(wanted, abs=1e-5)
    for row, rule in (
        ("noun\tthe dog\t3", "line 2 names word '3'; its text has the words 1 ... 2"),
        ("noun\tthe dog\t0", "line 2 names word '0'"),
        ("noun\tthe dog", "line 2 is no class<TAB>text<TAB>number"),
    ):
        (tmp_path / "bad.tsv").write_text(f"verb\tthe dog ran\t3\n{row}\n")
        with pytest.raises(DataError, match=re.escape(rule)):
            read_texts(str(tmp_path), "bad")
