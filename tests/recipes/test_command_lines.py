"""The readme's commands for text, launcher replaced, and the ways to name a recipe."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from d2v_platform.cli import app
from d2v_platform.recipe import locate
from d2v_platform.recipe.command_line import RecipeRequest, parse
from d2v_platform.recipe.compat import reference_folder
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.difference import difference
from d2v_platform.recipe.locate import config_root, find_recipe, find_sweep, recipe_names, sweep_names
from d2v_platform.recipe.sweep_definition import load_sweep, sweep_of
from data2vec.errors import ConfigError, Data2VecError

GLUE = ("cola", "qnli", "mrpc", "rte", "sst_2", "mnli", "qqp", "sts_b")


@pytest.mark.parametrize(
    "where",
    [
        "configs/v2",
        "-m configs/v2",
        "examples/data2vec/config/v2",
        "-m /home/me/fairseq/examples/data2vec/config/v2/",
    ],
)
def test_the_readmes_pretraining_command(where: str) -> None:
    flag, _, folder = where.rpartition(" ")
    line = f"{flag} --config-dir {folder} --config-name base_text_only_task task.data=/path/to/file"
    result = parse(shlex.split(line)).compose()
    assert result.named_recipe == "v2/base_text_only_task"
    assert result.sweep is None
    assert result.recipe.to_dict()["task"]["data"] == "/path/to/file"
    assert difference(result.recipe, result.base) == {}


@pytest.mark.parametrize("task", GLUE)
@pytest.mark.parametrize(
    "folder", ["configs/v2/text_finetuning", "examples/data2vec/config/v2/text_finetuning"]
)
def test_the_readmes_glue_command(folder: str, task: str) -> None:
    line = (f"-m --config-dir {folder} --config-name {task} task.data=/path/to/file "
            'model.model_path=/path/to/pretrained/model "optimization.lr=[1e-5]"')  # fmt: skip
    result = parse(shlex.split(line)).compose()
    assert result.named_recipe == f"v2/text_finetuning/{task}"
    assert result.recipe.optimization.lr == [1e-5]


def test_the_readmes_fewer_gpus() -> None:
    line = ("--config-dir examples/data2vec/config/v2 --config-name base_text_only_task task.data=/x "
            "common.user_dir=examples/data2vec distributed_training.distributed_world_size=4 "
            "+optimization.update_freq='[4]' distributed_training.distributed_port=29000 +run_config=slurm_2 "
            "hydra/launcher=submitit_slurm hydra.sweep.dir=/tmp/x")  # fmt: skip
    result = parse(shlex.split(line)).compose()
    assert result.recipe.micro_batches() == 16
    text = "\n".join(result.notes)
    for key in (
        "common.user_dir",
        "distributed_training.distributed_port",
        "run_config",
        "hydra/launcher",
        "hydra.sweep.dir",
    ):
        assert text.count(key) == 1


@pytest.mark.parametrize(
    "name",
    [
        "base_text_only_task",
        "v2/base_text_only_task",
        "base_text_only_task.yaml",
        "configs/v2/base_text_only_task.yaml",
    ],
)
def test_a_unique_name_is_found(name: str) -> None:
    assert find_recipe(name).name == "v2/base_text_only_task"


def test_an_ambiguous_name_lists_the_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("v2/text_finetuning", "roberta/finetuning"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "cola.yaml").write_text("common: {}\n", encoding="utf-8")
    monkeypatch.setattr("d2v_platform.recipe.locate.config_root", lambda: tmp_path)
    with pytest.raises(Data2VecError, match="ambiguous") as caught:
        find_recipe("cola")
    assert "d2v train roberta/finetuning/cola" in str(caught.value)
    assert "--config-dir configs/v2/text_finetuning --config-name cola" in str(caught.value)
    assert find_recipe("cola", "examples/roberta/config/finetuning").name == "roberta/finetuning/cola"
    assert find_recipe("v2/text_finetuning/cola").ours


@pytest.mark.parametrize(
    ("name", "folder", "words"),
    [
        ("base_text_only_tsk", None, "did you mean 'v2/base_text_only_task'"),
        ("colla", "configs/v2/text_finetuning", "did you mean 'cola'"),
        ("base_imagez_only_task", None, "did you mean 'v2/base_images_only_task'"),
        ("vox_10hh", "/f/examples/wav2vec/config/finetuning", "did you mean 'vox_10h'"),
        ("base_mae_imagnet", "examples/data2vec/config/vision/pretraining", "mean 'base_mae_imagenet'"),
        ("base_text_only_task", "/nowhere", "no such folder"),
        ("base_text_only_task", "config/v2", "did you mean 'configs/v2'"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_answered(name: str, folder: str | None, words: str) -> None:
    with pytest.raises(Data2VecError, match=words):
        find_recipe(name, folder)


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("examples/data2vec/config/v2", "v2"),
        ("/a/b/examples/data2vec/config/v2/text_finetuning/", "v2/text_finetuning"),
        ("examples/data2vec/config/audio/pretraining", "audio/pretraining"),
        ("fairseq-py/examples/wav2vec/config/finetuning", "wav2vec/finetuning"),
        ("examples/roberta/config/finetuning", "roberta/finetuning"),
        ("examples/speech_recognition/new/conf", ""),
        ("configs/v2", None),
        ("/examples/data2vec/models", None),
    ],
)
def test_the_references_folders(path: str, ours: str | None) -> None:
    assert reference_folder(path) == ours


def test_a_folder_that_exists_wins_over_ours(tmp_path: Path) -> None:
    folder = tmp_path / "examples" / "data2vec" / "config" / "v2"
    folder.mkdir(parents=True)
    (folder / "base_text_only_task.yaml").write_text("common: {seed: 5}\n", encoding="utf-8")
    found = find_recipe("base_text_only_task", str(folder))
    assert not found.ours
    assert found.path == (folder / "base_text_only_task.yaml").resolve()


def test_an_installed_wheel_uses_its_packaged_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "d2v_platform"
    (package / "recipe").mkdir(parents=True)
    monkeypatch.setattr(locate, "__file__", str(package / "recipe" / "locate.py"))
    with pytest.raises(Data2VecError, match="reinstall the package"):
        config_root()
    (package / "_configs").mkdir()
    assert config_root() == package / "_configs"
    (tmp_path / "configs").mkdir()  # the checkout comes first
    assert config_root() == tmp_path / "configs"


def test_a_checkout_whose_path_has_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "my checkout (2)" / "configs"
    shutil.copytree(config_root(), root)
    for module in ("locate", "tree"):
        monkeypatch.setattr(f"d2v_platform.recipe.{module}.config_root", lambda: root)
    mine = tmp_path / "my recipes"
    mine.mkdir()
    text = "# @package _global_\ndefaults: [/v2/text_finetuning/rte, _self_]\ncommon: {seed: 4}\n"
    (mine / "own.yaml").write_text(text, encoding="utf-8")
    given = ["task.data=/x", "model.model_path=/m"]
    assert compose("v2/text_finetuning/rte", given).source == root.resolve() / "v2/text_finetuning/rte.yaml"
    assert compose("own", given, str(mine)).recipe.common.seed == 4


def test_an_edited_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(config_root(), tmp_path / "configs")
    for module in ("locate", "tree"):
        monkeypatch.setattr(f"d2v_platform.recipe.{module}.config_root", lambda: tmp_path / "configs")
    given = ["task.data=/x", "model.model_path=/m"]
    assert compose("v2/text_finetuning/rte", given).recipe.dataset.max_tokens == 4400
    shared = tmp_path / "configs" / "v2" / "text_finetuning" / "_glue.yaml"
    shared.write_text(shared.read_text().replace("max_tokens: 4400", "max_tokens: 99000"), encoding="utf-8")
    assert compose("v2/text_finetuning/rte", given).recipe.dataset.max_tokens == 99000


def test_the_arguments_in_any_order() -> None:
    line = "task.data=/x -m ~checkpoint.patience v2/base_text_only_task +a.b=1 --plan ++c.d=2"
    assert parse(shlex.split(line)) == RecipeRequest(
        config_name="v2/base_text_only_task",
        overrides=("task.data=/x", "~checkpoint.patience", "+a.b=1", "++c.d=2"),
        multirun=True,
        plan_only=True,
    )
    short = parse(["-cd", "configs/v2", "-cn", "base_text_only_task"])
    assert (short.config_dir, short.config_name) == ("configs/v2", "base_text_only_task")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "which recipe"),
        ("a b", "one recipe at a time"),
        ("a --config-name b", "one recipe at a time"),
        ("a --confg-dir b", "did you mean '--config-dir'"),
        ("a --config-dir", "expected one argument"),
    ],
)
def test_a_wrong_command_line_is_a_users_error(line: str, words: str) -> None:
    with pytest.raises(Data2VecError, match=words):
        parse(line.split())


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], prog="python experiments/train.py")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "python experiments/train.py v2/base_text_only_task task.data=/path/to/data" in shown
    assert "--plan" in shown


def test_the_working_directory_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("cola", "configs/v2/text_finetuning").path.is_relative_to(config_root().resolve())
    recipe = compose(
        "v2/text_finetuning/cola", ["task.data=data/CoLA-bin", "model.model_path=models:/m@champion"]
    ).recipe
    plain = recipe.to_dict()
    assert plain["task"]["data"] == str(tmp_path / "data" / "CoLA-bin")
    assert plain["model"]["model_path"] == "models:/m@champion"


def test_commas_sweep_only_with_m() -> None:
    given = ["task.data=/x", "model.model_path=/m", "optimization.lr=1e-5,2e-5", "common.seed=range(1,4)"]
    result = compose("v2/text_finetuning/cola", given, multirun=True)
    assert result.sweep == {"optimization.lr": [1e-5, 2e-5], "common.seed": [1, 2, 3]}
    assert result.recipe.optimization.lr == [1e-5]
    with pytest.raises(ConfigError, match="add -m"):
        compose("v2/text_finetuning/cola", given)


def test_a_recipe_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "my recipes"
    mine.mkdir()
    (mine / "own.v2.yaml").write_text("defaults: [/tiny/text_pretraining, _self_]\ncommon: {seed: 4}\n")
    monkeypatch.chdir(tmp_path)
    for name in ("my recipes/own.v2.yaml", "./my recipes/own.v2", str(mine / "own.v2.yaml")):
        found = parse([name, "task.data=/x"]).compose()
        assert (found.named_recipe, found.source) == ("own.v2", mine / "own.v2.yaml")
        assert found.recipe.common.seed == 4 and found.recipe.optimization.max_update == 400
    assert find_recipe(str(config_root() / "v2/base_text_only_task.yaml")).name == "v2/base_text_only_task"


def test_a_file_that_exists_wins_over_ours_if_named_with_its_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "text_pretraining.yaml").write_text("common: {seed: 4}\n")
    (tmp_path / "cola").mkdir()  # a folder of data is no recipe
    monkeypatch.chdir(tmp_path)
    assert not find_recipe("tiny/text_pretraining.yaml").ours
    assert find_recipe("tiny/text_pretraining").ours
    with pytest.raises(Data2VecError, match="ambiguous"):
        find_recipe("cola")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my/own.yml", "a recipe's file ends in .yaml"),
        ("my/owm.yaml", "no file 'my/owm.yaml'; did you mean 'my/own.yaml'"),
        ("{}/my/owm", "my/owm.yaml'; did you mean '{}/my/own.yaml'"),
        ("my", "my is a folder; give a recipe's file; there are\n  my/other.yaml\n  my/own.yaml"),
        ("nowhere/tiny/text_pretrainin.yaml", "did you mean 'tiny/text_pretraining'"),
    ],
)
def test_a_path_that_is_no_recipe(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my").mkdir()
    for file in ("own.yml", "own.yaml", "other.yaml"):
        (tmp_path / "my" / file).write_text("common: {seed: 4}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Data2VecError) as caught:
        find_recipe(name.format(tmp_path))
    assert said.format(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("speech_pretraining", {"tiny/audio_pretraining", "audio/pretraining/large_librilight"}),
        ("tiny/txt_pretraining", {"tiny/text_pretraining"}),
        ("image_finetunning", {"tiny/image_finetuning", "tiny/image_finetuning_v1"}),
        ("adio_pretraining", {"tiny/audio_pretraining", "audio/pretraining/audioset"}),
    ],
)
def test_nearest_names_are_of_the_modality_asked_for(name: str, offered: set[str]) -> None:
    with pytest.raises(Data2VecError) as caught:
        find_recipe(name)
    said = re.findall(r"'([^']+)'", str(caught.value).partition("did you mean")[2])
    assert 0 < len(said) <= 3 and said[0] in offered
    others = {"audio": r"text|image", "text": r"audio|image", "image": r"text|audio"}
    asked = next(kind for kind in others if kind in next(iter(offered)))
    assert not [n for n in said if re.search(others[asked], n)], said


def test_names_stand_one_a_line() -> None:
    with pytest.raises(Data2VecError) as caught:
        find_recipe("qqqq")
    assert str(caught.value).splitlines()[1:] == [f"  {name}" for name in recipe_names()]
    with pytest.raises(Data2VecError) as caught:
        find_sweep("qqqq", None)
    assert str(caught.value).splitlines()[1:] == [f"  {name}" for name in sweep_names()]


def test_a_sweep_of_ones_own_recipe(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("defaults: [/tiny/text_pretraining, _self_]\noptimization: {max_update: 70}\n")
    sweep = sweep_of(str(own), ["task.data=/x", "common.seed=1,2", "select.metric=train/loss"])
    assert sweep.name == "own" and [t.recipe.optimization.max_update for t in sweep.trials] == [70, 70]
    definition = tmp_path / "mine.yaml"
    definition.write_text(f"recipe: {own}\ngrid: {{seed: [1, 2, 3]}}\nselect: {{metric: train/loss}}\n")
    assert [t.named_recipe for t in load_sweep(str(definition), ["task.data=/x"]).trials] == ["own"] * 3


def test_show_of_ones_own_recipe(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("defaults: [/tiny/text_pretraining, _self_]\noptimization: {max_update: 70}\n")
    shown = CliRunner().invoke(app, ["config", "show", str(own), "--changed"]).output
    assert re.search(r"max_update\W+70\b", shown)
    assert "embed_dim" in shown and "total_num_update" not in shown
