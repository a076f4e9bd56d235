"""What is left out of Ray's output, and that nothing else is; words as Ray 2.60 prints them."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from d2v_platform.training import ray_output
from d2v_platform.training.ray_output import Output
from d2v_platform.training.worker_failures import in_words

FRAMES = [
    "Traceback (most recent call last):",
    '  File "/x/ray/train/torch/config.py", line 333, in on_shutdown',
    "    ray.get(futures, timeout=timeout_s)",
    "            ^^^^^^^^^^^^^^^^^",
]
DIED = [
    "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
    "\tclass_name: RayTrainWorker",
    "\tpid: 29114",
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR",
]
WATCHER = (
    "[2026-11-30 06:55:51,698 E 25429 25528] core_worker.cc:2465: Actor with class name: 'PreemptionWatcher' "
    "and ID: 'ee2a' has constructor arguments in the object store and max_restarts > 0."
)
RESET = "RuntimeError: [/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:2: Connection reset by peer."


def pieces(lines: list[str], size: int) -> list[str]:
    """What is shown of one process's output that comes in messages of so many lines."""
    output, shown = Output(), list[str]()
    for start in range(0, len(lines), size):
        shown += output.shown({"pid": 7, "is_err": True, "lines": lines[start : start + size]})
    return shown


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    "noise",
    [
        [WATCHER, "Failed to query Ray Train Controller actor state. State API may be unavailable."],
        ["Graceful shutdown of backend failed. This is expected if one of the workers has crashed.",
         *FRAMES, *DIED],
        ["Error in training function:", *FRAMES, RESET, ""],
        ["Failed to get reserved resources for train-d6. Will not resize the worker group.", *FRAMES,
         "ray.exceptions.GetTimeoutError: Get timed out: some object(s) not ready."],
        ["Failed to send resource request for train-d6. If this only happens transiently", *FRAMES,
         "ray.exceptions.GetTimeoutError: Get timed out: some object(s) not ready."],
        ["Exception ignored in: <function WeakSet.__init__.<locals>._remove at 0x7f>", *FRAMES, "",
         '  File "/x/ray/_private/worker.py", line 1063, in sigterm_handler', "SystemExit: 1"],
    ],
)  # fmt: skip
def test_noise_is_left_out_and_its_surroundings_are_not(noise: list[str], size: int) -> None:
    assert pieces(["before", *noise, "after", *noise], size) == ["before", "after"]


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize(
    "told",
    [
        ["Error in training function:", *FRAMES, "KeyError: 'source'"],
        ["Error in training function:", "no trace follows"],
        ["Exception ignored in: <function f>", *FRAMES, "ValueError: x"],
        [*FRAMES, "torch.OutOfMemoryError: CUDA out of memory."],
        ["Actor with class name: 'Mine' and ID: 'ee2a' has constructor arguments in the object store"],
        ["\tindented", "", "", "The actor is dead because"],
    ],
)
def test_everything_else_passes_unchanged(told: list[str], size: int) -> None:
    assert pieces([*told, "after"], size) == [*told, "after"]


def test_what_two_workers_say_at_once_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, output = [5.0], Output()
    monkeypatch.setattr(ray_output.time, "monotonic", lambda: now[0])

    def shown(pid: int, line: str) -> list[str]:
        return output.shown({"pid": pid, "is_err": True, "lines": [line]})

    assert [shown(pid, "a note") for pid in (1, 2, 1)] == [["a note"], [], ["a note"]]
    assert shown(2, "another note") == ["another note"]
    now[0] += 6.0
    assert shown(2, "a note") == ["a note"], "resumed twice from the same checkpoint"


def test_traces_of_two_processes_do_not_mix() -> None:
    output = Output()
    first = ["Error in training function:", *FRAMES]
    assert output.shown({"pid": 1, "lines": first}) == []
    assert output.shown({"pid": 2, "lines": ["update 10/400"]}) == ["update 10/400"]
    assert output.shown({"pid": 1, "lines": ["KeyError: 1"]}) == [*first, "KeyError: 1"]


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal: Any = [False]
    monkeypatch.setattr(ray_output.sys.stderr, "isatty", lambda: terminal[0])
    assert ray_output.colours() == "0"
    terminal[0] = True
    assert ray_output.colours() == ""
    monkeypatch.setenv("NO_COLOR", "1")
    assert ray_output.colours() == "0"


def test_lost_workers_are_told_in_a_line() -> None:
    died, missed = ActorDiedError(), RuntimeError(RESET)
    lost = "worker 1 was lost: its process was killed, ran out of memory or crashed"
    assert in_words({0: missed, 1: died}) == lost
    assert in_words({0: missed}) == "the workers lost the connection to one of them"
    assert in_words({0: ValueError("Traceback\nKeyError: 'a'\n")}) == "worker 0 failed: KeyError: 'a'"
