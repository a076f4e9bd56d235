"""What a recipe's fields become in the data sets, decoders and heads of its task."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.image_components import MaeImageClassification
from d2v_platform.recipe.schema import Recipe
from d2v_platform.recipe.text_components import SentencePredictionCriterion
from d2v_platform.tasks import (
    audio_classification,
    audio_data,
    audio_finetuning,
    audio_parent,
    audio_pretraining,
    image_classification,
    image_data,
    sentence_prediction,
    task_class,
    text_blocks,
)
from d2v_platform.tasks import task as tasks
from d2v_platform.tasks.task import OneModelTask, TrainingTask
from data2vec.artifact import Artifact
from data2vec.config import Data2VecMultiConfig
from data2vec.data.audio import AudioOptions
from data2vec.data.dictionary import Dictionary
from data2vec.data.letters import released_letters
from data2vec.errors import CheckpointError, ConfigError, DataError
from tests.platform.toy_task import ToyTask, toy_recipe


class Keep:
    """In the place of a class or function: keeps what it is called with."""

    def __call__(self, *given: Any, **named: Any) -> Keep:
        self.given, self.named = given, named
        return self


DATA: Any = {"max_tokens": 640, "max_tokens_valid": 320, "batch_size": 6, "batch_size_valid": 3,
             "required_batch_size_multiple": 4, "train_subset": "learn", "valid_subset": "check",
             "skip_invalid_size_inputs_valid_test": True, "curriculum": 2}  # fmt: skip


# ---- batches ----------------------------------------------------------------------------------------------


def test_batches_follow_the_dataset_group(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Keep()
    monkeypatch.setattr(tasks, "epoch_batches", made)
    recipe = Recipe.from_dict(toy_recipe(dataset=DATA, common={"seed": 9}))
    data = SimpleNamespace(sizes=np.arange(5), order="as given")
    tasks.batches_of(data, recipe, 7, True, rebuild=True)
    assert made.given == (data.sizes,) and made.named == {
        "seed": 9, "epoch": 7, "max_tokens": 640, "batch_size": 6, "required_batch_size_multiple": 4,
        "shuffle": True, "rebuild": True, "order": "as given", "curriculum": 2,
    }  # fmt: skip
    tasks.batches_of(data, recipe, 1, False, rebuild=True)
    told = {"max_tokens": 320, "batch_size": 3, "required_batch_size_multiple": 1, "shuffle": False,
            "rebuild": False, "order": "size"}  # fmt: skip
    assert made.named == {"seed": 9, "epoch": 1, "curriculum": 2} | told
    tasks.batches_of(data, recipe, 1, True, rebuild=False)
    assert made.named["rebuild"] is False


@pytest.mark.parametrize("refilled", [True, False])
def test_a_subset_is_opened_once_and_follows_the_epoch(
    refilled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Task(ToyTask):
        dataset, batches = TrainingTask.dataset, TrainingTask.batches  # type: ignore[assignment]

        @staticmethod
        def open_subset(recipe: Recipe, subset: str) -> Any:
            opened.append(subset)
            return Epoch(subset, 1)

    class Epoch:
        def __init__(self, subset: str, number: int) -> None:
            self.name = (subset, number)

        def for_epoch(self, number: int) -> Epoch:
            return Epoch(self.name[0], number)

    opened: list[str] = []
    made = Keep()
    monkeypatch.setattr(tasks, "batches_of", made)
    task = Task(Recipe.from_dict(toy_recipe()))
    task.refilled = refilled  # type: ignore[misc]
    for epoch in (1, 2, 2):
        assert task.dataset("learn", epoch).name == ("learn", epoch)
    task.batches("check", 3, True)
    assert opened == ["learn", "check"]
    data, *rest = made.given
    assert (
        data.name == ("check", 3) and rest == [task.recipe, 3, True] and made.named == {"rebuild": refilled}
    )
    Task.check_data(Recipe.from_dict(toy_recipe(dataset=DATA | {"disable_validation": False})), None)
    assert opened[2:] == ["learn", "check"]


def test_facts_of_data_and_parents() -> None:
    recipe = Recipe.from_dict(toy_recipe(dataset={"valid_subset": "check,other", "train_subset": "learn",
                                                  "disable_validation": False}))  # fmt: skip
    task = ToyTask(recipe)
    task.dataset = lambda subset: SimpleNamespace(fingerprint=subset.upper)  # type: ignore[method-assign]
    data = {"data.fingerprint": "CHECK", "data.train_fingerprint": "LEARN", "dictionary.hash": "none"}
    assert tasks.data_facts(task) == data
    assert OneModelTask.facts(task) == data | {"parent.run": "none", "parent.update": "none"}
    task.parent = {"run_id": "r", "update": 7}
    assert OneModelTask.facts(task) == data | {"parent.run": "r", "parent.update": "7"}
    recipe.dataset.disable_validation = True
    assert tasks.data_facts(task)["data.fingerprint"] == "LEARN"
    parts = tasks.part_of({"student.a": torch.ones(1), "teacher.student.b": torch.ones(2)}, "student.")
    assert list(parts) == ["a"]


# ---- text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["masked_lm", "language_modeling"])
def test_token_blocks(name: str) -> None:
    task = {"_name": name, "data": "/d", "tokens_per_sample": 48, "sample_break_mode": "eos",
            "shorten_method": "truncate", "shorten_data_split_list": "learn"}  # fmt: skip
    values = toy_recipe(dataset=DATA, common={"seed": 9})
    recipe = Recipe.from_dict(values | {"task": task})
    wanted = {key: value for key, value in task.items() if key not in ("_name", "data")}
    for subset, tokens in (("learn", 640), ("check", 320)):
        made = Keep()
        text_blocks.open_blocks(made, recipe, subset)  # type: ignore[arg-type]
        assert made.given == ("/d", subset)
        assert made.named == wanted | {"seed": 9, "max_tokens": tokens, "skip_invalid": True}


def test_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Keep()
    monkeypatch.setattr(sentence_prediction, "SentenceDataset", made)
    task = {"num_classes": 3, "init_token": 5, "separator_token": 6, "max_positions": 99,
            "shorten_method": "random_crop", "shorten_data_split_list": "learn",
            "no_shuffle": True}  # fmt: skip
    criterion = {"_name": "sentence_prediction", "regression_target": False}
    values = toy_recipe(dataset=DATA, common={"seed": 9}) | {
        "task": {"_name": "sentence_prediction", "data": "/d", **task},
        "criterion": criterion, "model": {"_name": "data2vec_text_classification", "model_path": "/m"},
    }  # fmt: skip
    recipe = Recipe.from_dict(values)
    for subset, tokens in (("learn", 640), ("check", 320)):
        sentence_prediction.open_sentences(recipe, subset)
        assert made.given == ("/d", subset)
        assert made.named == task | {
            "seed": 9, "max_tokens": tokens, "skip_invalid": True, "regression_target": False}  # fmt: skip
    recipe.criterion.regression_target = True  # type: ignore[union-attr]
    sentence_prediction.open_sentences(recipe, "learn")
    assert made.named["regression_target"] is True


@pytest.mark.parametrize(
    ("criterion", "wanted"),
    [
        ({}, ["accuracy"]),
        ({"report_mcc": True}, ["accuracy", "mcc"]),
        ({"report_acc_and_f1": True}, ["accuracy", "f1", "acc_and_f1"]),
        (
            {"regression_target": True, "report_pearson_and_spearman": True},
            ["pearson", "spearman", "pearson_and_spearman"],
        ),
    ],
)
def test_metrics_that_the_criterion_asks_for(criterion: dict[str, Any], wanted: list[str]) -> None:
    assert sentence_prediction.metrics_of(SentencePredictionCriterion(**criterion)) == wanted


# ---- audio ------------------------------------------------------------------------------------------------


def speech(name: str, **task: Any) -> Recipe:
    values = toy_recipe(dataset=DATA, common={"seed": 9})
    values["task"] = {"_name": name, "data": "/d", "sample_rate": 8000, "normalize": True,
                      "max_sample_size": 300, "min_sample_size": 30, "num_batch_buckets": 4,
                      "subsample": 0.5, "skip_broken": True, **task}  # fmt: skip
    return Recipe.from_dict(values)


COMMON = AudioOptions(
    sample_rate=8000, normalize=True, pad=True, max_sample_size=300, min_sample_size=30, num_batch_buckets=4,
    subsample=0.5, skip_broken=True, max_tokens=640, drop_longer=True,
)  # fmt: skip


def test_clips_are_read_as_the_task_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    made = Keep()
    for module in (audio_pretraining, audio_finetuning):
        monkeypatch.setattr(module, "AudioDataset", made)
    monkeypatch.setattr(audio_classification, "EventDataset", made)
    monkeypatch.setattr(audio_pretraining, "conv_layers", lambda model: "layers")
    check = {"subsample": 1.0, "max_tokens": 320, "drop_longer": False}
    for padding in (True, False):
        recipe = speech("audio_pretraining", enable_padding=padding)
        wanted = replace(COMMON, pad=padding, drop_longer=padding)
        for subset, options in (("learn", wanted), ("check", replace(wanted, **check))):
            audio_pretraining.open_recordings(recipe, subset)
            assert made.given == ("/d", subset, options)
            assert made.named == {"convolutions": "layers", "seed": 9}
    recipe, letters = speech("audio_finetuning", labels="phn"), released_letters()
    wanted = replace(COMMON, labels="phn")
    for subset, options in (("learn", wanted), ("check", replace(wanted, **check))):
        audio_finetuning.open_utterances(recipe, subset, letters, ((1, 2, 3),))
        assert made.given == ("/d", subset, options)
        assert made.named == {"dictionary": letters, "convolutions": ((1, 2, 3),), "seed": 9}
    for longest in (300, None):
        recipe = speech("audio_classification", labels="lab", max_sample_size=longest)
        audio_classification.open_labelled_clips(recipe, "learn", ["a"])
        options = replace(COMMON, max_sample_size=longest, drop_longer=longest is None)
        assert made.given == ("/d", "learn", options, "lab", ["a"]) and made.named == {"seed": 9}


def test_the_beam_of_word_error_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("data2vec.ctc_decoding")
    made = Keep()
    monkeypatch.setattr(audio_finetuning, "LexiconBeam", made)
    for name in ("lm", "lexicon"):
        (tmp_path / name).write_text("x")
    values = speech("audio_finetuning").to_dict()
    paths = {"wer_kenlm_model": str(tmp_path / "lm"), "wer_lexicon": str(tmp_path / "lexicon")}
    values["criterion"] = {"_name": "ctc", **paths, "wer_lm_weight": 0.75, "wer_word_score": -0.5}
    letters, few = released_letters(), Dictionary.from_counts({"A": 1, "|": 1})
    long = Dictionary.from_counts({str(n): 1 for n in range(100)})
    criterion: Any = Recipe.from_dict(values).criterion
    for dictionary, narrow in ((letters, len(letters)), (few, len(few)), (long, 50)):
        assert audio_finetuning.make_beam(criterion, dictionary) is made
        given, lexicon, path, options = made.given
        assert (given, lexicon, path) == (dictionary, tmp_path / "lexicon", tmp_path / "lm")
        assert (options.lm_weight, options.word_score, options.beam) == (0.75, -0.5, 50)
        assert options.beam_threshold == options.beam_size_token == narrow
    values["criterion"] = {"_name": "ctc", "wer_args": [*paths.values(), 1.5, 2]}
    audio_finetuning.make_beam(Recipe.from_dict(values).criterion, letters)  # type: ignore[arg-type]
    assert (made.given[3].lm_weight, made.given[3].word_score) == (1.5, 2.0)
    values["criterion"] = {"_name": "ctc"}
    assert audio_finetuning.make_beam(Recipe.from_dict(values).criterion, letters) is None  # type: ignore[arg-type]


def test_letters_come_from_the_data_or_from_another_folder(tmp_path: Path) -> None:
    for name, symbol in (("dict.ltr.txt", "A"), ("dict.phn.txt", "B"), ("other/dict.ltr.txt", "C")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Dictionary.from_counts({symbol: 1}).save(tmp_path / name)

    def first(**task: Any) -> str:
        recipe = speech("audio_finetuning", **{"data": str(tmp_path)} | task)
        found = audio_finetuning.load_letters(recipe.task)  # type: ignore[arg-type]
        return next(s for s in found.symbols if s in "ABC")

    assert [first(), first(labels="phn"), first(target_dictionary=str(tmp_path / "other"))] == list("ABC")
    assert first(target_dictionary=str(tmp_path / "other" / "dict.ltr.txt")) == "C", "a file"


class Labelled:
    """Label lines in the place of a data set."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        self.folder, self.split, self.options = Path("/d"), "learn", AudioOptions(labels="ltr")

    def __len__(self) -> int:
        return len(self.lines)

    def label_line(self, index: int) -> str:
        return self.lines[index]


