"""YAML files in the reference's conventions load through ``--config-dir`` as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.difference import difference, digest
from data2vec.errors import ConfigError, Data2VecError

# Written for this test after the conventions of the reference's files: the package header, old-style
# environment references, a bare scheduler name, exponents without a dot, keys without meaning here.
PRETRAINING = """\
# @package _group_
common:
  fp16: true
  log_format: json
  log_interval: 200
  tensorboard_logdir: tb
  fp16_no_flatten_grads: true
  user_dir: ${env:PWD}/examples/data2vec
checkpoint:
  save_interval_updates: 50000
  keep_interval_updates: 1
  no_epoch_checkpoints: true
task:
  _name: masked_lm
  data: /somebody/elses/cluster
  sample_break_mode: none
  tokens_per_sample: 512
  skip_masking: True
  d2v2_multi: True
  random_token_prob: 0
dataset:
  batch_size: 4
  ignore_unused_valid_subsets: true
  skip_invalid_size_inputs_valid_test: true
  disable_validation: true
distributed_training:
  distributed_world_size: 16
  ddp_backend: legacy_ddp
criterion:
  _name: model
  log_keys:
    - ema_decay
    - target_var
    - pred_var
    - model_norm
    - ema_norm
    - masked_pct
optimization:
  max_update: 1000000
  clip_norm: 1
  lr: [0.0002]
optimizer:
  _name: composite
  dynamic_groups: true
  groups:
    default:
      lr_float: 2e-4
      optimizer: {_name: adam, adam_betas: "(0.9,0.98)", adam_eps: 1e-06, weight_decay: 0.01,
                  lr: "${optimization.lr}"}
      lr_scheduler: {_name: cosine, warmup_updates: 4000, max_update: "${optimization.max_update}"}
lr_scheduler: pass_through
model:
  _name: data2vec_multi
  supported_modality: TEXT
  max_update: ${optimization.max_update}
  seed: ${common.seed}
  depth: 12
  clone_batch: 8
  norm_eps: 1e-5
  layerdrop: 0
  loss_beta: 0
  loss_scale: 1
  average_top_k_layers: 12
  instance_norm_target_layer: true
  ema_decay: 0.9999
  ema_end_decay: 0.99999
  ema_anneal_end_step: 100000
  modalities:
    text:
      mask_prob: 0.48
      mask_length: 1
      prenet_depth: 0
      decoder: {decoder_dim: 768, decoder_groups: 1, decoder_kernel: 9, decoder_layers: 5,
                decoder_residual: false, projection_layers: 2}
"""
FINETUNING = """\
# @package _group_
common: {fp16: true, fp16_init_scale: 4, threshold_loss_scale: 1, fp16_scale_window: 128, log_interval: 200}
task:
  {_name: sentence_prediction, data: '???', init_token: 0, separator_token: 2, num_classes: 2,
   max_positions: 512,
   d2v2_multi: True, regression_target: "${criterion.regression_target}", seed: "${common.seed}"}
checkpoint: {best_checkpoint_metric: mcc, maximize_best_checkpoint_metric: true, no_epoch_checkpoints: true}
distributed_training: {distributed_world_size: 1, nprocs_per_node: 1, distributed_port: -1}
criterion: {_name: sentence_prediction, report_mcc: True}
dataset: {batch_size: 16, required_batch_size_multiple: 1, max_tokens: 4400, num_workers: 1}
optimizer: {_name: adam, weight_decay: 0.1, adam_betas: "(0.9,0.98)", adam_eps: 1e-06}
lr_scheduler: {_name: polynomial_decay, warmup_updates: 320, lr: "${optimization.lr}"}
optimization: {clip_norm: 0.0, lr: [2e-05], max_update: 5336, max_epoch: 10}
model: {_name: data2vec_text_classification, model_path: '???'}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PWD", "/home/me")
    (tmp_path / "mine.yaml").write_text(PRETRAINING, encoding="utf-8")
    (tmp_path / "task.yaml").write_text(FINETUNING, encoding="utf-8")
    return tmp_path


