"""The gate's rules as a function, and the history as a stack; no model and no server needed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2v_platform.registry.alias_history import AliasMove, holders
from d2v_platform.registry.model_versions import KIND_TAG, LINEAGE_TAGS, RUN_TAG, ModelVersion
from d2v_platform.registry.promotion import gate_reasons


def version(number: int, kind: str, **tags: str) -> ModelVersion:
    lineage = dict.fromkeys(LINEAGE_TAGS, "x") | {RUN_TAG: "r", KIND_TAG: kind}
    named = {key.replace("__", "."): value for key, value in tags.items()}
    return ModelVersion("m", number, (), f"models:/m/{number}", "r", None, lineage | named, "a card")


def tuned(number: int, value: str, **tags: str) -> ModelVersion:
    judged = {"metric__name": "mcc", "metric__maximize": "true", "data__fingerprint": "d"}
    return version(number, "sentence_classifier", metric__value=value, **(judged | tags))


def never() -> str | None:
    raise AssertionError("a reload takes seconds and is not asked for here")


@pytest.mark.parametrize(
    ("own", "held", "maximize", "passes"),
    [
        ("50.1", "50.0", "true", True),
        ("50.0", "50.0", "true", False),
        ("49.9", "50.0", "true", False),
        ("49.9", "50.0", "false", True),
        ("50.1", "50.0", "false", False),
        ("nan", "50.0", "true", False),
        ("50.0", "nan", "true", False),
        ("inf", "50.0", "true", False),
        ("many", "50.0", "true", False),
    ],
)
def test_a_finetuned_version_must_be_better(own: str, held: str, maximize: str, passes: bool) -> None:
    candidate = tuned(2, own, metric__maximize=maximize)
    holder = tuned(1, held, metric__maximize=maximize)
    assert (gate_reasons(candidate, holder, never) == []) == passes


@pytest.mark.parametrize(
    ("tag", "value", "words"),
    [
        ("data.fingerprint", "other", "judged on different data; evaluate both on the same data"),
        ("metric.name", "accuracy", "different metrics"),
        ("metric.maximize", "false", "which direction"),
        (
            KIND_TAG,
            "pretrained",
            "its kind is sentence_classifier, the holder (version 1) is of kind pretrained",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(tag: str, value: str, words: str) -> None:
    holder = tuned(1, "10")
    holder = replace(holder, tags=holder.tags | {tag: value})
    reasons = gate_reasons(tuned(2, "90"), holder, never)
    assert len(reasons) == 1
    assert words in reasons[0]


def test_all_reasons_come_at_once() -> None:
    candidate = replace(tuned(2, "1", data__fingerprint="e"), description=" ")
    candidate = replace(candidate, tags=candidate.tags | {"recipe.digest": "", RUN_TAG: ""})
    assert len(gate_reasons(candidate, tuned(1, "2"), never)) == 4


def floored(own: str, floor: float, maximize: bool, holder: ModelVersion | None = None) -> list[str]:
    tags = {"floor__value": repr(floor), "floor__answer": "always answering 'x'"}
    return gate_reasons(tuned(2, own, metric__maximize=str(maximize).lower(), **tags), holder, never)


def test_the_first_holder_must_beat_an_answer_that_knows_nothing() -> None:
    assert floored("50.1", 50.0, True) == floored("99.9", 100.0, False) == []
    for own, floor, maximize, better in (
        ("50.0", 50.0, True, "higher"), ("49", 50.0, True, "higher"),
        ("100.0", 100.0, False, "lower"), ("120", 100.0, False, "lower"),
    ):  # fmt: skip
        told = f"mcc = {float(own):g} is not better than the {floor:g} of always answering 'x' "
        assert floored(own, floor, maximize) == [f"{told}({better} is better)"]
    assert len(floored("49", 50.0, True, tuned(1, "48"))) == 1  # nor may a later one be useless
    assert "was never validated" in floored("none", 50.0, True)[0]
    undirected = tuned(1, "40", floor__value="50.0", metric__maximize="")
    del undirected.tags["metric.maximize"]  # by another program: more is better
    assert "(higher is better)" in gate_reasons(undirected, None, never)[0]
    assert gate_reasons(tuned(1, "1"), None, never) == []  # judged, but no floor is known of the metric


def test_probed_features_must_beat_those_of_the_untrained_network() -> None:
    tags = {"collapse": "false", "downstream__name": "knn", "downstream__maximize": "true"}
    tags |= {"floor__value": "40.0", "floor__answer": "the network before training"}
    assert gate_reasons(version(1, "pretrained", downstream__value="41", **tags), None, lambda: None) == []
    reasons = gate_reasons(version(1, "pretrained", downstream__value="40", **tags), None, never)
    assert reasons == ["knn = 40 is not better than the 40 of the network before training (higher is better)"]


def test_force_overrules_scores_and_nothing_else() -> None:
    useless = tuned(2, "0", floor__value="0.0")
    assert len(gate_reasons(useless, tuned(1, "50"), never)) == 2
    assert gate_reasons(useless, tuned(1, "50"), never, forced=True) == []
    assert gate_reasons(replace(useless, description=""), None, never, forced=True) == [
        "it has no model card"
    ]
    other = replace(tuned(1, "50"), tags=tuned(1, "50").tags | {KIND_TAG: "ctc"})
    assert "its kind is" in gate_reasons(useless, other, never, forced=True)[0]
    collapsed = version(1, "pretrained", collapse="true")
    assert gate_reasons(collapsed, None, lambda: "other outputs", forced=True) == ["other outputs"]


def test_the_first_finetuned_holder_needs_lineage_only() -> None:
    assert gate_reasons(version(1, "sentence_classifier"), None, never) == []
    nameless = replace(version(1, "sentence_classifier"), tags={KIND_TAG: "sentence_classifier"})
    assert len(gate_reasons(nameless, None, never)) == len(LINEAGE_TAGS) + 1


def test_pretrained_needs_no_collapse_and_a_reload() -> None:
    assert gate_reasons(version(1, "pretrained", collapse="false"), None, lambda: None) == []
    for tags in ({}, {"collapse": "true"}, {"collapse": "maybe"}):
        assert len(gate_reasons(version(1, "pretrained", **tags), None, never)) == 1
    reasons = gate_reasons(version(1, "pretrained", collapse="false"), None, lambda: "other outputs")
    assert reasons == ["other outputs"]


def test_a_recorded_downstream_score_counts() -> None:
    def scored(number: int, value: float, data: str = "glue") -> ModelVersion:
        return version(
            number,
            "pretrained",
            collapse="false",
            downstream__name="average",
            downstream__value=str(value),
            downstream__data=data,
            downstream__maximize="true",
        )

    assert gate_reasons(scored(2, 80), scored(1, 79), lambda: None) == []
    assert "downstream score average = 70 is worse" in gate_reasons(scored(2, 70), scored(1, 79), never)[0]
    assert gate_reasons(scored(2, 70, data="other"), scored(1, 79), lambda: None) == []


@given(st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_two_versions_never_pass_against_each_other(a: float, b: float) -> None:
    passes = [not gate_reasons(tuned(1, str(x)), tuned(2, str(y)), never) for x, y in ((a, b), (b, a))]
    assert sum(passes) == (math.isfinite(a) and math.isfinite(b) and a != b)


def test_rollbacks_pop_what_moves_pushed() -> None:
    def move(to: int, alias: str = "a", rollback: bool = False) -> AliasMove:
        return AliasMove(alias=alias, from_version=None, to_version=to, by="", reason="", rollback=rollback)

    moves = [move(1), move(2), move(9, alias="b"), move(3)]
    assert holders(moves, "a") == [1, 2, 3]
    assert holders([*moves, move(3)], "a") == [1, 2, 3], "back after a move outside: no earlier holder"
    assert holders([*moves, move(2, rollback=True)], "a") == [1, 2]
    assert holders([*moves, move(1, rollback=True)], "a") == [1]
    assert holders([*moves, move(2, rollback=True), move(1, rollback=True), move(4)], "a") == [1, 4]
