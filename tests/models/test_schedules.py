"""Learning rates: the table of the training-loop specification (section 7) and the recipes' values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data2vec.schedules import Cosine, Fixed, PolynomialDecay, TriStage

IMAGE = Cosine(peak=1e-3, warmup_updates=50_040, max_update=375_300)
TEXT = Cosine(peak=2e-4, warmup_updates=4_000, max_update=1_000_000)
SPEECH_1 = TriStage(peak=5e-4, warmup_steps=12_000, hold_steps=360_000, decay_steps=28_000)
MNLI = PolynomialDecay(peak=2e-5, warmup_updates=7_432, total=123_873)
CTC = TriStage(peak=3e-5, warmup_steps=8_000, hold_steps=32_000, decay_steps=40_000, final_scale=0.05)


@pytest.mark.parametrize(
    ("schedule", "update", "rate"),
    [
        (IMAGE, 0, 0.0),
        (IMAGE, 25_020, 5e-4),
        (IMAGE, 50_040, 1e-3),
        (IMAGE, (375_300 + 50_040) // 2, 5e-4),
        (IMAGE, 375_300, 1e-4),  # wrapped into the next period, ten times lower
        (TEXT, 1, 5e-8),
        (TEXT, 4_000, 2e-4),
        (TEXT, 502_000, 1e-4),
        (SPEECH_1, 0, 5e-6),
        (SPEECH_1, 6_000, 2.525e-4),
        (SPEECH_1, 12_000, 5e-4),
        (SPEECH_1, 372_000, 5e-4),
        (SPEECH_1, 386_000, 5e-5),  # half way down an exponential by 100
        (SPEECH_1, 400_000, 5e-6),
        (SPEECH_1, 500_000, 5e-6),
        (CTC, 40_000, 3e-5),
        (CTC, 80_000, 1.5e-6),
        (MNLI, 0, 0.0),
        (MNLI, 3_716, 1e-5),
        (MNLI, 7_432, 2e-5),
        (MNLI, 123_873, 0.0),
        (MNLI, 200_000, 0.0),
        (PolynomialDecay(peak=1.0, warmup_updates=0, total=10, end=0.2, power=2.0), 5, 0.2 + 0.8 * 0.25),
        (PolynomialDecay(peak=1.0, total=10), 0, 1.0),
        (Cosine(peak=1.0, min_lr=0.1, warmup_updates=10, max_update=110), 0, 0.1),
        (Cosine(peak=1.0, min_lr=0.1, warmup_updates=10, max_update=110), 5, 0.55),
        (Cosine(peak=1.0, min_lr=0.1, warmup_updates=10, max_update=110), 60, 0.55),
        (Cosine(peak=1.0, warmup_init_lr=0.2, warmup_updates=10, max_update=110), 5, 0.6),
        (Cosine(peak=0.05, min_lr=0.1, warmup_updates=10, max_update=110), 0, 0.05),  # low capped by peak
        (Cosine(peak=1.0, period_updates=10, max_update=100, lr_shrink=0.5), 10, 0.5),
        (Cosine(peak=1.0, period_updates=10, max_update=100, lr_shrink=0.5), 25, 0.125),
        (Cosine(peak=1.0, period_updates=10, t_mult=2.0, lr_shrink=0.5), 20, 0.25),  # second of 10, 20, 40...
        (Cosine(peak=1.0, period_updates=10, t_mult=2.0, lr_shrink=0.5), 30, 0.25),  # third begins at 10 + 20
        (Fixed(peak=0.3), 0, 0.3),
        (Fixed(peak=0.3, warmup_updates=3), 0, 0.1),
        (Fixed(peak=0.3, warmup_updates=3), 2, 0.3),
    ],
)
def test_table(schedule: Cosine | TriStage | PolynomialDecay | Fixed, update: int, rate: float) -> None:
    assert schedule(update) == pytest.approx(rate, rel=1e-9, abs=1e-15)


@given(
    peak=st.floats(1e-5, 1.0),
    low=st.floats(0.0, 1e-5),
    warmup=st.integers(0, 50),
    length=st.integers(1, 500),
    update=st.integers(0, 550),
)
def test_cosine_stays_between_its_bounds_and_follows_its_shape(
    peak: float, low: float, warmup: int, length: int, update: int
) -> None:
    schedule = Cosine(peak=peak, min_lr=low, warmup_updates=warmup, max_update=warmup + length)
    last = warmup + length
    update = min(update, last - 1)
    rate = schedule(update)
    assert low - 1e-12 <= rate <= peak + 1e-12
    following = schedule(update + 1)
    if update + 1 <= warmup:
        assert following >= rate
    elif update + 1 < last:
        assert following <= rate + 1e-12
    if update >= warmup:
        expected = low + (peak - low) * (1 + math.cos(math.pi * (update - warmup) / length)) / 2
        assert rate == pytest.approx(expected, rel=1e-9)


def test_no_decay_steps_do_not_crash() -> None:
    """The reference divides by zero here."""
    schedule = TriStage(peak=1.0, warmup_steps=2, hold_steps=3, decay_steps=0)
    assert [schedule(u) for u in (2, 4, 5, 9)] == [1.0, 1.0, 0.01, 0.01]


def test_speech_fine_tuning_may_last_longer_than_its_decay() -> None:
    """960 h recipes: the phases are longer than the run, which then ends on the way down."""
    schedule = TriStage(peak=1e-5, warmup_steps=8_000, hold_steps=0, decay_steps=200_000, final_scale=0.05)
    assert schedule(8_000) == pytest.approx(1e-5)
    assert schedule(200_000) == pytest.approx(1e-5 * math.exp(math.log(0.05) * 192_000 / 200_000))


def plain_cosine(s: Cosine, update: int) -> float:
    """Period by period: each is ``t_mult`` longer and ``lr_shrink`` lower than the one before."""
    low = min(s.min_lr, s.peak)
    if update < s.warmup_updates:
        start = low if s.warmup_init_lr < 0 else s.warmup_init_lr
        return start + (s.peak - start) * update / s.warmup_updates
    since, factor = float(update - s.warmup_updates), 1.0
    period = s.period_updates if s.period_updates > 0 else float(s.max_update - s.warmup_updates)
    while since >= period:
        since, period, factor = since - period, period * s.t_mult, factor * s.lr_shrink
    return factor * (low + (s.peak - low) * (1 + math.cos(math.pi * since / period)) / 2)


@given(
    peak=st.floats(0.1, 1.0), low=st.floats(0.0, 0.5), warmup=st.integers(0, 20), start=st.floats(-1.0, 0.5),
    period=st.sampled_from([-1.0, 7.0, 13.0]), t_mult=st.sampled_from([1.0, 2.0, 3.0]),
    shrink=st.floats(0.1, 1.0), update=st.integers(0, 150),
)  # fmt: skip
def test_cosine_is_the_plain_formula(
    peak: float,
    low: float,
    warmup: int,
    start: float,
    period: float,
    t_mult: float,
    shrink: float,
    update: int,
) -> None:
    schedule = Cosine(
        peak=peak, min_lr=low, warmup_updates=warmup, warmup_init_lr=start, period_updates=period,
        max_update=warmup + 50, lr_shrink=shrink, t_mult=t_mult,
    )  # fmt: skip
    assert schedule(update) == pytest.approx(plain_cosine(schedule, update), rel=1e-6, abs=1e-9)


@given(
    peak=st.floats(0.1, 1.0), warmup=st.integers(1, 20), hold=st.integers(0, 20), decay=st.integers(1, 20),
    first=st.floats(0.0, 0.5), last=st.floats(0.01, 0.5), update=st.integers(0, 70),
)  # fmt: skip
def test_tri_stage_is_the_plain_formula(
    peak: float, warmup: int, hold: int, decay: int, first: float, last: float, update: int
) -> None:
    schedule = TriStage(
        peak=peak, warmup_steps=warmup, hold_steps=hold, decay_steps=decay, init_scale=first, final_scale=last
    )
    if update < warmup:
        wanted = peak * (first + (1 - first) * update / warmup)
    elif update < warmup + hold:
        wanted = peak
    else:
        wanted = peak * last ** min((update - warmup - hold) / decay, 1.0)
    assert schedule(update) == pytest.approx(wanted, rel=1e-9)


@given(
    peak=st.floats(0.1, 1.0), warmup=st.integers(0, 20), more=st.integers(0, 40), end=st.floats(0.0, 0.1),
    power=st.sampled_from([0.5, 1.0, 2.0]), update=st.integers(0, 70),
)  # fmt: skip
def test_polynomial_decay_is_the_plain_formula(
    peak: float, warmup: int, more: int, end: float, power: float, update: int
) -> None:
    total = warmup + more
    schedule = PolynomialDecay(peak=peak, warmup_updates=warmup, total=total, end=end, power=power)
    if update <= warmup and warmup > 0:
        wanted = peak * update / warmup
    elif update >= total:
        wanted = end
    else:
        wanted = end + (peak - end) * ((total - update) / (total - warmup)) ** power
    assert schedule(update) == pytest.approx(wanted, rel=1e-9)


@given(peak=st.floats(0.1, 1.0), warmup=st.integers(0, 20), update=st.integers(0, 30))
def test_fixed_is_the_plain_formula(peak: float, warmup: int, update: int) -> None:
    wanted = peak * min((update + 1) / warmup, 1.0) if warmup else peak
    assert Fixed(peak=peak, warmup_updates=warmup)(update) == pytest.approx(wanted, rel=1e-9)
