"""The tracker in this process and the one behind Ray's actor offer the same, signature by signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from d2v_platform.tracking import tracker_actor
from d2v_platform.tracking.interface import RunTracker
from d2v_platform.tracking.tracker_actor import RemoteTracker, TrackerService

METHODS = {
    name: given for name, given in vars(RunTracker).items() if inspect.isfunction(given) and name[0] != "_"
}
WHERE_IT_IS = ("wait_for_sent", "close")  # the handle's own affair


@pytest.mark.parametrize("kind", [TrackerService, RemoteTracker])
@pytest.mark.parametrize("name", METHODS)
def test_a_tracker_has_every_method_as_agreed(kind: type, name: str) -> None:
    found = inspect.signature(getattr(kind, name))
    # Ray adds a parameter of its own to the methods of a class that it has made an actor of.
    own = [given for given in found.parameters.values() if not given.name.startswith("_ray_")]
    assert found.replace(parameters=own) == inspect.signature(METHODS[name])


class Actor:
    """In the place of Ray's handle: it is asked for methods of the service, with their arguments."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.retries: list[int] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(TrackerService, name)

        def remote(*given: Any, **named: Any) -> str:
            self.asked.append((name, inspect.signature(method).bind(self, *given, **named).arguments))
            return f"answer to {name}"

        def options(max_task_retries: int) -> Any:
            self.retries.append(max_task_retries)
            return remote_of(remote)

        return remote_of(remote, options)


def remote_of(remote: Callable[..., str], options: Any = None) -> Any:
    return type("Method", (), {"remote": staticmethod(remote), "options": staticmethod(options)})


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {*WHERE_IT_IS}))
def test_the_handle_hands_over_what_it_was_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_actor, "_wait", lambda reference: reference)
    tracker: Any = object.__new__(RemoteTracker)
    tracker._actor, tracker._pending = Actor(), []
    signature = inspect.signature(METHODS[name])
    values = {p: [f"the {p}"] for p in list(signature.parameters)[1:] if p not in ("args", "kwargs")}
    rest = {"folder": "f", "alias": None} if name == "run" else {}
    positional = [
        v for p, v in values.items() if signature.parameters[p].kind != inspect.Parameter.KEYWORD_ONLY
    ]
    keywords = {
        p: v for p, v in values.items() if signature.parameters[p].kind == inspect.Parameter.KEYWORD_ONLY
    }
    answer = getattr(tracker, name)(*positional, **keywords, **rest)
    if name == "run":
        values |= {"kwargs": rest}
    asked, given = tracker._actor.asked[0]
    assert (asked, {k: v for k, v in given.items() if k != "self"}) == (name.removesuffix("_soon"), values)
    assert len(tracker._actor.asked) == 1 and tracker._actor.retries == ([0] if name == "run" else [])
    unasked = name in ("log", "finish_soon")
    assert tracker._pending == ([f"answer to {asked}"] if unasked else [])
    says_something = signature.return_annotation != "None"
    assert answer == (f"answer to {asked}" if says_something else None)


def test_runs_of_an_actor_that_was_started_again_are_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each method of an open run adopts it, those that open, find or end others do not."""
    told: list[tuple[str, Any]] = []

    class Tracker:
        def __getattr__(self, name: str) -> Any:
            told.append((name, None))
            return self

        def __call__(self, *given: Any, **named: Any) -> Tracker:
            told[-1] = (told[-1][0], given[:1])
            return self

    of_a_run = {
        name
        for name, method in METHODS.items()
        if list(inspect.signature(method).parameters)[1:2] == ["run_id"] and name != "take_over"
    }
    assert len(of_a_run) == 9
    monkeypatch.setattr(tracker_actor, "Tracker", lambda *given, **named: Tracker())
    monkeypatch.setattr(tracker_actor, "redact_logs", lambda: None)
    for name in METHODS.keys() - {"run", "wait_for_sent"}:
        service: Any = TrackerService(None)
        service._reborn = True
        monkeypatch.setattr(tracker_actor, "record_scores", lambda *given: [])
        given = dict.fromkeys(list(inspect.signature(METHODS[name]).parameters)[1:], "run")
        told.clear()
        getattr(service, name)(**given | ({"unsent": {}} if name == "take_over" else {}))
        assert (("adopt", ("run",)) in told) == (name in of_a_run), name
