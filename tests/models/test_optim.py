"""The reference's Adam, its groups, and the division and clipping of gradients."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from data2vec.config import Data2VecMultiConfig
from data2vec.optim import Adam, GroupSettings, ScheduledAdam, gradient_norm, parameter_groups, scale_and_clip
from data2vec.schedules import Fixed
from data2vec.student import Data2VecMulti
from data2vec.v1.image import Data2VecVision
from data2vec.v1.image_config import Data2VecVisionConfig

MakeConfig = Callable[..., Data2VecMultiConfig]


class TextbookAdam:
    """The formula of the reference in float64: decay first, epsilon added before the bias correction."""

    def __init__(
        self, values: list[torch.Tensor], lr: float, betas: tuple[float, float], eps: float, decay: float
    ):
        self.values = [v.detach().double().clone() for v in values]
        self.state = [(0, torch.zeros_like(v), torch.zeros_like(v)) for v in self.values]
        self.lr, self.betas, self.eps, self.decay = lr, betas, eps, decay

    def step(self, gradients: list[torch.Tensor | None]) -> None:
        first, second = self.betas
        for index, gradient in enumerate(gradients):
            if gradient is None:
                continue
            step, mean, square = self.state[index]
            step, g = step + 1, gradient.double()
            mean, square = first * mean + (1 - first) * g, second * square + (1 - second) * g * g
            self.values[index] -= self.lr * self.decay * self.values[index]
            size = self.lr * math.sqrt(1 - second**step) / (1 - first**step)
            self.values[index] -= size * mean / (square.sqrt() + self.eps)
            self.state[index] = (step, mean, square)


@pytest.mark.parametrize("eps", [1e-8, 1e-3, 1.0])
def test_adam_equals_the_formula(eps: float) -> None:
    """The third parameter gets gradients from the fourth step on, the fourth never."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(n)) for n in (5, 3, 4, 2)]
    settings = {"lr": 0.05, "betas": (0.9, 0.98), "eps": eps, "weight_decay": 0.1}
    untouched = parameters[3].detach().clone()
    ours = Adam([{"params": parameters[:2], **settings}, {"params": parameters[2:], **settings}])
    textbook = TextbookAdam(list(parameters), 0.05, (0.9, 0.98), eps, 0.1)
    for step in range(8):
        gradients: list[torch.Tensor | None] = [torch.randn_like(p) for p in parameters]
        gradients[3] = None
        if step < 3:
            gradients[2] = None
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        ours.step()
        textbook.step(gradients)
        for parameter, expected in zip(parameters, textbook.values, strict=True):
            torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(parameters[3], untouched), "without a gradient not even weight decay moves it"
    assert [len(group["params"]) for group in ours.param_groups] == [2, 2]
    assert all(group["eps"] == eps for group in ours.param_groups)