def test_labels_of_another_alphabet_are_noticed() -> None:
    letters = Dictionary.from_counts({"A": 1, "B": 1, "|": 1})

    def check(*lines: str) -> str | None:
        return audio_data.check_symbols(Labelled(*lines), letters, "do this")  # type: ignore[arg-type]

    assert check("A B |", "B |") is None
    told = check("A B A |", "A B A x |", "A A y x |")
    assert told is not None and "27.27 % of the labels become <unk>: 'x' x 2, 'y' x 1" in told
    assert told.startswith("/d/learn.ltr: ")
    assert check("A x | | |") is not None, "exactly a half"
    with pytest.raises(DataError, match=r"/d/learn\.ltr: 67% .*'x' x 2.*: do this, or"):
        check("A x | | |", "x |")


def artifact(modality: str = "AUDIO", **task: Any) -> Artifact:
    config = Data2VecMultiConfig.from_dict({"supported_modality": "AUDIO"})
    made = SimpleNamespace(model_config=config, modality=modality, folder=Path("/m"), config={"task": task})
    return made  # type: ignore[return-value]


def test_a_parent_fits_or_says_what_must_change() -> None:
    recipe = speech("audio_finetuning")
    assert audio_parent.check_parent(recipe, artifact(normalize=True, sample_rate=8000)) is not None
    with pytest.raises(ConfigError) as caught:
        audio_parent.check_parent(recipe, artifact(normalize=False))
    rules = {problem.field: problem.rule for problem in caught.value.problems}
    assert rules["task.normalize"].startswith("must be false") and "16000" in rules["task.sample_rate"]
    audio_parent.check_parent(recipe, artifact(sample_rate=8000))  # normalised, where it does not say
    with pytest.raises(CheckpointError, match="holds a text model, not an audio model"):
        audio_parent.check_parent(recipe, artifact("TEXT"))


