"""How a file, the command line and the reference's own keys become a recipe: rule by rule."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from d2v_platform.recipe import coercion, compat, locate, tree
from d2v_platform.recipe.audio_checks import word_error_model
from d2v_platform.recipe.audio_components import CTCCriterion
from d2v_platform.recipe.command_line import parse
from d2v_platform.recipe.compat import reference_folder
from d2v_platform.recipe.compose import Composed, LoadedFile, compose, compose_loaded, load_file
from d2v_platform.recipe.describe import describe_fields
from d2v_platform.recipe.difference import difference, digest, resume_differences
from d2v_platform.recipe.locate import find_recipe
from d2v_platform.recipe.overrides import Override, apply
from d2v_platform.recipe.schema import Recipe
from d2v_platform.recipe.sweep_definition import load_sweep, sweep_of
from d2v_platform.recipe.yaml_numbers import refuse_odd_numbers
from data2vec.errors import ConfigError, Data2VecError, Problem
from tests.platform.toy_task import toy_recipe

BASE, COLA = "v2/base_text_only_task", "v2/text_finetuning/cola"


@functools.cache
def loaded(name: str) -> LoadedFile:
    return load_file(find_recipe(name))


def made(*overrides: str, name: str = BASE) -> Composed:
    given = ["task.data=/x"] + (["model.model_path=/m"] if name == COLA else [])
    return compose_loaded(loaded(name), [*given, *overrides])


@functools.cache
def plain() -> Recipe:
    return made().recipe


def refused(*overrides: str, name: str = BASE) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        made(*overrides, name=name)
    return {problem.field: problem.rule for problem in caught.value.problems}


# ---- overrides of groups ----------------------------------------------------------------------------------


def test_a_mapping_is_laid_over_the_files_own() -> None:
    start = {"a": {"b": {"c": 1, "d": {"e": 2, "f": 3}}, "g": 4}}
    problems: list[Problem] = []
    apply(start, Override(key="a", value={"b": {"d": {"e": 9}}, "h": {"i": 5}}), problems, text_field=False)
    assert start == {"a": {"b": {"c": 1, "d": {"e": 9, "f": 3}}, "g": 4, "h": {"i": 5}}} and not problems
    apply(start, Override(key="a.b", value={"d": 7}), problems, text_field=False)
    assert start["a"]["b"] == {"c": 1, "d": 7}
    apply(start, Override(key="a.b", value=None), problems, text_field=False)
    assert start["a"]["b"] is None and start["a"]["g"] == 4
    apply(start, Override(key="a.b.x", value=1), problems, text_field=False)
    assert start["a"]["b"] == {"x": 1}
    apply(start, Override(key="a.g.x", value=1), problems, text_field=False)
    assert [(p.field, p.rule) for p in problems] == [("a.g.x", "a.g is 4, not a group of fields")]


def test_a_nested_mapping_on_the_command_line_keeps_its_other_fields() -> None:
    before = made().recipe.to_dict()["model"]["modalities"]["text"]
    after = made("model.modalities.text={mask_prob:0.5,decoder:{decoder_layers:2}}").recipe.to_dict()
    text = after["model"]["modalities"]["text"]
    assert (text["mask_prob"], text["decoder"]["decoder_layers"]) == (0.5, 2)
    changed = {"mask_prob": 0.5, "decoder": before["decoder"] | {"decoder_layers": 2}}
    assert text == before | changed
    group = made("optimizer.groups.default={lr_float:0.5}").recipe.to_dict()["optimizer"]["groups"]["default"]
    whole = made().recipe.to_dict()["optimizer"]["groups"]["default"]
    assert group == whole | {"lr_float": 0.5}


def test_later_overrides_win_and_text_is_kept_as_typed() -> None:
    assert made("common.seed=2", "common.seed=3").recipe.common.seed == 3
    recipe = made("platform.run_name=1e5", "platform.experiment=0012", "platform.register_as=null").recipe
    assert (recipe.platform.run_name, recipe.platform.experiment, recipe.platform.register_as) == (
        "1e5", "0012", None)  # fmt: skip


def test_another_component_keeps_what_it_knows() -> None:
    found = made("lr_scheduler=cosine", name=COLA)
    schedule = found.recipe.to_dict()["lr_scheduler"]
    assert (schedule["_name"], schedule["warmup_updates"]) == ("cosine", 320)
    assert schedule["max_update"] == found.recipe.optimization.max_update
    assert made("lr_scheduler=polynomial_decay", name=COLA).notes == ()


# ---- keys of the reference --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("+common.amp=true", "common.fp16", True),
        ("+common.memory_efficient_fp16=true", "common.fp16", True),
        ("+common.cpu=true", "platform.gpus_per_worker", 0),
        ("+checkpoint.save_dir=/disk/runs", "platform.storage", "/disk/runs"),
        ("+checkpoint.save_dir=s3://b/r", "platform.storage", "s3://b/r"),
        ("+distributed_training.ddp_backend=fully_sharded", "platform.sharding", "full"),
    ],
)
def test_other_spellings_of_fields(override: str, field: str, value: Any) -> None:
    found = made(override)
    group, name = field.split(".")
    assert getattr(getattr(found.recipe, group), name) == value
    assert any(f"read as {field} = {value!r}" in note for note in found.notes)


def test_spellings_that_say_nothing_or_contradict() -> None:
    for override in ("+common.amp=false", "+common.cpu=false", "+checkpoint.save_dir=checkpoints",
                     "+distributed_training.ddp_backend=legacy_ddp"):  # fmt: skip
        assert made(override).recipe == plain(), override
    assert any("D2V_HOME" in note for note in made("+checkpoint.save_dir=checkpoints").notes)
    assert any("summed once" in n for n in made("+distributed_training.ddp_backend=legacy_ddp").notes)
    assert "not supported" in refused("+distributed_training.ddp_backend=slowmo")[
        "distributed_training.ddp_backend"]  # fmt: skip
    told = refused("+checkpoint.save_dir=/a", "platform.storage=/b")
    assert "contradicts platform.storage = '/b'" in told["checkpoint.save_dir"]
    assert made("+checkpoint.save_dir=/b", "platform.storage=/b").recipe.platform.storage == "/b"


def test_values_that_are_supported_alone() -> None:
    groups = ("common", "dataset", "optimization", "checkpoint", "distributed_training")
    rules = {key: rule for key, rule in compat.ONLY.items() if "*" not in key and key.split(".")[0] in groups}
    assert len(rules) > 20

    def spelt(value: Any) -> str:
        return {None: "null", "": "''", "{}": "'{}'"}.get(value) or str(value).lower()

    for place in (0, -1):
        words = [f"+{key}={spelt(values[place])}" for key, (values, _) in rules.items()]
        assert made(*words).recipe == plain()
    told = refused(*[f"+{key}=77" for key in rules])
    assert {key: told.get(key) for key in rules} == {key: rule for key, (_, rule) in rules.items()}


@pytest.mark.parametrize(("dotted", "other"), [
    ("checkpoint.model_parallel_size", 1), ("distributed_training.tpu", False),
    ("distributed_training.fp16", True), ("distributed_training.memory_efficient_fp16", False),
])  # fmt: skip
def test_values_that_must_equal_another_field(dotted: str, other: Any) -> None:
    said = str(other).lower()
    assert made(f"+{dotted}={said}").recipe == plain() == made(f"+{dotted}=null").recipe
    wrong = {"1": "2", "true": "false", "false": "true"}[said]
    assert "must equal common." in refused(f"+{dotted}={wrong}")[dotted]


def test_keys_without_effect_are_noted_once_by_reason() -> None:
    found = made("+common.log_file=/x", "+common.wandb_project=p", "+ema.ema_decay=0.5", "+hydra.run.dir=/x",
                 "+distributed_training.slowmo_momentum=0.5", "+common.empty_cache_freq=5")  # fmt: skip
    assert found.recipe == plain()
    known = made().notes
    notes = [note for note in found.notes if note not in known]
    assert any(note.startswith("common.log_file, common.wandb_project: no effect here") for note in notes)
    assert sum("ema.ema_decay" in note for note in notes) == 1
    for name in ("slowmo_momentum", "hydra.run.dir", "empty_cache_freq"):
        assert any(name in note for note in notes), name


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("/home/me/fairseq/examples/data2vec/config/v2", "v2"),
        ("examples/data2vec/config/audio/pretraining/", "audio/pretraining"),
        ("examples/roberta/config/finetuning", "roberta/finetuning"),
        ("examples/speech_recognition/new/conf", ""),
        ("/x/examples/data2vec/config", ""),
        ("a\\examples\\wav2vec\\config\\finetuning", "wav2vec/finetuning"),
        ("/x/examples/data2vec/models", None),
        ("/x/config/v2", None),
    ],
)
def test_folders_of_the_reference(path: str, folder: str | None) -> None:
    assert reference_folder(path) == folder


# ---- spellings of values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "value", "wanted"),
    [
        (int, "3", 3), (int, "3.5", 3.5), (float, "1e-3", 1e-3), (float, "inf", float("inf")),
        (float, "-inf", float("-inf")), (int, "inf", "inf"), (int, True, True), (str, 3, "3"),
        (str, True, True), (str, 3.0, 3.0), (int | None, "4", 4), (int | None, None, None),
        (list[int], 4, [4]), (list[int], "4", [4]), (list[int], "[4, 5]", [4, 5]),
        (list[int], (4, "5"), [4, 5]),
        (list[str], "a,b", ["a,b"]), (tuple[float, ...], "(0.9, 0.98)", [0.9, 0.98]), (list[int], True, True),
        (dict[str, float], {"a": "2"}, {"a": 2}), (bool, "true", "true"), (list[float], None, None),
        (int, "True", "True"), (list[float], "True", "True"),
    ],
)  # fmt: skip
def test_spellings_that_are_clear_from_the_type(hint: Any, value: Any, wanted: Any) -> None:
    assert coercion.coerce(hint, value) == wanted
    assert type(coercion.coerce(hint, value)) is type(wanted)


@pytest.mark.parametrize(
    ("criterion", "wanted"),
    [
        ({}, None),
        (
            {"wer_kenlm_model": "/lm", "wer_lexicon": "/lex", "wer_lm_weight": 3.0, "wer_word_score": -2.0},
            ("/lm", "/lex", 3.0, -2.0),
        ),
        ({"wer_args": ["/lm", "/lex", "2", -1]}, ("/lm", "/lex", 2.0, -1.0)),
        ({"wer_args": "('/lm', '/lex', 1.5, 0)"}, ("/lm", "/lex", 1.5, 0.0)),
        ({"wer_args": "[/lm, /lex, 1.5, -3]"}, ("/lm", "/lex", 1.5, -3.0)),
        ({"wer_args": "(/lm,'/lex',1,2)", "wer_lm_weight": 9.0}, ("/lm", "/lex", 1.0, 2.0)),
    ],
)
def test_the_language_model_of_a_criterion(criterion: dict[str, Any], wanted: Any) -> None:
    found = word_error_model(CTCCriterion(**criterion))
    assert (None if found is None else (found.path, found.lexicon, found.weight, found.word_score)) == wanted


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        ({"wer_args": ["/lm", "/lex", 2]}, "list of four"),
        ({"wer_args": "/lm"}, "list of four"),
        ({"wer_args": ["/lm", "/lex", "much", 1]}, "must be numbers"),
        ({"wer_kenlm_model": "/lm"}, "needs criterion.wer_lexicon"),
    ],
)
def test_a_language_model_that_is_not_told_fully(criterion: dict[str, Any], words: str) -> None:
    found = word_error_model(CTCCriterion(**criterion))
    assert found is not None and any(words in text for text in found.problems)


# ---- files ------------------------------------------------------------------------------------------------


def test_paths_become_absolute_but_names_and_uris_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    full: Any = {
        "task": {"data": "a:~/b:/c"}, "model": {"model_path": "models:/x@y", "w2v_path": "m.pt"},
        "checkpoint": {"restore_file": "checkpoint_last.pt", "finetune_from_model": "???"},
        "common_eval": {"path": "runs:/1/model", "results_path": "out"}, "platform": {"storage": "s3://b/c"},
    }  # fmt: skip
    tree.make_absolute(full)
    assert full == {
        "task": {"data": f"{tmp_path}/a:/home/me/b:/c"},
        "model": {"model_path": "models:/x@y", "w2v_path": f"{tmp_path}/m.pt"},
        "checkpoint": {"restore_file": "checkpoint_last.pt", "finetune_from_model": "???"},
        "common_eval": {"path": "runs:/1/model", "results_path": f"{tmp_path}/out"},
        "platform": {"storage": "s3://b/c"},
    }
    full = {
        "task": {"data": "s3://b/c:d"},
        "platform": {"storage": "disk"},
        "checkpoint": {"restore_file": "m"},
    }
    tree.make_absolute(full)
    assert full["task"]["data"] == "s3://b/c:d" and full["platform"]["storage"] == f"{tmp_path}/disk"
    assert full["checkpoint"]["restore_file"] == f"{tmp_path}/m"


def test_a_users_file_may_build_on_ours_and_change_as_it_is_edited(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = "# @package _global_\ndefaults: [/v2/base_text_only_task, _self_]\ncommon: {seed: %d}\n"
    for seed in (4, 5):
        file.write_text(text % seed)
        found = compose("mine", ["task.data=/x"], str(tmp_path))
        assert (found.recipe.common.seed, found.named_recipe, found.source) == (seed, "mine", file)
        assert found.base["common"]["seed"] == seed
    assert found.recipe.optimization == made().recipe.optimization
    one, two = loaded(BASE).tree, load_file(find_recipe(BASE)).tree
    assert one == two and one is not two


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    for name, content, words in (
        ("a", b"common: [", "cannot be read"), ("b", b"- 1\n", "must hold a mapping"),
        ("c", b"common:\n  x: \xff\n", "is not UTF-8"), ("d", b"common.seed: 1\n", "names with dots as keys"),
        ("e", b"# @package _group_\ndefaults: [x]\n", "in its defaults"),
        ("f", b"optimization: {max_update: 0400,\n lr: [-012]}\n", "f.yaml .*line 1: 0400, line 2: -012"),
        ("g", b"# @package _global_\ndefaults: [/v2/base_text_only_task, _self_]\nx: {y: 07}", ": 07"),
        ("h", b"common: {seed: 1:30}\n", "line 1: 1:30"),
    ):  # fmt: skip
        (tmp_path / f"{name}.yaml").write_bytes(content)
        with pytest.raises(Data2VecError, match=words):
            compose(name, [], str(tmp_path))


def test_numbers_that_are_what_they_look_like_are_read(tmp_path: Path) -> None:
    refuse_odd_numbers(
        "a: [0, -0, 10, 0.5, 00.5, 1e-05, 0x10, '0400', \"1:30\", 1_000, v0400, 12:x]\n# 0400\nb: 0"
    )
    (tmp_path / "s.yaml").write_text("recipe: tiny/text_pretraining\ngrid: {seed: [01, 2]}\n")
    with pytest.raises(Data2VecError, match=r"s\.yaml cannot be read: .*line 2: 01\."):
        load_sweep("s", config_dir=str(tmp_path))


def test_names_of_recipes() -> None:
    assert find_recipe("base_text_only_task").name == find_recipe(f"configs/{BASE}.yaml").name == BASE
    assert find_recipe("base_text_only_task", "examples/data2vec/config/v2").name == BASE
    assert find_recipe("base_text_only_task", str(locate.config_root() / "v2")).ours
    assert BASE in locate.recipe_names() and not [n for n in locate.recipe_names() if n.startswith("sweep/")]
    with pytest.raises(Data2VecError, match="is ambiguous") as caught:
        find_recipe("cola")
    assert f"d2v train {COLA}" in str(caught.value)
    with pytest.raises(Data2VecError, match="did you mean 'v2/base_text_only_task'"):
        find_recipe("v2/base_text_only_tsk")


def test_words_of_a_command_line() -> None:
    found = parse(["-m", "task.data=/x", "--config-dir", "d", "cola", "~a.b", "+c=1", "--plan"])
    assert (found.config_name, found.config_dir, found.multirun, found.plan_only) == ("cola", "d", True, True)
    assert found.overrides == ("task.data=/x", "~a.b", "+c=1")
    few = parse(["--config-name", "x", "-cd", "y"])
    assert (few.config_name, few.config_dir) == ("x", "y")
    assert (few.overrides, few.multirun, few.plan_only) == ((), False, False)
    for words, told in (
        (["a", "b"], "one recipe at a time, not 'a', 'b'"), (["--config-name", "x", "b"], "not 'x', 'b'"),
        (["a=1"], "which recipe"), (["x", "--pan"], "did you mean '--plan'"),
    ):  # fmt: skip
        with pytest.raises(Data2VecError, match=told):
            parse(words)


# ---- comparing recipes ------------------------------------------------------------------------------------


FREE = ["common.log_interval=3", "dataset.num_workers=7", "optimization.stop_time_hours=1",
        "optimization.stop_cpu_minutes=1",
        "checkpoint.save_interval=3", "checkpoint.save_interval_updates=7", "checkpoint.keep_last_epochs=2",
        "checkpoint.keep_interval_updates=5", "checkpoint.keep_best_checkpoints=2",
        "checkpoint.no_save=true", "dataset.gen_subset=other", "platform.cpus_per_worker=2",
        "platform.collapse_after=7", "task.data=/elsewhere"]  # fmt: skip
BOUND = ["common.seed=2", "common.fp16_init_scale=4", "dataset.batch_size=1", "dataset.train_subset=other",
         "optimization.clip_norm=0.5", "optimization.update_freq=[2]", "model.ema_decay=0.5",
         "checkpoint.best_checkpoint_metric=other", "platform.precision=fp32",
         "distributed_training.distributed_world_size=8"]  # fmt: skip


def changed(*overrides: str) -> dict[str, Any]:
    values = loaded_base()
    for text in overrides:
        dotted, _, value = text.partition("=")
        node: Any = values
        *parents, last = dotted.split(".")
        for part in parents:
            node = node[part]
        old = node[last]
        node[last] = coercion.coerce(type(old) if old is not None else str, value) if old != [1] else [2]
        if isinstance(old, bool):
            node[last] = value == "true"
    return values


def loaded_base() -> dict[str, Any]:
    return plain().to_dict()


@pytest.mark.parametrize("override", FREE)
def test_a_run_that_goes_on_may_change(override: str) -> None:
    assert changed(override) != loaded_base()
    assert resume_differences(loaded_base(), changed(override)) == {}


@pytest.mark.parametrize("override", BOUND)
def test_a_run_that_goes_on_may_not_change(override: str) -> None:
    found = resume_differences(loaded_base(), changed(override))
    assert list(found) == [override.partition("=")[0]]
    assert found[override.partition("=")[0]].before != found[override.partition("=")[0]].after


def test_what_counts_as_the_same_training() -> None:
    base = loaded_base()
    for free in ("platform.collapse_after=7", "task.data=/elsewhere"):
        assert digest(changed(free)) == digest(base)
    for other in ("common.log_interval=3", "common.seed=2", "checkpoint.no_save=true"):
        assert digest(changed(other)) != digest(base)
    split = changed("distributed_training.distributed_world_size=8", "optimization.update_freq=[2]")
    assert resume_differences(base, split) == {}, "16 x 1 and 8 x 2 are the same update"
    found = difference(changed("common.seed=2", "platform.collapse_after=7"), base)
    assert {name: (c.before, c.after) for name, c in found.items()} == {"common.seed": (1, 2)}
    gone = loaded_base()
    del gone["common"]["seed"]
    assert (difference(gone, base)["common.seed"].before, difference(gone, base)["common.seed"].after) == (
        1,
        None,
    )
    missing = loaded_base()
    missing["common"]["seed"] = "???"
    assert difference(base, missing) == {}


def test_a_description_knows_what_is_default_and_inherited() -> None:
    recipe = Recipe.from_dict(toy_recipe(common={"seed": 4}, dataset={"batch_size": 3}))
    rows = {row.field: row for row in describe_fields(recipe)}
    assert (rows["common.seed"].is_default, rows["common.seed"].value, rows["common.seed"].default) == (
        False,
        4,
        1,
    )
    assert rows["common.log_interval"].is_default is False and rows["common.fp16"].is_default
    inherited = rows["dataset.batch_size_valid"]
    assert (inherited.inherited, inherited.value, inherited.is_default) == ("dataset.batch_size", 3, True)
    assert rows["model.seed"].inherited == "common.seed" and rows["model.seed"].value == 4
    other = Recipe.from_dict(toy_recipe(dataset={"batch_size": 3, "batch_size_valid": 5}))
    rows = {row.field: row for row in describe_fields(other)}
    assert rows["dataset.batch_size_valid"].is_default is False and rows["optimization"].is_group


def test_fields_that_follow_others() -> None:
    recipe = Recipe.from_dict(toy_recipe(
        common={"seed": 4}, optimization={"max_update": 70}, dataset={"batch_size": 3, "max_tokens": 90},
        lr_scheduler={"_name": "cosine"},
    ))  # fmt: skip
    assert (recipe.dataset.batch_size_valid, recipe.dataset.max_tokens_valid) == (3, 90)
    model: Any = recipe.model
    assert (model.seed, model.max_update, recipe.lr_scheduler.max_update) == (4, 70, 70)  # type: ignore[union-attr]
    for schedule, name in (("tri_stage", "max_update"), ("polynomial_decay", "total_num_update")):
        made_ = Recipe.from_dict(
            toy_recipe(optimization={"max_update": 70}, lr_scheduler={"_name": schedule})
        )
        assert getattr(made_.lr_scheduler, name) == 70


# ---- sweeps -----------------------------------------------------------------------------------------------


def test_a_cap_keeps_the_shape_of_every_schedule(tmp_path: Path) -> None:
    def trial(recipe: str, cap: int, *given: str) -> Any:
        (tmp_path / "s.yaml").write_text(
            f"recipe: {recipe}\ngrid: {{common.seed: [1]}}\nmax_updates: {cap}\n"
        )
        sweep = load_sweep("s", ["task.data=/x", "select.metric=loss", "dataset.disable_validation=false",
                                 *given], str(tmp_path))  # fmt: skip
        return sweep.trials[0].recipe

    text = trial("v2/base_text_only_task", 1000)
    schedule = text.optimizer.groups["default"].lr_scheduler
    whole = made().recipe.optimizer.groups["default"].lr_scheduler  # type: ignore[union-attr]
    assert text.optimization.max_update == schedule.max_update == 1000
    assert schedule.warmup_updates == round(whole.warmup_updates * 1000 / 1_000_000)  # type: ignore[union-attr]
    steps = ["lr_scheduler.phase_ratio=null", "lr_scheduler.warmup_steps=2000",
             "lr_scheduler.hold_steps=8000", "lr_scheduler.decay_steps=10000",
             "optimization.max_update=20000", "model.w2v_path=/m"]  # fmt: skip
    tuned = trial("wav2vec/finetuning/base_10h", 100, *steps, "select.metric=wer").lr_scheduler
    assert (tuned.warmup_steps, tuned.hold_steps, tuned.decay_steps) == (10, 40, 50)
    long = trial("v2/base_text_only_task", 2_000_000)
    assert long.optimization.max_update == 1_000_000


def test_data_folders_and_names_of_trials(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "recipe: v2/text_finetuning/{task}\ndata_folders: {rte: RTE-bin}\n"
        "fixed: {task.data: /glue/, model.model_path: /m}\n"
        "grid: {task: [rte, cola], lr: [1.0e-5], model.pooler_dropout: [0.1], common.fp16: [true]}\n"
    )
    sweep = load_sweep("s", [], str(tmp_path))
    assert [t.recipe.task.data for t in sweep.trials] == ["/glue/RTE-bin", "/glue"]
    assert [t.name for t in sweep.trials] == [f"{task}_lr=1e-05_pooler_dropout=0.1_fp16=true"
                                              for task in ("rte", "cola")]  # fmt: skip
    assert sweep.trials[0].group == {
        "task": "rte",
        "lr": 1e-5,
        "model.pooler_dropout": 0.1,
        "common.fp16": True,
    }
    elsewhere = load_sweep("s", ["task.data=/other"], str(tmp_path))
    assert [t.recipe.task.data for t in elsewhere.trials] == ["/other/RTE-bin", "/other"]
    far = load_sweep("s", ["task.data=s3://b/glue/"], str(tmp_path))
    assert far.trials[0].recipe.task.data == "s3://b/glue/RTE-bin"
    seeds = sweep_of(COLA, ["task.data=/x", "model.model_path=/m", "common.seed=1,2"])
    assert seeds.trials[0].group == seeds.trials[1].group == {} and seeds.name == COLA.replace("/", "-")
