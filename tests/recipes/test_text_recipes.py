"""Every recipe composes, and its numbers are the published ones (the reference's YAML files)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest

from d2v_platform.recipe.checks import metrics
from d2v_platform.recipe.components import (
    AdamOptions,
    Composite,
    CosineSchedule,
    PolynomialSchedule,
    component_name,
)
from d2v_platform.recipe.compose import Composed, LoadedFile, compose_loaded, load_file
from d2v_platform.recipe.locate import config_root, find_recipe, recipe_names
from d2v_platform.recipe.schema import Recipe
from d2v_platform.recipe.text_components import (
    MaskedLMTask,
    SentencePredictionCriterion,
    SentencePredictionTask,
    TextClassification,
)
from data2vec.config import Data2VecMultiConfig


@functools.cache
def loaded(name: str) -> LoadedFile:
    """The recipe's file, read once: reading it takes longer than the rest."""
    return load_file(find_recipe(name))


def composed(name: str, *overrides: str) -> Composed:
    given = ["task.data=/data"]
    if name.startswith("wav2vec/") or name == "tiny/audio_finetuning":
        given.append("model.w2v_path=/model")
    elif name.startswith("roberta/"):
        given.append("checkpoint.restore_file=/model")
    elif "finetuning" in name or "classification" in name:
        given.append("model.model_path=/model")
    return compose_loaded(loaded(name), [*given, *overrides])


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_composes_without_notes_and_round_trips(name: str) -> None:
    result = composed(name)
    assert result.notes == ()
    assert result.named_recipe == name
    assert Recipe.from_dict(result.recipe.to_dict()) == result.recipe


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_file_says_how_to_run_it(name: str) -> None:
    text = (config_root() / f"{name}.yaml").read_text(encoding="utf-8")
    header = text[: text.index("\n\n")]
    assert header.startswith("# @package _global_\n")
    folder, _, short = name.rpartition("/")
    assert f"--config-dir configs/{folder} --config-name {short}" in header
    for word in ("hardware", "hours", "source"):
        assert f"# {word}" in header


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    world: int
    batch: int
    updates: int
    lr: float
    depth: int
    width: int
    heads: int
    layer_norm_layer: bool
    instance_norm_layer: bool
    instance_norm_targets: bool
    beta: float
    mask: float
    min_loss_scale: float
    groups: tuple[str, ...]
    dynamic: bool


