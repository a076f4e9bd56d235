"""``group.key=value``: Hydra's grammar and our three additions."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2v_platform.recipe.compose import Composed, LoadedFile, compose, compose_loaded, load_file
from d2v_platform.recipe.locate import find_recipe
from d2v_platform.recipe.overrides import COMMA_LISTS, Override, apply, assignment_text, parse_overrides
from data2vec.errors import ConfigError, Problem

COLA = ("task.data=/x", "model.model_path=/m")


@functools.cache
def cola_file() -> LoadedFile:
    return load_file(find_recipe("v2/text_finetuning/cola"))


def cola(overrides: Sequence[str]) -> Composed:
    return compose_loaded(cola_file(), overrides)


def parse_one(text: str, multirun: bool = False) -> tuple[Override | None, list[Problem]]:
    problems: list[Problem] = []
    parsed = parse_overrides([text], multirun, problems)
    return (parsed[0] if parsed else None), problems


def set_value(text: str) -> Any:
    override, problems = parse_one(text)
    assert override is not None, problems
    assert not problems
    return override.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("task.data=/a b/c", "/a b/c"),
        ("task.data=/a=b/c", "/a=b/c"),
        ("task.data=/a(1)/c", "/a(1)/c"),
        ("task.data=~/data", "~/data"),
        ("task.data=/d/[x]", "/d/[x]"),
        ("task.data=/dé/ü", "/dé/ü"),
        ("task.data='/a,b'", "/a,b"),
        ("task.data=/a:/b", "/a:/b"),
        ("model.model_path=models:/name@champion", "models:/name@champion"),
        ("model.model_path=s3://bucket/a?b=c", "s3://bucket/a?b=c"),
        ("optimizer.adam_betas=(0.9,0.98)", "(0.9,0.98)"),
        ("optimization.lr=[1e-5]", [1e-5]),
        ("+optimization.update_freq='[16]'", "[16]"),
        ("++optimization.update_freq=[16]", [16]),
        ("platform.run_name=null", None),
        ("platform.deterministic=true", True),
        ("platform.extra_tags={team:text}", {"team": "text"}),
        ("common.seed=", ""),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert set_value(text) == value


@pytest.mark.parametrize("key", sorted(COMMA_LISTS))
@pytest.mark.parametrize("multirun", [False, True])
def test_lists_of_names_stay_text(key: str, multirun: bool) -> None:
    override, problems = parse_one(f"{key}=dev_clean,dev_other", multirun)
    assert override is not None
    assert not problems
    assert (override.value, override.choices) == ("dev_clean,dev_other", None)


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("a.b=1,2", (1, 2)),
        ("a.b=choice(x,y)", ("x", "y")),
        ("a.b=range(1,4)", (1, 2, 3)),
        ("a.b='x y','p,q'", ("x y", "p,q")),
        ("a.b=[1,2],[3]", ([1, 2], [3])),
    ],
)
def test_sweeps(text: str, choices: tuple[Any, ...]) -> None:
    override, problems = parse_one(text, multirun=True)
    assert override is not None
    assert not problems
    assert override.choices == choices
    assert override.value == choices[0]
    none, problems = parse_one(text, multirun=False)
    assert none is None
    assert "-m" in problems[0].rule


@pytest.mark.parametrize(
    "text", ["a.b=interval(0,1)", "a.b=glob(*)", "a.b=shuffle(1,2)", "a.b=/a(1),/b(2)x,c"]
)
def test_sweeps_that_are_not_lists_are_refused(text: str) -> None:
    override, problems = parse_one(text, multirun=True)
    assert override is None
    assert len(problems) == 1


@pytest.mark.parametrize(
    "text", ["nonsense", "=1", "a b=1", "a.b@c=1", "a..b=1", "a.b=[1,2", "a.b='x", "a.b={c:"]
)
def test_what_is_not_an_override_is_a_problem(text: str) -> None:
    override, problems = parse_one(text)
    assert override is None
    assert len(problems) == 1
    assert problems[0].rule


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_an_assignment_reads_back_as_itself(value: Any) -> None:
    assert set_value(assignment_text("group.key", value)) == value


KEYS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map(".".join)


@given(st.dictionaries(KEYS, st.integers(), max_size=4), KEYS, st.integers())
def test_an_assignment_changes_its_own_field_only(base: dict[str, int], key: str, value: int) -> None:
    tree: dict[str, Any] = {}
    for name, number in base.items():
        apply(tree, Override(key=name, value=number), [], text_field=False)
    before, problems = copy.deepcopy(tree), list[Problem]()
    apply(tree, Override(key=key, value=value), problems, text_field=False)
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    assert node == value or problems
    top = key.split(".")[0]
    assert {k: v for k, v in tree.items() if k != top} == {k: v for k, v in before.items() if k != top}


def test_deleting_takes_the_default_back() -> None:
    recipe = cola([*COLA, "~optimization.max_epoch", "~dataset.max_tokens=4400"]).recipe
    assert (recipe.optimization.max_epoch, recipe.dataset.max_tokens) == (0, None)
    with pytest.raises(ConfigError) as caught:
        cola([*COLA, "~optimization.stop_time_hours", "~dataset.max_tokens=1"])
    rules = {problem.field: problem.rule for problem in caught.value.problems}
    assert "nothing to remove" in rules["~optimization.stop_time_hours"]
    assert "4400" in rules["~dataset.max_tokens"]


def test_text_fields_keep_what_was_typed() -> None:
    recipe = compose(
        "v2/text_finetuning/cola",
        [*COLA, "platform.run_name=007", "platform.experiment=1e3", "task.data=123"],
    ).recipe
    assert (recipe.platform.run_name, recipe.platform.experiment) == ("007", "1e3")
    assert recipe.to_dict()["task"]["data"].endswith("/123")


@pytest.mark.parametrize("spelling", ["lr=1e-5", "lr=[1e-5]", "lr='[1e-5]'", "lr='(1e-5,)'", "lr='1e-5'"])
@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_number_where_a_list_is_meant(prefix: str, spelling: str) -> None:
    assert cola([*COLA, f"{prefix}optimization.{spelling}"]).recipe.optimization.lr == [1e-5]


@pytest.mark.parametrize("spelling", ["(0.8,0.9)", "[0.8,0.9]", "'(0.8, 0.9)'", "'[0.8,0.9]'"])
def test_pairs(spelling: str) -> None:
    recipe = cola([*COLA, f"optimizer.adam_betas={spelling}"]).recipe
    assert recipe.parameter_groups()["default"].optimizer.adam_betas == (0.8, 0.9)


def test_a_bare_group_chooses_its_component() -> None:
    result = cola([*COLA, "lr_scheduler=fixed"])
    assert type(result.recipe.lr_scheduler).__name__ == "FixedSchedule"
    assert result.recipe.to_dict()["lr_scheduler"] == {"_name": "fixed", "warmup_updates": 320}
    both = [*COLA, "lr_scheduler._name=tri_stage", "lr_scheduler.phase_ratio=[0.1,0.4,0.5]"]
    result = cola(both)
    assert result.recipe.to_dict()["lr_scheduler"]["phase_ratio"] == [0.1, 0.4, 0.5]
    assert any("warmup_updates" in note and "left out" in note for note in result.notes)
    same = cola([*COLA, "lr_scheduler=polynomial_decay"])
    assert same.recipe == cola(COLA).recipe
    assert same.notes == ()


def test_base_is_the_recipe_without_the_command_line() -> None:
    result = cola([*COLA, "common.seed=5"])
    assert result.base["common"]["seed"] == 1
    assert result.base["task"]["data"] == "???"
    assert result.overrides == (*COLA, "common.seed=5")


def test_composing_in_several_threads() -> None:
    names = [
        "v2/text_finetuning/cola",
        "v2/base_text_only_task",
        "v2/text_finetuning/rte",
        "tiny/text_pretraining",
    ]
    found: dict[int, str] = {}

    def work(index: int) -> None:
        found[index] = compose(names[index], check=False).named_recipe

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[i].endswith(names[i]) for i in range(len(names)))


def test_a_program_that_uses_hydra_itself_is_left_alone(tmp_path: Any) -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    (tmp_path / "theirs.yaml").write_text("a: 1\n", encoding="utf-8")
    with initialize_config_dir(version_base="1.3", config_dir=str(tmp_path)):
        assert compose("v2/text_finetuning/cola", COLA).recipe.common.fp16
        assert hydra_compose("theirs").a == 1
