"""Targets: every normalisation against its formula, and the running average against a list."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.config import Data2VecMultiConfig
from data2vec.targets import TargetAverage

MakeConfig = Callable[..., Data2VecMultiConfig]
AXES = {"batch": (0, 1), "instance": (1,), "layer": (2,)}
EPS = 1e-5


def normalise(x: np.ndarray, kind: str) -> np.ndarray:
    """Zero mean, unit (biased) variance over batch and time, over time, or over channels."""
    mean = x.mean(axis=AXES[kind], keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=AXES[kind], keepdims=True)
    return (x - mean) / np.sqrt(variance + EPS)


def layers(count: int, scale: float = 1.0, seed: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [scale * (torch.randn(3, 6, 16) + index) for index in range(count)]


def average(config: Data2VecMultiConfig, values: list[torch.Tensor]) -> torch.Tensor:
    running = TargetAverage(config)
    for index, value in enumerate(values):
        running.add(index, value)
    return running.result()


@pytest.mark.parametrize("scale", [1.0, 3e-3], ids=["usual", "tiny variance: epsilon matters"])
@pytest.mark.parametrize("final", [None, "layer", "instance"])
@pytest.mark.parametrize("per_layer", [None, "batch", "instance", "layer"])
def test_formula(make_config: MakeConfig, per_layer: str | None, final: str | None, scale: float) -> None:
    fields = {"instance_norm_target_layer": False, "norm_eps": 0.1}  # norm_eps is for the blocks alone
    if per_layer:
        fields[f"{per_layer}_norm_target_layer"] = True
    if final:
        fields[f"{final}_norm_targets"] = True
    values = layers(4, scale)
    expected = np.zeros((3, 6, 16))
    for value in values[1:]:
        x = value.double().numpy()
        expected += (normalise(x, per_layer) if per_layer else x) / 3
    if final:
        expected = normalise(expected, final)
    result = average(make_config(depth=4, average_top_k_layers=3, **fields), values)
    np.testing.assert_allclose(result.numpy(), expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())


def test_order_of_the_norms(make_config: MakeConfig) -> None:
    """Per layer: batch, instance, layer; after averaging: layer, then instance."""
    values = layers(2)
    config = make_config(
        batch_norm_target_layer=True,
        layer_norm_target_layer=True,
        layer_norm_targets=True,
        instance_norm_targets=True,
    )
    expected = np.zeros((3, 6, 16))
    for value in values:
        x = value.double().numpy()
        for kind in ("batch", "instance", "layer"):
            x = normalise(x, kind)
        expected += x / 2
    expected = normalise(normalise(expected, "layer"), "instance")
    np.testing.assert_allclose(average(config, values).numpy(), expected, rtol=1e-3, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(depth=st.integers(1, 6), data=st.data(), seed=st.integers(0, 1000))
def test_running_average_equals_the_mean_of_a_list(depth: int, data: st.DataObject, seed: int) -> None:
    top = data.draw(st.integers(1, depth))
    config = Data2VecMultiConfig(depth=depth, average_top_k_layers=top)
    values = layers(depth, seed=seed)
    expected = torch.stack(values[-top:]).double().mean(dim=0)
    torch.testing.assert_close(average(config, values).double(), expected, rtol=1e-5, atol=1e-5)


def test_layers_are_not_changed_and_half_precision_becomes_fp32(make_config: MakeConfig) -> None:
    values = [value.bfloat16() for value in layers(2)]
    before = [value.clone() for value in values]
    result = average(make_config(instance_norm_target_layer=False), values)
    assert result.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(values, before, strict=True))
    torch.testing.assert_close(result, (values[0].float() + values[1].float()) / 2)


def test_no_layer_dominates(make_config: MakeConfig) -> None:
    values = layers(2)
    louder = [values[0], values[1] * 1000]
    config = make_config(instance_norm_target_layer=True)
    torch.testing.assert_close(average(config, values), average(config, louder), rtol=1e-3, atol=1e-4)