def test_layer_decay_of_a_trunk_counts_prenet_and_blocks() -> None:
    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            encoder = nn.Module()
            encoder.blocks = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
            self.modality_encoders = nn.ModuleDict({"AUDIO": nn.ModuleDict({"context_encoder": encoder})})
            self.blocks = nn.ModuleList([nn.Linear(1, 1) for _ in range(3)])
            self.norm = nn.Linear(1, 1)

    model = nn.ModuleDict({"trunk": Trunk(), "head": nn.Linear(1, 1)})
    found = audio_parent.block_lr_scales(model, "trunk.", 0.5)
    prenet = "trunk.modality_encoders.AUDIO.context_encoder.blocks"
    wanted = {f"{prenet}.{n}": 0.5 ** (5 - n) for n in range(2)}
    wanted |= {f"trunk.blocks.{n}": 0.5 ** (3 - n) for n in range(3)}
    assert found == {f"{k}.{part}": v for k, v in wanted.items() for part in ("weight", "bias")}


# ---- images -----------------------------------------------------------------------------------------------


def images(name: str, model: dict[str, Any] | None = None, **task: Any) -> Recipe:
    values = toy_recipe(dataset=DATA | {"max_tokens": None, "max_tokens_valid": None}, common={"seed": 9})
    values["task"] = {"_name": name, "data": "/d", "input_size": 48, **task}
    if model is not None:
        values["model"] = {"model_path": "/m", **model}
    return Recipe.from_dict(values)


MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


def test_images_are_transformed_as_the_task_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("finetuning", "pretraining", "evaluation"):
        monkeypatch.setattr(image_data, f"{name}_transform", lambda *g, name=name, **n: (name, g, n))
    norms: Any = {"normalization_mean": MEAN, "normalization_std": STD}
    constants = {"mean": tuple(MEAN), "std": tuple(STD)}
    transform = image_data.training_transform
    mae, first = "mae_image_classification", "image_classification"
    given: Any = {"auto_augment": "original", "erasing_prob": 0.125}
    wanted = {"auto_augment": "original", "erasing": 0.125}
    assert transform(images(mae, **given)) == ("finetuning", (48,), wanted | {"generation": 2})
    assert transform(images(first, **given, **norms)) == (
        "finetuning", (48,), wanted | {"generation": 1} | constants)  # fmt: skip
    beit = {"scale": (0.08, 1.0), "jitter": 0.4}
    assert transform(images("image_pretraining", **norms)) == ("pretraining", (48,), beit | constants)
    mae = "mae_image_pretraining"
    assert transform(images(mae, beit_transforms=True)) == ("pretraining", (48,), beit)
    assert transform(images(mae)) == ("pretraining", (48,), {"resize_only": False})
    assert transform(images(mae, no_transform=True)) == ("pretraining", (48,), {"resize_only": True})


