"""Audio events: poolings against their formulas, mixing against its own, padding without influence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

import data2vec
from data2vec.artifact import read_artifact, save_artifact
from data2vec.audio_events import AudioEventConfig, AudioEventModel, EventOutput, EventPooling, pool_events
from data2vec.audio_mixup import MixupOptions, clip_levels, mix_clips
from data2vec.config import Data2VecMultiConfig
from data2vec.errors import CheckpointError
from data2vec.interop.export import export_fairseq
from data2vec.interop.model_folder import import_file, save_imported
from data2vec.metrics import event_metrics, event_scores_by_class
from data2vec.v1.config import Data2VecAudioConfig

SPEC = "[(8, 10, 5)] + [(8, 3, 2)] * 2 + [(8,2,2)]"
MODES = get_args(EventPooling)


def v1() -> Data2VecAudioConfig:
    return Data2VecAudioConfig.from_dict(
        {"extractor_mode": "layer_norm", "encoder_layers": 2, "encoder_embed_dim": 16,
         "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2, "conv_feature_layers": SPEC,
         "conv_pos": 9, "conv_pos_groups": 2, "pos_conv_depth": 3, "average_top_k_layers": 2}
    )  # fmt: skip


def v2() -> Data2VecMultiConfig:
    return Data2VecMultiConfig.from_dict(
        {"supported_modality": "AUDIO", "embed_dim": 16, "num_heads": 2, "depth": 2,
         "average_top_k_layers": 2, "ema_encoder_only": False, "modalities": {"text": None, "audio": {
             "feature_encoder_spec": SPEC, "conv_pos_width": 9, "conv_pos_depth": 3, "conv_pos_groups": 2,
             "prenet_depth": 0, "decoder": None}}}
    )  # fmt: skip


def options(**values: Any) -> AudioEventConfig:
    return AudioEventConfig(**{"num_classes": 5, **values})


def padded(short: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of a clip with padding behind it and a full one, and its padding mask."""
    batch = torch.zeros(2, length)
    batch[0, : len(short)], batch[1] = short, torch.randn(length)
    padding = torch.zeros(2, length, dtype=torch.bool)
    padding[0, len(short) :] = True
    return batch, padding


@pytest.mark.parametrize("config", [v1(), v2()], ids=["v1", "v2"])
@pytest.mark.parametrize(
    "values",
    [*({"prediction_mode": mode} for mode in MODES), {"conv_kernel": 3, "conv_stride": 2},
     {"conv_kernel": 2, "two_convs": True, "prediction_mode": "max"}],
    ids=[*MODES, "conv", "two_convs"],
)  # fmt: skip
def test_a_clip_alone_scores_as_in_a_longer_batch(config: Any, values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = AudioEventModel(config, options(**values)).eval()
    short = torch.randn(605)
    batch, padding = padded(short, 1410)
    alone, together = model(short[None]).scores_BC, model(batch, padding).scores_BC
    assert alone.shape == (1, 5) and torch.allclose(alone[0], together[0], atol=3e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3), "the other clip is another one"


def test_the_references_pooling_of_padded_frames_on_request() -> None:
    torch.manual_seed(0)
    short = torch.randn(605)
    batch, padding = padded(short, 1410)
    model = AudioEventModel(v1(), options(prediction_mode="average", pool_padding=True)).eval()
    alone, together = model(short[None]).scores_BC, model(batch, padding).scores_BC
    assert not torch.allclose(alone[0], together[0], atol=1e-4)
    # Padded features are zeros, whose scores are the bias.
    frames, total = _frames(605), _frames(1410)
    assert isinstance(model.proj, nn.Linear)
    expected = (alone[0] * frames + model.proj.bias * (total - frames)) / total
    assert torch.allclose(together[0], expected, atol=3e-5)


def _frames(samples: int) -> int:
    for width, stride in ((10, 5), (3, 2), (3, 2), (2, 2)):
        samples = (samples - width) // stride + 1
    return samples


def test_poolings_are_their_formulas() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 7, 3).double()
    real = torch.ones(2, 7, dtype=torch.bool)
    real[0, 4:] = False
    kept = [z[0, :4], z[1]]

    def each(of: Any) -> torch.Tensor:
        return torch.stack([of(part) for part in kept])

    def linear_softmax(part: torch.Tensor) -> torch.Tensor:
        p = part.sigmoid()
        return torch.logit((p * p).sum(0) / p.sum(0))

    assert torch.allclose(pool_events(z, real, "lin_softmax"), each(linear_softmax))
    assert torch.allclose(pool_events(z, real, "average"), each(lambda p: p.mean(0)))
    assert torch.allclose(pool_events(z, real, "average_sigmoid"), each(lambda p: p.sigmoid().mean(0)))
    assert torch.allclose(pool_events(z, real, "max"), each(lambda p: p.amax(0)))
    assert torch.allclose(pool_events(z, real, "max_sigmoid"), each(lambda p: p.sigmoid().amax(0)))
    assert torch.allclose(pool_events(z, real, "extremized_odds", 0.5), each(lambda p: 0.5 * p.sum(0)))


