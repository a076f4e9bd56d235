"""Sweep definitions: the grid, its trials, and what is wrong with either."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2v_platform.recipe.components import PolynomialSchedule
from d2v_platform.recipe.difference import changes
from d2v_platform.recipe.locate import sweep_names
from d2v_platform.recipe.schema import Recipe
from d2v_platform.recipe.sweep_definition import load_sweep, sweep_of
from data2vec.errors import ConfigError, Data2VecError

GIVEN = ["model.model_path=models:/data2vec2-text-base@champion", "task.data=/glue"]


def test_the_glue_sweep_has_the_readmes_grid() -> None:
    assert {"demo", "glue"} <= set(sweep_names())
    sweep = load_sweep("glue", [*GIVEN, "grid.seed=[1]"])
    assert sweep.definition.grid["lr"] == [1e-5, 2e-5, 4e-5, 6e-5]
    assert len(sweep.trials) == 8 * 4
    assert len({trial.name for trial in sweep.trials}) == 32
    by_task = {trial.values["task"]: trial for trial in sweep.trials}
    folders = {"cola": "CoLA", "sst_2": "SST-2", "sts_b": "STS-B", "mnli": "MNLI"}
    for task, folder in folders.items():
        assert by_task[task].recipe.to_dict()["task"]["data"] == f"/glue/{folder}-bin"
        assert by_task[task].named_recipe == f"v2/text_finetuning/{task}"
    assert sweep.metric(by_task["cola"]) == ("mcc", True)
    assert sweep.metric(by_task["sts_b"]) == ("pearson_and_spearman", True)


@pytest.mark.parametrize(
    ("name", "recipe", "given"),
    [("images", "tiny/image_pretraining", []), ("speech", "tiny/audio_pretraining", ["task.probe_data=/d"]),
     ("text", "tiny/text_pretraining_alibi", ["task.probe_data=/d"])],
)  # fmt: skip
def test_clones_are_compared_at_equal_cpu_time_by_a_probe(name: str, recipe: str, given: list[str]) -> None:
    sweep = load_sweep(f"clones_{name}", ["task.data=/x", *given])
    assert [trial.values["model.clone_batch"] for trial in sweep.trials] == [1, 2, 4, 8, 16]
    assert {trial.named_recipe for trial in sweep.trials} == {recipe}
    assert {trial.recipe.optimization.stop_cpu_minutes for trial in sweep.trials} == {10}
    first, *others = (trial.recipe.to_dict() for trial in sweep.trials)
    assert all(list(changes(first, other)) == ["model.clone_batch"] for other in others)
    assert all(sweep.metric(trial) == ("linear_probe", True) for trial in sweep.trials)
    assert sweep.definition.resources_per_trial.cpu == 1 and sweep.definition.select.within_run == "last"


def test_small_models_are_tuned_from_pretrained_and_random_weights_in_one_sweep() -> None:
    parent = ["task.data=/x", "model.model_path=/m"]
    for name, length, trials in (("small_text", 120, 3 * 4 * 2 * 3), ("small_images", 300, 2 * 3)):
        sweep = load_sweep(name, parent)
        assert len(sweep.trials) == trials and sweep.definition.register.name is None
        assert {trial.recipe.optimization.max_update for trial in sweep.trials} == {length}
        weights = [trial.values["model.no_pretrained_weights"] for trial in sweep.trials]
        assert weights.count(True) == weights.count(False) == trials // 2


def test_the_command_line_narrows_the_grid() -> None:
    sweep = load_sweep("glue", [*GIVEN, "grid.task=[cola,rte]", "grid.lr=1e-5", "grid.seed=1,2",
                                "fixed.common.log_interval=7", "optimization.clip_norm=1.5"])  # fmt: skip
    assert [trial.name for trial in sweep.trials] == [
        "cola_lr=1e-05_seed=1", "cola_lr=1e-05_seed=2", "rte_lr=1e-05_seed=1", "rte_lr=1e-05_seed=2",
    ]  # fmt: skip
    for trial in sweep.trials:
        assert trial.recipe.optimization.lr == [1e-5]
        assert trial.recipe.common.seed == trial.values["seed"]
        assert (trial.recipe.common.log_interval, trial.recipe.optimization.clip_norm) == (7, 1.5)
    assert sweep.trials[0].group == {"task": "cola", "lr": 1e-5} == sweep.trials[1].group


def test_any_field_can_be_swept() -> None:
    one = ["grid.task=rte", "grid.lr=1e-5", "grid.seed=1"]
    sweep = load_sweep("glue", [*GIVEN, *one, "model.no_pretrained_weights=false,true",
                                "grid.optimizer.weight_decay=[0,0.1]"])  # fmt: skip
    plain = [trial.recipe.to_dict() for trial in sweep.trials]
    assert {(p["model"]["no_pretrained_weights"], p["optimizer"]["weight_decay"]) for p in plain} == {
        (False, 0.0), (False, 0.1), (True, 0.0), (True, 0.1),
    }  # fmt: skip


def test_overrides_of_a_trial_give_its_recipe_again() -> None:
    from d2v_platform.recipe.compose import compose

    sweep = load_sweep("glue", [*GIVEN, "grid.task=sts_b", "grid.seed=3", "max_updates=100"])
    for trial in sweep.trials:
        assert compose(trial.named_recipe, trial.overrides).recipe == trial.recipe
        assert Recipe.from_dict(trial.recipe.to_dict()) == trial.recipe


def test_a_cap_of_updates_shrinks_the_warm_up() -> None:
    sweep = load_sweep(
        "glue", [*GIVEN, "grid.task=[cola,rte]", "grid.lr=1e-5", "grid.seed=1", "max_updates=300"]
    )
    schedule = sweep.trials[0].recipe.lr_scheduler
    assert isinstance(schedule, PolynomialSchedule)
    assert (schedule.warmup_updates, schedule.total_num_update) == (round(320 * 300 / 5336), 300)
    long = load_sweep("glue", [*GIVEN, "grid.task=rte", "grid.lr=1e-5", "grid.seed=1", "max_updates=99999"])
    assert long.trials[0].recipe.optimization.max_update == 2036


def test_the_sweep_of_the_m_flag() -> None:
    sweep = sweep_of(
        "v2/text_finetuning/rte",
        ["task.data=/x", "model.model_path=/m", "common.seed=1,2", "optimization.lr=1e-5,2e-5"],
    )
    assert [trial.name for trial in sweep.trials] == [
        "seed=1_lr=1e-05", "seed=1_lr=2e-05", "seed=2_lr=1e-05", "seed=2_lr=2e-05",
    ]  # fmt: skip
    assert sweep.trials[3].recipe.common.seed == 2
    assert sweep.trials[3].recipe.optimization.lr == [2e-5]
    assert sweep.definition.register.name is None


def test_what_does_not_validate_is_chosen_by_its_training_loss_or_not_at_all() -> None:
    given = ("v2/base_text_only_task", ["task.data=/x", "common.seed=1,2"])
    with pytest.raises(
        ConfigError, match=r"select.metric=train/loss.*dataset.disable_validation=false"
    ) as told:
        sweep_of(*given)
    assert [problem.field for problem in told.value.problems] == ["select.metric"]
    name, words = given
    sweep = sweep_of(name, [*words, "select.metric=train/loss", "register.name=text"])
    assert {sweep.metric(trial) for trial in sweep.trials} == {("train/loss", False)}
    assert sweep.definition.register.name == "text"
    sweep = sweep_of(name, [*words, "dataset.disable_validation=false"])
    assert sweep.metric(sweep.trials[0]) == ("loss", False)
    with pytest.raises(ConfigError, match="train/loss compares"):
        sweep_of(name, [*words, "select.metric=loss"])


@pytest.mark.parametrize(
    ("recipe", "more", "fields"),
    [
        ("v2/base_text_only_task", ["select.metric=train/loss"], {"dataset.disable_validation"}),
        ("v2/text_finetuning/rte", ["model.model_path=/m", "select.metric=train/loss"], {"select.metric"}),
        ("v2/text_finetuning/rte", ["model.model_path=/m", "lr_scheduler=fixed", "optimization.max_update=0"],
         {"optimization.max_update"}),
    ],
)  # fmt: skip
def test_asha_needs_lengths_and_validations(recipe: str, more: list[str], fields: set[str]) -> None:
    with pytest.raises(ConfigError) as told:
        sweep_of(recipe, ["task.data=/x", "common.seed=1,2", "scheduler.name=asha", *more])
    assert {problem.field for problem in told.value.problems} == fields


@pytest.mark.parametrize(
    ("override", "field", "words"),
    [
        ("grid.task=[cola,rt]", "grid.task", "did you mean 'v2/text_finetuning/rte'"),
        ("grid.lr=[fast]", "optimization.lr[0]", "must be float"),
        ("grid.lr=[]", "grid.lr", "at least one"),
        ("grid.lr=[1e-5,1e-5]", "grid.lr", "twice"),
        ("grid.optimization.lr=[1e-5]", "grid.lr", "means optimization.lr"),
        ("grid.optimization.lrr=[1e-5]", "optimization.lrr", "did you mean 'optimization.lr'"),
        ("~grid.task", "grid.task", "is required"),
        ("recipe=rte", "grid.task", "has no effect"),
        ("scheduler.name=pbt", "scheduler.name", "one of grid, asha"),
        ("scheduler.grace_fraction=0", "scheduler.grace_fraction", "0 < f <= 1"),
        ("schedular.name=asha", "schedular.name", "did you mean 'scheduler'"),
        ("select.metric=mc", "select.metric", "did you mean 'mcc'"),
        ("select.over_seeds=mean", "select.over_seeds", "one of median, max"),
        ("register.name=one", "register.name", "needs {task}"),
        ("register.name=null", "register.alias", "needs register.name"),
        ("register.name='x/{task}'", "register.name", "letters, digits"),
        ("resources_per_trial.cpu=0", "resources_per_trial.cpu", "> 0"),
        ("max_updates=0", "max_updates", ">= 1"),
        ("max_updates=1,2", "max_updates", "takes one value"),
        ("grid.seed=range(0,9000)", "grid", "more than 5000 trials"),
        ("model.model_pth=/x", "model.model_pth", "did you mean 'model.model_path'"),
        ("fixed.common.sed=1", "common.sed", "did you mean 'common.seed'"),
    ],
)
def test_each_mistake_is_named(override: str, field: str, words: str) -> None:
    given = [*GIVEN, "grid.task=[cola,rte]", "grid.lr=1e-5", "grid.seed=[1]"]
    with pytest.raises(ConfigError) as caught:
        load_sweep("glue", [*given, override])
    rules = [problem.rule for problem in caught.value.problems if problem.field == field]
    assert any(words in rule for rule in rules), str(caught.value)


def test_all_mistakes_are_reported_together_and_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(
            "glue",
            ["grid.task=[cola,rt]", "grid.lr=1e-5", "grid.seed=1", "scheduler.name=pbt", "max_updates=-1"],
        )
    fields = [problem.field for problem in caught.value.problems]
    assert sorted(fields) == sorted(
        ["grid.task", "scheduler.name", "max_updates", "task.data", "model.model_path"]
    )


def test_a_copied_definition_and_own_recipes(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [/v2/text_finetuning/rte, _self_]\ncommon: {seed: 4}\n",
        encoding="utf-8",
    )
    definition = tmp_path / "try.yaml"
    definition.write_text(
        f"recipe: '{{task}}'\nrecipe_dir: {tmp_path}\n"
        "grid:\n  task: [mine]\n  optimization: {lr: [1.0e-4, 2.0e-4]}\n",
        encoding="utf-8",
    )
    for name, folder in ((str(definition), None), ("try", str(tmp_path))):
        sweep = load_sweep(name, ["task.data=/x", "model.model_path=/m"], folder)
        assert [trial.recipe.optimization.lr for trial in sweep.trials] == [[1e-4], [2e-4]]
        assert sweep.trials[0].recipe.common.seed == 4
        assert sweep.trials[0].recipe.to_dict()["task"]["data"] == "/x"


def test_a_wrong_name_is_answered(tmp_path: Path) -> None:
    with pytest.raises(Data2VecError, match="did you mean 'glue'"):
        load_sweep("glu")
    (tmp_path / "broken.yaml").write_text("grid: [", encoding="utf-8")
    with pytest.raises(Data2VecError, match=r"broken.yaml cannot be read"):
        load_sweep("broken", [], str(tmp_path))
