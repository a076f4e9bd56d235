"""Draws are functions of their key: pinned here, because a change would silently change every run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data2vec.masking import clone_ids, random_masks
from data2vec.randomness import generator, hashed_scores, row_keys, seed_dropout, stable_key

parts = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=8)), min_size=1, max_size=4)


def test_pinned_values() -> None:
    """If this fails, runs can no longer be resumed or repeated: restore the old function."""
    assert stable_key("mask", 1, 2) == 5621401403086420994
    assert stable_key("a") == 4130140272143641223
    scores = hashed_scores(row_keys("mask", 1, 7, ids_R=torch.tensor([0, 5])), 3)
    assert scores.tolist() == [
        [7721020862037572609, 5542426751367386666, 4800899586428745444],
        [-3046663272457482718, -5678210607822272824, 1564426981938052052],
    ]
    mask_RT = random_masks(clone_ids(torch.tensor([0, 7]), 2), 12, 0.5, 1, 0).mask_RT
    assert ["".join(map(str, row)) for row in mask_RT.int().tolist()] == [
        "100001110101",
        "101001100101",
        "101111000100",
        "100110100110",
    ]


def test_hash_is_splitmix64() -> None:
    """Against the published generator, in Python's own unbounded integers."""

    def splitmix64(state: int, count: int) -> list[int]:
        out, mask = [], 2**64 - 1
        for _ in range(count):
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = state
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            out.append(z ^ (z >> 31))
        return out

    for seed in (0, 1, 2**63 - 1, 0xDEADBEEF):
        ours = hashed_scores(torch.tensor([seed], dtype=torch.int64), 6)[0].tolist()
        assert [value % 2**64 for value in ours] == splitmix64(seed, 6)


@given(parts)
def test_keys_are_repeatable_63_bit_integers(values: list[int | str]) -> None:
    key = stable_key(*values)
    assert key == stable_key(*values)
    assert 0 <= key < 2**63


def test_keys_depend_on_every_part_type_and_order() -> None:
    keys = [stable_key(*values) for values in (
        (1, 2), (2, 1), ("1", "2"), (1, "2"), (12,), ("12",), ("1", 2), (1, 2, 0), ("ab", "c"), ("a", "bc")
    )]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_scores_are_uniform_and_independent() -> None:
    scores = hashed_scores(row_keys("test", ids_R=torch.arange(2000)), 50).double() / 2**63
    assert float(scores.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(scores.var()) == pytest.approx(1 / 3, rel=0.01)
    histogram = torch.histc(scores, 20, -1, 1) / scores.numel()
    assert histogram.tolist() == pytest.approx([0.05] * 20, abs=0.003)
    neighbours = torch.corrcoef(torch.stack([scores[:, :-1].flatten(), scores[:, 1:].flatten()]))[0, 1]
    rows = torch.corrcoef(torch.stack([scores[:-1].flatten(), scores[1:].flatten()]))[0, 1]
    assert abs(float(neighbours)) < 0.02
    assert abs(float(rows)) < 0.02


def test_consecutive_ids_and_updates_share_no_scores() -> None:
    seen = [hashed_scores(row_keys("mask", 1, u, ids_R=torch.arange(100)), 20) for u in range(10)]
    assert len(torch.cat(seen).flatten().unique()) == 10 * 100 * 20


def test_generators_do_not_touch_the_global_one() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = torch.rand(4, generator=generator("a", 1))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(first, torch.rand(4, generator=generator("a", 1)))
    assert not torch.equal(first, torch.rand(4, generator=generator("a", 2)))


def test_dropout_is_seeded_by_its_key() -> None:
    draws = []
    for key in ((1, 0), (1, 1), (1, 0)):
        seed_dropout(*key)
        draws.append(torch.nn.functional.dropout(torch.ones(64), 0.5))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
