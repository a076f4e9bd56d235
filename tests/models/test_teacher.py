"""The teacher moves once an update, by the annealed decay, and is never trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from data2vec.config import Data2VecMultiConfig
from data2vec.teacher import Teacher, annealed_decay

MakeConfig = Callable[..., Data2VecMultiConfig]


class Module(nn.Module):
    """A trainable, a frozen tensor and a buffer."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.full((2,), value), requires_grad=False)
        self.register_buffer("count", torch.tensor(value))
        self.dropout = nn.Dropout(0.5)
        nn.init.constant_(self.layer.weight, value)
        nn.init.constant_(self.layer.bias, -value)


def make(config: Data2VecMultiConfig) -> tuple[Teacher, Module, Module]:
    """Teacher, averaged module, student; the teacher is then moved away from its student."""
    student, averaged = Module(1.0), Module(5.0)
    teacher = Teacher(averaged, student, config)
    with torch.no_grad():
        averaged.layer.weight.fill_(2.0)
        averaged.layer.bias.fill_(2.0)
    return teacher, averaged, student


def test_starts_as_an_exact_copy(make_config: MakeConfig) -> None:
    student, averaged = Module(1.0), Module(5.0)
    Teacher(averaged, student, make_config())
    for name, value in student.state_dict().items():
        assert torch.equal(averaged.state_dict()[name], value)


def test_moves_by_the_decay_of_the_update(make_config: MakeConfig) -> None:
    config = make_config(ema_decay=0.5, ema_end_decay=0.9, ema_anneal_end_step=10)
    teacher, averaged, _ = make(config)
    expected = 2.0
    for update in (1, 2, 5, 10, 30):
        decay = 0.9 - 0.4 * (1 - update / 10) if update < 10 else 0.9
        assert teacher.decay(update) == pytest.approx(decay, rel=1e-12)
        expected = decay * expected + (1 - decay) * 1.0
        assert teacher.step(update)
        assert averaged.layer.weight.flatten().tolist() == pytest.approx([expected] * 6, rel=1e-6)


def test_decay_0_copies_and_decay_1_freezes(make_config: MakeConfig) -> None:
    teacher, averaged, student = make(make_config(ema_decay=0.0, ema_end_decay=0.0))
    assert teacher.step(1)
    assert torch.equal(averaged.layer.weight, student.layer.weight)
    teacher, averaged, _ = make(make_config(ema_decay=1.0, ema_end_decay=1.0))
    for update in range(1, 5):
        assert not teacher.step(update)
    assert (averaged.layer.weight == 2.0).all()


def test_one_step_an_update_however_often_it_is_asked(make_config: MakeConfig) -> None:
    teacher, averaged, _ = make(make_config(ema_decay=0.5, ema_end_decay=0.5))
    assert not teacher.step(0), "nothing to average before the first update"
    assert teacher.step(1)
    assert not teacher.step(1), "accumulation, retry"
    assert not teacher.step(0), "never backwards"
    assert (averaged.layer.weight == 1.5).all()
    teacher.num_updates = 7  # as after a resume
    assert not teacher.step(7)
    assert teacher.step(8)


def test_frozen_tensors_and_buffers_are_copied(make_config: MakeConfig) -> None:
    teacher, averaged, student = make(make_config(ema_decay=0.5, ema_end_decay=0.5))
    with torch.no_grad():
        student.frozen.fill_(9.0)
        student.get_buffer("count").fill_(8.0)
    teacher.step(1)
    assert averaged.frozen.tolist() == [9.0, 9.0]
    assert averaged.get_buffer("count") == 8.0


def test_norms_are_of_what_is_averaged(make_config: MakeConfig) -> None:
    student, averaged = Module(1.0), Module(5.0)
    teacher = Teacher(averaged, student, make_config(), copied=("layer.bias",))
    with torch.no_grad():
        averaged.layer.weight.fill_(2.0)
        averaged.layer.bias.fill_(100.0)
        student.frozen.fill_(100.0)
    assert teacher.norms() == pytest.approx((6**0.5, 24**0.5))  # six weights of 1 and of 2
    both = Teacher(Module(1.0), student, make_config())
    assert both.norms()[0] == pytest.approx(8**0.5)  # and two biases of -1


def test_is_not_trained_and_does_not_hold_its_student(make_config: MakeConfig) -> None:
    teacher, averaged, _ = make(make_config())
    assert not averaged.training and not averaged.dropout.training, "from the beginning"
    assert not any(p.requires_grad for p in teacher.parameters())
    assert set(teacher.state_dict()) == {f"module.{name}" for name in averaged.state_dict()}
    teacher.train()
    assert not averaged.training, "no dropout in the teacher"
    holder = nn.ModuleList([teacher]).train()
    assert holder.training
    assert not averaged.training


def test_annealing_is_linear_and_ends() -> None:
    assert annealed_decay(0.999, 0.9999, 0, 0) == 0.9999
    assert annealed_decay(0.99, 0.99, 100, 3) == 0.99
    assert annealed_decay(0.9, 1.0, 4, 3) == pytest.approx(0.975)
    assert annealed_decay(0.9, 1.0, 4, 4) == 1.0
    # audio large: the teacher is frozen after 300 000 updates (spec data2vec2, section 9)
    assert annealed_decay(0.9997, 1.0, 300_000, 150_000) == pytest.approx(0.99985)
    assert annealed_decay(0.9997, 1.0, 300_000, 300_000) == 1.0


def test_annealing_ends_with_the_run_unless_it_is_said(make_config: MakeConfig) -> None:
    teacher, _, _ = make(
        make_config(ema_decay=0.5, ema_end_decay=0.7, ema_anneal_end_step=None, max_update=100)
    )
    assert teacher.decay(50) == pytest.approx(0.6)
    assert teacher.decay(100) == 0.7