def test_a_certain_clip_has_a_finite_logit_and_gradient() -> None:
    z = torch.full((1, 3, 2), 90.0, requires_grad=True)
    pooled = pool_events(z, torch.ones(1, 3, dtype=torch.bool), "lin_softmax")
    assert torch.isfinite(pooled).all() and 15 < float(pooled[0, 0].detach()) < 17
    EventOutput(pooled, True).loss(torch.zeros(1, 2)).backward()
    assert z.grad is not None and torch.isfinite(z.grad).all()


@pytest.mark.parametrize("mode", ["lin_softmax", "average_sigmoid"])
def test_loss_is_the_summed_binary_cross_entropy(mode: EventPooling) -> None:
    torch.manual_seed(0)
    model = AudioEventModel(v1(), options(prediction_mode=mode)).eval()
    output = model(torch.randn(2, 700))
    labels = torch.tensor([[1.0, 0, 0, 1, 0], [0.3, 0.7, 0, 0, 0]])
    p = output.probabilities().double()
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).sum()
    assert float(output.loss(labels).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert output.are_logits is (mode == "lin_softmax")


def test_freezing_masking_and_evaluation_mode() -> None:
    values = {"apply_mask": True, "mask_prob": 0.5, "mask_length": 3, "freeze_finetune_updates": 5,
              "eval_prediction_mode": "max", "feature_grad_mult": 1.0}  # fmt: skip
    model = AudioEventModel(v1(), options(**values)).train()
    audio, labels = torch.randn(2, 900), torch.zeros(2, 5)
    model(audio, update=0).loss(labels).backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learned == {"proj.weight", "proj.bias"}
    model.zero_grad()
    first = model(audio, update=5).scores_BC
    first.sum().backward()
    assert model.trunk.get_parameter("post_extract_proj.weight").grad is not None
    assert torch.equal(first, model(audio, update=5).scores_BC), "masks are functions of seed, update and id"
    assert not torch.equal(first, model(audio, update=6).scores_BC)
    model.eval()
    evaluated = model(audio).scores_BC
    model.options.eval_prediction_mode = None
    assert not torch.allclose(evaluated, model(audio).scores_BC), "evaluation may pool in another way"


def test_names_are_the_references() -> None:
    def heads(**values: Any) -> dict[str, tuple[int, ...]]:
        state = AudioEventModel(v1(), options(**values)).state_dict()
        return {name: tuple(x.shape) for name, x in state.items() if not name.startswith("d2v_model.")}

    assert heads() == {"proj.weight": (5, 16), "proj.bias": (5,)}
    assert heads(prediction_mode="proj_avg_proj")["proj2.weight"] == (5, 32)
    assert heads(conv_kernel=3) == {"proj.1.weight": (5, 16, 3), "proj.1.bias": (5,)}
    two = heads(conv_kernel=1, two_convs=True)
    assert (two["proj.1.weight"], two["proj.4.weight"]) == ((16, 16, 1), (5, 16))


def test_impossible_options_are_refused() -> None:
    found = options(conv_kernel=3, prediction_mode="cls", conv_stride=0).problems()
    assert {problem.field for problem in found} == {"model.prediction_mode", "model.conv_stride"}
    found = options(eval_prediction_mode="proj_avg_proj").problems()
    assert [problem.field for problem in found] == ["model.eval_prediction_mode"]
    assert len(MixupOptions(mixup_prob=2.0, source_mixup=1.5).problems()) == 2


# ---- mixing --------------------------------------------------------------------------------------------


def batch_of(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(count, 4096), torch.eye(count)


def test_mixing_is_a_function_of_its_key_and_its_formula() -> None:
    source, labels = batch_of()
    settings = MixupOptions(source_mixup=0.5, label_mixup=True)
    mixed, shares = mix_clips(source, labels, None, settings, (1, 2, 3))
    again, _ = mix_clips(source, labels, None, settings, (1, 2, 3))
    other, _ = mix_clips(source, labels, None, settings, (1, 2, 4))
    assert torch.equal(mixed, again) and not torch.equal(mixed, other)
    assert torch.allclose(shares.sum(1), torch.ones(6)), "a clip's labels stay one in all"
    own = shares.diagonal()
    changed = own < 1
    assert changed.any() and len({round(float(r), 6) for r in own[changed]}) == 1, "one ratio a batch"
    r = float(own[changed][0])
    assert 0.5 <= r < 1
    for row in torch.nonzero(changed)[:, 0].tolist():
        partner = int((shares[row] * (1 - torch.eye(6)[row])).argmax())
        expected = (r * source[row] + (1 - r) * source[partner]) / math.sqrt(r**2 + (1 - r) ** 2)
        assert torch.allclose(mixed[row], expected, atol=1e-5)


def test_one_ratio_a_clip_labels_left_alone_and_clips_not_chosen() -> None:
    source, labels = batch_of(64)
    each = MixupOptions(source_mixup=0.1, same_mixup=False, label_mixup=True)
    _, shares = mix_clips(source, labels, None, each, (0,))
    assert len({round(float(r), 5) for r in shares.diagonal()}) > 30
    alone = MixupOptions(source_mixup=0.1, label_mixup=False)
    mixed, same = mix_clips(source, labels, None, alone, (0,))
    assert torch.equal(same, labels) and not torch.equal(mixed, source)
    half = MixupOptions(source_mixup=0.1, mixup_prob=0.5, label_mixup=True)
    mixed, shares = mix_clips(source, labels, None, half, (0,))
    untouched = (mixed == source).all(dim=1)
    assert 15 < int(untouched.sum()) < 50
    assert torch.equal(shares[untouched], labels[untouched])
    assert not MixupOptions().mixes and each.mixes


def test_a_longer_partner_ends_with_the_clip() -> None:
    source, labels = batch_of()
    padding = torch.zeros(6, 4096, dtype=torch.bool)
    padding[0, 1000:] = True
    source[0, 1000:] = 0.0
    mixed, _ = mix_clips(source, labels, padding, MixupOptions(source_mixup=0.0), (5,))
    assert float(mixed[0, 1000:].abs().sum()) == 0.0 and float(mixed[0, :1000].abs().sum()) > 0


@pytest.mark.parametrize("mode", ["naive_rms", "RMSE", "A_weighting"])
def test_levels_even_out_loud_and_quiet_clips(mode: Any) -> None:
    source, labels = batch_of()
    source[::2] *= 0.01
    settings = MixupOptions(source_mixup=0.5, gain_mode=mode, label_mixup=True)
    mixed, shares = mix_clips(source, labels, None, settings, (1, 2, 3))
    plain, same = mix_clips(source, labels, None, MixupOptions(source_mixup=0.5, label_mixup=True), (1, 2, 3))
    assert torch.equal(shares, same) and not torch.allclose(mixed, plain), "sound by level, labels by ratio"


def test_levels_are_decibels_of_the_loudest_window() -> None:
    time = torch.arange(16_000) / 16_000
    low, high = (torch.sin(2 * math.pi * pitch * time)[None] for pitch in (100.0, 1000.0))
    assert float(clip_levels(high, "RMSE")) == pytest.approx(10 * math.log10(0.5), abs=0.05)
    assert float(clip_levels(high, "naive_rms")) == pytest.approx(math.sqrt(0.5), abs=1e-3)
    # The A curve: 1 kHz is its reference, 100 Hz lies 19.1 dB below.
    gap = float(clip_levels(high, "A_weighting") - clip_levels(low, "A_weighting"))
    assert gap == pytest.approx(19.1, abs=0.3)
    assert float(clip_levels(torch.zeros(1, 300), "RMSE")) == pytest.approx(-80.0), "shorter than a window"


# ---- metrics -------------------------------------------------------------------------------------------


def test_metrics_are_means_over_the_classes_that_occur() -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    scores = np.array([[0.9, 0.1, 0.3], [0.8, 0.2, 0.1], [0.1, 0.9, 0.2], [0.2, 0.5, 0.9]])
    precision, area = event_scores_by_class(scores, labels)
    assert precision[0] == 100.0 and area[0] == 100.0
    assert precision[1] == pytest.approx(100 * (1 + 2 / 3) / 2) and math.isnan(precision[2])
    found = event_metrics(scores, labels)
    assert found["mAP"] == pytest.approx((100 + precision[1]) / 2)
    assert found["top1"] == 75.0 and found["mAUC"] == pytest.approx((100 + area[1]) / 2)
    assert event_metrics(scores[:0], labels[:0]) == {"mAP": 0.0, "mAUC": 0.0, "top1": 0.0}


# ---- the reference's files -----------------------------------------------------------------------------


@pytest.mark.parametrize("config", [v1(), v2()], ids=["v1", "v2"])
@pytest.mark.parametrize(
    "values", [{}, {"conv_kernel": 2, "two_convs": True}, {"prediction_mode": "proj_avg_proj"}],
    ids=["linear", "two_convs", "proj_avg_proj"],
)  # fmt: skip
def test_out_to_the_references_file_and_back(config: Any, values: dict[str, Any], tmp_path: Path) -> None:
    model = AudioEventModel(config, options(**values)).eval()
    folder = save_artifact(
        tmp_path / "ours", kind="audio_classifier", model_config=config, head_config=model.options,
        state=model.state_dict(), task={"normalize": True, "labels": list("abcde")},
    )  # fmt: skip
    export_fairseq(read_artifact(folder), tmp_path / "theirs.pt")
    back = data2vec.load(save_imported(import_file(tmp_path / "theirs.pt"), tmp_path / "back"))
    audio = torch.randn(1500).numpy()
    assert back.classes == ["0", "1", "2", "3", "4"], "names are not part of the reference's files"
    assert np.array_equal(back.classify([audio])[1], data2vec.load(folder).classify([audio])[1])


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = AudioEventModel(v1(), options())
    folder = save_artifact(
        tmp_path / "ours", kind="audio_classifier", model_config=v1(), head_config=model.options,
        state=model.state_dict(), task={"normalize": True},
    )  # fmt: skip
    artifact = read_artifact(folder)
    artifact.state["proj.bias"] = torch.zeros(7)
    export_fairseq(artifact, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match=r"proj\.bias is \(7,\)"):
        import_file(tmp_path / "theirs.pt")
