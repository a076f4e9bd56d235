"""The readme's commands for text, launcher replaced, and the ways to name a recipe."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from d2v_platform.recipe import locate
from d2v_platform.recipe.command_line import RecipeRequest, parse
from d2v_platform.recipe.compat import reference_folder
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.difference import difference
from d2v_platform.recipe.locate import config_root, find_recipe
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
