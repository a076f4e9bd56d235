"""Audio events: each pooling of a model by its formula over its own frames, and mixing by its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from data2vec.audio_events import AudioEventConfig, AudioEventModel, pool_events
from data2vec.audio_mixup import MixupOptions, clip_levels, mix_clips
from data2vec.v1.config import Data2VecAudioConfig
from tests.models.plain import agree, gelu, informative

SPEC = "[(8, 10, 5)] + [(8, 3, 2)] * 2"
TRUNK = Data2VecAudioConfig.from_dict(
    {"extractor_mode": "layer_norm", "encoder_layers": 1, "encoder_embed_dim": 16,
     "encoder_ffn_embed_dim": 16, "encoder_attention_heads": 2, "conv_feature_layers": SPEC, "conv_pos": 9,
     "conv_pos_groups": 2, "pos_conv_depth": 3, "average_top_k_layers": 1}
)  # fmt: skip


def build(**values: Any) -> AudioEventModel:
    torch.manual_seed(0)
    model = AudioEventModel(TRUNK, AudioEventConfig(num_classes=5, **values)).eval()
    informative(model, 1)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Two clips of 1400 and 900 samples: 69 and 44 frames."""
    padding = torch.arange(1400)[None] >= torch.tensor([[1400], [900]])
    return torch.randn(2, 1400).masked_fill(padding, 0.0), padding, [69, 44]


def real_frames(model: AudioEventModel, audio: torch.Tensor, padding: torch.Tensor) -> list[torch.Tensor]:
    features = model.trunk(audio, padding).x_BTD.double()
    return [x[:count] for x, count in zip(features, [69, 44], strict=True)]


def layer(model: AudioEventModel, name: str, x: torch.Tensor) -> torch.Tensor:
    """A linear layer, or a convolution over frames, by name."""
    weight, bias = (model.get_parameter(f"{name}.{part}").double() for part in ("weight", "bias"))
    if weight.ndim == 2:
        return x @ weight.T + bias
    stride, width = model.options.conv_stride, weight.shape[2]
    starts = range(0, len(x) - width + 1, stride)
    return torch.stack([torch.einsum("ock,kc->o", weight, x[s : s + width]) + bias for s in starts])


def sharpened(z: torch.Tensor) -> torch.Tensor:
    p = z.sigmoid()
    return torch.logit(p.square().sum(0) / p.sum(0))


@pytest.mark.parametrize("where", ["prediction_mode", "eval_prediction_mode"])
@pytest.mark.parametrize("mode", ["cls", "average_before", "average", "max", "extremized_odds", "lin_softmax",
                                  "average_sigmoid", "max_sigmoid"])  # fmt: skip
def test_poolings(mode: Any, where: str) -> None:
    if where == "eval_prediction_mode":
        model = build(prediction_mode="average", eval_prediction_mode=mode, extreme_factor=0.3)
    else:
        model = build(prediction_mode=mode, extreme_factor=0.3)
    audio, padding, _ = batch()
    pool: dict[str, Any] = {
        "cls": lambda x: layer(model, "proj", x[0]),
        "average_before": lambda x: layer(model, "proj", x.mean(0)),
        "average": lambda x: layer(model, "proj", x).mean(0),
        "average_sigmoid": lambda x: layer(model, "proj", x).sigmoid().mean(0),
        "max": lambda x: layer(model, "proj", x).amax(0),
        "max_sigmoid": lambda x: layer(model, "proj", x).sigmoid().amax(0),
        "extremized_odds": lambda x: 0.3 * layer(model, "proj", x).sum(0),
        "lin_softmax": lambda x: sharpened(layer(model, "proj", x)),
    }
    wanted = torch.stack([pool[mode](x) for x in real_frames(model, audio, padding)])
    output = model(audio, padding)
    agree(output.scores_BC, wanted, mode)
    assert output.are_logits is not mode.endswith("sigmoid")
    if where == "eval_prediction_mode" and mode not in ("average", "average_before"):  # equal by linearity
        trained = model.train()(audio, padding).scores_BC
        assert not torch.allclose(trained, output.scores_BC, atol=1e-3)


def test_two_projections_around_the_mean() -> None:
    model = build(prediction_mode="proj_avg_proj")
    audio, padding, _ = batch()
    wanted = [
        layer(model, "proj2", layer(model, "proj", x).mean(0)) for x in real_frames(model, audio, padding)
    ]
    agree(model(audio, padding).scores_BC, torch.stack(wanted), "proj_avg_proj")


