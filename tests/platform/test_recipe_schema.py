"""The schema: defaults, tables, documentation, comparison of recipes."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2v_platform.recipe import compat
from d2v_platform.recipe.coercion import coerce
from d2v_platform.recipe.components import CHOICES, NAMES, OptimizerGroup
from d2v_platform.recipe.compose import LoadedFile, compose, compose_loaded, load_file
from d2v_platform.recipe.describe import describe_fields, field_docs, recipe_as_yaml
from d2v_platform.recipe.difference import difference, digest, resume_differences
from d2v_platform.recipe.groups import GROUPS
from d2v_platform.recipe.locate import find_recipe
from d2v_platform.recipe.reading import known_fields
from d2v_platform.recipe.schema import Recipe
from data2vec.config import Data2VecMultiConfig, DecoderConfig, TextModalityConfig

BASE = "v2/base_text_only_task"
ALL_CLASSES = [*GROUPS.values(), *NAMES, OptimizerGroup, DecoderConfig, TextModalityConfig]


@functools.cache
def loaded(name: str) -> LoadedFile:
    return load_file(find_recipe(name))


def recipe(*overrides: str, name: str = BASE) -> Recipe:
    return compose_loaded(loaded(name), ["task.data=/x", *overrides]).recipe


@pytest.mark.parametrize("cls", ALL_CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_is_documented(cls: type[Any]) -> None:
    docs = field_docs(cls)
    missing = [f.name for f in dataclasses.fields(cls) if not docs.get(f.name)]
    assert missing == []


def test_the_references_defaults() -> None:
    plain = Recipe.from_dict(
        {
            "task": "masked_lm",
            "model": "data2vec_multi",
            "criterion": "model",
            "optimizer": "adam",
            "optimization": {"max_update": 7},
        }
    )
    assert (plain.common.seed, plain.common.log_interval, plain.common.fp16_init_scale) == (1, 100, 128)
    assert plain.common.min_loss_scale == 1e-4
    assert plain.dataset.required_batch_size_multiple == 8
    assert plain.dataset.num_workers == 1
    assert plain.optimization.lr == [0.25]
    assert plain.optimization.update_freq == [1]
    assert plain.checkpoint.best_checkpoint_metric == "loss"
    assert plain.checkpoint.save_interval == 1
    assert plain.to_dict()["task"]["tokens_per_sample"] == 1024
    assert plain.to_dict()["optimizer"] == {
        "_name": "adam", "adam_betas": [0.9, 0.999], "adam_eps": 1e-8, "weight_decay": 0.0,
    }  # fmt: skip
    assert plain.to_dict()["lr_scheduler"]["_name"] == "fixed"
    assert isinstance(plain.model, Data2VecMultiConfig)
    assert (plain.model.max_update, plain.model.seed) == (7, 1)


def test_reading_a_dictionary_does_not_change_it() -> None:
    plain = recipe().to_dict()
    before = json.dumps(plain)
    Recipe.from_dict(plain)
    assert json.dumps(plain) == before


def test_no_field_is_also_listed_as_ignored() -> None:
    fields = set(known_fields())
    tables = {**compat.IGNORED, **compat.ALIASES, **compat.SAME_AS, **compat.ONLY}
    both = {key for key in tables if key in fields}
    # A component's own field wins: lr_shrink is one of the cosine schedule, without effect in the fixed one.
    assert {key.partition(".")[0] for key in both} <= {"lr_scheduler", "task", "model"}
    cosine = recipe("optimizer.groups.default.lr_scheduler.lr_shrink=0.5").to_dict()
    assert cosine["optimizer"]["groups"]["default"]["lr_scheduler"]["lr_shrink"] == 0.5


def test_names_not_built_are_not_built() -> None:
    for group, names in compat.NOT_BUILT.items():
        assert not set(names) & set(CHOICES[group])


def test_describe_shows_value_type_default_and_documentation() -> None:
    shown = recipe("optimization.clip_norm=3")
    lines = recipe_as_yaml(shown).plain.splitlines()
    line = next(line for line in lines if line.strip().startswith("clip_norm:"))
    assert line.strip().startswith("clip_norm: 3.0")
    assert "# float, default 0.0; clip the gradient" in line
    line = next(line for line in lines if line.strip().startswith("max_tokens_valid:"))
    assert "null" in line
    assert "default: dataset.max_tokens" in line
    assert any(line.startswith("model:  data2vec_multi") for line in lines)
    changed = recipe_as_yaml(shown, changed_only=True).plain
    assert "clip_norm: 3.0" in changed
    assert "stop_min_lr" not in changed
    assert "max_update: 1000000" in changed  # of optimization: the fields that follow it are not listed again
    assert changed.count("max_update: 1000000") == 1
    assert "common_eval" not in changed


def test_describe_covers_the_whole_recipe() -> None:
    from data2vec.typed import flatten

    shown = recipe(name="v2/large_text_only_task_pgrp_1M")
    rows = {row.field for row in describe_fields(shown) if not row.is_group}
    flat = {name for name in flatten(shown.to_dict()) if not name.endswith("._name")}
    assert rows == flat


def test_difference_names_what_the_command_line_changed() -> None:
    result = compose(
        BASE, ["task.data=/x", "optimization.clip_norm=2", "platform.max_failures=9", "common.seed=3"]
    )
    changed = difference(result.recipe, result.base)
    assert {name: (c.before, c.after) for name, c in changed.items()} == {
        "optimization.clip_norm": (1.0, 2.0),
        "common.seed": (1, 3),
        "model.seed": (1, 3),
    }


def test_digest_is_of_what_is_computed() -> None:
    one = digest(recipe())
    assert one == digest(recipe("task.data=/y", "platform.num_workers=0", "platform.run_name=a"))
    assert one == digest(recipe().to_dict())
    assert len(one) == 64
    assert one != digest(recipe("common.seed=2"))
    assert one != digest(recipe("model.modalities.text.mask_prob=0.5"))


def test_what_a_resumed_run_may_change() -> None:
    old = recipe()
    free = recipe("platform.num_workers=2", "common.log_interval=5", "checkpoint.keep_interval_updates=3",
                  "dataset.num_workers=4", "platform.max_failures=1", "task.data=/moved",
                  "distributed_training.distributed_world_size=4",
                  "optimization.update_freq=[4]")  # fmt: skip
    assert resume_differences(old, free) == {}
    changed = recipe(
        "optimization.max_update=9000", "platform.precision=fp32", "optimization.update_freq=[2]"
    )
    assert set(resume_differences(old.to_dict(), changed)) == {
        "optimization.max_update", "model.max_update", "optimizer.groups.default.lr_scheduler.max_update",
        "platform.precision", "optimization.update_freq",
    }  # fmt: skip


@given(st.lists(st.floats(min_value=1e-8, max_value=1.0), min_size=1, max_size=4))
def test_lists_of_numbers_in_any_spelling(values: list[float]) -> None:
    assert coerce(list[float], values) == values
    assert coerce(list[float], str(values)) == values
    assert coerce(tuple[float, ...], str(tuple(values))) == values
    assert coerce(list[float], values[0]) == [values[0]]


@pytest.mark.parametrize("text", ["fast", "__import__('os')", "[1", "{}", "True"])
def test_text_that_is_no_number_stays_text(text: str) -> None:
    assert coerce(list[float], text) == text
    assert coerce(int, text) == text
