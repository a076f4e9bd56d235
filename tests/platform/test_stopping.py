"""Ctrl-C and SIGTERM in the driver, and how rank 0 hears of them. Whole runs: test_killed_runs.py."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from d2v_platform.training import stopping
from d2v_platform.training.stopping import Stop, StopQuestion, in_a_thread, stoppable


def test_the_first_signal_of_a_training_is_noted_and_the_second_ends_it(capfd: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with stoppable() as stop:
        with stop.gently():
            signal.raise_signal(signal.SIGTERM)
            assert stop.asked()
            assert capfd.readouterr().err.count("stopping at the next update") == 1
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit) as ended:
            stop.end()  # as the first one asked
        assert ended.value.code == 143
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_a_training_the_first_signal_ends() -> None:
    for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        with stoppable() as stop, pytest.raises(kind):
            signal.raise_signal(number)
        assert not stop.asked()


def test_another_thread_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stoppable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


class Driver:
    """In the place of the tracker actor: answers the driver's wish and rank 0's question."""

    def __init__(self, in_updates: bool) -> None:
        from d2v_platform.tracking.tracker_actor import TrackerService

        self.service = object.__new__(TrackerService)
        self.service._in_updates, self.service._to_stop = {"a"} if in_updates else set(), set()
        self.asked, self.ready = 0, True

        self.ask_to_stop, self.stop_asked = self.service.ask_to_stop, self.service.stop_asked

    def question_of_stop(self, attempt: str) -> Any:
        self.asked += 1
        answer = self.stop_asked(attempt)
        return SimpleNamespace(answered=lambda: self.ready, answer=lambda: answer)


def test_rank_0_hears_the_drivers_wish_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    driver: Any = Driver(in_updates=False)
    question = StopQuestion(driver, "a")
    assert not driver.ask_to_stop("b"), "another attempt"
    assert [question() for _ in range(5)] == [False] * 5 and driver.asked == 1
    assert driver.ask_to_stop("a"), "its updates have begun"
    now[0] += 1.0
    driver.ready = False
    assert not question() and not question() and driver.asked == 2
    driver.ready = True
    assert question()


def test_a_ray_run_goes_on_until_it_has_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_POLL_S", 0.01)
    driver: Any = Driver(in_updates=True)
    stop, saved = Stop(), threading.Event()

    def training() -> str:
        stop.on_signal(signal.SIGINT)
        while not driver.stop_asked("a"):
            saved.wait(0.01)
        return "saved"

    assert in_a_thread(training, stop, driver, "a") == "saved"
    with pytest.raises(ValueError, match="workers"):
        in_a_thread(lambda: int("of the workers"), Stop(), driver, "a")


def test_a_ray_run_without_updates_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_POLL_S", 0.01)
    over, stop = threading.Event(), Stop()

    def waiting_for_nodes() -> None:
        stop.on_signal(signal.SIGTERM)
        over.wait(20)

    with pytest.raises(SystemExit):
        in_a_thread(waiting_for_nodes, stop, Driver(in_updates=False), "a")  # pyright: ignore[reportArgumentType]
    over.set()