@pytest.mark.parametrize(
    ("kernel", "stride", "two"), [(3, 1, False), (4, 3, False), (2, 2, True), (1, 1, True)]
)
def test_convolutions_over_real_frames(kernel: int, stride: int, two: bool) -> None:
    """Only outputs that see no padding count."""
    model = build(conv_kernel=kernel, conv_stride=stride, two_convs=two, prediction_mode="average")
    audio, padding, _ = batch()
    wanted = []
    for x in real_frames(model, audio, padding):
        z = layer(model, "proj.1", x)
        wanted.append((layer(model, "proj.4", gelu(z)) if two else z).mean(0))
    agree(model(audio, padding).scores_BC, torch.stack(wanted), "convolution")


def test_a_clip_shorter_than_the_kernel_is_filled_with_zeros() -> None:
    model = build(conv_kernel=6, prediction_mode="max")
    audio = torch.randn(1, 60)  # two frames
    x = model.trunk(audio).x_BTD[0].double()
    assert len(x) == 2
    wanted = layer(model, "proj.1", torch.cat([x, torch.zeros(4, 16)]))[0]
    agree(model(audio).scores_BC[0], wanted, "one output")


def test_dropout_before_the_projection_and_scores_that_are_no_numbers() -> None:
    model, audio = build(final_dropout=0.5).train(), torch.randn(1, 900)
    model.trunk.eval()
    assert not torch.equal(model(audio).scores_BC, model(audio).scores_BC)
    with torch.no_grad():
        model.get_parameter("proj.bias")[2] = float("nan")
    assert torch.isfinite(model.eval()(audio).scores_BC).all()


def test_extreme_factor_is_one_unless_it_is_given() -> None:
    z, real = torch.randn(1, 4, 2), torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(pool_events(z, real, "extremized_odds"), z.sum(1))


# ---- mixing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("mode", ["none", "naive_rms", "RMSE", "A_weighting"])
def test_each_clip_is_the_formula_of_itself_and_its_partner(mode: Any, same: bool) -> None:
    torch.manual_seed(4)
    count = 6
    source = torch.randn(count, 5000) * torch.tensor([0.01, 0.1, 0.3, 1.0, 2.0, 5.0])[:, None]
    options = MixupOptions(source_mixup=0.3, same_mixup=same, label_mixup=True, gain_mode=mode)
    mixed, shares = mix_clips(source, torch.eye(count), None, options, (1, 2))
    levels = None if mode == "none" else clip_levels(source, mode).double()
    partners = set()
    for row in range(count):
        ratio = float(shares[row, row])
        others = [other for other in range(count) if other != row and shares[row, other] > 0]
        partner = others[0] if others else row
        partners.add(partner)
        if partner == row:
            ratio = 1.0
            torch.testing.assert_close(mixed[row] / mixed[row].norm(), source[row] / source[row].norm())
            continue
        own = ratio
        if levels is not None:
            own = 1 / (1 + 10 ** (float(levels[row] - levels[partner]) / 20) * (1 - ratio) / ratio)
        wanted = (own * source[row] + (1 - own) * source[partner]) / math.sqrt(own**2 + (1 - own) ** 2)
        torch.testing.assert_close(mixed[row], wanted, rtol=1e-3, atol=1e-4)
        assert 0.3 <= ratio <= 1.0
    assert len(partners) == count, "a permutation"
    again, other = (mix_clips(source, torch.eye(count), None, options, key)[0] for key in ((1, 2), (1, 3)))
    assert torch.equal(again, mixed) and not torch.equal(other, mixed)


def test_the_level_is_that_of_the_loudest_window_which_overlap_by_half() -> None:
    burst = torch.zeros(1, 3 * 2048)
    burst[0, 1024 : 1024 + 2048] = 0.5  # lies in the second of the overlapping windows
    assert float(clip_levels(burst, "RMSE")) == pytest.approx(20 * math.log10(0.5), abs=1e-3)
    assert float(clip_levels(burst, "naive_rms")) == pytest.approx(0.5 / math.sqrt(3), rel=1e-4)
    assert float(clip_levels(torch.zeros(1, 4096), "A_weighting")) == pytest.approx(-80.0)


@pytest.mark.parametrize(("pitch", "decibels"), [(125.0, -16.1), (250.0, -8.6), (500.0, -3.2), (1000.0, 0.0),
                                                 (2000.0, 1.2), (4000.0, 1.0)])  # fmt: skip
def test_the_a_curve(pitch: float, decibels: float) -> None:
    """IEC 61672's table, measured with tones."""
    time = torch.arange(16_000) / 16_000
    tones = [torch.sin(2 * math.pi * p * time)[None] for p in (pitch, 1000.0)]
    level, reference = (float(clip_levels(tone, "A_weighting")) for tone in tones)
    assert level - reference == pytest.approx(decibels, abs=0.25)
    # A Hann window lets 3/8 of the power through; half the spectrum has N / 2 times that sum.
    power = 2048 * 2048 * (3 / 8) * 0.5 / 2
    assert reference == pytest.approx(10 * math.log10(power), abs=0.1)
