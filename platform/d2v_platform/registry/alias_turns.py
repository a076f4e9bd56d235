"""The aliases of a model are moved by one process at a time, on whatever machine it runs.

MLflow has neither locks nor a compare-and-set, but one database writes and reads the tags of a model. That is
enough for Lamport's bakery: who comes draws a number above all others', in a tag of its own, and waits for
those who are drawing and for those with lower numbers. Nobody writes another's tag, so nothing can be
overwritten; a tag that its owner has left unchanged for a minute, by the waiting process's own clock, is
deleted, and the owner finds that out before it moves an alias.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import filelock

from data2vec.errors import Data2VecError

from ..home import home_folder
from ..tracking.mlflow_access import short_reason
from ..tracking.run_liveness import Heartbeat

if TYPE_CHECKING:
    from ..tracking.tracker import Tracker

logger = logging.getLogger(__name__)

_TAG = "mlflow.d2v.turn."  # MLflow's pages do not show it
_WAIT_S = 600.0  # a gate may reload a model while it has its turn
_LOOK_S = 0.2
_BEAT_S = 10.0
_GONE_S = 60.0


class AliasBusyError(Data2VecError):
    """Another process moves aliases of the model."""


@dataclass(frozen=True)
class _Place:
    """What a tag says; number 0 is still drawing."""

    number: int
    owner: Heartbeat | None
    text: str

    @staticmethod
    def read(text: str) -> _Place:
        content = json.loads(text)
        return _Place(content["number"], Heartbeat.from_tag(content["owner"]), text)


class Turn:
    """One process's place in the row of those that want to move aliases of a model."""

    def __init__(self, client: Any, name: str) -> None:
        self._client, self._name = client, name
        self._token, self._number = secrets.token_hex(8), 0
        self._seen: dict[str, tuple[str, float]] = {}  # others' tags, and since when they are as they are

    def draw(self) -> None:
        """Stand in the row."""
        self._write()
        self._number = 1 + max((place.number for place in self._others().values()), default=0)
        self._write()

    def come(self, wait_s: float) -> None:
        """Wait until nobody stands before this place.

        Raises:
            AliasBusyError: not within ``wait_s``.
        """
        deadline = time.monotonic() + wait_s
        while before := self._before():
            if time.monotonic() > deadline:
                owner = before[0].owner
                who = owner.owner() if owner else "another process"
                raise AliasBusyError(f"aliases of {self._name} are being moved by {who}; try again later")
            time.sleep(_LOOK_S)

    def check(self) -> None:
        """Ask whether the place is still this process's.

        Raises:
            AliasBusyError: it did not answer for a minute, and others went on without it.
        """
        if f"{_TAG}{self._token}" not in self._tags():
            raise AliasBusyError(
                f"this process was silent for more than {_GONE_S:.0f} s and lost its turn to move aliases "
                f"of {self._name}; nothing was changed, try again"
            )

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Others see that this process is alive."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(_BEAT_S):
                try:
                    self.check()
                    self._write()
                except AliasBusyError:
                    return
                except Exception as error:
                    logger.debug("no sign of life: %s", short_reason(error))

        thread = threading.Thread(target=beat, name="d2v-turn", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def leave(self) -> None:
        """Make room."""
        try:
            self._client.delete_registered_model_tag(self._name, f"{_TAG}{self._token}")
        except Exception as error:  # others notice the silence
            logger.debug("the turn is not given back: %s", short_reason(error))

    def _before(self) -> list[_Place]:
        mine = (self._number, self._token)
        found = []
        for token, place in self._others().items():
            if place.number and (place.number, token) > mine:
                continue
            if self._is_gone(token, place):
                self._client.delete_registered_model_tag(self._name, f"{_TAG}{token}")
            else:
                found.append(place)
        return found

    def _is_gone(self, token: str, place: _Place) -> bool:
        if place.owner is not None and not place.owner.is_live(math.inf):  # a process of this machine
            return True
        text, since = self._seen.get(token, ("", 0.0))
        if text != place.text:
            self._seen[token] = place.text, time.monotonic()
            return False
        return time.monotonic() - since > _GONE_S

    def _others(self) -> dict[str, _Place]:
        tokens = {key.removeprefix(_TAG): text for key, text in self._tags().items() if key.startswith(_TAG)}
        return {token: _Place.read(text) for token, text in tokens.items() if token != self._token}

    def _tags(self) -> dict[str, str]:
        return self._client.get_registered_model(self._name).tags

    def _write(self) -> None:
        text = json.dumps({"number": self._number, "owner": Heartbeat.now().to_tag()})
        self._client.set_registered_model_tag(self._name, f"{_TAG}{self._token}", text)


@contextlib.contextmanager
def turn(tracker: Tracker, name: str, wait_s: float = _WAIT_S) -> Iterator[Turn]:
    """Inside, no other process moves an alias of the model.

    Args:
        tracker: where.
        name: of a registered model that exists.
        wait_s: how long to wait for others.

    Raises:
        AliasBusyError: another process had its turn for longer.
    """
    # Processes of one home wait here, and ask the server one at a time.
    lock = filelock.FileLock(home_folder("queue", tracker.home) / "aliases.lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire(timeout=wait_s))
        except filelock.Timeout:
            raise AliasBusyError(f"another process has held {lock.lock_file} for {wait_s:g} s") from None
        mine = Turn(tracker.client, name)
        stack.callback(mine.leave)
        mine.draw()
        mine.come(wait_s)
        with mine.kept():
            yield mine
