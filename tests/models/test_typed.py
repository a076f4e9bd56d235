"""Plain dictionaries into dataclasses: every problem at once, and back again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data2vec.errors import ConfigError, Problem, nearest_names
from data2vec.typed import build, describe_type, flatten, to_dict


@dataclass(kw_only=True)
class Inner:
    width: int = 4
    kind: Literal["small", "large"] = "small"
    rates: list[float] = field(default_factory=list)


@dataclass(kw_only=True)
class Outer:
    name: str
    steps: int = 10
    share: float = 0.5
    on: bool = False
    limit: int | None = None
    pair: tuple[float, ...] = (0.9, 0.98)
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    table: dict[str, Inner] = field(default_factory=dict)
    either: int | str = 0
    anything: Any = None


integers = st.integers(1 - 2**63, 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
outers = st.builds(
    Outer,
    name=st.text(max_size=5),
    steps=integers,
    share=finite,
    on=st.booleans(),
    limit=st.none() | integers,
    pair=st.lists(finite, max_size=3).map(tuple),
    inner=(
        inners := st.builds(
            Inner,
            width=integers,
            kind=st.sampled_from(["small", "large"]),
            rates=st.lists(st.floats(-1, 1), max_size=3),
        )
    ),
    maybe=st.none() | inners,
    table=st.dictionaries(st.text(max_size=3), inners, max_size=2),
    either=integers | st.text(max_size=3),
    anything=st.none() | st.lists(st.integers(), max_size=2),
)


@given(outers)
def test_round_trip(value: Outer) -> None:
    assert build(Outer, to_dict(value)) == value


def test_absent_keys_take_defaults() -> None:
    assert build(Outer, {"name": "x"}) == Outer(name="x")
    assert build(Outer, {"name": "x", "maybe": {}}).maybe == Inner()


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        build(
            Outer,
            {
                "stepz": 1,
                "steps": "many",
                "share": True,
                "on": 1,
                "limit": 2.5,
                "pair": [0.9, "x"],
                "inner": {"kind": "smal", "widht": 3},
                "maybe": 5,
                "table": {"a": {"width": None}},
                "either": 1.5,
            },
        )
    fields = {problem.field: problem for problem in caught.value.problems}
    assert set(fields) == {
        "name", "stepz", "steps", "share", "on", "limit", "pair[1]", "inner.kind", "inner.widht", "maybe",
        "table.a.width", "either",
    }  # fmt: skip
    assert "did you mean 'steps'?" in fields["stepz"].rule
    assert "did you mean 'width'?" in fields["inner.widht"].rule
    assert "did you mean 'small'" in fields["inner.kind"].rule
    assert fields["name"].rule == "is required"
    assert fields["limit"].rule == "must be int, not float"
    text = str(caught.value)
    assert text.startswith("the recipe has 12 problems")
    assert text.count("\n") == 12


def test_problems_can_be_collected_under_a_path() -> None:
    problems: list[Any] = []
    result = build(Outer, {"name": "x", "steps": "many"}, "task", problems)
    assert [problem.field for problem in problems] == ["task.steps"]
    assert result == Outer(name="x"), "a wrong value leaves the default"


def test_unknown_keys_of_foreign_files_are_listed_and_dropped() -> None:
    unknown: list[str] = []
    result = build(Outer, {"name": "x", "old": 1, "inner": {"older": 2, "width": 7}}, unknown=unknown)
    assert unknown == ["old", "inner.older"]
    assert result.inner.width == 7


def test_whole_floats_are_integers_and_integers_are_floats() -> None:
    result = build(Outer, {"name": "x", "steps": 1e3, "share": 1})
    assert (result.steps, type(result.steps)) == (1000, int)
    assert (result.share, type(result.share)) == (1.0, float)


@pytest.mark.parametrize("value", ["5", True, 1.5, None, [1]])
def test_what_is_no_integer(value: object) -> None:
    with pytest.raises(ConfigError, match="must be int"):
        build(Outer, {"name": "x", "steps": value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2**63, 10**400, 1e19, -1e400])
def test_numbers_that_no_machine_has(value: float) -> None:
    fields = {"steps": value, "limit": value, "inner": {"width": value}}
    if value != value or value == 10**400:
        fields |= {"share": value, "pair": [value]}
    with pytest.raises(ConfigError) as caught:
        build(Outer, {"name": "a", **fields})
    assert len(caught.value.problems) == len(fields), caught.value
    assert "must be a finite number of at most 9.22337e+18" in str(caught.value)


def test_a_float_may_be_endless() -> None:
    assert build(Outer, {"name": "a", "share": -float("inf")}).share == -float("inf")


def test_a_message_shows_the_beginning_of_a_value() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, "x" * 10_000, list(range(10_000)), {i: i for i in range(1000)}):
        assert len(str(ConfigError([Problem("field", value, "rule")]))) < 600
    assert "field = [1, 'a', {'b': 2.5}]   rule" in str(
        ConfigError([Problem("field", [1, "a", {"b": 2.5}], "rule")])
    )


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": {"d": [2, 3]}}, "e": None, "f": {}}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [2, 3], "e": None, "f": {}}


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"),
        (int | None, "int or null"),
        (int | str, "int or str"),
        (Literal["a", "b"], "one of a, b"),
        (list[float], "list of float"),
        (tuple[int, ...], "list of int"),
        (dict[str, int], "mapping"),
    ],
)
def test_types_in_words(hint: Any, text: str) -> None:
    assert describe_type(hint) == text


def test_nearest_names() -> None:
    assert nearest_names("mask_porb", ["mask_prob", "mask_prob_min", "depth"]) == (
        "; did you mean 'mask_prob' or 'mask_prob_min'?"
    )
    assert nearest_names("qqq", ["mask_prob"]) == ""
