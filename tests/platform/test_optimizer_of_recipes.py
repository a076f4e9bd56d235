"""Rates, groups, precision and loss scale that a recipe's fields ask for, update by update."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from d2v_platform.recipe.schema import Recipe
from d2v_platform.training.optimizer import LossScale, choose_precision, make_optimizer
from data2vec.errors import ConfigError
from tests.platform.toy_task import toy_recipe


class Net(nn.Module):
    """Parameters of every kind: a matrix and a bias, by depth, and a decoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(2, 2), nn.Linear(2, 2)
        self.decoder = nn.Linear(2, 2)
        self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)


def rates(recipe: dict[str, Any], *updates: int, epoch: int = 1) -> list[float]:
    made = make_optimizer(Recipe.from_dict(recipe), Net())
    return [made.learning_rates(update, epoch)["default"] for update in updates]


def test_cosine() -> None:
    schedule = {"_name": "cosine", "warmup_updates": 4, "warmup_init_lr": 0.2, "min_lr": 0.1,
                "lr_period_updates": 10, "lr_shrink": 0.5, "t_mult": 2.0}  # fmt: skip
    recipe = toy_recipe(optimization={"max_update": 100, "lr": [1.0]}, lr_scheduler=schedule)
    # warm-up from 0.2; a period of 10 down to 0.1; one of 20, with peak and minimum halved
    found = rates(recipe, 0, 2, 4, 9, 14, 24, 33)
    last = 0.05 + 0.225 * (1 + math.cos(math.pi * 19 / 20))
    assert found == pytest.approx([0.2, 0.6, 1.0, 0.55, 0.5, 0.275, last])
    plain = {"_name": "cosine", "warmup_updates": 4, "min_lr": 0.1}
    recipe = toy_recipe(optimization={"max_update": 24, "lr": [1.0]}, lr_scheduler=plain)
    assert rates(recipe, 0, 4, 14) == pytest.approx([0.1, 1.0, 0.55]), "as long as the run"
    recipe["lr_scheduler"]["max_update"] = 44
    assert rates(recipe, 24) == pytest.approx([0.55]), "a length of its own"


def test_tri_stage() -> None:
    steps = {"warmup_steps": 4, "hold_steps": 2, "decay_steps": 4}
    schedule = {"_name": "tri_stage", "init_lr_scale": 0.1, "final_lr_scale": 0.04}
    wanted = [0.2, 1.1, 2.0, 2.0, 2.0 * 0.04**0.5, 0.08, 0.08]
    at = (0, 2, 4, 6, 8, 10, 11)
    recipe = toy_recipe(optimization={"max_update": 99, "lr": [2.0]}, lr_scheduler=schedule | steps)
    assert rates(recipe, *at) == pytest.approx(wanted)
    ratio = {"phase_ratio": [0.4, 0.2, 0.4]}
    recipe = toy_recipe(optimization={"max_update": 10, "lr": [2.0]}, lr_scheduler=schedule | ratio)
    assert rates(recipe, *at) == pytest.approx(wanted), "phases as shares of the run"
    recipe["optimization"]["max_update"], recipe["lr_scheduler"]["max_update"] = 1000, 10
    assert rates(recipe, *at) == pytest.approx(wanted), "of a length of its own"


def test_polynomial_decay_and_fixed_take_a_rate_an_epoch() -> None:
    schedule = {"_name": "polynomial_decay", "warmup_updates": 2, "end_learning_rate": 0.1, "power": 2.0}
    recipe = toy_recipe(optimization={"max_update": 12, "lr": [1.1, 2.1]}, lr_scheduler=schedule)
    assert rates(recipe, 1, 2, 7, 12, 20) == pytest.approx([0.55, 1.1, 0.35, 0.1, 0.1])
    assert rates(recipe, 7, epoch=2) == rates(recipe, 7, epoch=5) == pytest.approx([0.6])
    recipe["lr_scheduler"]["total_num_update"] = 22
    assert rates(recipe, 12) == pytest.approx([0.35])
    recipe = toy_recipe(optimization={"lr": [1.0, 3.0]}, lr_scheduler={"_name": "fixed", "warmup_updates": 4})
    assert rates(recipe, 0, 1, 3, 9) == pytest.approx([0.25, 0.5, 1.0, 1.0])
    assert rates(recipe, 9, epoch=2) == [3.0]


def composite(**groups: dict[str, Any]) -> dict[str, Any]:
    recipe = toy_recipe(optimization={"lr": [0.5], "max_update": 10}, lr_scheduler={"_name": "pass_through"})
    recipe["optimizer"] = {"_name": "composite", "groups": groups}
    recipe["model"]["decoder_group"] = len(groups) > 1
    return recipe


def group(weight_decay: float, warmup: int, **more: Any) -> dict[str, Any]:
    adam = {"_name": "adam", "adam_betas": [0.1 * warmup, 0.2 * warmup], "adam_eps": 10.0**-warmup,
            "weight_decay": weight_decay}  # fmt: skip
    return {"optimizer": adam, "lr_scheduler": {"_name": "fixed", "warmup_updates": warmup}, **more}


