"""The checkpoints of a run as the loop sees them: saved beside training, found wherever they are newest.

The loop pays for a copy of the tensors in memory; writing, hashing, publishing and uploading happen in two
threads of rank 0. The next save waits for the previous one to be published, and the end of training for
everything, so at most one snapshot exists beside the model.

Plain safetensors and a manifest, not torch.distributed.checkpoint: rank 0 holds all of the state (data
parallel), the file is the one that every other tool reads, and a manifest written last is what makes a
checkpoint complete or invisible here and at a URI alike.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch

from data2vec.errors import CheckpointError

from ..storage.locations import Location, Patience, StorageAwayError, StorageError
from .checkpoint import NO_MERIT, Checkpoint, CheckpointStore, Merit
from .remote_checkpoints import RemoteCheckpoints, upload_model

logger = logging.getLogger(__name__)

_UPLOAD_PATIENCE = Patience(seconds=15, longest_s=5)  # then the uploader says so and comes back later
_PAUSE_S = (2.0, 60.0)  # between the uploader's attempts: first, longest
LAST_UPLOAD_S = 120.0  # how long the end of training waits for an absent server


@dataclass(frozen=True)
class SaveTime:
    """What one save cost."""

    update: int  # the checkpoint's
    loop_s: float  # the loop waited for the previous save and the copy in memory
    thread_s: float  # writing, hashing and publishing, beside training
    file_bytes: int  # size of the copy


class Checkpoints:
    """Both sides of a run's checkpoints, and the threads that write them.

    Args:
        store: this machine's side.
        run: the run's folder at a URI, if it has one.
        wait: return from :meth:`save` only when the checkpoint is published (the process may be ended by
            what follows: Ray Tune's schedulers).
    """

    def __init__(self, store: CheckpointStore, run: Location | None = None, *, wait: bool = False) -> None:
        self.store = store
        self.remote = RemoteCheckpoints(store, run) if run is not None else None
        self.times: list[SaveTime] = []
        self._wait = wait
        self._waited_s = 0.0  # since the last save
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._uploader = Uploader(self.remote) if self.remote is not None else None

    # ---- saving -------------------------------------------------------------------------------------------

    def save(
        self,
        update: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        state: Mapping[str, Any],
        merit: Merit = NO_MERIT,
        *,
        owned: bool = False,
    ) -> None:
        """Take a snapshot and publish it in the background; arguments as in ``CheckpointStore.save``.

        Args:
            owned: the tensors are a snapshot already, in memory; they are not copied again.

        Raises:
            CheckpointError: the *previous* checkpoint could not be written.
        """
        self.wait()
        begin = time.perf_counter()
        snapshot = {
            file: dict(group) if owned else {name: _copy(tensor) for name, tensor in group.items()}
            for file, group in tensors.items()
        }
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="d2v-checkpoint")
        stalled, self._waited_s = time.perf_counter() - begin + self._waited_s, 0.0

        def write() -> None:
            started = time.perf_counter()
            self.store.save(update, snapshot, state, merit)
            size = sum(tensor.nbytes for group in snapshot.values() for tensor in group.values())
            snapshot.clear()
            took = SaveTime(update, stalled, time.perf_counter() - started, size)
            self.times.append(took)
            logger.debug("%s", took)
            if self._uploader is not None:
                self._uploader.checkpoint_written()

        self._pending = self._writer.submit(write)
        if self._wait:
            self.wait()

    def wait(self) -> None:
        """Return when the last save is published.

        Raises:
            CheckpointError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            begin = time.perf_counter()
            pending.result()
            self._waited_s += time.perf_counter() - begin

    def finish(self, model: Path | None = None) -> None:
        """Everything published and, as far as the server allows, uploaded, the exported model too."""
        self.wait()
        if self._uploader is not None:
            self._uploader.finish(model)

    def close(self) -> None:
        """End the threads whatever has happened; what was begun is completed, but no error is raised."""
        if self._writer is not None:
            with contextlib.suppress(CheckpointError):
                self.wait()
            self._writer.shutdown()
            self._writer = None
        if self._uploader is not None:
            self._uploader.stop()

    # ---- finding ------------------------------------------------------------------------------------------

    def available(self) -> set[int]:
        """Updates with a checkpoint here or at the URI.

        Raises:
            StorageAwayError: the URI does not answer and nothing is here: starting from nothing would
                throw away what may lie there.
        """
        here = set(self.store.updates())
        if self.remote is None:
            return here
        try:
            return here | set(self.remote.updates())
        except StorageAwayError as error:
            if not here:
                raise StorageAwayError(
                    f"{error}; checkpoints of this run may lie there, so it does not start from nothing"
                ) from error
            logger.warning("%s; going on from the checkpoints in %s", error, self.store.folder)
            return here

    def load(self, update: int) -> Checkpoint:
        """One checkpoint, from here if it is whole, else from the URI.

        Raises:
            CheckpointError: neither side has it whole.
        """
        if self.remote is None:
            return self.store.load(update)
        self.store.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.store.folder / ".fetch.lock"):  # of several processes one fetches
            try:
                return self.store.load(update)
            except CheckpointError as error:
                if update in self.store.updates():
                    logger.warning("%s; fetching it from %s", error, self.remote.folder.uri)
            self.remote.fetch(update)
        return self.store.load(update)

    def load_or_warn(self, update: int) -> Checkpoint | None:
        """:meth:`load`, or ``None`` and a line in the log."""
        try:
            return self.load(update)
        except (CheckpointError, StorageError) as error:
            logger.warning("%s; using an older checkpoint", error)
            return None


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


