"""Small files and texts that would grow without bound are refused at once, with a message."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.expansion import MAX_TEXT, MAX_VALUES, check_yaml, reference_problems
from d2v_platform.recipe.sweep_definition import load_sweep
from d2v_platform.sweeps.decoding_sweep import read_sweep as tuning
from data2vec.errors import Data2VecError

LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
CHAIN = {f"a{i}": f"${{a{i + 1}}}${{a{i + 1}}}" for i in range(60)} | {"a60": "lol"}


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    start = time.process_time()
    yield
    assert time.process_time() - start < 20, "slow machines included: it would take for ever"


def file(folder: Path, text: str, name: str = "bomb.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("header", ["", "# @package _group_\n", "# @package _global_\n"])
def test_aliases_that_multiply(header: str, tmp_path: Path) -> None:
    file(tmp_path, header + LAUGHS)
    with pytest.raises(Data2VecError, match=r"bomb\.yaml has more than 10\^12 values when its aliases"):
        compose("bomb", config_dir=str(tmp_path))
    file(tmp_path, f"{header}defaults: [/tiny/text_pretraining, _self_]\n{LAUGHS}")
    with pytest.raises(Data2VecError, match=r"more than 10\^12 values"):
        compose("bomb", config_dir=str(tmp_path))
    with pytest.raises(Data2VecError, match=r"more than 10\^12 values"):
        load_sweep("bomb", [], str(tmp_path))
    with pytest.raises(Data2VecError, match=r"more than 10\^12 values"):
        tuning([], tmp_path / "bomb.yaml")


def test_files_that_a_file_builds_on_are_looked_into(tmp_path: Path) -> None:
    file(tmp_path, LAUGHS, "inner.yaml")
    (tmp_path / "group").mkdir()
    file(tmp_path / "group", LAUGHS, "deep.yaml")
    for entry in ("inner", "/inner", "group: deep", "override /group: deep"):
        path = file(tmp_path, f"defaults: [{entry}, _self_]\n")
        with pytest.raises(Data2VecError, match=r"(inner|deep)\.yaml has more than"):
            check_yaml(path)
    check_yaml(file(tmp_path, "defaults: [bomb, other, {group: null}, [], _self_]\na: 1\n"))


def test_what_is_allowed(tmp_path: Path) -> None:
    check_yaml(file(tmp_path, "a: &a [1, 2]\nb: *a\nc: {<<: {d: *a}}\n"))
    check_yaml(file(tmp_path, ""))
    count = MAX_VALUES - 3  # the document, the key and the list count too
    check_yaml(file(tmp_path, f"a: [{', '.join('1' * count)}]"))
    with pytest.raises(Data2VecError, match=f"has {MAX_VALUES + 1} values"):
        check_yaml(file(tmp_path, f"a: [{', '.join('1' * (count + 1))}]"))


@pytest.mark.parametrize("text", ["a: " + "[" * 500, "a: &a [*a]\n", "{a: " * 2_000])
def test_files_without_end(text: str, tmp_path: Path) -> None:
    with pytest.raises(Data2VecError, match="nested too deeply, or holds itself"):
        compose(file(tmp_path, text).stem, config_dir=str(tmp_path))


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    with pytest.raises(Data2VecError, match="settings have 65536 at most"):
        check_yaml(file(tmp_path, "a: " + "x" * 70_000))


def test_references_that_multiply(tmp_path: Path) -> None:
    assert (
        "has more than 100000 characters when its references are replaced"
        in reference_problems(CHAIN)[0].rule
    )
    for tree in (
        {f"a{i}": {"x": f"${{a{i + 1}}}", "y": f"${{a{i + 1}}}"} for i in range(60)} | {"a60": ""},
        {"g": {f"a{i}": f"${{.a{i + 1}}}${{.a{i + 1}}}" for i in range(60)} | {"a60": "lol"}},
        {f"a{i}": f"${{oc.select:a{i + 1}}}${{oc.select:a{i + 1}}}" for i in range(60)} | {"a60": "lol"},
    ):
        assert reference_problems(tree), tree
    values = {"run_name": "${.experiment}" * 2, "experiment": "${.storage}" * 9, "storage": "x" * 9000}
    file(tmp_path, f"platform: {values}\n")
    with pytest.raises(Data2VecError, match="when its references are replaced"):
        compose("bomb", config_dir=str(tmp_path))
    lines = "".join(f"  {name}: '{value}'\n" for name, value in CHAIN.items())
    file(tmp_path, f"fixed:\n{lines.replace('${', '${fixed.')}")
    with pytest.raises(Data2VecError, match=r"the sweep .*bomb.yaml has 20 problems"):
        load_sweep("bomb", [], str(tmp_path))


@pytest.mark.parametrize("text", ["${${b}}", "${a${b}}", "x${oc.env:A,${${b}}}", "${" * 3000])
def test_names_of_references_that_are_references(text: str) -> None:
    problems = reference_problems({"group": {"a": text}, "b": "c"})
    assert [p.field for p in problems] == ["group.a"]
    assert problems[0].rule == "the name of a reference cannot be a reference; write the name"


def test_references_as_people_write_them() -> None:
    tree = {
        "a": {"b": "${c}", "d": "${..c}/${.b}/${oc.env:HOME,${c}}"}, "c": "text", "e": "${a.${f}}", "f": "b",
        "g": ["${c}", "${g[0]}"], "self": "${self}", "long": "x" * MAX_TEXT, "none": "${nothing.there}",
    }  # fmt: skip
    assert reference_problems(tree) == []