def test_groups_have_their_own_adam_and_rates() -> None:
    recipe = composite(default=group(0.3, 2, lr_float=4.0, lr=[9.0]), decoder=group(0.0, 4, lr=[8.0]))
    made, net = make_optimizer(Recipe.from_dict(recipe), model := Net()), model
    assert made.learning_rates(0) == {"default": 2.0, "decoder": 2.0}
    assert made.learning_rates(3) == {"default": 4.0, "decoder": 8.0}
    of = {p: g for g in made.adam.param_groups for p in g["params"]}
    assert set(of) == set(net.parameters()) - {net.fixed}
    for parameter, decay, betas, eps in (
        (net.low.weight, 0.3, (0.2, 0.4), 1e-2),
        (net.low.bias, 0.3, (0.2, 0.4), 1e-2),
        (net.decoder.bias, 0.0, (0.4, 0.8), 1e-4),
    ):
        found = of[parameter]
        assert found["weight_decay"] == decay and found["betas"] == pytest.approx(betas)
        assert found["eps"] == pytest.approx(eps)
    made.step(1)
    assert {g["lr"] for g in made.adam.param_groups} == {4.0}
    assert make_optimizer(Recipe.from_dict(composite(default=group(0, 1))), Net()).learning_rates(9) == {
        "default": 0.5
    }, "optimization.lr where a group has none"
    recipe = composite(default=group(0, 1))
    recipe["model"]["decoder_group"] = True
    with pytest.raises(ConfigError, match=r"optimizer\.groups .* configure the group decoder"):
        make_optimizer(Recipe.from_dict(recipe), Net())


def test_norms_and_biases_may_be_spared_from_weight_decay() -> None:
    recipe = toy_recipe(optimizer={"_name": "adam", "weight_decay": 0.2})
    for spare, of_bias in ((False, 0.2), (True, 0.0)):
        recipe["optimization"]["decay_norm_and_bias"] = not spare
        made, net = make_optimizer(Recipe.from_dict(recipe), model := Net()), model
        of = {p: g["weight_decay"] for g in made.adam.param_groups for p in g["params"]}
        assert (of[net.low.weight], of[net.low.bias]) == (0.2, of_bias)


def test_layer_decay_scales_the_rates() -> None:
    scales = {f"low.{part}": 0.25 for part in ("weight", "bias")} | {"high.weight": 0.5}
    recipe = composite(default=group(0.1, 2, lr_float=2.0))
    recipe["optimizer"]["dynamic_groups"] = True
    made, net = make_optimizer(Recipe.from_dict(recipe), model := Net(), scales), model
    assert made.learning_rates(5) == {"default": 2.0}
    made.step(0)  # of two updates of warm-up
    of = {p: g["lr"] for g in made.adam.param_groups for p in g["params"]}
    assert (of[net.low.weight], of[net.low.bias], of[net.high.weight]) == (0.25, 0.25, 0.5)
    assert of[net.high.bias] == of[net.decoder.weight] == 1.0
    made.step(2)
    assert max(g["lr"] for g in made.adam.param_groups) == 2.0


@pytest.mark.parametrize(
    ("common", "asked", "on_cpu", "on_cuda"),
    [
        ({}, "auto", "fp32", "fp32"),
        ({"fp16": True}, "auto", "fp32", "bf16"),
        ({"bf16": True}, "auto", "fp32", "bf16"),
        ({}, "bf16", "bf16", "bf16"),
        ({"fp16": True}, "fp32", "fp32", "fp32"),
        ({"bf16": True}, "fp16", "fp16", "fp16"),
    ],
)
def test_precision(
    common: dict[str, bool], asked: str, on_cpu: str, on_cuda: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.from_dict(toy_recipe(common=common, platform={"precision": asked}))
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    found = choose_precision(recipe, torch.device("cpu"))
    assert (found.name, found.dtype) == (on_cpu, dtypes[on_cpu])
    for has_bf16, wanted in ((True, on_cuda), (False, "fp16" if common.get("fp16") else on_cuda)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: has)
        if asked == "auto":
            found = choose_precision(recipe, torch.device("cuda"))
            assert (found.name, found.dtype) == (wanted, dtypes[wanted])


def scale_trace(common: dict[str, Any], micro: int, finite: list[bool]) -> tuple[list[float], list[Any]]:
    made = LossScale(Recipe.from_dict(toy_recipe(common=common)), micro, enabled=True)
    told = [made.update(good) for good in finite]
    trace: list[float] = []
    again = LossScale(Recipe.from_dict(toy_recipe(common=common)), micro, enabled=True)
    for good in finite:
        again.update(good)
        trace.append(again.scale)
    return trace, told


def test_the_loss_scale_doubles_after_a_clean_window_and_halves_on_overflow() -> None:
    start = {"fp16_init_scale": 32, "fp16_scale_window": 3}
    good, bad = [True], [False]
    trace, told = scale_trace(start, 1, 3 * good + 2 * good + bad + 2 * good + good + 3 * good)
    # An overflow restarts the window, and a doubling too.
    assert trace == [32, 32, 64, 64, 64, 32, 32, 32, 64, 64, 64, 128]
    assert told == [None] * 12
    trace, told = scale_trace(start | {"min_loss_scale": 4.0}, 1, 4 * bad)
    assert trace == [16, 8, 4, 2]
    assert told[:2] == [None, None] and "fell to 4 (common.min_loss_scale)" in told[2]
    trace, told = scale_trace(start | {"threshold_loss_scale": 8.0}, 1, 4 * bad)
    assert trace == [16, 8, 8, 8] and told == [None] * 4


def test_the_window_is_two_to_the_14_micro_batches() -> None:
    made = LossScale(Recipe.from_dict(toy_recipe(common={"fp16_init_scale": 2})), 2**12, enabled=True)
    assert made.window == 4
    assert [made.update(True) or made.scale for _ in range(5)] == [2, 2, 2, 4, 4]
    assert LossScale(Recipe.from_dict(toy_recipe()), 2**20, enabled=True).window == 1
    idle = LossScale(Recipe.from_dict(toy_recipe()), 1, enabled=False)
    assert [idle.update(False) for _ in range(20)] == [None] * 20 and idle.scale == 1.0
