"""Losses, sums, metrics and scores of every task: of real batches, and of numbers worked out by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_platform.preparation.glue import prepare_glue
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks import check_data, make_task, open_subset
from d2v_platform.tasks.audio_finetuning import AudioFinetuning
from d2v_platform.tasks.image_classification import ImageClassification
from d2v_platform.tasks.statistics import Sums
from d2v_platform.tasks.task import TrainingTask
from data2vec.artifact import read_artifact
from data2vec.data.letters import released_letters, words_of_ids
from data2vec.errors import CheckpointError, ConfigError, DataError
from tests.platform.toy_task import toy_recipe


def sums_of(task: TrainingTask, values: Mapping[str, float]) -> Sums:
    made = Sums(task.layout)
    made.add(values)
    return made


def batch_of(task: TrainingTask, subset: str, training: bool, number: int = 0) -> dict[str, Any]:
    dataset = task.dataset(subset)
    return dataset.collate([dataset[int(i)] for i in task.batches(subset, 1, training)[number]])


def forward(task: TrainingTask, batch: Mapping[str, Any], update: int) -> Any:
    torch.manual_seed(0)
    return task.forward(batch, update)


def samples_of(batch: Any) -> int:
    """Of audio, without padding."""
    assert batch["padding_mask"].any()
    return int((~batch["padding_mask"]).sum())


def results_of(task: TrainingTask, subset: str) -> list[dict[str, Any]]:
    """Of the whole subset in the batches of validation, ordered by id."""
    task.module.eval()
    dataset, found = task.dataset(subset), []
    with torch.no_grad():
        for indices in task.batches(subset, 1, training=False):
            found += task.predict(dataset.collate([dataset[int(i)] for i in indices]))
    task.module.train()
    return sorted(found, key=lambda result: result["id"])


def assert_sums(task: TrainingTask, result: Any, sentences: int, tokens: int) -> Sums:
    made = Sums(task.layout)
    made.add(result.scalars, result.moments)
    assert made["loss"] == pytest.approx(float(result.loss.detach()))
    assert made["sample_size"] == float(result.sample_size)
    assert (made["nsentences"], made["ntokens"], made["micro_batches"]) == (sentences, tokens, 1)
    return made


# ---- recognition ------------------------------------------------------------------------------------------


def ctc(data: Path, **model: Any) -> Recipe:
    released_letters().save(data / "dict.ltr.txt")
    values = toy_recipe(dataset={"max_tokens": 40_000, "batch_size": None, "train_subset": "dev",
                                 "valid_subset": "dev", "max_tokens_valid": 40_000,
                                 "disable_validation": False})  # fmt: skip
    values["checkpoint"] |= {"best_checkpoint_metric": "wer"}
    return Recipe.from_dict(values | {
        "task": {"_name": "audio_finetuning", "data": str(data), "labels": "ltr", "normalize": True},
        "model": {"_name": "wav2vec_ctc", "w2v_path": "given", "feature_grad_mult": 1.0, "apply_mask": False,
                  "dropout_input": 0.0, "final_dropout": 0.0, "dropout": 0.0, "attention_dropout": 0.0,
                  "activation_dropout": 0.0, "layerdrop": 0.0, **model},
        "criterion": {"_name": "ctc"},
    })  # fmt: skip


def test_recognition(ctc_model: Path, utterances: Path, tmp_path: Path) -> None:
    task = make_task(ctc(utterances), ctc_model)
    assert isinstance(task, AudioFinetuning)
    trunk = read_artifact(ctc_model).trunk_state
    assert all(torch.equal(task.model.trunk.state_dict()[name], trunk[name]) for name in trunk)
    batch = batch_of(task, "dev", True)
    result = forward(task, batch, 0)
    sums = assert_sums(task, result, len(batch["id"]), samples_of(batch))
    output = task.model(batch["source"], batch["padding_mask"], batch["id"])
    assert sums["frames"] == int(output.frames_B.sum()) and sums["too_short"] == 0
    best = [row[:n].argmax(-1) for row, n in zip(output.logits_BTV, output.frames_B, strict=True)]
    assert sums["blanks"] == sum(int((row == 0).sum()) for row in best)
    rows = results_of(task, "dev")
    assert [row["id"] for row in rows] == list(range(11))
    mine = [row for row in rows if row["id"] in batch["id"].tolist()]
    # Without dropout the losses of training and of validation, batched differently, agree.
    assert sum(row["loss"] for row in mine) == pytest.approx(float(result.loss.detach()), rel=1e-4)
    assert sum(row["frames"] for row in mine) == sums["frames"]
    assert sum(row["blank_frames"] for row in mine) == sums["blanks"]
    assert {row["reference"] for row in rows} == {"ONE TWO"} and "prediction_lm" not in rows[0]
    for row in rows:
        assert row["prediction"] == words_of_ids(row["letters"], task.letters) != row["reference"]
    masked = make_task(ctc(utterances, apply_mask=True, mask_prob=0.6, mask_length=2), ctc_model)
    first, again, later = (float(forward(masked, batch, n).loss.detach()) for n in (0, 0, 1))
    assert first == again != later, "masks follow the update"
    other = make_task(ctc(utterances, apply_mask=True, mask_prob=0.6, mask_length=2), ctc_model)
    other.recipe.common.seed = 2
    assert float(forward(other, batch, 0).loss.detach()) != first, "and the seed"
    random_weights = ctc(utterances, no_pretrained_weights=True)
    random_weights.common.seed = 5
    random = make_task(random_weights, ctc_model)
    assert not all(torch.equal(random.module.trunk.state_dict()[name], trunk[name]) for name in trunk)  # type: ignore[union-attr]


def test_figures_of_recognition(ctc_model: Path, utterances: Path, tmp_path: Path, caplog: Any) -> None:
    task: Any = make_task(ctc(utterances), ctc_model)
    given = {"loss": 8.0, "sample_size": 4.0, "blanks": 30.0, "frames": 120.0}
    assert task.metrics(sums_of(task, given)) == {
        "loss": pytest.approx(2.0 / math.log(2)), "blank_rate": pytest.approx(25.0)}  # fmt: skip
    assert task.metrics(sums_of(task, given | {"too_short": 3.0}))["too_short"] == 3.0
    one = {"loss": 3.0, "sentences": 1, "letters": [5, 6, 7], "target": [5, 6, 8, 9], "reference": "A B",
           "prediction": "A C", "blank_frames": 1, "frames": 10}  # fmt: skip
    two = {"loss": 1.0, "sentences": 1, "letters": [5], "target": [5], "reference": "A B C",
           "prediction": "A B C", "blank_frames": 4, "frames": 10}  # fmt: skip
    assert task.score("dev", [one, two]) == pytest.approx({
        "loss": 2.0 / math.log(2), "uer": 100 * 2 / 5, "raw_wer": 100 * 1 / 5, "wer": 100 * 1 / 5,
        "blank_rate": 25.0, "label_coverage": 100 * 2 / 4,
    })  # fmt: skip
    found = task.score("dev", [one | {"prediction_lm": "A B"}, two | {"prediction_lm": "X", "sentences": 0}])
    assert (found["wer"], found["raw_wer"]) == (pytest.approx(100 * 3 / 5), pytest.approx(20.0))
    assert found["too_short"] == 1.0 and found["loss"] == pytest.approx(4.0 / math.log(2))
    task.model.options.freeze_finetune_updates = 100
    for rate, update in ((99.9, 900), (100.0, 599)):
        task.guard({"blank_rate": rate}, update)
    assert "only blanks" not in caplog.text
    for update in (600, 700):
        assert task.guard({"blank_rate": 100.0}, update) is None
    assert caplog.text.count("only blanks come out") == 1 and "update 600" in caplog.text
    made = task.export(tmp_path / "out", {"run_id": "r"}, task.module.state_dict())
    stored = read_artifact(made)
    assert (stored.kind, stored.config["origin"]["run_id"]) == ("ctc", "r")
    wanted = {"sample_rate": 16_000, "normalize": True, "num_symbols": 32, "metric": "wer"}
    assert {key: stored.config["task"][key] for key in wanted} == wanted
    again = make_task(ctc(utterances, no_pretrained_weights=True), ctc_model)
    again.initialise_from(made)
    state = task.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.module.state_dict().items())
    facts = task.facts()
    assert facts["data.fingerprint"] == facts["data.train_fingerprint"] == task.dataset("dev").fingerprint()
    assert facts["dictionary.hash"] == released_letters().digest()


# ---- events -----------------------------------------------------------------------------------------------


def events(data: Path, **model: Any) -> Recipe:
    (data / "dev.lbl").write_text("".join(f"0\t1\t{'0,2' if i % 3 else '1'}\n" for i in range(11)))
    (data / "label_descriptors.csv").write_text("0,low\n1,mid\n2,high\n")
    plain = ctc(data).to_dict()
    return Recipe.from_dict(plain | {
        "task": {"_name": "audio_classification", "data": str(data), "normalize": True},
        "model": {"_name": "audio_classification", "model_path": "given", "feature_grad_mult": 1.0,
                  "apply_mask": False, "dropout_input": 0.0, "final_dropout": 0.0, "dropout": 0.0,
                  "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0,
                  "source_mixup": -1.0, **model},
        "criterion": {"_name": "model", "loss_weights": {"main": 0.5}},
        "checkpoint": plain["checkpoint"] | {"best_checkpoint_metric": "mAP",
                                             "maximize_best_checkpoint_metric": True},
    })  # fmt: skip


def test_events(ctc_model: Path, utterances: Path, tmp_path: Path) -> None:
    task: Any = make_task(events(utterances), ctc_model)
    batch = batch_of(task, "dev", True)
    result = forward(task, batch, 0)
    count = len(batch["id"])
    sums = assert_sums(task, result, count, samples_of(batch))
    assert sums["sample_size"] == float(batch["label"].sum()) > count
    rows = results_of(task, "dev")
    mine = [row for row in rows if row["id"] in batch["id"].tolist()]
    assert 0.5 * sum(row["loss"] for row in mine) == pytest.approx(float(result.loss.detach()), rel=1e-4)
    assert [row["classes"] for row in rows[:4]] == [[1], [0, 2], [0, 2], [1]]
    assert task.metrics(sums_of(task, {"loss": 6.0, "sample_size": 4.0})) == {"loss": 1.5}
    hand = [{"loss": 2.0, "classes": [0, 2], "probabilities": [0.9, 0.1, 0.8]},
            {"loss": 4.0, "classes": [1], "probabilities": [0.7, 0.6, 0.1]}]  # fmt: skip
    found = task.score("dev", hand)
    assert found["loss"] == 2.0 and found["top1"] == 50.0 and found["mAP"] == pytest.approx(100.0)
    mixed = make_task(events(utterances, source_mixup=0.5, mixup_prob=1.0, same_mixup=False), ctc_model)
    first, again, later = (float(forward(mixed, batch, n).loss.detach()) for n in (0, 0, 1))
    assert first == again != later
    made = task.export(tmp_path / "out", {"run_id": "r"}, task.module.state_dict())
    stored = read_artifact(made)
    assert stored.kind == "audio_classifier" and stored.config["task"]["labels"] == ["low", "mid", "high"]
    assert stored.config["task"]["metric"] == "mAP" and stored.config["task"]["normalize"] is True
    assert task.facts()["data.fingerprint"] == task.dataset("dev").fingerprint()


@pytest.mark.parametrize("kind", ["ctc", "events"])
def test_layer_decay_of_audio_reaches_the_blocks(kind: str, ctc_model: Path, utterances: Path) -> None:
    make = {"ctc": ctc, "events": events}[kind]
    assert make_task(make(utterances), ctc_model).lr_scales is None
    task = make_task(make(utterances, layer_decay=0.5), ctc_model)
    scales = task.lr_scales
    names = {name for name, _ in task.module.named_parameters()}
    assert scales and set(scales) <= names and all(".blocks." in name for name in scales)
    assert {value for name, value in scales.items() if ".blocks.0." in name} == {0.5}


# ---- sentences --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def glue(tiny_glue: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    dictionary = tiny_glue.model / "tokenizer" / "dict.txt"
    prepare_glue(tiny_glue.raw, folder, tasks=["CoLA"], dictionary=dictionary)
    return folder / "CoLA-bin"


def sentences(glue: Path, *overrides: str) -> Recipe:
    given = [f"task.data={glue}", "model.model_path=given", "dataset.num_workers=0",
             "model.pooler_dropout=0.0", *overrides]  # fmt: skip
    return compose("v2/text_finetuning/cola", given).recipe


def test_sentences(glue: Path, tiny_glue: Any, tmp_path: Path) -> None:
    recipe = sentences(glue)
    task: Any = make_task(recipe, tiny_glue.model)
    for module in task.model.modules():  # the tiny model was made with dropout
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = batch_of(task, "train", True)
    result = forward(task, batch, 0)
    sums = assert_sums(task, result, len(batch["id"]), batch["source"].numel())
    assert sums["sample_size"] == len(batch["id"])
    rows = results_of(task, "train")
    mine = [row for row in rows if row["id"] in batch["id"].tolist()]
    assert sums["correct"] == sum(row["prediction"] == row["target"] for row in mine)
    assert task.metrics(sums_of(task, {"loss": 6.0, "sample_size": 4.0, "correct": 3.0})) == {
        "loss": pytest.approx(1.5 / math.log(2)), "accuracy": 75.0}  # fmt: skip
    hand = [{"prediction": p, "target": t, "loss": 1.0} for p, t in ((0, 0), (1, 0), (1, 1), (1, 1))]
    found = task.score("train", hand)
    assert found["loss"] == pytest.approx(1.0 / math.log(2)) and found["accuracy"] == 75.0
    assert found["mcc"] == pytest.approx(100 * 2 / math.sqrt(1 * 3 * 2 * 2), rel=1e-3)
    made = task.export(tmp_path / "out", {"run_id": "r"}, task.module.state_dict())
    stored = read_artifact(made)
    assert stored.kind == "sentence_classifier" and stored.tokenizer is not None
    told = stored.config["task"]
    assert (told["labels"], told["regression"], told["metric"]) == (["0", "1"], False, "mcc")
    assert told["max_positions"] == recipe.task.max_positions  # type: ignore[union-attr]
    facts = task.facts()
    assert facts["data.fingerprint"] == task.dataset("valid").fingerprint()
    assert facts["data.train_fingerprint"] == task.dataset("train").fingerprint()
    trunk = read_artifact(tiny_glue.model).trunk_state
    fresh = make_task(
        sentences(glue, "model.no_pretrained_weights=true", "common.seed=5"), tiny_glue.model
    ).module
    assert not all(torch.equal(fresh.trunk.state_dict()[name], trunk[name]) for name in trunk)  # type: ignore[union-attr]


def test_sentences_of_another_dictionary_or_length_are_refused(
    glue: Path, tiny_glue: Any, ctc_model: Path
) -> None:
    check_data(sentences(glue), tiny_glue.model)
    with pytest.raises(ConfigError, match=r"task\.max_positions = 513 +must be at most .* 512"):
        check_data(sentences(glue, "task.max_positions=513"), tiny_glue.model)
    with pytest.raises(CheckpointError, match="holds a model of AUDIO, not a text model"):
        check_data(sentences(glue), ctc_model)
    with pytest.raises(ConfigError, match=r"model\.model_path .*is required"):
        make_task(sentences(glue), None)


# ---- images -----------------------------------------------------------------------------------------------


def test_images(image_runs: Any, pictures: Path, pretrained: Path, tmp_path: Path) -> None:
    values = image_runs.finetuning(pictures, label_smoothing=0.0)
    values["dataset"]["train_subset"] = "val"  # the same images without augmentation
    task: Any = make_task(Recipe.from_dict(values), pretrained)
    task._datasets["val"] = open_subset(task.recipe, "val")
    batch = batch_of(task, "val", True)
    result = forward(task, batch, 0)
    sums = assert_sums(task, result, 7, 7)
    rows = results_of(task, "val")
    mine = [row for row in rows if row["id"] in batch["id"].tolist()]
    assert sum(row["loss"] for row in mine) == pytest.approx(float(result.loss.detach()), rel=1e-4)
    assert sums["correct"] == sum(row["prediction"] == row["target"] for row in mine)
    assert sums["unmixed"] == sums["sample_size"] == 7
    assert all(row["rank"] == (row["prediction"] != row["target"]) for row in rows)
    given = {"loss": 6.0, "sample_size": 4.0, "unmixed": 4.0, "correct": 3.0}
    assert task.metrics(sums_of(task, given)) == {"loss": 1.5, "accuracy": 75.0}
    assert task.metrics(sums_of(task, given | {"unmixed": 3.0, "unreadable": 2.0})) == {
        "loss": 1.5, "unreadable_images": 2.0}  # fmt: skip
    hand = [
        {"prediction": 0, "target": t, "rank": r, "loss": loss}
        for t, r, loss in ((0, 0, 1.0), (1, 4, 2.0), (1, 5, 6.0))
    ]
    assert task.score("val", hand) == pytest.approx({"loss": 3.0, "accuracy": 100 / 3, "top5": 200 / 3})
    made = task.export(tmp_path / "out", {}, task.module.state_dict())
    told = read_artifact(made).config["task"]
    assert (told["labels"], told["input_size"], told["metric"]) == (["blue", "red"], 20, "accuracy")


def test_mixing_follows_the_update_and_keeps_the_last_of_an_odd_batch(
    image_runs: Any, pictures: Path, pretrained: Path
) -> None:
    values = image_runs.finetuning(pictures, mixup=0.8, label_smoothing=0.2)
    task = make_task(Recipe.from_dict(values), pretrained)
    assert isinstance(task, ImageClassification)
    images, target = torch.randn(5, 3, 20, 20), torch.tensor([0, 1, 0, 1, 1])
    mixed, soft = task._mix(images, target, (1, 0, 7))
    again, later = task._mix(images, target, (1, 0, 7))[0], task._mix(images, target, (1, 1, 7))[0]
    assert torch.equal(mixed, again) and not torch.equal(mixed[:4], later[:4])
    assert torch.equal(mixed[4], images[4]) and soft[4].tolist() == pytest.approx([0.1, 0.9])
    weight = float((mixed[0] - images[3]).flatten()[0] / (images[0] - images[3]).flatten()[0])
    assert torch.allclose(mixed[:4], weight * images[:4] + (1 - weight) * images[:4].flip(0), atol=1e-5)
    assert soft[0].tolist() == pytest.approx([0.1 + 0.8 * weight, 0.1 + 0.8 * (1 - weight)], abs=1e-5)
    alone, label = task._mix(images[:1], target[:1], (1, 0, 7))
    assert torch.equal(alone, images[:1]) and label.tolist() == [pytest.approx([0.9, 0.1])]


# ---- the next token ---------------------------------------------------------------------------------------


def test_next_tokens(tiny_text: Path, tmp_path: Path, glue: Path) -> None:
    values = toy_recipe(dataset={"batch_size": 4, "disable_validation": False})
    values |= {
        "task": {"_name": "language_modeling", "data": str(tiny_text), "tokens_per_sample": 24},
        "model": {"_name": "transformer_lm", "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 32,
                  "decoder_layers": 1, "decoder_attention_heads": 2, "dropout": 0.0,
                  "decoder_input_dim": 16, "decoder_output_dim": 16},
        "criterion": {"_name": "cross_entropy"},
    }  # fmt: skip
    task: Any = make_task(Recipe.from_dict(values), None)
    batch = batch_of(task, "valid", False)
    result = forward(task, batch, 0)
    real = int((batch["target"] != 1).sum())
    assert_sums(task, result, len(batch["id"]), real)
    assert float(result.sample_size) == real < batch["target"].numel() + 1
    rows = results_of(task, "valid")
    assert rows[0].keys() == {"id", "loss", "tokens"}
    assert sum(r["tokens"] for r in rows) == sum(
        int((batch_of(task, "valid", False, n)["target"] != 1).sum()) for n in range(len(rows)))  # fmt: skip
    bits = 3.0 / math.log(2)
    assert task.metrics(sums_of(task, {"loss": 12.0, "sample_size": 4.0})) == pytest.approx(
        {"loss": bits, "ppl": math.exp(3.0)})  # fmt: skip
    hand = [{"loss": 2.0, "tokens": 1}, {"loss": 10.0, "tokens": 3}]
    assert task.score("valid", hand) == pytest.approx({"loss": bits, "ppl": math.exp(3.0)})
    assert task.score("valid", [{"loss": 1e6, "tokens": 1}])["ppl"] == math.inf
    made = task.export(tmp_path / "out", {"run_id": "r"}, task.module.state_dict())
    stored = read_artifact(made)
    assert stored.kind == "language_model" and stored.config["task"]["tokens_per_sample"] == 24
    again = make_task(Recipe.from_dict(values | {"common": {"seed": 5}}), None)
    again.initialise_from(made)
    state = again.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in task.module.state_dict().items())


# ---- pretraining ------------------------------------------------------------------------------------------


def test_text_pretraining(tiny_recipe: dict[str, Any]) -> None:
    values = copy.deepcopy(tiny_recipe)
    values["criterion"]["loss_weights"] = {"TEXT_regression": 0.5}
    half, task = (make_task(Recipe.from_dict(v), None) for v in (values, tiny_recipe))
    batch = batch_of(task, "train", True)
    result = forward(task, batch, 3)
    sums = assert_sums(task, result, len(batch["id"]), batch["source"].numel())
    assert float(forward(half, batch, 3).loss.detach()) == pytest.approx(0.5 * float(result.loss.detach()))
    assert not result.stages
    task.watching = True
    assert set(forward(task, batch, 3).stages) == set(task.watched)
    assert float(forward(task, batch, 4).loss.detach()) != float(result.loss.detach())
    figures = task.metrics(sums)
    assert figures["loss"] == pytest.approx(sums["loss"] / sums["sample_size"])
    assert figures["masked_pct"] == pytest.approx(float(result.scalars["masked_pct"]))
    three = Sums(task.layout)
    for _ in range(3):
        three.add(result.scalars, result.moments)
    assert task.metrics(three)["masked_pct"] == pytest.approx(figures["masked_pct"])
    assert figures["target_var"] == sums.deviation("target") != figures["pred_var"] == sums.deviation("pred")
    teacher = task.model.teacher  # type: ignore[attr-defined]
    assert figures["ema_decay"] == teacher.decay(teacher.num_updates)
    task.begin_update(7)
    assert task.metrics(sums)["ema_decay"] == teacher.decay(7) != figures["ema_decay"]
    counters = task.counters()
    half.restore(counters)
    assert half.metrics(sums)["ema_decay"] == task.metrics(sums)["ema_decay"]
    rows = [{"loss": 6.0, "sample_size": 3}, {"loss": 2.0, "sample_size": 1}]
    assert task.score("valid", rows) == {"loss": 2.0}


def test_pretraining_stops_when_variance_is_lost(tiny_recipe: dict[str, Any]) -> None:
    values = copy.deepcopy(tiny_recipe)
    values["model"] |= {"min_target_var": 0.1, "min_pred_var": 0.01}
    task = make_task(Recipe.from_dict(values), None)
    fine = {"target_var": 0.1, "pred_var": 0.01}
    assert task.guard(fine, 5001) is None and task.guard({"target_var": 0.0, "pred_var": 0.0}, 5000) is None
    told = task.guard(fine | {"target_var": 0.09}, 5001)
    assert told is not None and "target_var 0.09 fell below model.min_target_var 0.1" in told
    assert "pred_var" in (task.guard(fine | {"pred_var": 0.009}, 5001) or "")


def test_clones_in_chunks_count_a_micro_batch_once(tiny_recipe: dict[str, Any]) -> None:
    values = copy.deepcopy(tiny_recipe)
    values["model"]["clone_batch"] = 3
    values["model"]["modalities"]["text"]["dropout"] = 0.0
    sums = []
    for chunk in (None, 2):
        task = make_task(Recipe.from_dict(values | {"platform": {"clone_chunk": chunk}}), None)
        batch = batch_of(task, "train", True)
        made, passes = Sums(task.layout), task.passes(batch, 3)
        assert len(passes) == (1 if chunk is None else 2)
        for compute in passes:
            result = compute()
            made.add(result.scalars, result.moments)
        sums.append(made)
        assert getattr(task, "chunk", None) is None
    for name in ("sample_size", "nsentences", "ntokens", "micro_batches", "masked_pct"):
        assert sums[0][name] == sums[1][name], name
    assert sums[1].deviation("target") == pytest.approx(sums[0].deviation("target"), rel=1e-3)


@pytest.mark.parametrize("generation", [2, 1])
def test_image_pretraining(image_runs: Any, pictures: Path, tmp_path: Path, generation: int) -> None:
    recipe = Recipe.from_dict(image_runs.pretraining(pictures, generation))
    task: Any = make_task(recipe, None)
    batch = batch_of(task, "train", True)
    result = forward(task, batch, 3)
    sums = assert_sums(task, result, 4, 4)
    figures = task.metrics(sums)
    if generation == 2:
        single = [figures["loss_cls"], figures["loss_IMAGE_regression"]]
        assert sum(single) == pytest.approx(figures["loss"], rel=1e-5) and min(single) > 0
    assert float(forward(task, batch, 4).loss.detach()) != float(result.loss.detach())
    sums.vector[task.layout.scalars.index("unreadable")] = 2.0
    assert task.metrics(sums)["unreadable_images"] == 2.0 and "unreadable_images" not in figures
    assert task.facts()["data.fingerprint"] == task.dataset("train").source.fingerprint()

    def pixels(subset: str, epoch: int) -> torch.Tensor:
        dataset = task.dataset(subset, epoch)
        return dataset.collate([dataset[0]])["source"]

    assert not torch.equal(pixels("train", 1), pixels("train", 2)), "cropped elsewhere in every epoch"
    assert torch.equal(pixels("val", 1), pixels("val", 2))
    made = read_artifact(task.export(tmp_path / "out", {}, task.module.state_dict()))
    assert made.config["task"]["input_size"] == 16 and made.kind == "pretrained"


def test_a_probes_figures_do_not_depend_on_the_batches(image_runs: Any, pictures: Path) -> None:
    found = []
    for size in (5, 24):
        values = image_runs.pretraining(
            pictures, task={"probe_bank": "train", "probe_neighbours": 3},
            dataset={"disable_validation": False, "valid_subset": "val", "batch_size_valid": size},
        )  # fmt: skip
        task: Any = make_task(Recipe.from_dict(values), None)
        rows = results_of(task, "val")
        assert [row["id"] for row in rows] == list(range(24))
        assert [row["label"] for row in rows] == [0] * 12 + [1] * 12
        scores = task.score("val", rows)
        found.append(scores)
        features, labels = task._bank_features("train")
        assert labels.tolist() == [0] * 12 + [1] * 12 and features.shape == (24, 32)
        assert task.model.training
    assert found[0]["knn"] == found[1]["knn"]
    assert found[0]["linear_probe"] == pytest.approx(found[1]["linear_probe"], abs=5)
    del values["task"]["probe_bank"]
    unprobed = make_task(Recipe.from_dict(values), None)
    loss = unprobed.score("val", results_of(unprobed, "val"))["loss"]
    assert found[1]["loss"] == pytest.approx(loss) and loss > 0


def test_audio_pretraining(utterances: Path, tmp_path: Path) -> None:
    from tests.platform.test_audio_training import pretraining

    values = pretraining(utterances)
    values["dataset"] |= {"train_subset": "dev", "max_tokens": 24_000}
    recipe = Recipe.from_dict(values)
    task: Any = make_task(recipe, None)
    batch = batch_of(task, "dev", True)
    result = forward(task, batch, 3)
    assert_sums(task, result, len(batch["id"]), batch["source"].numel())
    first, later = task.block_masks(batch, 1, 3), task.block_masks(batch, 1, 4)
    again, other = task.block_masks(batch, 1, 3), task.block_masks(batch, 2, 3)
    assert torch.equal(first.mask_RT, again.mask_RT)
    assert not torch.equal(first.mask_RT, later.mask_RT) and not torch.equal(first.mask_RT, other.mask_RT)
    rows, frames = first.mask_RT.shape
    assert rows == 2 * len(batch["id"])
    assert first.mask_RT.sum(1).tolist() == [int(frames * 0.5)] * rows
    values["task"]["precompute_mask_config"] = {"mask_prob": 0.3, "mask_length": 2}
    given = make_task(Recipe.from_dict(values), None).block_masks(batch, 1, 3)  # type: ignore[attr-defined]
    assert given.mask_RT.sum(1).tolist() == [int(frames * 0.3)] * rows
    for given in ({"mask_prob_adjust": 0.4}, {"mask_length": 3}, {"mask_dropout": 0.5}):
        values["task"]["precompute_mask_config"] = given
        changed = make_task(Recipe.from_dict(values), None).block_masks(batch, 1, 3)  # type: ignore[attr-defined]
        assert not torch.equal(changed.mask_RT, first.mask_RT), given
    values["task"]["precompute_mask_config"] = None
    assert make_task(Recipe.from_dict(values), None).block_masks(batch, 1, 3) is None  # type: ignore[attr-defined]
    made = read_artifact(task.export(tmp_path / "out", {}, task.module.state_dict()))
    told = made.config["task"]
    assert (told["sample_rate"], told["normalize"]) == (16_000, True)


def test_every_task_opens_its_subsets_as_it_trains_on_them(
    tiny_recipe: dict[str, Any],
    utterances: Path,
    glue: Path,
    ctc_model: Path,
    image_runs: Any,
    pictures: Path,
) -> None:
    for recipe, subset, kind in (
        (Recipe.from_dict(tiny_recipe), "train", "TextBlocksDataset"),
        (ctc(utterances), "dev", "AudioDataset"),
        (events(utterances), "dev", "EventDataset"),
        (sentences(glue), "train", "SentenceDataset"),
        (Recipe.from_dict(image_runs.finetuning(pictures)), "val", "ImageDataset"),
    ):
        assert type(open_subset(recipe, subset)).__name__ == kind
        broken = Recipe.from_dict(recipe.to_dict())
        broken.dataset.train_subset = "absent"
        with pytest.raises(DataError):
            check_data(broken, None)
        broken = Recipe.from_dict(recipe.to_dict())
        broken.dataset.valid_subset, broken.dataset.disable_validation = "absent", False
        with pytest.raises(DataError):
            check_data(broken, None)
