"""A checkout of the reference: every recipe file resolves as it is, and its readme's commands compose."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path
from typing import Any

import pytest

from d2v_platform.recipe.command_line import parse
from d2v_platform.recipe.compose import Composed
from d2v_platform.recipe.locate import find_recipe
from d2v_platform.recipe.tree import read_tree
from data2vec.typed import flatten
from tests.recipes.reference_yaml import VALUES, folder_of, write_reference

# Keys without a field here, with the value that is what happens anyway: nothing is said about them.
AS_HERE = {("task.skip_masking", True), ("task.d2v2_multi", True), ("task.leave_unmasked_prob", 0),
           ("task.random_token_prob", 0)}  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fairseq")
    write_reference(root)
    return root


def composed(root: Path, name: str, *more: str) -> Composed:
    missing = [f"{key}=/given" for key, value in VALUES[name].items() if value == "???"]
    words = ["-m", "--config-dir", f"{root}/{folder_of(name)}", "--config-name", name.rpartition("/")[2]]
    return parse([*words, "task.data=/given", *missing, *more]).compose()


@pytest.mark.parametrize("name", sorted(VALUES))
def test_a_file_resolves_with_all_its_values(
    checkout: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PWD", raising=False)
    result = composed(checkout, name)
    read, told = flatten(result.recipe.to_dict()), "\n".join(result.notes)
    assert not find_recipe(name.rpartition("/")[2], f"{checkout}/{folder_of(name)}").ours
    for key, value in VALUES[name].items():
        if value == "???" or key == "task.data":
            assert read[key] == "/given"
        elif key == "common.user_dir":
            assert f"{key}: no effect here" in told
        elif f"{key}: read as" in told:
            continue
        elif key in read or f"{key}._name" in read:
            assert _plain(read.get(key, read.get(f"{key}._name"))) == _plain(value), key
        else:
            assert key in told or (key, value) in AS_HERE, f"{key} is neither a value nor noted"
    assert "hydra: no effect here" in told


def _plain(value: Any) -> Any:
    """A pair in text as a list; one number as a list of it; a mapping without entries as nothing."""
    if isinstance(value, str) and value.startswith("("):
        value = list(ast.literal_eval(value))
    return [value] if isinstance(value, int | float) else value or None


def test_the_old_header_changes_nothing(checkout: Path, tmp_path: Path) -> None:
    write_reference(tmp_path, header="")
    for name in {folder_of(name): name for name in VALUES}.values():
        where, last = folder_of(name), name.rpartition("/")[2]
        trees = [read_tree(find_recipe(last, f"{root}/{where}")) for root in (checkout, tmp_path)]
        assert trees[0] == trees[1], name
    name = "v2/base_images_only_task"
    assert composed(tmp_path, name).recipe == composed(checkout, name).recipe


FINETUNING = "examples/wav2vec/config/finetuning"
D2V = "examples/data2vec/config"
MODEL = "model.model_path=/path/to/pretrained/model"
MORE_GPUS = "distributed_training.distributed_world_size=4 +optimization.update_freq='[4]'"
README = [
    *(f"-m --config-dir {D2V}/v2 --config-name {size}_only_task task.data=/path/to/dir"
      for size in ("base_images", "large_images", "huge_images14", "base_audio", "large_audio", "base_text")),
    *(f"-m --config-dir {D2V}/vision/finetuning --config-name mae_imagenet_{size}clean task.data=/d {MODEL}"
      for size in ("", "large_", "huge_")),
    f"-m --config-dir {FINETUNING} --config-name vox_10h task.data=/path/to/manifests "
    "model.w2v_path=/path/to/pretrained/model common.user_dir=examples/data2vec",
    f"-m --config-dir {D2V}/v2/text_finetuning --config-name sst_2 task.data=/path/to/file {MODEL} "
    '"optimization.lr=[1e-5]"',
    f"-m --config-dir {D2V}/audio/pretraining --config-name base_librispeech task.data=/path/to/manifests "
    f"common.user_dir=examples/data2vec {MORE_GPUS}",
    "distributed_training.distributed_port=29500 task.data=/path/to/data model.w2v_path=/path/to/model.pt "
    f"--config-dir {FINETUNING} --config-name base_100h common.user_dir=examples/data2vec",
    f"--config-dir {FINETUNING} --config-name base_100h task.data=/d model.w2v_path=/m.pt "
    "+criterion.wer_args='[/path/to/kenlm, /path/to/lexicon, 2, -1]'",
    f"-m --config-dir {D2V}/text/pretraining --config-name base task.data=/path/to/data "
    f"common.user_dir=examples/data2vec {MORE_GPUS}",
    "-m --config-dir examples/roberta/config/finetuning --config-name qqp task.data=/d "
    "checkpoint.restore_file=/path/to/pretrained/model.pt",
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "there"), [(line, there) for line in README for there in {FINETUNING in line, False}]
)
def test_a_command_of_the_readme_composes(line: str, there: bool, checkout: Path) -> None:
    """With a checkout of the reference its own files are read, and ours without one."""
    place = checkout if there else Path("/path/to/fairseq-py")
    words = shlex.split(line.replace("--config-dir examples", f"--config-dir {place}/examples"))
    result = parse([*words, "+run_config=slurm_1"]).compose()
    name = words[words.index("--config-name") + 1]
    assert result.source.name == f"{name}.yaml"
    assert result.source.is_relative_to(checkout) == there
    assert result.sweep is None and result.recipe.task.data.startswith("/")
    assert any("run_config" in note for note in result.notes)
    if MORE_GPUS in line:
        assert result.recipe.micro_batches() == 16


@pytest.mark.parametrize("name", ["vox_10m_2", "vox_10h_aws_v100"])
def test_the_authors_language_model_can_be_left_out(checkout: Path, name: str) -> None:
    for word in ("criterion.wer_args=null", "~criterion.wer_args", "criterion.wer_kenlm_model=null"):
        result = composed(checkout, f"wav2vec/finetuning/{name}", word)
        criterion = result.recipe.to_dict()["criterion"]
        told = any(note.startswith("criterion.wer_lexicon: no effect here") for note in result.notes)
        assert told == (criterion["wer_lexicon"] is not None) == ("wer_args" not in word)
        assert criterion["wer_kenlm_model"] is None and criterion["wer_args"] is None
