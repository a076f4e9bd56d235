"""Ctrl-C and SIGTERM: the first one lets a training save at its next update, a second one ends it at once.

Outside a training there is nothing to save, and the first one ends. The process ends with 130 or 143.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import NoReturn, TypeVar

from ..tracking.tracker_actor import Question, RemoteTracker

Result = TypeVar("Result")

_POLL_S = 0.5  # of the driver's and of rank 0's questions
_TOLD = b"\nstopping at the next update, after a checkpoint; once more ends at once\n"


class Stop:
    """What the user's signals ask for.

    Attributes:
        signal: the one that was noted; ``None`` if there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._gentle = False

    def asked(self) -> bool:
        """Whether training is to stop at its next update."""
        return self.signal is not None

    def on_signal(self, number: int, frame: object = None) -> None:
        """Note the first signal of a training; raise for any other."""
        if self._gentle and self.signal is None:
            self.signal = number
            os.write(2, _TOLD)  # a handler may not enter a stream that it has interrupted
            return
        self.end(number)

    def end(self, number: int | None = None) -> NoReturn:
        """End the process as it was asked to.

        Raises:
            KeyboardInterrupt: by Ctrl-C; the command line's exit code is 130.
            SystemExit: 143, by SIGTERM.
        """
        if (number or self.signal) == signal.SIGTERM:
            raise SystemExit(143)
        raise KeyboardInterrupt

    def listen(self) -> None:
        """Take the signals; Ray puts its own handler in when it connects. Only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.on_signal)

    @contextlib.contextmanager
    def gently(self) -> Iterator[None]:
        """Inside, the first signal is noted only."""
        self._gentle = True
        try:
            yield
        finally:
            self._gentle = False


@contextlib.contextmanager
def stoppable(stop: Stop | None = None) -> Iterator[Stop]:
    """Handle both signals inside the block."""
    stop = stop or Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop.listen()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_a_thread(
    work: Callable[[], Result],
    stop: Stop,
    tracker: RemoteTracker,
    attempt: str,
    meanwhile: Callable[[], None] = lambda: None,
) -> Result:
    """Do a driver's work of a Ray run beside the main thread, whose signals Ray Train would take.

    The first signal is passed on to rank 0 through the tracker. Where no update is under way, nobody would
    hear it, and it ends the driver.

    Args:
        work: what is done.
        stop: the driver's signals.
        tracker: takes them to rank 0.
        attempt: of the run.
        meanwhile: called now and then; what it raises ends the driver's part.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    with stop.gently():
        threading.Thread(target=run, name="d2v-ray-train", daemon=True).start()
        while not wait([done], timeout=_POLL_S).done:
            if stop.asked() and not tracker.ask_to_stop(attempt):
                stop.end()
            meanwhile()
    return done.result()


class StopQuestion:
    """Rank 0 asks the tracker now and then whether the driver wants it to stop, without waiting.

    Args:
        tracker: where the driver leaves its wish.
        attempt: of the run.
    """

    def __init__(self, tracker: RemoteTracker, attempt: str) -> None:
        self._tracker, self._attempt = tracker, attempt
        self._open: Question[bool] | None = None
        self._next = 0.0

    def __call__(self) -> bool:
        """Whether the last answer was yes."""
        now = time.monotonic()
        if self._open is None and now >= self._next:
            self._open, self._next = self._tracker.question_of_stop(self._attempt), now + _POLL_S
        if self._open is None or not self._open.answered():
            return False
        answer, self._open = self._open.answer(), None
        return answer