def test_subsets_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    made, source = Keep(), Keep()
    monkeypatch.setattr(image_data, "ImageDataset", made)
    monkeypatch.setattr(image_data, "open_images", source)
    monkeypatch.setattr(image_data, "evaluation_transform", lambda *g, **n: (g, n))

    def opened(recipe: Recipe, subset: str, training: bool) -> tuple[Any, ...]:
        image_data.open_task_images(recipe, subset, training, image_data.evaluating_transform(recipe))
        assert made.given[0] is source and source.given == ("/d", subset)
        assert made.named["seed"] == 9
        return made.given[1], made.named["replace"], made.named["strict"], source.named["labelled"]

    recipe = images("mae_image_classification", strict_images=True)
    plain = ((48,), {"generation": 2})
    assert opened(recipe, "learn", True) == (plain, True, True, True)
    assert opened(recipe, "check", False) == (plain, False, True, True)
    recipe = images("mae_image_pretraining")
    assert opened(recipe, "learn", True) == (plain, True, False, False)
    probed = images("mae_image_pretraining", probe_bank="bank")
    assert opened(probed, "learn", True)[3] is False
    assert opened(probed, "check", False)[3] is True
    first = images("image_classification", normalization_mean=MEAN, normalization_std=STD)
    evaluation = ((48,), {"generation": 1, "mean": tuple(MEAN), "std": tuple(STD)})
    assert opened(first, "check", False)[0] == evaluation