def test_adam_goes_on_from_its_state() -> None:
    def run(parameter: nn.Parameter, optimizer: Adam, steps: range) -> None:
        for step in steps:
            parameter.grad = torch.sin(torch.arange(4.0) + step)
            optimizer.step()

    def make(values: torch.Tensor) -> tuple[nn.Parameter, Adam]:
        parameter = nn.Parameter(values.clone())
        return parameter, Adam([{"params": [parameter], "lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-3}])

    straight, optimizer = make(torch.ones(4))
    run(straight, optimizer, range(6))
    first, optimizer = make(torch.ones(4))
    run(first, optimizer, range(3))
    state, values = copy.deepcopy(optimizer.state_dict()), first.detach().clone()
    resumed, fresh = make(values)
    fresh.load_state_dict(copy.deepcopy(state))  # PyTorch adopts the tensors that it is given
    run(resumed, fresh, range(3, 6))
    assert torch.equal(straight, resumed)
    run(first, optimizer, range(50, 60))
    with torch.no_grad():
        first.copy_(values)
    optimizer.load_state_dict(state)  # back to the third step in the same optimizer
    run(first, optimizer, range(3, 6))
    assert torch.equal(straight, first)


def test_each_group_has_its_settings_and_schedule() -> None:
    model = nn.ModuleDict({"decoder": nn.Linear(2, 2), "rest": nn.Linear(2, 2)})
    groups = parameter_groups(model, dynamic=False, decoder_group=True)
    assert {group.name: group.names for group in groups} == {
        "decoder": ["decoder.weight", "decoder.bias"],
        "default": ["rest.weight", "rest.bias"],
    }
    settings = {"decoder": GroupSettings(weight_decay=0.5), "default": GroupSettings(eps=0.5)}
    schedules = [
        [Fixed(peak=0.1)] if g.name == "decoder" else [Fixed(peak=0.2), Fixed(peak=0.3)] for g in groups
    ]
    optimizer = ScheduledAdam(groups, settings, schedules)
    assert optimizer.learning_rates(0) == {"decoder": 0.1, "default": 0.2}
    assert optimizer.learning_rates(0, epoch=5) == {"decoder": 0.1, "default": 0.3}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0)
    for name, parameter in model.named_parameters():  # zero gradients: what is left is weight decay
        factor = 1 - 0.1 * 0.5 if name.startswith("decoder") else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


@pytest.mark.parametrize("exempt", [False, True])
def test_norms_and_biases_decay_unless_exempted(make_config: MakeConfig, exempt: bool) -> None:
    model = Data2VecMulti(make_config(), vocab_size=20)
    groups = parameter_groups(model, dynamic=True)
    settings = {"default": GroupSettings(weight_decay=0.01)}
    optimizer = ScheduledAdam(groups, settings, [[Fixed(peak=0.1)]] * len(groups), exempt_1d=exempt)
    decays = {
        name: adam_group["weight_decay"]
        for group, adam_group in zip(groups, optimizer.adam.param_groups, strict=True)
        for name in group.names
    }
    assert decays.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert decays[name] == (0.0 if exempt and parameter.ndim == 1 else 0.01), name


def test_beit_spares_its_class_token() -> None:
    config = Data2VecVisionConfig(image_size=24, patch_size=4, embed_dim=16, depth=1, num_heads=2,
                                  num_mask_patches=9, average_top_k_layers=1)  # fmt: skip
    exempt = {
        name
        for group in parameter_groups(Data2VecVision(config), dynamic=True)
        if group.exempt
        for name in group.names
    }
    assert "cls_emb" in exempt and "mask_emb" not in exempt and "patch_embed.conv.bias" in exempt


@pytest.mark.parametrize("step_all", [False, True])
def test_a_parameter_without_a_gradient_steps_with_zero_where_that_is_asked_for(step_all: bool) -> None:
    """As the reference in mixed precision: decay, fading moments, steps counted from the start."""
    torch.manual_seed(0)
    model = nn.ParameterList([torch.randn(4), torch.randn(3), torch.randn(2)])
    groups = parameter_groups(model, dynamic=False)
    settings = {"default": GroupSettings(betas=(0.9, 0.98), eps=1e-3, weight_decay=0.1)}
    ours = ScheduledAdam(groups, settings, [[Fixed(peak=0.05)]], step_all=step_all)
    textbook = TextbookAdam(list(model), 0.05, (0.9, 0.98), 1e-3, 0.1)
    for step in range(8):
        gradients: list[torch.Tensor | None] = [torch.randn_like(p) for p in model]
        if step in (2, 3):
            gradients[0] = None
        if step < 5:
            gradients[1] = None
        gradients[2] = None
        for parameter, gradient in zip(model, gradients, strict=True):
            parameter.grad = gradient
        ours.step(step)
        zeros = [torch.zeros_like(p) if g is None else g for p, g in zip(model, gradients, strict=True)]
        textbook.step(list(zeros) if step_all else gradients)
        for parameter, expected in zip(model, textbook.values, strict=True):
            torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_layer_decay_works_with_groups_that_are_not_dynamic() -> None:
    """The reference's flat Adam ignores it, and its composite one stops."""
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    scales = {"0.weight": 0.25, "0.bias": 0.25, "1.weight": 0.5}
    groups = parameter_groups(model, dynamic=False, lr_scales=scales)
    assert {group.lr_scale: group.names for group in groups} == {
        0.25: ["0.weight", "0.bias"], 0.5: ["1.weight"], 1.0: ["1.bias"]
    }  # fmt: skip
    assert not any(group.exempt for group in groups), "without tags, no group is exempt from decay"
    dynamic = parameter_groups(model, dynamic=True, lr_scales=scales)
    rates = {name: group.lr_scale for group in dynamic for name in group.names}
    assert rates == {name: group.lr_scale for group in groups for name in group.names}


def test_frozen_parameters_are_in_no_group_and_layer_decay_splits() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = parameter_groups(model, dynamic=False, lr_scales={"1.weight": 0.5, "1.bias": 0.5})
    assert [(group.lr_scale, group.names) for group in groups] == [
        (0.5, ["1.weight", "1.bias"]),
        (1.0, ["2.weight", "2.bias"]),
    ]


def test_groups_of_the_recorded_text_recipe(make_config: MakeConfig, shared_dir: Path) -> None:
    info = json.loads((shared_dir / "golden" / "optimizer_param_groups" / "case.json").read_text())
    recorded = info["models"]["v2_text_base"]["groups"]
    decoder = {"decoder_layers": 2, "projection_layers": 2, "decoder_dim": 32, "decoder_groups": 1}
    model = Data2VecMulti(make_config(embed_dim=32, decoder=decoder), vocab_size=20)
    groups = parameter_groups(model, dynamic=True)
    assert {frozenset(group.names) for group in groups} == {frozenset(group["names"]) for group in recorded}
    assert {group["weight_decay"] for group in recorded} == {0.01}, "published models decay all parameters"


@pytest.mark.parametrize(("divisor", "clip", "factor"), [(1, 0.0, 1.0), (4, 0.0, 0.25), (1, 10.0, 1.0)])
def test_division_without_clipping(divisor: float, clip: float, factor: float) -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert scale_and_clip(parameters, divisor, clip) == pytest.approx(5.0 * factor)
    assert parameters[0].grad.tolist() == pytest.approx([3.0 * factor, 0.0])
    assert parameters[2].grad is None


def test_clipping_comes_after_division() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([30.0, 40.0])
    norm = scale_and_clip([parameter], 10.0, 1.0)
    assert norm == pytest.approx(5.0), "the norm that is logged is the one before clipping"
    expected = 1.0 / (5.0 + 1e-6)
    assert parameter.grad.tolist() == pytest.approx([3.0 * expected, 4.0 * expected], rel=1e-6)
    parameter.grad = torch.tensor([0.0, 2e-6])
    scale_and_clip([parameter], 1.0, 1e-6)
    assert float(parameter.grad[1]) == pytest.approx(2e-6 / 3), (
        "1e-6 is added to the norm, as in the reference"
    )


def test_nothing_to_divide() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    assert scale_and_clip([parameter], 3.0, 1.0) == 0.0
    parameter.grad = torch.tensor([3.0, 4.0])
    assert scale_and_clip([parameter], 0.0, 0.0) == pytest.approx(5.0), "no samples at all count as one"


def test_a_norm_that_is_not_a_number_is_passed_on() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([float("nan"), 1.0])
    assert math.isnan(scale_and_clip([parameter], 1.0, 1.0))


def test_an_update_does_not_import_the_compiler() -> None:
    code = """
import sys, torch
from data2vec.optim import Adam
from data2vec.randomness import seed_dropout
parameter = torch.nn.Parameter(torch.ones(3))
adam = Adam([{"params": [parameter], "weight_decay": 0.0}])
adam.param_groups[0]["lr"] = 0.1
parameter.grad = torch.ones(3)
adam.step()
adam.load_state_dict(adam.state_dict())
seed_dropout(1)
assert parameter.max() < 0.95, parameter
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_highest_rate_of_a_group_that_layer_decay_splits_is_told() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    groups = parameter_groups(model, dynamic=False, lr_scales={"0.weight": 0.25, "2.weight": 0.5})
    schedules = [[Fixed(peak=0.8 * group.lr_scale)] for group in groups]
    optimizer = ScheduledAdam(groups, {"default": GroupSettings()}, schedules)
    assert [g.lr_scale for g in groups] == [0.25, 1.0, 0.5]
    assert optimizer.learning_rates(0) == {"default": 0.8}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(0)
    moved = [float((b - p.detach()).mean()) for b, p in zip(before, model.parameters(), strict=True)]
    assert moved == pytest.approx([0.2, 0.8, 0.8, 0.8, 0.4, 0.8], rel=1e-4)


@pytest.mark.parametrize("listed", [True, False])
def test_groups_by_tags(listed: bool) -> None:
    """Exempt or not, decoder or not, each factor; listed parameters apart from others of the same factor."""
    model = nn.ModuleDict({"decoder": nn.Linear(2, 2), "rest": nn.Linear(2, 2), "more": nn.Linear(2, 2)})
    model.register_parameter("alibi_scale", nn.Parameter(torch.ones(1, 1, 2)))
    scales = {"rest.weight": 1.0, "rest.bias": 1.0} if listed else None
    groups = parameter_groups(model, dynamic=True, decoder_group=True, lr_scales=scales)
    found = {(g.name, g.exempt, tuple(g.names)) for g in groups}
    weights = (
        {("default", False, ("rest.weight",)), ("default", False, ("more.weight",))}
        if listed
        else {("default", False, ("rest.weight", "more.weight"))}
    )
    assert found == weights | {
        ("default", True, ("alibi_scale", "rest.bias", "more.bias")),
        ("decoder", False, ("decoder.weight",)), ("decoder", True, ("decoder.bias",)),
    }  # fmt: skip
    one = parameter_groups(model, dynamic=False, lr_scales=scales)
    assert [len(g.params) for g in one] == [7] and not one[0].exempt


def test_the_norm_is_that_of_all_workers() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 0.0])
    assert gradient_norm([parameter], torch.device("cpu")) == 3.0
    assert scale_and_clip([parameter], 2.0, 1.0, norm=5.0) == pytest.approx(2.5)  # another one holds a 4
    assert parameter.grad[0] == pytest.approx(1.5 / (2.5 + 1e-6))
    empty = nn.Parameter(torch.zeros(0))
    assert gradient_norm([empty], torch.device("cpu")) == 0.0
    assert scale_and_clip([empty], 2.0, 1.0, norm=4.0) == 2.0, "none of the rows"
