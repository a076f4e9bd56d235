"""The collapse watch: a planted collapse of each stage is found, warned about with advice, stops the run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from d2v_platform.recipe.schema import Recipe
from d2v_platform.registry.registration import gate_tags
from d2v_platform.tasks.text_pretraining import TextPretraining
from d2v_platform.training.collapse import CollapseWatch, collapsed_stages
from d2v_platform.training.job import Job
from d2v_platform.training.loop_state import LoopState, TrainingStopped, Worker
from d2v_platform.training.train_loop import train
from data2vec.collapse import STAGES, Scatter, watched_channels
from data2vec.pretraining import Data2VecPretraining
from tests.platform.recorder import Recorder


@torch.no_grad()
def constant_front_end(model: Data2VecPretraining) -> None:
    norm = model.student.get_submodule("modality_encoders.TEXT.local_encoder.layernorm_embedding")
    assert isinstance(norm, nn.LayerNorm)
    norm.weight.zero_()


@torch.no_grad()
def constant_encoder(model: Data2VecPretraining) -> None:
    model.student.blocks[-1].norm2.weight.zero_()  # type: ignore[union-attr]


@torch.no_grad()
def targets_on_a_line(model: Data2VecPretraining) -> None:
    """All channels equal: the instance norm gives each of them unit variance, so only the rank shows it."""
    for block in model.teacher.module:  # type: ignore[union-attr]
        block.mlp.fc2.weight.copy_(block.mlp.fc2.weight[:1].expand_as(block.mlp.fc2.weight))  # type: ignore[union-attr]


@torch.no_grad()
def constant_predictions(model: Data2VecPretraining) -> None:
    decoder = model.student.encoder.decoder
    assert decoder is not None
    decoder.proj[-1].weight.zero_()  # type: ignore[index]


PLANTED: dict[str, tuple[Callable[[Data2VecPretraining], None], str]] = {
    "local_features": (constant_front_end, "< platform.collapse_min_var 0.01"),
    "encoder": (constant_encoder, "< platform.collapse_min_var 0.01"),
    "targets": (targets_on_a_line, "effective rank 1 < platform.collapse_min_rank 2"),
    "predictions": (constant_predictions, "< platform.collapse_min_var 0.01"),
}


def still(recipe: dict[str, Any], **platform: Any) -> Recipe:
    """A recipe that changes nothing, so that what was planted stays."""
    values = copy.deepcopy(recipe)
    values["optimization"] |= {"lr": [1e-12], "max_update": 12}
    values["model"] |= {"ema_decay": 1.0, "ema_end_decay": 1.0}
    values["model"]["modalities"]["text"]["dropout"] = 0.0  # dropout would vary what is constant
    values["platform"] = {"collapse_after": 2, "collapse_patience": 3} | platform
    return Recipe.from_dict(values)


def plant(monkeypatch: pytest.MonkeyPatch, how: Callable[[Data2VecPretraining], None]) -> None:
    honest = TextPretraining.__init__

    def build(self: TextPretraining, recipe: Recipe, folder: Path | None = None) -> None:
        honest(self, recipe, folder)
        how(self.model)

    monkeypatch.setattr(TextPretraining, "__init__", build)


@pytest.mark.parametrize("stage", STAGES)
def test_a_planted_collapse_warns_and_then_stops(
    stage: str,
    tiny_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    how, words = PLANTED[stage]
    plant(monkeypatch, how)
    recorder = Recorder()
    with pytest.raises(TrainingStopped, match=f"update 5: {stage} collapsed .* for 3 log lines"):
        train(Job(still(tiny_recipe), tmp_path), recorder, Worker(threads=1))
    warned = [r.getMessage() for r in caplog.records if f": {stage} collapsed" in r.getMessage()]
    assert [text.split(":")[0] for text in warned] == ["update 3", "update 4"]
    assert words in warned[0] and "line 1 of 3" in warned[0]
    assert "optimization.lr" in warned[0]  # advice
    rank, var = (recorder.points[f"train/{stage}_{kind}"][5] for kind in ("rank", "var"))
    assert rank < 1.01 or var < 0.01


def test_a_healthy_run_and_a_recipe_that_only_warns(
    tiny_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder()
    train(Job(still(tiny_recipe, collapse_min_var=1e-5), tmp_path / "healthy"), recorder, Worker(threads=1))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert all(recorder.points[f"train/{stage}_rank"][12] > 2 for stage in STAGES)
    plant(monkeypatch, constant_encoder)
    summary = train(
        Job(still(tiny_recipe, collapse_patience=0), tmp_path / "warned"), Recorder(), Worker(threads=1)
    )
    assert summary.update == 12
    assert caplog.text.count("encoder collapsed") == 10
    assert collapsed_stages(still(tiny_recipe), summary.metrics, summary.update)[0] == "encoder"
    assert gate_tags(still(tiny_recipe), summary)["collapse"] == "true"  # the registry's gate


def test_only_updates_with_a_log_line_are_looked_at(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    values = copy.deepcopy(tiny_recipe)
    values["common"]["log_interval"] = 4
    values["optimization"]["max_update"] = 10
    recorder = Recorder()
    train(Job(Recipe.from_dict(values), tmp_path), recorder, Worker(threads=1))
    seen = list(recorder.points["train/encoder_rank"])
    assert seen == [4, 8]  # the line at the end, update 10, has no sums of its own


def test_effective_rank_of_known_spectra() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 8, generator=generator)
    parts = [Scatter.of(part) for part in x.split(200)]
    total = sum(parts[1:], parts[0])
    assert total.count == 20_000  # 256 at most of each part
    assert total.effective_rank() == pytest.approx(8.0, rel=1e-2)
    assert total.deviation() == pytest.approx(1.0, rel=2e-2)
    line = torch.randn(500, 1, generator=generator) * torch.ones(1, 8) + 7.0
    assert Scatter.of(line).effective_rank() == pytest.approx(1.0, abs=1e-3)
    assert Scatter.of(torch.full((50, 8), 3.0)).effective_rank() == 0.0
    two = torch.randn(4000, 2, generator=generator) @ torch.linalg.qr(torch.randn(8, 2)).Q.T
    assert Scatter.of(two).effective_rank() == pytest.approx(2.0, rel=2e-2)


def test_sums_do_not_depend_on_how_vectors_are_grouped_and_leave_padding_out() -> None:
    x = torch.randn(64, 5, 12, dtype=torch.float64).float()
    padding = torch.zeros(64, 5, dtype=torch.bool)
    padding[:, 3:] = True
    whole = Scatter.of(x[:, :3])
    masked = Scatter.of(torch.where(padding[..., None], 1e6, x), padding)
    grouped = Scatter.of(x[:20, :3]) + Scatter.of(x[20:, :3])
    for other in (masked, grouped):
        assert other.count == whole.count == 192
        torch.testing.assert_close(other.covariance(), whole.covariance(), rtol=1e-5, atol=1e-6)
    assert (watched_channels(768), watched_channels(1024), watched_channels(100)) == (256, 256, 100)
    assert Scatter.of(torch.randn(5000, 768)).count <= 256


def test_streaks_end_when_a_stage_recovers(tiny_recipe: dict[str, Any]) -> None:
    watch, state = CollapseWatch(still(tiny_recipe), {"encoder": 4}), LoopState(update=10)
    for var, streak in ((0.0, 1), (0.0, 2), (1.0, 0), (0.0, 1)):
        watch.figures = {"encoder_var": var, "encoder_rank": 3.0}
        assert watch.judge(state, speaks=False) is None
        assert state.collapse_streaks.get("encoder", 0) == streak
