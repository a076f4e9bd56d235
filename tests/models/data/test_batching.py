"""Batches: complete, within their limits, and functions of (seed, epoch)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.data.batching import BatchList, SampleOrder, batches_by_size, epoch_batches, ordered_indices
from data2vec.errors import ConfigError, DataError

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=120).map(np.asarray)
LIMITS = st.tuples(st.none() | st.integers(40, 300), st.none() | st.integers(1, 20)).filter(
    lambda x: x != (None, None)
)
ORDERS = st.sampled_from(["size", "random", "file"])


def as_lists(batches: BatchList) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


@settings(max_examples=80, deadline=None)
@given(SIZES, LIMITS, st.integers(1, 9), ORDERS, st.booleans())
def test_every_sample_comes_exactly_once_within_the_limits(
    sizes: np.ndarray, limits: tuple[int | None, int | None], m: int, order: SampleOrder, shuffle: bool
) -> None:
    max_tokens, batch_size = limits
    batches = epoch_batches(
        sizes,
        seed=1,
        epoch=3,
        max_tokens=max_tokens,
        batch_size=batch_size,
        required_batch_size_multiple=m,
        shuffle=shuffle,
        order=order,
    )
    found = as_lists(batches)
    assert sorted(i for batch in found for i in batch) == list(range(len(sizes)))
    for batch in found:
        assert len(batch) < m or len(batch) % m == 0
        assert batch_size is None or len(batch) <= batch_size
        assert max_tokens is None or len(batch) * max(sizes[batch]) <= max_tokens


@settings(max_examples=80, deadline=None)
@given(SIZES, LIMITS, st.integers(1, 9))
def test_batches_are_greedy(sizes: np.ndarray, limits: tuple[int | None, int | None], m: int) -> None:
    """No batch could have taken m more samples of the one after it."""
    max_tokens, batch_size = limits
    found = as_lists(
        batches_by_size(
            np.arange(len(sizes)),
            sizes,
            max_tokens=max_tokens,
            max_sentences=batch_size,
            required_batch_size_multiple=m,
        )
    )
    for batch, following in pairwise(found):
        step = 1 if len(batch) < m and len(batch) + 1 <= m else m
        if len(following) < step:
            continue
        more = batch + following[:step]
        too_many = batch_size is not None and len(more) > batch_size
        too_long = max_tokens is not None and len(more) * max(sizes[more]) > max_tokens
        not_allowed = len(more) > m and len(more) % m != 0
        assert too_many or too_long or not_allowed


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 9), st.integers(1, 9), st.booleans(), ORDERS)
def test_an_epoch_is_a_function_of_seed_and_epoch(
    sizes: np.ndarray, seed: int, epoch: int, rebuild: bool, order: SampleOrder
) -> None:
    def batches(e: int) -> list[list[int]]:
        return as_lists(
            epoch_batches(
                sizes,
                seed=seed,
                epoch=e,
                max_tokens=None,
                batch_size=4,
                rebuild=rebuild,
                required_batch_size_multiple=1,
                order=order,
            )
        )

    np.random.seed(epoch)
    first = batches(epoch)
    np.random.rand(3)
    assert batches(epoch) == first
    if not rebuild:
        assert sorted(batches(epoch + 1)) == sorted(first)  # membership never changes, only the order


def test_epochs_and_seeds_differ_and_rebuilding_changes_membership() -> None:
    sizes = np.full(200, 9)
    options = dict(max_tokens=None, batch_size=4, required_batch_size_multiple=1)  # noqa: C408

    def batches(**more: int) -> list[list[int]]:
        return as_lists(epoch_batches(sizes, **{"seed": 1, "epoch": 1} | more, **options))  # pyright: ignore[reportArgumentType]

    assert batches() != batches(epoch=2)
    assert batches() != batches(seed=2)
    assert sorted(batches(rebuild=True)) != sorted(batches(rebuild=True, epoch=2))
    assert batches(epoch=2, curriculum=2) == batches(epoch=1, shuffle=False)


def test_size_order_is_by_length_with_random_ties() -> None:
    sizes = np.asarray([3, 1, 2, 1, 3, 1, 1, 1, 1])
    found = ordered_indices(sizes, seed=1)
    assert sizes[found].tolist() == sorted(sizes.tolist())
    assert found.tolist() != np.argsort(sizes, kind="stable").tolist()
    assert sizes[ordered_indices(sizes, seed=1, order="longest")].tolist() == sorted(sizes, reverse=True)
    assert ordered_indices(sizes, seed=1, order="file").tolist() == list(range(9))


def test_the_last_batch_is_kept_unless_dropping_is_asked_for() -> None:
    sizes = np.full(21, 10)
    options = dict(max_tokens=160, max_sentences=None, required_batch_size_multiple=8)  # noqa: C408
    kept = batches_by_size(np.arange(21), sizes, **options)  # pyright: ignore[reportArgumentType]
    dropped = batches_by_size(np.arange(21), sizes, drop_ragged=True, **options)  # pyright: ignore[reportArgumentType]
    assert [len(b) for b in kept] == [16, 5]
    assert [len(b) for b in dropped] == [16]
    # A last batch of a fitting size is whole: a multiple of 8, or as many as batch_size allows.
    for count, limit, wanted in ((24, {"max_tokens": 160}, [16, 8]), (10, {"max_sentences": 5}, [5, 5])):
        both = {"max_tokens": None, "max_sentences": None, **limit}
        found = batches_by_size(
            np.arange(count), np.full(count, 10), required_batch_size_multiple=8, drop_ragged=True, **both
        )
        assert [len(b) for b in found] == wanted


def test_a_slice_of_batches() -> None:
    batches = batches_by_size(np.arange(10), np.ones(10), max_tokens=None, max_sentences=3)
    assert as_lists(batches[1::2]) == [[3, 4, 5], [9]]
    assert len(batches) == 4


def test_impossible_limits_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        batches_by_size(
            np.arange(2), np.ones(2), max_tokens=0, max_sentences=0, required_batch_size_multiple=0
        )
    assert len(error.value.problems) == 3
    with pytest.raises(ConfigError, match=r"set dataset\.batch_size or dataset\.max_tokens"):
        batches_by_size(np.arange(2), np.ones(2), max_tokens=None, max_sentences=None)


def test_a_sample_longer_than_a_batch_is_named() -> None:
    with pytest.raises(DataError, match=r"sample 1 has 50 tokens, more than dataset\.max_tokens=40"):
        batches_by_size(np.arange(3), np.asarray([3, 50, 4]), max_tokens=40, max_sentences=None)
