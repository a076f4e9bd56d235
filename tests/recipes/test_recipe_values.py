"""Every recipe that the reference has too is the reference's, key by key, but for the listed deviations."""

from __future__ import annotations

import functools

import pytest

from d2v_platform.recipe.reading import fill_defaults
from data2vec.typed import flatten
from tests.recipes import recipe_comparison as comparison

compare = functools.cache(comparison.compare)
LISTED = comparison.deviations()


@pytest.mark.parametrize("name", sorted(comparison.REFERENCE))
def test_a_recipe_is_the_references_but_for_the_listed_deviations(name: str) -> None:
    found = compare(name).differences
    assert [one for one in found if not any(listed.covers(name, one) for listed in LISTED)] == []
    for one in found:
        assert len([listed for listed in LISTED if listed.covers(name, one)]) == 1, one


def test_no_deviation_is_listed_in_vain() -> None:
    found = [(name, one) for name in comparison.REFERENCE for one in compare(name).differences]
    for listed in LISTED:
        for pattern in listed.recipes.split():
            alone = comparison.Deviation(**{**vars(listed), "recipes": pattern})
            assert any(alone.covers(name, one) for name, one in found), (pattern, listed.key)
        assert listed.reason.strip() and "|" not in listed.reason


def test_as_many_values_are_compared_as_there_are() -> None:
    assert len(comparison.REFERENCE) == 64
    assert sum(compare(name).keys for name in comparison.REFERENCE) > 7000


def test_the_page_is_what_is_generated() -> None:
    text = comparison.PAGE.read_text("utf-8")
    told = "run: python tests/recipes/recipe_comparison.py"
    assert text == comparison.page(text, compare), told


@pytest.mark.parametrize(
    ("given", "compared"),
    [
        ("(0.9,0.98)", [0.9, 0.98]), ("(0.9, 1e-2)", [0.9, 0.01]), ([5], 5), (1, 1.0), ([[1], 2], [1, 2]),
        ("[(512, 10, 5)] + [(512, 3, 2)] * 4", "[(512, 10, 5)] + [(512, 3, 2)] * 4"),
    ],
)  # fmt: skip
def test_spellings_of_one_value_are_equal(given: object, compared: object) -> None:
    assert comparison.plain(given) == compared


def test_different_values_stay_different() -> None:
    assert comparison.plain(True) is True and comparison.plain("1") == "1" and comparison.plain([]) == []


# The reference's defaults, which its files leave out: the comparison takes both sides' from our schema.
DEFAULTS = {
    "common.seed": 1, "common.log_interval": 100, "common.fp16": False, "common.fp16_init_scale": 128,
    "common.fp16_scale_window": None, "common.min_loss_scale": 1e-4, "common.threshold_loss_scale": None,
    "dataset.num_workers": 1, "dataset.required_batch_size_multiple": 8, "dataset.train_subset": "train",
    "dataset.valid_subset": "valid", "dataset.gen_subset": "test", "dataset.validate_interval": 1,
    "dataset.validate_interval_updates": 0, "dataset.validate_after_updates": 0,
    "dataset.disable_validation": False, "dataset.max_valid_steps": None, "dataset.curriculum": 0,
    "dataset.skip_invalid_size_inputs_valid_test": False, "dataset.max_tokens": None,
    "dataset.batch_size": None, "optimization.max_epoch": 0, "optimization.max_update": 0,
    "optimization.stop_time_hours": 0.0, "optimization.stop_cpu_minutes": 0.0,
    "optimization.clip_norm": 0.0, "optimization.update_freq": [1],
    "optimization.lr": [0.25], "optimization.stop_min_lr": -1.0, "optimization.skip_remainder_batch": False,
    "checkpoint.restore_file": "checkpoint_last.pt", "checkpoint.finetune_from_model": None,
    "checkpoint.save_interval": 1, "checkpoint.save_interval_updates": 0,
    "checkpoint.keep_interval_updates": -1, "checkpoint.keep_last_epochs": -1,
    "checkpoint.keep_best_checkpoints": -1, "checkpoint.no_epoch_checkpoints": False,
    "checkpoint.no_save": False, "checkpoint.best_checkpoint_metric": "loss",
    "checkpoint.maximize_best_checkpoint_metric": False, "checkpoint.patience": -1,
    "distributed_training.distributed_world_size": 1,
}  # fmt: skip
OF_COMPONENTS = {
    ("optimizer", "adam"): {"adam_betas": [0.9, 0.999], "adam_eps": 1e-8, "weight_decay": 0.0},
    ("lr_scheduler", "cosine"): {
        "warmup_updates": 0, "warmup_init_lr": -1.0, "min_lr": 0.0, "t_mult": 1.0, "lr_shrink": 0.1,
    },
    ("lr_scheduler", "tri_stage"): {
        "warmup_steps": 0, "hold_steps": 0, "decay_steps": 0, "phase_ratio": None, "init_lr_scale": 0.01,
        "final_lr_scale": 0.01,
    },
    ("lr_scheduler", "polynomial_decay"): {"warmup_updates": 0, "end_learning_rate": 0.0, "power": 1.0},
    ("criterion", "ctc"): {
        "zero_infinity": False, "post_process": "letter", "wer_lm_weight": 2.0, "wer_word_score": -1.0,
        "wer_kenlm_model": None, "wer_lexicon": None,
    },
    ("criterion", "sentence_prediction"): {
        "classification_head_name": "sentence_classification_head", "regression_target": False,
        "report_mcc": False, "report_acc_and_f1": False, "report_pearson_and_spearman": False,
    },
}  # fmt: skip


def test_the_defaults_of_the_groups_are_the_references() -> None:
    filled = flatten(fill_defaults({}))
    assert {key: filled[key] for key in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(("group", "name"), OF_COMPONENTS)
def test_the_defaults_of_a_component_are_the_references(group: str, name: str) -> None:
    filled = fill_defaults({group: {"_name": name}})[group]
    want = OF_COMPONENTS[group, name]
    assert {key: comparison.plain(filled[key]) for key in want} == {
        key: comparison.plain(value) for key, value in want.items()
    }