class Uploader:
    """A thread that keeps a URI up to date, and never stops training when it cannot.

    Args:
        remote: both sides.
    """

    def __init__(self, remote: RemoteCheckpoints) -> None:
        self._remote = remote
        self._changed = threading.Condition()
        self._wanted = self._done = 0  # offers made, offers dealt with
        self._stopping = False
        self._away_since: float | None = None
        self._thread: threading.Thread | None = None

    def checkpoint_written(self) -> None:
        """There is a new checkpoint."""
        with self._changed:
            self._wanted += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="d2v-upload", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def finish(self, model: Path | None) -> None:
        """Upload what is left, for a bounded time; the log says where the rest stays."""
        deadline = time.monotonic() + LAST_UPLOAD_S
        self.checkpoint_written()
        with self._changed:
            self._changed.wait_for(lambda: self._done >= self._wanted, timeout=LAST_UPLOAD_S)
            complete = self._done >= self._wanted
        if model is not None and complete:
            try:
                left = max(deadline - time.monotonic(), _UPLOAD_PATIENCE.seconds)
                upload_model(model, self._remote.run, Patience(seconds=left))
            except StorageError as error:
                complete = False
                logger.warning("%s", error)
        if not complete:
            logger.warning(
                "the upload to %s is not complete; checkpoints stay in %s%s; 'd2v doctor --mend' uploads "
                "them when it answers again",
                self._remote.run.uri,
                self._remote.store.folder,
                f", the model in {model}" if model else "",
            )

    def stop(self) -> None:
        """End the thread; an upload that is under way has some seconds to complete."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=30)

    def _run(self) -> None:
        pause = _PAUSE_S[0]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._done < self._wanted)
                if self._stopping:
                    return
                wanted = self._wanted
            if self._attempt():
                pause = _PAUSE_S[0]
                with self._changed:
                    self._done = max(self._done, wanted)
                    self._changed.notify_all()
                continue
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, timeout=pause)
            pause = min(2 * pause, _PAUSE_S[1])

    def _attempt(self) -> bool:
        try:
            begin = time.monotonic()
            copied = self._remote.sync(_UPLOAD_PATIENCE)
        except (StorageError, OSError) as error:
            if self._away_since is None:
                self._away_since = time.monotonic()
                logger.warning(
                    "%s; checkpoints stay in %s and are uploaded later", error, self._remote.store.folder
                )
            return False
        if self._away_since is not None:
            gone = time.monotonic() - self._away_since
            logger.info("%s answers again after %.0f s", self._remote.run.uri, gone)
            self._away_since = None
        if copied:
            logger.debug("uploaded %s in %.1f s", copied, time.monotonic() - begin)
        return True
