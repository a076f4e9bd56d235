"""Everything that is wrong is said at once, by name, with the nearest names and the fix."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest

from d2v_platform.recipe.checks import problems as check
from d2v_platform.recipe.compose import LoadedFile, compose, compose_loaded, load_file
from d2v_platform.recipe.locate import find_recipe
from d2v_platform.recipe.schema import Recipe
from data2vec.errors import ConfigError

COLA, STS_B = "v2/text_finetuning/cola", "v2/text_finetuning/sts_b"
GIVEN = {COLA: ["task.data=/x", "model.model_path=/m"], STS_B: ["task.data=/x", "model.model_path=/m"]}
BASE = "v2/base_text_only_task"
LARGE = "v2/large_text_only_task_pgrp_1M"


@functools.cache
def loaded(name: str) -> LoadedFile:
    """The recipe's file, read once: reading it takes longer than the rest."""
    return load_file(find_recipe(name))


@dataclass(frozen=True)
class Wrong:
    recipe: str
    override: str
    field: str
    words: str


WRONG = [
    Wrong(COLA, "optimization.lr=fast", "optimization.lr", "must be list of float, not str"),
    Wrong(COLA, "optimization.lr=[]", "optimization.lr", "at least one rate"),
    Wrong(COLA, "optimization.lr=[-1.0]", "optimization.lr", "> 0"),
    Wrong(COLA, "optimization.max_update=many", "optimization.max_update", "must be int"),
    Wrong(COLA, "optimization.max_updat=3", "optimization.max_updat",
          "did you mean 'optimization.max_update'"),
    Wrong(COLA, "optimisation.lr=3", "optimisation", "did you mean 'optimization'"),
    Wrong(COLA, "model.batch_size=3", "model.batch_size", "there is 'dataset.batch_size'"),
    Wrong(COLA, "optimization.clip_norm=nan", "optimization.clip_norm", "finite"),
    Wrong(COLA, "optimization.clip_norm=-1", "optimization.clip_norm", ">= 0"),
    Wrong(COLA, "common.seed=-1", "common.seed", ">= 0"),
    Wrong(COLA, "common.fp16=1.5", "common.fp16", "must be bool"),
    Wrong(COLA, "common.bf16=true", "common.bf16", "contradicts common.fp16"),
    Wrong(COLA, "common=5", "common", "must be a mapping"),
    Wrong(COLA, "common.seed.x=5", "common.seed", "must be int"),
    Wrong(COLA, "optimization.update_freq=[0]", "optimization.update_freq", ">= 1"),
    Wrong(COLA, "optimization.update_freq=[]", "optimization.update_freq", "one number an epoch"),
    Wrong(COLA, "dataset.valid_subset=valid,valid", "dataset.valid_subset", "twice"),
    Wrong(COLA, "dataset.valid_subset=", "dataset.valid_subset", "names no subset"),
    Wrong(COLA, "lr_scheduler.warmup_updates=5336", "lr_scheduler.warmup_updates",
          "less than the run of 5336"),
    Wrong(COLA, "lr_scheduler=cosin", "lr_scheduler._name", "did you mean 'cosine'"),
    Wrong(COLA, "lr_scheduler=inverse_sqrt", "lr_scheduler._name", "not built here yet"),
    Wrong(COLA, "lr_scheduler=pass_through", "lr_scheduler._name", "is for optimizer composite"),
    Wrong(COLA, "optimizer=lamb", "optimizer._name", "not built here yet"),
    Wrong(COLA, "optimizer=composite", "lr_scheduler._name", "pass_through"),
    Wrong(COLA, "optimizer.adam_betas=[0.9]", "optimizer.adam_betas", "two numbers"),
    Wrong(COLA, "optimizer.adam_betas=(0.9,1.0)", "optimizer.adam_betas", "beta < 1"),
    Wrong(COLA, "optimizer.weight_decay=-0.1", "optimizer.weight_decay", ">= 0"),
    Wrong(COLA, "optimizer.adam_epz=1", "optimizer.adam_epz", "did you mean 'optimizer.adam_eps'"),
    Wrong(COLA, "optimization.lr=[1e-5,2e-5] lr_scheduler=cosine", "optimization.lr", "takes one rate"),
    Wrong(COLA, "task=multimodal", "task._name", "exists in the reference (several modalities)"),
    Wrong(COLA, "task=masked_lm", "model._name", "needs data2vec_multi"),
    Wrong(COLA, "criterion=model", "criterion._name", "needs sentence_prediction"),
    Wrong(COLA, "task.num_classes=1", "task.num_classes", ">= 2, or set criterion.regression_target"),
    Wrong(STS_B, "task.num_classes=2", "task.num_classes", "must be 1 with criterion.regression_target"),
    Wrong(STS_B, "criterion.report_mcc=true", "criterion.report_mcc", "needs classes"),
    Wrong(COLA, "task.num_classes=3 criterion.report_acc_and_f1=true", "criterion.report_acc_and_f1",
          "two classes"),
    Wrong(COLA, "criterion.report_pearson_and_spearman=true", "criterion.report_pearson_and_spearman",
          "needs"),
    Wrong(COLA, "model.pooler_dropout=1.0", "model.pooler_dropout", "0 <= p < 1"),
    Wrong(COLA, "model.pooler_activation_fn=tan", "model.pooler_activation_fn", "did you mean 'tanh'"),
    Wrong(COLA, "checkpoint.best_checkpoint_metric=mc", "checkpoint.best_checkpoint_metric",
          "did you mean 'mcc'"),
    Wrong(COLA, "checkpoint.best_checkpoint_metric=f1", "checkpoint.best_checkpoint_metric",
          "loss, accuracy, mcc"),
    Wrong(COLA, "checkpoint.patience=2 dataset.disable_validation=true", "checkpoint.patience",
          "needs validation"),
    Wrong(COLA, "checkpoint.restore_file=/a checkpoint.finetune_from_model=/b",
          "checkpoint.finetune_from_model",
          "give one"),
    Wrong(COLA, "platform.num_workers=2", "platform.num_workers", "more workers than micro-batches"),
    Wrong(COLA, "platform.num_workers=-1", "platform.num_workers", ">= 0"),
    Wrong(COLA, "platform.cpus_per_worker=0", "platform.cpus_per_worker", "> 0"),
    Wrong(COLA, "platform.precision=int8", "platform.precision", "one of auto, fp32, bf16, fp16"),
    Wrong(COLA, "platform.alias=best", "platform.alias", "needs platform.register_as"),
    Wrong(COLA, "platform.run_name=a/b", "platform.run_name", "letters, digits"),
    Wrong(COLA, "platform.extra_tags=[1]", "platform.extra_tags", "mapping"),
    Wrong(BASE, "task.tokens_per_sample=1024", "task.tokens_per_sample", "max_source_positions = 512"),
    Wrong(BASE, "task.sample_break_mode=compleet", "task.sample_break_mode", "did you mean 'complete'"),
    Wrong(BASE, "dataset.max_tokens=100", "dataset.max_tokens", "less than one block"),
    Wrong(BASE, "~dataset.batch_size", "dataset.batch_size", "give dataset.batch_size or dataset.max_tokens"),
    Wrong(BASE, "dataset.batch_size=0", "dataset.batch_size", ">= 1"),
    Wrong(BASE, "model.ema_decay=2", "model.ema_decay", "0 ... 1"),
    Wrong(BASE, "model.average_top_k_layers=13", "model.average_top_k_layers", "depth (12)"),
    Wrong(BASE, "model.num_heads=7", "model.num_heads", "divide"),
    Wrong(BASE, "model.supported_modality=AUDIO", "model.supported_modality", "masked_lm needs TEXT"),
    Wrong(BASE, "model.modalities.text.mask_prb=0.8", "model.modalities.text.mask_prb",
          "did you mean 'model.modalities.text.mask_prob'"),
    Wrong(BASE, "criterion.log_keys=[target_vr]", "criterion.log_keys", "did you mean 'target_var'"),
    Wrong(BASE, "criterion.loss_weights={IMAGE_regression:2}", "criterion.loss_weights", "TEXT_regression"),
    Wrong(BASE, "lr_scheduler=cosine", "lr_scheduler._name", "use lr_scheduler=pass_through"),
    Wrong(BASE, "optimizer.groups.extra={optimizer:adam,lr_scheduler:fixed}", "optimizer.groups.extra",
          "no parameter belongs to it"),
    Wrong(BASE, "optimizer.groups.decoder={optimizer:adam,lr_scheduler:fixed}", "optimizer.groups.decoder",
          "model.decoder_group=true"),
    Wrong(BASE, "optimizer.groups.default.optimizer=sgd", "optimizer.groups.default.optimizer._name",
          "not built"),
    Wrong(BASE, "optimizer.groups.default.lr_scheduler.warmup_updates=1000001",
          "optimizer.groups.default.lr_scheduler.warmup_updates", "less than the run"),
    Wrong(BASE, "optimizer.groups.default.lr_float=-1", "optimizer.groups.default.lr_float", "> 0"),
    Wrong(LARGE, "~optimizer.groups.decoder", "optimizer.groups", "has no group 'decoder'"),
    Wrong(BASE, "platform.num_workers=17", "platform.num_workers", "W*F = 16"),
    Wrong(BASE, "optimization.max_update=0 optimizer.groups.default.lr_scheduler=fixed",
          "optimization.max_update",
          "never end"),
    Wrong(BASE, "optimization.max_update=0 optimization.max_epoch=3",
          "optimizer.groups.default.lr_scheduler.max_update", "needs the length of the run"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda w: w.override)
def test_each_mistake_is_named(wrong: Wrong) -> None:
    given = GIVEN.get(wrong.recipe, ["task.data=/x"])
    with pytest.raises(ConfigError) as caught:
        compose_loaded(loaded(wrong.recipe), [*given, *wrong.override.split(" ")])
    rules = [problem.rule for problem in caught.value.problems if problem.field == wrong.field]
    assert any(wrong.words in rule for rule in rules), str(caught.value)


def test_a_single_mistake_makes_a_single_problem() -> None:
    for wrong in (
        "optimization.lr=fast",
        "optimization.max_update=many",
        "optimization.max_updat=3",
        "common.fp16=no",
    ):
        with pytest.raises(ConfigError) as caught:
            compose_loaded(loaded(BASE), ["task.data=/x", wrong])
        assert [problem.field for problem in caught.value.problems] == [wrong.split("=")[0]]


def test_all_mistakes_are_reported_together() -> None:
    wrong = ["optimization.lr=fast", "optimisation.x=1", "model.batch_size=3", "lr_scheduler=cosin", "a b",
             "common.seed=1,2", "task.num_classes=7", "~dataset.curriculum", "platform.alias=x",
             "optimization.use_bmuf=true", "checkpoint.best_checkpoint_metric=${nothing.here}"]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        compose(COLA, wrong)
    fields = {problem.field for problem in caught.value.problems}
    assert fields >= {
        "optimization.lr", "optimisation", "model.batch_size", "lr_scheduler._name", "a b", "common.seed",
        "~dataset.curriculum", "platform.alias", "optimization.use_bmuf", "checkpoint.best_checkpoint_metric",
        "task.data", "model.model_path",
    }  # fmt: skip
    text = str(caught.value)
    assert text.startswith("the recipe v2/text_finetuning/cola has ")
    assert "Traceback" not in text


def test_missing_values_say_what_to_give() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(COLA, [])
    rules = {problem.field: problem.rule for problem in caught.value.problems}
    assert "task.data=/path/to/data" in rules["task.data"]
    assert "models:/NAME@ALIAS" in rules["model.model_path"]
    shown = compose(COLA, [], check=False).recipe
    assert {problem.field for problem in check(shown)} == {"task.data", "model.model_path"}


def test_every_value_of_a_sweep_is_checked() -> None:
    given = [
        *GIVEN[COLA],
        "optimization.lr=1e-5,fast",
        "common.seed=1,-2",
        "optimization.max_update=5336,100",
    ]
    with pytest.raises(ConfigError) as caught:
        compose(COLA, given, multirun=True)
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["optimization.lr", "common.seed", "lr_scheduler.warmup_updates"]


def test_strict_reading_of_a_plain_dictionary() -> None:
    good = compose(COLA, GIVEN[COLA]).recipe.to_dict()
    good["common"]["sed"] = 1
    good["optimization"]["lr"] = "x"
    del good["criterion"]
    with pytest.raises(ConfigError) as caught:
        Recipe.from_dict(good)
    assert {problem.field for problem in caught.value.problems} == {
        "common.sed",
        "optimization.lr",
        "criterion._name",
    }
