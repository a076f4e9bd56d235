"""Defaults of every component, and both sides of every limit that a recipe's values must keep."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest

from d2v_platform.recipe import checks
from d2v_platform.recipe.components import CHOICES
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.groups import GROUPS
from d2v_platform.recipe.schema import Recipe, split_names
from data2vec.typed import to_dict
from tests.platform.toy_task import toy_recipe

DEFAULTS = json.loads(Path(__file__).with_name("defaults.json").read_text())


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_not_given_has_its_published_default(name: str) -> None:
    group, _, component = name.partition("=")
    cls: Any = CHOICES[group][component] if component else GROUPS[group]
    found = json.loads(json.dumps(to_dict(cls())))
    assert {key: found.get(key, "gone") for key in DEFAULTS[name]} == DEFAULTS[name]


# ---- limits -----------------------------------------------------------------------------------------------


@functools.cache
def whole(kind: str) -> dict[str, Any]:
    """A recipe without problems, complete."""
    given = {
        "text": ("v2/base_text_only_task", ["task.data=/x"]),
        "large text": ("v2/large_text_only_task_pgrp_1M", ["task.data=/x"]),
        "audio": ("v2/base_audio_only_task", ["task.data=/x"]),
        "cola": ("v2/text_finetuning/cola", ["task.data=/x", "model.model_path=/m"]),
        "sts_b": ("v2/text_finetuning/sts_b", ["task.data=/x", "model.model_path=/m"]),
        "roberta": ("roberta/finetuning/cola", ["task.data=/x", "checkpoint.restore_file=/m"]),
        "images": ("v2/base_images_only_task", ["task.data=/x"]),
        "imagenet": ("vision/finetuning/mae_imagenet_clean", ["task.data=/x", "model.model_path=/m"]),
        "first images": ("vision/finetuning/imagenet", ["task.data=/x", "model.model_path=/m"]),
        "ctc": ("wav2vec/finetuning/base_10h", ["task.data=/x", "model.w2v_path=/m"]),
        "events": ("audio/classification/base_classification", ["task.data=/x", "model.model_path=/m"]),
        "language": ("tiny/language_model", ["task.data=/x"]),
    }
    if kind == "first text":
        values = toy_recipe(task={"tokens_per_sample": 64, "mask_prob": 0.35})
        values["model"] = {"_name": "data2vec_text", "transformer": {"max_source_positions": 64}}
        return Recipe.from_dict(values).to_dict()
    name, words = given[kind]
    return compose(name, words).recipe.to_dict()


def found(kind: str, **fields: Any) -> dict[str, list[str]]:
    """Rules by field of what is wrong with a recipe in which dotted fields (``__``) have other values."""
    values = copy.deepcopy(whole(kind))
    for dotted, value in fields.items():
        node: Any = values
        *parents, last = dotted.split("__")
        for part in parents:
            node = node[part]
        assert last in node or (isinstance(node, dict) and parents[-1] == "precompute_mask_config"), dotted
        node[last] = value
    rules: dict[str, list[str]] = {}
    for problem in checks.problems(Recipe.from_dict(values)):
        rules.setdefault(problem.field, []).append(problem.rule)
    return rules


LOWEST = {
    0: ["common.seed", "common.min_loss_scale", "common.threshold_loss_scale", "dataset.num_workers",
        "dataset.validate_interval_updates", "dataset.validate_after_updates", "dataset.curriculum",
        "optimization.max_epoch", "optimization.stop_time_hours", "optimization.stop_cpu_minutes",
        "optimization.clip_norm",
        "checkpoint.save_interval_updates", "platform.num_workers", "platform.gpus_per_worker",
        "platform.max_failures", "platform.collapse_after", "platform.collapse_min_var",
        "platform.collapse_min_rank", "platform.collapse_patience"],
    1: ["common.log_interval", "common.fp16_init_scale", "common.fp16_scale_window",
        "dataset.max_tokens_valid", "dataset.batch_size", "dataset.batch_size_valid",
        "dataset.required_batch_size_multiple", "dataset.validate_interval", "dataset.max_valid_steps",
        "checkpoint.save_interval", "platform.threads_per_worker", "platform.max_bad_updates",
        "platform.plan_count", "platform.clone_chunk"],
    -1: ["checkpoint.keep_interval_updates", "checkpoint.keep_last_epochs",
         "checkpoint.keep_best_checkpoints", "checkpoint.patience"],
}  # fmt: skip


@pytest.mark.parametrize(("field", "lowest"), [(f, low) for low, names in LOWEST.items() for f in names])
def test_lowest_values(field: str, lowest: int) -> None:
    name = field.replace(".", "__")
    assert field not in found("text", **{name: lowest})
    assert any(f">= {lowest}" in rule for rule in found("text", **{name: lowest - 1})[field])


# kind, field, values just inside, values just outside
EDGES: list[tuple[str, str, list[Any], list[Any]]] = [
    ("text", "platform.cpus_per_worker", [0.01], [0.0]),
    ("text", "platform.plan_utilisation", [0.01, 1.0], [0.0, 1.01]),
    ("text", "platform.num_workers", [16], [17]),
    ("text", "platform.run_name", ["a", "9b.c_d-e"], ["", "-a", "a/b", ".x"]),
    ("text", "platform.alias", [], ["x"]),
    ("text", "platform.experiment", ["x"], ["", " "]),
    ("text", "task.tokens_per_sample", [2, 512], [1, 513]),
    ("text", "dataset.max_tokens", [512], [511]),
    ("text", "dataset.valid_subset", ["a,b"], ["a, a"]),
    ("text", "dataset.train_subset", ["a"], ["", "a,b"]),
    ("text", "optimization.update_freq", [[1], [2, 3]], [[], [0], [1, 0]]),
    ("text", "optimization.lr", [[1e-9]], [[], [0.0], [-1.0]]),
    ("text", "optimizer.groups.default.lr_float", [1e-9, None], [0.0]),
    ("text", "optimizer.groups.default.optimizer.adam_betas", [[0.0, 0.999]], [[0.9], [0.9, 1.0], [-1, 0]]),
    ("text", "optimizer.groups.default.optimizer.adam_eps", [1e-12], [0.0]),
    ("text", "optimizer.groups.default.optimizer.weight_decay", [0.0], [-0.01]),
    ("text", "optimizer.groups.default.lr_scheduler.warmup_updates", [0, 999_999], [-1, 1_000_000]),
    ("text", "checkpoint.best_checkpoint_metric", ["loss"], ["accuracy", "wer"]),
    ("text", "criterion.loss_weights", [{"TEXT_regression": 2.0}], [{"cls": 1.0}, {"recon": 1.0}]),
    ("text", "criterion.log_keys", [["ema_decay", "target_var", "masked_pct"]], [["target"], ["loss"]]),
    ("first text", "task.tokens_per_sample", [2, 64], [1, 65]),
    ("first text", "task.mask_prob", [0.01, 1.0], [0.0, 1.01]),
    ("first text", "task.mask_multiple_length", [1], [0]),
    ("first text", "criterion.loss_weights", [{"main": 1.0}], [{"regression": 1.0}]),
    ("cola", "task.num_classes", [2, 3], [1, 0]),
    ("cola", "task.max_positions", [2], [1]),
    ("cola", "model.pooler_dropout", [0.0, 0.99], [-0.01, 1.0]),
    ("cola", "checkpoint.best_checkpoint_metric", ["loss", "accuracy", "mcc"], ["f1", "pearson"]),
    ("cola", "lr_scheduler.warmup_updates", [5335], [5336]),
    ("sts_b", "task.num_classes", [1], [2]),
    ("sts_b", "criterion.report_mcc", [False], [True]),
    ("roberta", "model.dropout", [0.0, 0.9], [1.0]),
    ("roberta", "model.encoder_layerdrop", [0.0], [1.0, -0.1]),
    ("roberta", "checkpoint.restore_file", ["/m"], ["checkpoint_last.pt"]),
    ("audio", "task.sample_rate", [1], [0]),
    ("audio", "task.subsample", [0.01, 1.0], [0.0, 1.01]),
    ("audio", "task.min_sample_size", [32000, 320_000], [0, 320_001]),
    ("audio", "task.num_batch_buckets", [0], [2]),
    ("audio", "task.normalize", [True], [False]),
    ("audio", "task.max_sample_size", [], [1_000_001]),
    ("audio", "task.masks_before_crop", [True], []),
    ("audio", "task.precompute_mask_config", [{}, {"mask_prob": 0.4}, {"clone_batch": 8}], []),
    ("ctc", "task.num_batch_buckets", [2], []),
    ("ctc", "criterion.post_process", ["letter"], ["sentencepiece"]),
    ("ctc", "checkpoint.best_checkpoint_metric", ["loss", "wer", "raw_wer", "uer"], ["mAP", "accuracy"]),
    ("ctc", "lr_scheduler.phase_ratio", [[0.0, 0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5, 0.1], [-0.5, 0.5, 1.0],
                                                         [0.5, 0.5, 0.0]]),
    ("ctc", "lr_scheduler.final_lr_scale", [1e-3], [0.0]),
    ("ctc", "lr_scheduler.init_lr_scale", [1e-3], [0.0]),
    ("events", "checkpoint.best_checkpoint_metric", ["mAP", "mAUC", "top1", "loss"], ["wer"]),
    ("events", "criterion.log_keys", [["_predictions", "_targets"]], [["loss"]]),
    ("images", "task.input_size", [224], [223, 225]),
    ("images", "task.probe_neighbours", [1], [0]),
    ("images", "task.probe_layer", [-10, 9], [-11, 10]),
    ("images", "task.probe_bank", [None], ["train"]),
    ("imagenet", "model.num_classes", [2], [1]),
    ("imagenet", "model.layer_decay", [0.01, 1.0], [0.0, 1.01]),
    ("imagenet", "model.mixup", [0.0], [-0.1]),
    ("imagenet", "model.cutmix", [0.0], [-0.1]),
    ("imagenet", "model.mixup_prob", [0.0, 1.0], [-0.1, 1.1]),
    ("imagenet", "model.mixup_switch_prob", [0.0, 1.0], [-0.1, 1.1]),
    ("imagenet", "model.label_smoothing", [0.0, 0.9], [1.0]),
    ("imagenet", "model.prenet_dropout", [0.0, 0.9], [1.0]),
    ("imagenet", "task.erasing_prob", [0.0, 1.0], [-0.1, 1.1]),
    ("imagenet", "task.input_size", [1], [0]),
    ("imagenet", "task.auto_augment", [None], ["nonsense"]),
    ("imagenet", "checkpoint.best_checkpoint_metric", ["accuracy", "top5", "loss"], ["knn"]),
    ("first images", "task.normalization_std", [[0.1, 0.1, 0.1]], [[0.1, 0.1], [0.1, 0.1, 0.0]]),
    ("first images", "task.normalization_mean", [[0.0, 0.0, -1.0]], [[0.5]]),
    ("language", "task.tokens_per_sample", [2], [1]),
    ("language", "checkpoint.best_checkpoint_metric", ["ppl", "loss"], ["accuracy"]),
    ("language", "platform.checkpoint_activations", [False], [True]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "field", "inside", "outside"), EDGES, ids=[f"{e[0]} {e[1]}" for e in EDGES])
def test_both_sides_of_a_limit(kind: str, field: str, inside: list[Any], outside: list[Any]) -> None:
    name = field.replace(".", "__")
    for value in inside:
        assert not any(f.startswith(field) for f in found(kind, **{name: value})), value
    for value in outside:
        assert any(f.startswith(field) for f in found(kind, **{name: value})), value


def test_limits_between_fields() -> None:
    endless = {"optimization__max_update": 0, "optimization__max_epoch": 0}
    assert "optimization.max_update" in found("cola", **endless)
    for name in ("max_epoch", "stop_time_hours", "stop_cpu_minutes", "max_update"):
        assert "optimization.max_update" not in found("cola", **endless | {f"optimization__{name}": 1})
    empty = {"dataset__max_tokens": None, "dataset__batch_size": None}
    assert "dataset.batch_size" in found("text", **empty)
    assert "dataset.batch_size" not in found("text", **empty | {"dataset__batch_size": 1})
    assert "dataset.batch_size" not in found("text", **empty | {"dataset__max_tokens": 512})
    named = {"dataset__valid_subset": " , ", "dataset__disable_validation": False}
    assert "dataset.valid_subset" in found("text", **named)
    assert "dataset.valid_subset" not in found("text", **named | {"dataset__disable_validation": True})
    patient = {"checkpoint__patience": 1, "dataset__disable_validation": True}
    assert "checkpoint.patience" in found("cola", **patient)
    assert not found("cola", **patient | {"checkpoint__patience": 0})
    assert not found("cola", **patient | {"dataset__disable_validation": False})
    both = {"common__fp16": True, "common__bf16": True}
    assert "common.bf16" in found("text", **both) and not found("text", **both | {"common__fp16": False})
    twice = {"checkpoint__restore_file": "/a", "checkpoint__finetune_from_model": "/b"}
    assert "checkpoint.finetune_from_model" in found("text", **twice)
    assert not found("text", **twice | {"checkpoint__restore_file": "checkpoint_last.pt"})
    alias = {"platform__alias": "best", "platform__register_as": "model"}
    assert not found("text", **alias) and "platform.alias" in found("text", platform__alias="best")
    several = {"optimization__update_freq": [4, 1], "platform__num_workers": 16}
    assert not found("text", **several)
    assert "platform.num_workers" in found("text", **several | {"platform__num_workers": 17})
    rates = {"optimization__lr": [1e-5, 2e-5]}
    assert not found("cola", **rates), "polynomial_decay takes a rate an epoch"
    assert "optimization.lr" in found("ctc", **rates)
    f1 = {"criterion__report_acc_and_f1": True}
    assert not found("cola", **f1) and "criterion.report_acc_and_f1" in found(
        "cola", **f1, task__num_classes=3
    )
    probe = {"task__probe_bank": "bank", "dataset__disable_validation": False}
    assert not found("images", **probe)
    assert "task.probe_bank" in found("images", **probe | {"dataset__disable_validation": True})
    assert "task.probe_bank" in found("images", **probe | {"dataset__valid_subset": "val,bank"})
    assert "task.no_transform" in found("images", task__no_transform=True, task__beit_transforms=True)
    assert not found("images", task__no_transform=True)
    crop = {"task__masks_before_crop": True, "task__precompute_mask_config": None}
    assert "task.masks_before_crop" in found("audio", **crop)
    clones = {"task__precompute_mask_config": {"clone_batch": 7}}
    assert "task.precompute_mask_config.clone_batch" in found("audio", **clones)
    padded = {"task__enable_padding": True, "task__precompute_mask_config": {}}
    assert "task.precompute_mask_config" in found("audio", **padded)
    assert not found("audio", **padded | {"task__precompute_mask_config": None, "task__num_batch_buckets": 3})
    steps = {
        "lr_scheduler__phase_ratio": None,
        "lr_scheduler__warmup_steps": 0,
        "lr_scheduler__hold_steps": 0,
    }
    assert "lr_scheduler.decay_steps" in found("ctc", **steps, lr_scheduler__decay_steps=0)
    assert not found("ctc", **steps, lr_scheduler__decay_steps=1)
    assert "platform.clone_chunk" in found("cola", platform__clone_chunk=1)
    assert "task.max_sample_size" not in found("audio", dataset__max_tokens=320_000)
    assert "task.max_sample_size" in found("audio", dataset__max_tokens=319_999)


def test_what_validation_reports_and_which_way_is_better() -> None:
    def reported(kind: str, **fields: Any) -> dict[str, bool]:
        values = copy.deepcopy(whole(kind))
        values["criterion"] |= fields
        return checks.metrics(Recipe.from_dict(values))

    assert reported("text") == {"loss": False}
    assert reported("cola") == {"loss": False, "accuracy": True, "mcc": True}
    f1 = {"report_mcc": False, "report_acc_and_f1": True}
    assert reported("cola", **f1) == {"loss": False, "accuracy": True, "f1": True, "acc_and_f1": True}
    assert reported("sts_b") == {"loss": False, "pearson": True, "spearman": True,
                                 "pearson_and_spearman": True}  # fmt: skip
    assert reported("ctc") == {"loss": False, "wer": False, "raw_wer": False, "uer": False}
    assert reported("events") == {"loss": False, "mAP": True, "mAUC": True, "top1": True}
    assert reported("imagenet") == {"loss": False, "accuracy": True, "top5": True}
    assert reported("language") == {"loss": False, "ppl": False}
    probed = copy.deepcopy(whole("images"))
    probed["task"]["probe_bank"] = "bank"
    assert checks.metrics(Recipe.from_dict(probed)) == {"loss": False, "knn": True, "linear_probe": True}


def test_numbers_of_a_recipe() -> None:
    recipe = Recipe.from_dict(toy_recipe(
        distributed_training={"distributed_world_size": 3}, optimization={"update_freq": [2, 5]},
        dataset={"valid_subset": " a, b ,", "disable_validation": False},
    ))  # fmt: skip
    assert [recipe.update_freq_for_epoch(epoch) for epoch in (0, 1, 2, 3, 9)] == [2, 2, 5, 5, 5]
    assert [recipe.micro_batches(epoch) for epoch in (1, 2)] == [6, 15] and recipe.micro_batches() == 6
    assert recipe.valid_subsets() == ["a", "b"] == split_names(" a, b ,")
    recipe.dataset.disable_validation = True
    assert recipe.valid_subsets() == []