PRETRAINING = {
    "base_text_only_task": Pretraining(
        world=16, batch=4, updates=1_000_000, lr=2e-4, depth=12, width=768, heads=12, layer_norm_layer=False,
        instance_norm_layer=True, instance_norm_targets=False, beta=0.0, mask=0.48, min_loss_scale=1e-4,
        groups=("default",), dynamic=True,
    ),
    "large_text_only_task": Pretraining(
        world=32, batch=2, updates=600_000, lr=1e-4, depth=24, width=1024, heads=16, layer_norm_layer=True,
        instance_norm_layer=False, instance_norm_targets=True, beta=0.0, mask=0.5, min_loss_scale=1e-6,
        groups=("default",), dynamic=True,
    ),
    "large_text_only_task_pgrp_1M": Pretraining(
        world=32, batch=2, updates=1_000_000, lr=1e-4, depth=24, width=1024, heads=16, layer_norm_layer=True,
        instance_norm_layer=False, instance_norm_targets=True, beta=4.0, mask=0.5, min_loss_scale=1e-4,
        groups=("default", "decoder"), dynamic=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_numbers(name: str) -> None:
    want, recipe = PRETRAINING[name], composed(f"v2/{name}").recipe
    task, model = recipe.task, recipe.model
    assert isinstance(task, MaskedLMTask)
    assert isinstance(model, Data2VecMultiConfig)
    assert (task.sample_break_mode, task.tokens_per_sample) == ("none", 512)

    assert (recipe.world_size(), recipe.dataset.batch_size, recipe.update_freq_for_epoch(1)) == (
        want.world, want.batch, 1,
    )  # fmt: skip
    assert recipe.micro_batches() * want.batch * task.tokens_per_sample == 32768
    assert recipe.dataset.disable_validation
    assert recipe.valid_subsets() == []
    assert (recipe.optimization.max_update, recipe.optimization.clip_norm) == (want.updates, 1.0)
    assert recipe.common.fp16
    assert recipe.common.min_loss_scale == want.min_loss_scale
    assert (recipe.checkpoint.save_interval_updates, recipe.checkpoint.keep_interval_updates) == (50_000, 1)

    assert isinstance(recipe.optimizer, Composite)
    assert recipe.optimizer.dynamic_groups is want.dynamic
    assert component_name(recipe.lr_scheduler) == "pass_through"
    groups = recipe.parameter_groups()
    assert tuple(groups) == want.groups
    for group in groups.values():
        assert group.peaks == (want.lr,)
        assert group.optimizer == AdamOptions(adam_betas=(0.9, 0.98), adam_eps=1e-6, weight_decay=0.01)
        assert group.lr_scheduler == CosineSchedule(warmup_updates=4000, max_update=want.updates)

    assert (model.depth, model.embed_dim, model.num_heads) == (want.depth, want.width, want.heads)
    assert model.average_top_k_layers == want.depth
    assert model.clone_batch == 8
    assert model.layer_norm_target_layer is want.layer_norm_layer
    assert model.instance_norm_target_layer is want.instance_norm_layer
    assert model.instance_norm_targets is want.instance_norm_targets
    assert not model.layer_norm_targets
    assert not model.batch_norm_target_layer
    assert (model.loss_beta, model.loss_scale) == (want.beta, 1.0)
    assert (model.ema_decay, model.ema_end_decay, model.ema_anneal_end_step) == (0.9999, 0.99999, 100_000)
    assert model.ema_encoder_only
    assert model.decoder_group is (len(want.groups) == 2)
    assert (model.encoder_dropout, model.attention_dropout, model.post_mlp_drop) == (0.1, 0.1, 0.1)
    assert (model.activation_dropout, model.layerdrop, model.norm_eps) == (0.0, 0.0, 1e-5)
    assert (model.min_target_var, model.min_pred_var) == (0.1, 0.01)
    assert (model.max_update, model.seed) == (want.updates, 1)

    text = model.modalities.text
    assert text is not None
    assert text.decoder is not None
    assert (text.mask_prob, text.mask_length, text.prenet_depth, text.dropout) == (want.mask, 1, 0, 0.1)
    decoder = text.decoder
    assert (decoder.decoder_dim, decoder.decoder_groups, decoder.decoder_kernel) == (768, 1, 9)
    assert (decoder.decoder_layers, decoder.decoder_residual, decoder.input_dropout) == (5, False, 0.1)
    assert (decoder.projection_layers, decoder.projection_ratio) == (2, 2.0)


@dataclass(frozen=True, kw_only=True)
class Glue:
    classes: int
    batch: int
    lr: float
    warmup: int
    updates: int
    metric: str


GLUE = {
    "cola": Glue(classes=2, batch=16, lr=2e-5, warmup=320, updates=5336, metric="mcc"),
    "qnli": Glue(classes=2, batch=32, lr=2e-5, warmup=1986, updates=33112, metric="accuracy"),
    "mrpc": Glue(classes=2, batch=16, lr=2e-5, warmup=137, updates=2296, metric="acc_and_f1"),
    "rte": Glue(classes=2, batch=16, lr=2e-5, warmup=122, updates=2036, metric="accuracy"),
    "sst_2": Glue(classes=2, batch=32, lr=2e-5, warmup=1256, updates=20935, metric="accuracy"),
    "mnli": Glue(classes=3, batch=32, lr=2e-5, warmup=7432, updates=123873, metric="accuracy"),
    "qqp": Glue(classes=2, batch=32, lr=2e-5, warmup=28318, updates=113272, metric="acc_and_f1"),
    "sts_b": Glue(classes=1, batch=16, lr=4e-5, warmup=214, updates=3598, metric="pearson_and_spearman"),
}


@pytest.mark.parametrize("name", GLUE)
def test_glue_numbers(name: str) -> None:
    want, recipe = GLUE[name], composed(f"v2/text_finetuning/{name}").recipe
    task, model, criterion = recipe.task, recipe.model, recipe.criterion
    assert isinstance(task, SentencePredictionTask)
    assert isinstance(model, TextClassification)
    assert isinstance(criterion, SentencePredictionCriterion)
    assert (task.num_classes, task.init_token, task.separator_token, task.max_positions) == (
        want.classes, 0, 2, 512,
    )  # fmt: skip
    assert (recipe.dataset.batch_size, recipe.dataset.max_tokens) == (want.batch, 4400)
    assert (recipe.dataset.batch_size_valid, recipe.dataset.max_tokens_valid) == (want.batch, 4400)
    assert recipe.dataset.required_batch_size_multiple == 1
    assert recipe.micro_batches() == 1
    assert (recipe.optimization.max_update, recipe.optimization.max_epoch) == (want.updates, 10)
    assert recipe.optimization.clip_norm == 0.0
    group = recipe.parameter_groups()["default"]
    assert group.peaks == (want.lr,)
    assert group.optimizer == AdamOptions(adam_betas=(0.9, 0.98), adam_eps=1e-6, weight_decay=0.1)
    assert group.lr_scheduler == PolynomialSchedule(warmup_updates=want.warmup, total_num_update=want.updates)
    assert recipe.checkpoint.best_checkpoint_metric == want.metric
    assert metrics(recipe)[want.metric]
    assert recipe.checkpoint.maximize_best_checkpoint_metric
    assert criterion.regression_target is (name == "sts_b")
    assert (recipe.common.fp16_init_scale, recipe.common.fp16_scale_window) == (4, 128)
    assert recipe.common.threshold_loss_scale == 1.0
    assert (model.pooler_dropout, model.pooler_activation_fn) == (0.0, "tanh")
    assert recipe.valid_subsets() == (["valid", "valid1"] if name == "mnli" else ["valid"])


def test_workers_and_accumulation_make_the_same_update() -> None:
    recipe = composed("v2/base_text_only_task").recipe
    assert recipe.micro_batches() == 16
    for workers in (1, 2, 4, 8):
        fewer = composed(
            "v2/base_text_only_task",
            f"distributed_training.distributed_world_size={workers}",
            f"+optimization.update_freq='[{16 // workers}]'",
        ).recipe
        assert (fewer.world_size(), fewer.update_freq_for_epoch(1)) == (workers, 16 // workers)
        assert fewer.micro_batches() == 16


def test_update_freq_by_epoch_repeats_its_last_entry() -> None:
    recipe = composed("v2/base_text_only_task", "optimization.update_freq=[4,2]").recipe
    assert [recipe.update_freq_for_epoch(epoch) for epoch in (1, 2, 3, 50)] == [4, 2, 2, 2]
    assert recipe.micro_batches(1) == 64
    assert recipe.micro_batches(9) == 32


def test_fields_that_inherit_follow_the_command_line() -> None:
    recipe = composed("v2/base_text_only_task", "optimization.max_update=5000", "common.seed=7").recipe
    assert isinstance(recipe.model, Data2VecMultiConfig)
    assert (recipe.model.max_update, recipe.model.seed) == (5000, 7)
    schedule = recipe.parameter_groups()["default"].lr_scheduler
    assert isinstance(schedule, CosineSchedule)
    assert schedule.max_update == 5000


def test_the_learning_rate_override_reaches_every_group() -> None:
    recipe = composed("v2/large_text_only_task_pgrp_1M", "optimization.lr=[3e-5]").recipe
    assert {group.peaks for group in recipe.parameter_groups().values()} == {(3e-5,)}
