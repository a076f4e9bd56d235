"""When a run validates and saves: the rule, and what it makes of the recipes for CTC fine-tuning."""

from __future__ import annotations

from typing import Any

import pytest

from d2v_platform.recipe.compose import compose_loaded, load_file
from d2v_platform.recipe.locate import find_recipe
from d2v_platform.recipe.schema import Recipe
from d2v_platform.training.cadence import Due, due_after

NOTHING = Due(save=False, validate=False)
BOTH = Due(save=True, validate=True)


def recipe(name: str = "wav2vec/finetuning/vox_10m_2", **given: Any) -> Recipe:
    words = [f"{'checkpoint' if key.startswith('save') else 'dataset'}.{key}={given[key]}" for key in given]
    return compose_loaded(load_file(find_recipe(name)), words, check=False).recipe


@pytest.mark.parametrize(
    ("name", "updates_in_epoch", "validations"),
    [
        # by epochs and by updates the same 20 points; without the interval it would be all of 9,901
        ("vox_10m_2", 1, range(500, 10_001, 500)),
        ("base_10m", 1, range(10_000, 13_001, 50)),
        ("vox_1h", 3, range(10_000, 13_001, 50)),
        ("base_1h", 3, range(10_000, 13_001, 1000)),
        ("base_10h", 23, [10_000, *range(10_350, 20_000, 1150), 20_000]),
        ("vox_10h_2", 100, range(1000, 60_001, 1000)),
        ("vox_960h_3", 3456, [*range(3456, 200_000, 3456), 200_000]),
    ],
)
def test_a_recipe_validates_as_often_as_the_references(
    name: str, updates_in_epoch: int, validations: list[int]
) -> None:
    made = recipe(f"wav2vec/finetuning/{name}")
    last = made.optimization.max_update
    found = [
        update
        for update in range(1, last)
        if due_after(
            made, update, -(-update // updates_in_epoch), epoch_end=update % updates_in_epoch == 0
        ).validate
    ]
    assert [*found, last] == list(validations)  # the end is not asked: it always validates


def test_updates_decide_within_an_epoch() -> None:
    made = recipe(save_interval_updates=6, validate_interval_updates=4, validate_after_updates=0)
    due = [due_after(made, update, 1, epoch_end=False) for update in (4, 5, 6, 12)]
    assert due == [Due(save=False, validate=True), NOTHING, BOTH, BOTH]


def test_epochs_decide_at_their_ends_only() -> None:
    made = recipe(save_interval=2, save_interval_updates=0, validate_interval=3, validate_after_updates=0)
    due = [due_after(made, 7, epoch, epoch_end=True) for epoch in (1, 2, 3, 6)]
    assert due == [NOTHING, Due(save=True, validate=False), Due(save=False, validate=True), BOTH]
    assert due_after(made, 7, 6, epoch_end=False) == NOTHING


def test_before_validate_after_updates_only_epoch_ends_save() -> None:
    made = recipe(save_interval=1, save_interval_updates=5, validate_interval=1, validate_after_updates=10)
    assert due_after(made, 5, 1, epoch_end=False) == NOTHING
    assert due_after(made, 5, 1, epoch_end=True) == Due(save=True, validate=False)
    assert due_after(made, 10, 1, epoch_end=False) == BOTH


def test_without_validation_saves_stay() -> None:
    made = recipe(save_interval_updates=5, validate_after_updates=0, disable_validation="true")
    assert due_after(made, 5, 1, epoch_end=False) == Due(save=True, validate=False)


def test_a_skipped_update_counts_for_its_epoch_alone() -> None:
    made = recipe(save_interval=1, save_interval_updates=5, validate_interval=1, validate_after_updates=0)
    assert due_after(made, 5, 1, epoch_end=False, skipped=True) == NOTHING
    assert due_after(made, 5, 1, epoch_end=True, skipped=True) == BOTH
