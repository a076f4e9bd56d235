"""The card says what a reader needs and nothing that is secret."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from d2v_platform.recipe.compose import Composed, compose
from d2v_platform.registry import registration
from d2v_platform.registry.model_card import CardFacts, model_card
from d2v_platform.registry.model_versions import NewVersion
from d2v_platform.registry.registration import Registration, Trained, card_facts, gate_tags, lineage_tags
from d2v_platform.training.loop_state import Summary
from data2vec.families import family_of, modality_of


def facts(**more: Any) -> CardFacts:
    given: dict[str, Any] = {
        "name": "data2vec2-text-base-cola",
        "kind": "sentence_classifier",
        "summary": "Judges whether a sentence is acceptable.",
        "recipe": "v2/text_finetuning/cola",
        "data_fingerprint": "f00d",
        "modality": "text",
        "metrics": {"mcc": 61.25},
        "labels": ("no", "yes"),
        "parent": "models:/data2vec2-text-base/1",
        "lineage": {"recipe.digest": "abc"},
        "seeds": (1,),
        "alias": "champion",
    }
    return CardFacts(**(given | more))


def test_a_card_has_what_a_reader_needs() -> None:
    card = model_card(facts(recipe_difference={"optimization.lr": ([1e-5], [2e-5])}))
    for words in (
        "# data2vec2-text-base-cola",
        "`v2/text_finetuning/cola` with 1 changed key:",
        "| `optimization.lr` | `[1e-05]` | `[2e-05]` |",
        "| mcc | 61.25 |",
        "models:/data2vec2-text-base/1",
        "`f00d`",
        "| recipe.digest | `abc` |",
        'mlflow.pyfunc.load_model("models:/data2vec2-text-base-cola@champion")',
        "One seed (1) is noise",
        "## Licence",
    ):
        assert words in card


def test_an_unchanged_recipe_and_several_seeds_are_said_so() -> None:
    card = model_card(facts(seeds=(1, 2, 3)))
    assert "`v2/text_finetuning/cola`, unchanged." in card
    assert "3 seeds (1, 2, 3)" in card
    assert "noise" not in card
    assert "read the figures as one seed" in model_card(facts(seeds=()))


def test_pretrained_cards_show_embeddings() -> None:
    card = model_card(facts(kind="pretrained", parent=None, labels=()))
    assert '"output": "embedding"' in card
    assert "| trained from | scratch |" in card


def test_the_example_names_what_can_be_loaded() -> None:
    assert 'load_model("models:/data2vec2-text-base-cola/1")' in model_card(facts(alias=None))
    assert '@demo")  # or models:/data2vec2-text-base-cola/1' in model_card(facts(alias="demo"))
    image = model_card(facts(modality="image", kind="image_classifier"))
    assert "Some text." not in image and "Texts longer" not in image
    assert "calibrated" not in model_card(facts(modality="audio", kind="ctc"))


def test_the_difference_is_told_once() -> None:
    told = {"recipe.difference": '{"optimization.lr": [[1e-05], [2e-05]]}', "code.version": "1"}
    card = model_card(facts(lineage=told, recipe_difference={"optimization.lr": ([1e-5], [2e-5])}))
    assert card.count("optimization.lr") == 1 and "| code.version | `1` |" in card
    assert "None recorded" in model_card(facts(lineage={"recipe.difference": "none"}))


def test_long_differences_point_to_the_whole_list() -> None:
    card = model_card(facts(recipe_difference={f"k{i:03d}": (0, i) for i in range(60)}))
    assert "with 60 changed keys" in card
    assert "20 more are in `lineage.json`" in card
    assert "`k059`" not in card


def test_no_secret_and_no_broken_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    card = model_card(
        facts(
            recipe_difference={
                "task.data": ("a|b", "s3://id:correct-horse@bucket/x"),
                "platform.password": ("x", "y"),
            },
            metrics_note="logged in with correct-horse",
        )
    )
    assert "correct-horse" not in card
    assert "a\\|b" in card
    assert '| `platform.password` | `"***"` | `"***"` |' in card


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("v2/base_images_only_task", "data2vec 2.0 image encoder, 2 + 10 blocks, width 768, 12 heads"),
        ("v2/large_audio_only_task", "data2vec 2.0 audio encoder, 8 + 16 blocks, width 1024, 16 heads"),
        ("text/pretraining/base", "data2vec text encoder, 12 blocks, width 768, 12 heads"),
        ("audio/pretraining/base_librispeech", "data2vec audio encoder, 12 blocks, width 768, 12 heads"),
        ("vision/pretraining/base_imagenet", "data2vec image encoder, 12 blocks, width 768, 12 heads"),
        ("vision/pretraining/base_mae_imagenet", "MAE image encoder, 12 blocks, width 768, 12 heads"),
    ],
)
def test_every_family_has_a_summary_and_the_gate_of_pretrained_models(
    recipe: str, words: str, tmp_path: Path
) -> None:
    composed = compose(recipe, ["task.data=/data", "dataset.disable_validation=false"], check=False)
    model: Any = composed.recipe.model
    config = {"kind": "pretrained", "family": family_of(model), "model": model.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    figures = {"train/target_var": 0.5, "train/pred_var": 0.4, "train/loss": 1.0}
    summary = Summary(
        update=9000, metrics=figures, best=None, best_update=None, reason="max_update", export=None, facts={},
        seconds=1.0, bad_updates=0,
    )  # fmt: skip
    told = card_facts("m", composed, Trained("r", tmp_path, summary), {}, Registration())
    assert words in told.summary and told.modality == modality_of(model).lower()
    assert gate_tags(composed.recipe, summary)["collapse"] == "false"
    flat = dataclasses.replace(summary, metrics=figures | {"train/pred_var": 0.0})
    judged = getattr(model, "min_pred_var", 0.0) > 0
    assert gate_tags(composed.recipe, flat)["collapse"] == str(judged).lower()
    early = dataclasses.replace(flat, update=10)  # predictions start without variance
    assert gate_tags(composed.recipe, early) == {"collapse": "false"}
    known = {"floor.metric": "knn", "floor.data": "d"}
    probed = dataclasses.replace(summary, facts=known, metrics=figures | {"valid/knn": 41.5})
    assert gate_tags(composed.recipe, probed) == {
        "collapse": "false", "downstream.name": "knn", "downstream.value": "41.5",
        "downstream.maximize": "true", "downstream.data": "d",
    }  # fmt: skip


def finetuned() -> tuple[Composed, Summary]:
    composed = compose(
        "v2/text_finetuning/cola",
        ["task.data=/d", "model.model_path=/m", "optimization.lr=[3e-5]", "platform.register_as=tiny",
         "platform.alias=champion"],
    )  # fmt: skip
    summary = Summary(
        update=40, best=61.25, best_update=20,
        metrics={"valid/mcc": 60.5, "train/loss": 0.5, "train/lr": 1e-5},
        reason="max_update", export=None, facts={"data.fingerprint": "f00d"}, seconds=1.0, bad_updates=0,
    )  # fmt: skip
    return composed, summary


def test_a_version_carries_what_its_weights_come_from() -> None:
    composed, summary = finetuned()
    tags = lineage_tags(composed, summary, "models:/text/3")
    assert (tags["recipe.name"], tags["parent.version"]) == ("v2/text_finetuning/cola", "models:/text/3")
    assert tags["run.update"] == "20" and tags["data.fingerprint"] == "f00d"
    assert json.loads(tags["recipe.difference"])["optimization.lr"][1] == [3e-5]
    unvalidated = dataclasses.replace(summary, best=None, best_update=None)
    assert lineage_tags(composed, unvalidated, None)["run.update"] == "40"
    assert lineage_tags(composed, unvalidated, None)["parent.version"] == "none"
    judged = {"metric.name": "mcc", "metric.value": "61.25", "metric.maximize": "true"}
    assert gate_tags(composed.recipe, summary) == judged
    assert gate_tags(composed.recipe, unvalidated)["metric.value"] == "none"


@pytest.mark.parametrize(
    ("given", "taken", "asked", "answer"),
    [
        ({}, True, ("tiny", "champion"), "models:/tiny/4 (tiny@champion)"),
        ({}, False, ("tiny", "champion"), "models:/tiny/4"),
        ({"name": "own", "alias": "best"}, True, ("own", "best"), "models:/own/4 (own@best)"),
    ],
)
def test_a_run_registers_its_model_as_its_recipe_says(
    given: dict[str, str], taken: bool, asked: tuple[str, str], answer: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    composed, summary = finetuned()
    model = compose("text/pretraining/base", ["task.data=/d"], check=False).recipe.model
    config = {"kind": "sentence_classifier", "family": family_of(model), "model": model.to_dict()}  # type: ignore[union-attr]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(registration, "draw_data", lambda *places: list(places[1:]))
    calls: list[dict[str, Any]] = []

    def run(function: Any, new: NewVersion) -> Any:
        assert function is registration.register
        named = vars(new)
        calls.append(named)
        aliases = (named["alias"],) if taken else ()
        return SimpleNamespace(version=4, aliases=aliases, refusal=None if taken else "worse than version 3")

    tracker: Any = SimpleNamespace(run=run)
    found = registration.register_summary(
        tracker, composed, Trained("run1", tmp_path / "model", summary, "models:/text/3"),
        Registration(results_table=Path("/t"), **given),
    )  # fmt: skip
    assert found == answer and ("without the alias: worse than version 3" in caplog.text) == (not taken)
    (named,) = calls
    assert (named["name"], named["alias"]) == asked and named["results_table"] == Path("/t")
    assert (named["run_id"], named["folder"]) == ("run1", tmp_path / "model")
    assert named["pictures"] == [tmp_path / "model", tmp_path / "card"]
    assert named["tags"]["parent.version"] == "models:/text/3" and named["tags"]["metric.name"] == "mcc"
    card = named["card_markdown"]
    assert f'"models:/{asked[0]}@{asked[1]}"' in card and "| valid/mcc | 60.5 |" in card
    assert "train/lr" not in card and "weights of update 20" in card and "models:/text/3" in card
    platform = dataclasses.replace(composed.recipe.platform, register_as=None)
    nameless = dataclasses.replace(composed, recipe=dataclasses.replace(composed.recipe, platform=platform))
    assert (
        registration.register_summary(tracker, nameless, Trained("r", tmp_path, summary)) is None
        and len(calls) == 1
    )