def test_images_are_augmented_where_a_model_learns_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where a plan or a fingerprint looks at them: then nothing is built before the first image."""
    monkeypatch.setattr(image_data, "open_task_images", lambda recipe, subset, *given: given)
    monkeypatch.setattr(image_data, "training_transform", lambda recipe: "training")
    monkeypatch.setattr(image_data, "evaluating_transform", lambda recipe: str.upper)
    recipe = images("mae_image_classification")
    task: Any = SimpleNamespace(recipe=recipe)
    assert image_data.OnImages.opened(task, "learn") == (True, "training")
    assert image_data.OnImages.opened(task, "check") == (False, str.upper)
    training, transform = image_data.OnImages.open_subset(recipe, "learn")  # type: ignore[misc]
    assert training is True and transform("image") == "IMAGE"
    assert image_data.OnImages.open_subset(recipe, "check")[0] is False  # type: ignore[index]


def test_classes_of_subsets_must_agree(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    classes = {"learn": ["a", "b"], "check": ["a", "b"], "bank": ["a", "b"]}
    asked: dict[str, bool] = {}

    def opened(data: str, subset: str, labelled: bool) -> Any:
        asked[subset] = labelled
        return SimpleNamespace(classes=classes[subset] if labelled else [], notes=[f"odd {subset}"])

    monkeypatch.setattr(image_data, "open_images", opened)
    recipe = images("mae_image_classification")
    found = image_data.check_subsets(recipe, ["learn", "check"])
    assert list(found) == ["learn", "check"] and "odd check" in caplog.text
    classes["check"] = ["a", "c", "b"]
    with pytest.raises(DataError, match=r"check has other classes than learn: 1 differ, such as c$"):
        image_data.check_subsets(recipe, ["learn", "check"])
    classes["learn"] = ["x"]
    probed = images("mae_image_pretraining", probe_bank="bank")
    with pytest.raises(DataError, match=r"check has other classes than bank: 1 differ.*; a probe needs"):
        image_data.check_subsets(probed, ["learn", "check", "bank"])
    assert asked == {"learn": False, "check": True, "bank": True}
    asked.clear()
    with pytest.raises(DataError, match="check has other classes than learn"):
        image_data.check_subsets(images("mae_image_pretraining", probe_bank="learn"), ["learn", "check"])
    assert asked["learn"] is True
    image_data.check_subsets(images("mae_image_pretraining"), ["learn", "check"])


def test_a_batch_is_never_empty() -> None:
    empty = {
        "id": torch.zeros(0, dtype=torch.int64),
        "target": torch.zeros(0),
        "source": torch.empty(0),
        "notes": [1],
    }
    batch, nothing = image_data.never_empty(empty, 8)
    assert nothing and batch["source"].shape == (1, 3, 8, 8) and batch["id"].tolist() == [0]
    assert batch["notes"] == [1]
    full = {"id": torch.ones(2)}
    assert image_data.never_empty(full, 8) == (full, False)


def test_a_classifiers_options(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "_name": "mae_image_classification", "num_classes": 7, "label_smoothing": 0.25, "use_fc_norm": False,
        "prediction_mode": "CLS_TOKEN", "linear_classifier": True, "mixup": 0.3, "cutmix": 0.4,
        "mixup_prob": 0.6, "mixup_switch_prob": 0.7, "mixup_mode": "pair", "drop_path_rate": 0.11,
        "attention_dropout": 0.12, "encoder_dropout": 0.13, "post_mlp_drop": 0.14, "layerdrop": 0.15,
        "activation_dropout": 0.16, "dropout_input": 0.17, "prenet_layerdrop": 0.18, "prenet_dropout": 0.19,
        "norm_eps": 0.02,
    }  # fmt: skip
    model: Any = images("mae_image_classification", values).model
    assert isinstance(model, MaeImageClassification)
    head = image_classification._head(model)
    for name in ("num_classes", "label_smoothing", "use_fc_norm", "prediction_mode", "linear_classifier"):
        assert getattr(head, name) == values[name], name
    regular = image_classification._regularisation(model)
    for name in ("drop_path_rate", "attention_dropout", "encoder_dropout", "post_mlp_drop", "layerdrop",
                 "activation_dropout", "dropout_input", "prenet_layerdrop", "prenet_dropout",
                 "norm_eps"):  # fmt: skip
        assert getattr(regular, name) == values[name], name
    mixup = image_classification._make_mixup(model)
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob) == (0.3, 0.4, 0.6, 0.7)
    assert (mixup.mode, mixup.label_smoothing, mixup.num_classes) == ("pair", 0.25, 7)
    for off, made in ((("mixup",), True), (("cutmix",), True), (("mixup", "cutmix"), False)):
        without = images("mae_image_classification", values | dict.fromkeys(off, 0.0)).model
        assert (image_classification._make_mixup(without) is not None) is made  # type: ignore[arg-type]
    first = {"_name": "data2vec_image_classification", "num_classes": 5, "label_smoothing": 0.125,
             "fc_norm_eps": 0.5, "drop_first_patch": False, "head_init_scale": 0.25}  # fmt: skip
    model = images("image_classification", first).model
    head = image_classification._head(model)
    assert (head.num_classes, head.label_smoothing, head.fc_norm_eps) == (5, 0.125, 0.5)
    assert (head.drop_first_patch, head.init_scale) == (False, 0.25)


def test_unreadable_images_are_told_once_by_the_first_worker(caplog: Any) -> None:
    caplog.set_level(logging.WARNING)
    for speaks in (False, True):
        oddities = SimpleNamespace(
            speaks=speaks, merged=[], files=lambda: {"bad": ["x"]}, lines=lambda: ["2 bad"]
        )
        oddities.merge = oddities.merged.append
        image_data.report_oddities(oddities)  # type: ignore[arg-type]
        assert oddities.merged == [[{"bad": ["x"]}]]
    assert caplog.messages == ["images of this run: 2 bad"]


def test_dropouts_of_a_roberta_recipe_replace_pretrainings() -> None:
    from data2vec.v1.text_config import Data2VecTextConfig

    given = ["task.data=/x", "checkpoint.restore_file=/m", "model.dropout=0.2", "model.attention_dropout=0.3",
             "model.activation_dropout=0.4", "model.encoder_layerdrop=0.5"]  # fmt: skip
    recipe = compose("cola", given, "examples/roberta/config/finetuning").recipe
    parent: Any = SimpleNamespace(model_config=Data2VecTextConfig())
    before = parent.model_config.transformer.dropout
    options = sentence_prediction.sentence_trunk(recipe, parent).transformer  # type: ignore[union-attr]
    assert (options.dropout, options.attention_dropout, options.activation_dropout) == (0.2, 0.3, 0.4)
    assert options.encoder.layerdrop == 0.5 and parent.model_config.transformer.dropout == before


@pytest.mark.parametrize(
    ("recipe", "dataset", "said"),
    [
        ("tiny/text_pretraining", {"sizes": np.array([500, 700])}, "2 blocks, 1,200 tokens"),
        ("tiny/language_model", {"sizes": np.array([500, 700])}, "2 blocks, 1,200 tokens"),
        ("tiny/text_finetuning", {"sizes": np.array([5, 7])}, "2 sentences, 12 tokens"),
        ("tiny/audio_pretraining", {"frames": np.array([960_000, 480_000])}, "2 recordings, 1.5 minutes"),
        ("tiny/audio_finetuning", {"frames": np.array([57_600_000, 28_800_000])}, "2 recordings, 1.5 hours"),
        ("tiny/image_pretraining", {}, "2 images"),
    ],
)
def test_each_task_says_how_much_its_data_is(recipe: str, dataset: dict[str, Any], said: str) -> None:
    class Held:
        sizes = dataset.get("sizes")
        manifest = SimpleNamespace(frames=dataset.get("frames"))

        def __len__(self) -> int:
            return 2

    given = ["task.data=/d", "model.model_path=/m", "model.w2v_path=/m"]
    kinds = {"tiny/text_finetuning": given[:2], "tiny/audio_finetuning": [given[0], given[2]]}
    made = compose(recipe, kinds.get(recipe, given[:1])).recipe
    assert task_class(made).size_in_words(made, Held()) == said