def test_a_pretraining_file_equals_our_recipe(folder: Path) -> None:
    theirs = compose("mine", ["task.data=/x"], str(folder))
    ours = compose("v2/base_text_only_task", ["task.data=/x"])
    assert difference(theirs.recipe, ours.recipe) == {}
    assert digest(theirs.recipe) == digest(ours.recipe)
    assert theirs.named_recipe == "mine"


def test_a_finetuning_file_equals_our_recipe(folder: Path) -> None:
    given = ["task.data=/x", "model.model_path=/m", "optimization.lr=[1e-5]"]
    theirs, ours = compose("task", given, str(folder)), compose("v2/text_finetuning/cola", given)
    assert difference(theirs.recipe, ours.recipe) == {}
    assert theirs.recipe.parameter_groups()["default"].peaks == (1e-5,)


def test_keys_without_meaning_are_named_once_with_the_reason(folder: Path) -> None:
    notes = compose("mine", ["task.data=/x", "common.user_dir=/y", "distributed_training.distributed_port=9"],
                    str(folder)).notes  # fmt: skip
    text = "\n".join(notes)
    for key in ("common.user_dir", "common.tensorboard_logdir", "common.log_format",
                "common.fp16_no_flatten_grads",
                "distributed_training.ddp_backend", "distributed_training.distributed_port",
                "task.random_token_prob", "dataset.ignore_unused_valid_subsets"):  # fmt: skip
        assert text.count(key) == 1
    assert "task.skip_masking" not in text  # true is what happens here


def test_a_key_whose_value_changes_the_result_is_refused(folder: Path) -> None:
    wrong = {
        "task.skip_masking=false": "data2vec_text",
        "optimization.use_bmuf=true": "block momentum",
        "distributed_training.ddp_backend=slowmo": "not supported",
        "ema.store_ema=true": "second average",
        "lr_scheduler.lr=[1.0]": "must equal optimization.lr",
        "checkpoint.continue_once=/x": "platform.run_name",
    }
    with pytest.raises(ConfigError) as caught:
        compose("mine", ["task.data=/x", *(f"+{key}" for key in wrong)], str(folder))
    found = {problem.field: problem.rule for problem in caught.value.problems}
    for text, words in wrong.items():
        assert words in found[text.split("=")[0]]


def test_aliases_have_their_effect() -> None:
    given = ["task.data=/x", "common.fp16=false", "common.memory_efficient_fp16=true", "common.cpu=true",
             "checkpoint.save_dir=/store"]  # fmt: skip
    result = compose("v2/base_text_only_task", given)
    assert result.recipe.common.fp16
    assert result.recipe.platform.gpus_per_worker == 0
    assert result.recipe.platform.storage == "/store"
    assert sum("read as" in note for note in result.notes) == 3
    relative = compose("v2/base_text_only_task", ["task.data=/x", "checkpoint.save_dir=checkpoints"])
    assert relative.recipe.platform.storage is None
    assert "D2V_HOME" in relative.notes[0]


def test_a_rate_without_effect_is_said_or_refused(folder: Path) -> None:
    path = folder / "mine.yaml"
    path.write_text(PRETRAINING.replace("lr: [0.0002]", "lr: [3e-4]"), encoding="utf-8")
    result = compose("mine", ["task.data=/x"], str(folder))
    assert any(note.startswith("optimization.lr = [0.0003]: no effect") for note in result.notes)
    with pytest.raises(ConfigError, match=r"optimizer.groups.default.lr_float=1e-05"):
        compose("mine", ["task.data=/x", "optimization.lr=[1e-5]"], str(folder))


def test_references_are_resolved_among_defaults_and_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", "/from/env")
    given = ["task.data=${env:DATA}/bin", "dataset.max_tokens=${task.tokens_per_sample}",
             "platform.threads_per_worker=${common.seed}"]  # fmt: skip
    recipe = compose("mine", given, str(folder)).recipe
    assert recipe.to_dict()["task"]["data"] == "/from/env/bin"
    assert (recipe.dataset.max_tokens, recipe.platform.threads_per_worker) == (512, 1)


