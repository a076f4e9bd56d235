"""What of Ray's own output the user sees. Everything stays in Ray's log files.

Lines of our own workers and every trace that is not listed here pass unchanged.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# What gloo and NCCL say where another worker is gone.
LOST_PEER = (
    "Connection reset by peer",
    "Connection closed by peer",
    "Connection refused",
    "Broken pipe",
    "remote process exited",
    "NCCL communicator was aborted",
)
USERS_MISTAKE = "data2vec.errors."  # how a trace names our own exceptions
# A line with one of these is hidden, because:
_LINES = (
    # Said at every start of every training, at error level: Ray's own watcher of preempted nodes is made in a
    # way that Ray warns of. Without it a training goes on as before.
    "Actor with class name: 'PreemptionWatcher' and ID:",
    # Ray's cleaner asks after the controller of a training that has just ended, and asks again.
    "Failed to query Ray Train Controller actor state.",
)


@dataclass(frozen=True)
class _Block:
    """A line followed by a trace, hidden if the trace has one of the words."""

    begins: str
    words: tuple[str, ...] = ("",)


_BLOCKS = (
    # A worker was lost: `LostWorkers` says so in one line, and what follows from it needs no traces.
    _Block("Graceful shutdown of backend failed. This is expected if one of the workers has crashed."),
    # Workers that do not fit yet: the driver says what it waits for.
    _Block("Error in control loop iteration: The worker group startup timed out"),
    # A user's mistake ends the command with its own words.
    _Block("Error in training function:", (*LOST_PEER, USERS_MISTAKE)),
    # Only an autoscaler needs these requests, and they are sent again; Ray calls that safe to ignore on a
    # busy machine. A cluster that stays too small is told by the controller's own warnings.
    _Block("Failed to send resource request for "),
    _Block("Failed to cancel resource request for "),
    _Block("Failed to get reserved resources for "),  # an elastic group asks again a second later
    # Ray Tune ends processes of trials with SIGTERM, wherever they are.
    _Block("Exception ignored in: ", ("sigterm_handler",)),
)
_TRACE = "Traceback (most recent call last):"
_AFTER = ("\t", "The actor is dead because", "The actor died because")  # Ray's words after its exception
_SAME_S = 5.0


def last_line(error: Exception) -> str:
    """The last words of an exception that Ray has wrapped."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@dataclass
class _Stream:
    """What is known of one process's output."""

    held: list[str] = field(default_factory=list)  # a block that may be hidden
    tail: bool = False  # after a hidden block


class Output:
    """Leaves out what is listed above, and lines that another worker has just said."""

    def __init__(self) -> None:
        self._streams: dict[tuple[Any, ...], _Stream] = {}
        self._said: dict[str, tuple[float, Any]] = {}

    def shown(self, data: Mapping[str, Any]) -> list[str]:
        """Lines of one message of Ray's log monitor that are to be shown now."""
        stream = self._streams.setdefault((data.get("ip"), data.get("pid"), data.get("is_err")), _Stream())
        lines = [out for line in data.get("lines", []) for out in self._pass(stream, line)]
        return [line for line in lines if not self._repeats(line, data)]

    def _pass(self, stream: _Stream, line: str) -> Sequence[str]:
        if stream.held:
            traced = any(_TRACE in held for held in stream.held)
            inside = not line or line[0].isspace()
            if not traced and (_TRACE in line or inside):
                stream.held.append(line)
                return ()
            if traced:
                stream.held.append(line)
                return () if inside else self._end(stream)
            return [*self._end(stream), *self._pass(stream, line)]
        if stream.tail and (not line.strip() or line.startswith(_AFTER)):
            return ()
        stream.tail = False
        if any(words in line for words in _LINES):
            return ()
        if any(line.startswith(block.begins) for block in _BLOCKS):
            stream.held = [line]
            return ()
        return (line,)

    def _end(self, stream: _Stream) -> list[str]:
        """The exception's own line has come: hide the block, or show all of it."""
        held, stream.held = stream.held, []
        text = "\n".join(held)
        block = next(block for block in _BLOCKS if held[0].startswith(block.begins))
        stream.tail = any(word in text for word in block.words)
        return [] if stream.tail else held

    def _repeats(self, line: str, data: Mapping[str, Any]) -> bool:
        """Workers that meet the same thing say it once."""
        now, pid = time.monotonic(), data.get("pid")
        when, who = self._said.get(line, (-_SAME_S, pid))
        self._said = {text: said for text, said in self._said.items() if now - said[0] < _SAME_S}
        self._said.setdefault(line, (now, pid))
        return bool(line.strip()) and who != pid and now - when < _SAME_S


_takers: list[Callable[[str], object]] = []


@contextlib.contextmanager
def taken(take: Callable[[str], object]) -> Iterator[None]:
    """Inside, lines that would be printed go to ``take`` instead, without the prefix of their process."""
    _takers.append(take)
    try:
        yield
    finally:
        _takers.remove(take)


@contextlib.contextmanager
def filtered() -> Iterator[None]:
    """Inside, what Ray prints of other processes goes through :class:`Output`."""
    try:
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        name = "ray_print_logs"
        printers: list[Callable[[dict[str, Any]], None]] = [f for n, f in dispatcher.handlers if n == name]
    except (ImportError, AttributeError):  # another Ray: all of it is shown
        yield
        return
    output = Output()

    def show(data: dict[str, Any]) -> None:
        lines = output.shown(data)
        for line in lines if _takers else ():
            _takers[-1](line)
        if lines and not _takers:
            for printer in printers:
                printer({**data, "lines": lines})

    dispatcher.remove_handler(name)
    dispatcher.add_handler(name, show)  # Ray removes it by its name when it disconnects
    yield


def colours() -> str:
    """Ray's ``RAY_COLOR_PREFIX``: colours on a terminal only, and not where ``NO_COLOR`` is set."""
    return "" if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else "0"
