"""data2vec 1 text through the training loop: pretraining, fine-tuning from ``checkpoint.restore_file``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_platform.preparation.glue import prepare_glue
from d2v_platform.recipe.checks import problems
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.schema import Recipe
from d2v_platform.registry.model_folders import resolve_models
from d2v_platform.tasks.sentence_prediction import SentencePrediction
from d2v_platform.training.job import Job, ResolvedModels
from d2v_platform.training.loop_state import Worker
from d2v_platform.training.train_loop import train
from data2vec.artifact import read_artifact, save_artifact
from data2vec.errors import ConfigError
from data2vec.loading import load
from data2vec.v1.text import Data2VecText
from data2vec.v1.text_config import Data2VecTextConfig
from tests.platform.recorder import Recorder

TRANSFORMER = {
    "activation_fn": "gelu", "dropout": 0.1, "attention_dropout": 0.1, "max_source_positions": 64,
    "layernorm_embedding": True, "no_scale_embedding": True,
    "encoder": {"embed_dim": 32, "ffn_embed_dim": 64, "layers": 2, "attention_heads": 2, "learned_pos": True},
}  # fmt: skip


def v1(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    recipe = copy.deepcopy(tiny_recipe)
    recipe["task"] |= {"mask_prob": 0.35, "mask_multiple_length": 4}
    recipe["model"] = {
        "_name": "data2vec_text", "head_layers": 2, "average_top_k_layers": 2,
        "layer_norm_target_layer": True,
        "loss_beta": 4.0, "loss_scale": 1.0, "ema_decay": 0.9, "ema_end_decay": 0.99,
        "ema_anneal_end_step": 10, "transformer": TRANSFORMER,
    }  # fmt: skip
    return recipe


def test_pretraining_learns_resumes_and_leaves_a_model(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = v1(tiny_recipe)
    assert problems(Recipe.from_dict(recipe)) == []
    losses = Recorder()
    summary = train(Job(Recipe.from_dict(recipe), tmp_path / "whole"), losses, Worker(threads=1))
    assert len(losses.curve()) == 20 and losses.curve()[-1] < losses.curve()[0]
    half = copy.deepcopy(recipe)
    half["optimization"]["max_update"] = 10
    half["model"]["max_update"] = 20
    half["lr_scheduler"]["max_update"] = 20
    train(Job(Recipe.from_dict(half), tmp_path / "parts"), Recorder(), Worker(threads=1))
    rest = Recorder()
    train(Job(Recipe.from_dict(recipe), tmp_path / "parts"), rest, Worker(threads=1))
    assert rest.curve() == losses.curve()[10:]
    artifact = read_artifact(tmp_path / "whole" / "model")
    assert isinstance(artifact.model_config, Data2VecTextConfig) and summary.update == 20
    assert (artifact.folder / "teacher.safetensors").is_file()
    again = Recorder()
    train(
        Job(Recipe.from_dict(recipe), tmp_path / "more", models=ResolvedModels(initial=artifact.folder)),
        again,
        Worker(threads=1),
    )
    assert again.curve()[0] < losses.curve()[0]


def test_masking_follows_the_task_and_zero_masking_is_refused(tiny_recipe: dict[str, Any]) -> None:
    recipe = v1(tiny_recipe)
    recipe["task"] |= {"mask_prob": 0.0, "mask_multiple_length": 0, "tokens_per_sample": 65}
    recipe["criterion"]["loss_weights"] = {"TEXT_regression": 1.0}
    found = {problem.field: problem.rule for problem in problems(Recipe.from_dict(recipe))}
    assert found.keys() >= {"task.mask_prob", "task.mask_multiple_length", "task.tokens_per_sample"}
    assert "main" in found["criterion.loss_weights"]


@pytest.fixture
def pretrained(tiny_glue: Any, tmp_path: Path) -> Path:
    """An untrained data2vec 1 model with the words of ``tiny_glue``."""
    tokenizer = read_artifact(tiny_glue.model).tokenizer
    assert tokenizer is not None
    options = {**TRANSFORMER, "max_source_positions": 512}
    config = Data2VecTextConfig.from_dict(
        {"transformer": options, "average_top_k_layers": 2, "head_layers": 2}
    )
    network = Data2VecText(config, vocab_size=len(tokenizer.dictionary.with_mask()))
    return save_artifact(
        tmp_path / "v1",
        kind="pretrained",
        model_config=config,
        state=network.state_dict(),
        tokenizer=tokenizer,
    )


def test_glue_fine_tuning_starts_from_the_restore_file(
    pretrained: Path, tiny_glue: Any, tmp_path: Path, home: Path
) -> None:
    data = tmp_path / "bin"
    prepare_glue(tiny_glue.raw, data, tasks=["CoLA"], dictionary=pretrained / "tokenizer" / "dict.txt")
    overrides = [f"task.data={data}/CoLA-bin", f"checkpoint.restore_file={pretrained}",
                 "dataset.num_workers=0",
                 "optimization.max_update=40", "lr_scheduler.warmup_updates=2", "optimization.lr=[1e-3]",
                 "optimization.max_epoch=20", "common.log_interval=1", "model.dropout=0.2"]  # fmt: skip
    recipe = compose("cola", overrides, "examples/roberta/config/finetuning").recipe
    models = resolve_models(recipe)
    assert models.pretrained == pretrained and models.initial is None
    task = SentencePrediction(recipe, models.pretrained)
    expected = read_artifact(pretrained).trunk_state
    started = task.model.trunk.state_dict()
    assert started.keys() == expected.keys()
    assert all(torch.equal(started[name], expected[name]) for name in started)
    assert task.model.trunk.config.transformer.dropout == 0.2  # the recipe's, not pretraining's
    losses = Recorder()
    summary = train(Job(recipe, tmp_path / "run", models=models, threads=1), losses)
    assert summary.update == 40 and sum(losses.curve()[-10:]) < sum(losses.curve()[:10])
    model = load(tmp_path / "run" / "model")
    names, scores = model.classify(["the old mill", "the river turned not"])
    assert sorted(names) == ["0", "1"] and scores.shape == (2, 2)
    assert scores.sum(1) == pytest.approx([1, 1])
    assert model.embed(["the old mill"])[0].shape == (32,)


def test_a_data2vec_2_model_as_restore_file_is_refused(tiny_glue: Any, tmp_path: Path, home: Path) -> None:
    data = tmp_path / "bin"
    prepare_glue(tiny_glue.raw, data, tasks=["CoLA"], dictionary=tiny_glue.model / "tokenizer" / "dict.txt")
    overrides = [f"task.data={data}/CoLA-bin", f"checkpoint.restore_file={tiny_glue.model}"]
    recipe = compose("roberta/finetuning/cola", overrides).recipe
    with pytest.raises(ConfigError, match=r"checkpoint\.restore_file.*is a data2vec 2\.0 model"):
        SentencePrediction.check_data(recipe, resolve_models(recipe).pretrained)