def test_a_reference_to_nothing_names_its_field(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("mine", ["task.data=${env:NOT_THERE}", "dataset.max_tokens=${task.tokens}"], str(folder))
    assert {"task.data", "dataset.max_tokens"} <= {problem.field for problem in caught.value.problems}


def test_the_environment_of_an_ignored_key_does_not_matter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PWD")
    assert compose("mine", ["task.data=/x"], str(folder)).recipe.common.fp16


def test_a_users_file_may_build_on_ours(tmp_path: Path) -> None:
    (tmp_path / "longer.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /v2/base_text_only_task\n  - _self_\n"
        "optimization:\n  max_update: 2000000\n",
        encoding="utf-8",
    )
    result = compose("longer", ["task.data=/x"], str(tmp_path))
    ours = compose("v2/base_text_only_task", ["task.data=/x"])
    changed = difference(result.recipe, ours.recipe)
    assert changed["optimization.max_update"].after == 2_000_000
    assert set(changed) == {"optimization.max_update", "model.max_update",
                            "optimizer.groups.default.lr_scheduler.max_update"}  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "given", "larger"),
    [("mcc", "false", True), ("accuracy", "false", True), ("loss", "true", False), ("mcc", "true", True)],
)
def test_the_metric_decides_which_direction_is_better(metric: str, given: str, larger: bool) -> None:
    words = ["task.data=/x", "model.model_path=/m", f"checkpoint.best_checkpoint_metric={metric}",
             f"checkpoint.maximize_best_checkpoint_metric={given}"]  # fmt: skip
    result = compose("v2/text_finetuning/cola", words)
    assert result.recipe.checkpoint.maximize_best_checkpoint_metric is larger
    told = f"checkpoint.maximize_best_checkpoint_metric: read as {str(larger).lower()}; "
    told += f"{'larger' if larger else 'smaller'} {metric} is better"
    assert (told in result.notes) == ((given == "true") != larger)


def test_defaults_beside_the_old_header(folder: Path) -> None:
    chosen = FINETUNING.replace("# @package _group_\n", "# @package _group_\ndefaults:\n  - _self_\n"
                                "  - model: null\n  - lr_scheduler: polynomial_decay\n")  # fmt: skip
    chosen = chosen.replace("lr_scheduler: {_name: polynomial_decay, ", "lr_scheduler: {")
    (folder / "task.yaml").write_text(chosen, encoding="utf-8")
    given = ["task.data=/x", "model.model_path=/m", "optimization.lr=[1e-5]"]
    result = compose("task", given, str(folder))
    assert difference(result.recipe, compose("v2/text_finetuning/cola", given).recipe) == {}
    (folder / "task.yaml").write_text(chosen.replace("model: null", "/v2/base: x"), encoding="utf-8")
    with pytest.raises(Data2VecError, match=r"task\.yaml has .*/v2/base.*write '# @package _global_'"):
        compose("task", given, str(folder))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {b: 1}\nc:\n  d: 1\n    e: 2\n", "line 4"),
        ("a: [1", "cannot be read"),
        ("- 1\n- 2\n", "must hold a mapping"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "broken.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(Data2VecError, match=words) as caught:
        compose("broken", [], str(tmp_path))
    assert "broken.yaml" in str(caught.value)


def test_the_references_sharding_is_ours(folder: Path) -> None:
    made = compose("mine", ["task.data=/x", "distributed_training.ddp_backend=fully_sharded"], str(folder))
    assert made.recipe.platform.sharding == "full"
    told = "distributed_training.ddp_backend: read as platform.sharding = 'full'"
    assert any(note == told for note in made.notes)
    with pytest.raises(ConfigError, match=r"contradicts platform\.sharding"):
        compose(
            "mine",
            ["task.data=/x", "distributed_training.ddp_backend=fully_sharded", "platform.sharding=none"],
            str(folder),
        )
