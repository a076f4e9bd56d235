"""Whatever a recipe file or a command line says, the reader answers with a recipe or a clear error."""

from __future__ import annotations

import contextlib
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2v_platform.recipe.compose import compose
from data2vec.errors import Data2VecError

NAMES = [
    "task",
    "model",
    "criterion",
    "optimizer",
    "lr_scheduler",
    "common",
    "dataset",
    "optimization",
    "_name",
    "groups",
    "default",
    "modalities",
    "text",
    "decoder",
    "lr",
    "data",
    "transformer",
    "defaults",
    "platform",
    "checkpoint",
    "restore_file",
    "hydra",
    "_group_",
    "_target_",
    "max_update",
    "update_freq",
]
WORDS = [
    "masked_lm",
    "data2vec_multi",
    "data2vec_text",
    "roberta",
    "adam",
    "composite",
    "cosine",
    "???",
    "${common.seed}",
    "${model}",
    "${oc.env:HOME}",
    "${",
    "1e-5",
    "[1,2",
    "/v2/base_text_only_task",
    "__import__('os').system('touch it_ran')",
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=5),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=20,
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(st.sampled_from(NAMES), TREES, max_size=6))
def test_any_yaml_gives_a_recipe_or_a_clear_error(tree: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "any.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    with contextlib.suppress(Data2VecError):  # anything else is a crash
        compose("any", (), str(tmp_path))
    assert not Path("it_ran").exists() and not (tmp_path / "it_ran").exists()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.binary(max_size=40).map(lambda b: b.decode("latin-1")))
def test_any_text_as_a_recipe_file_gives_a_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "any.yaml").write_text(text, encoding="utf-8")
    with contextlib.suppress(Data2VecError):
        compose("any", (), str(tmp_path))


@settings(deadline=None, max_examples=25)
@given(
    words=st.lists(
        st.tuples(
            st.sampled_from(["", "+", "~", "++"]),
            st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(".".join),
            st.text(max_size=8) | st.sampled_from(WORDS),
        ),
        max_size=3,
    )
)
def test_any_override_gives_a_recipe_or_a_clear_error(words: list[tuple[str, str, str]]) -> None:
    overrides = [f"{sign}{key}={value}" for sign, key, value in words]
    with contextlib.suppress(Data2VecError):
        compose("text/pretraining/base", overrides)
