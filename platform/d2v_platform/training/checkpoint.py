"""Checkpoints that are complete or invisible.

::

    <run folder>/checkpoints/
      update_00000200/
        model.safetensors       student, decoder, teacher
        optimizer.safetensors   Adam's moments and step counts
        state.json              counters, cursor, best metric, interval sums, loss scale
        manifest.json           sizes and hashes of the others, written last
      best.json                 which update holds the best metric

A checkpoint is written in a hidden folder beside its place, forced to disk, and renamed. Reading verifies
sizes and hashes and falls back to the newest one that is whole. Copies at a URI: see ``remote_checkpoints``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data2vec.errors import CheckpointError
from data2vec.folders import file_sha256, take_place, usual_permissions, write_text

from ..recipe.groups import CheckpointOptions

logger = logging.getLogger(__name__)

_NAME = re.compile(r"^update_(\d{8,})$")
MANIFEST = "manifest.json"
BEST = "best.json"


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay, besides the newest and the best; -1 is all."""

    interval: int = -1  # newest mid-epoch checkpoints
    epochs: int = -1  # newest epoch-end checkpoints
    best: int = -1  # checkpoints with the best metric, beside the very best; -1 is none
    maximize: bool = False  # a larger metric is better

    @classmethod
    def of(cls, rules: CheckpointOptions) -> Retention:
        """What a recipe's ``checkpoint`` group asks for."""
        epochs = 0 if rules.no_epoch_checkpoints else rules.keep_last_epochs
        return cls(
            rules.keep_interval_updates,
            epochs,
            rules.keep_best_checkpoints,
            rules.maximize_best_checkpoint_metric,
        )

    def kept(self, manifests: Mapping[int, Mapping[str, Any]], best: int | None) -> set[int]:
        """The updates that stay; of those saved between the recipe's own only the newest of all.

        Args:
            manifests: of every checkpoint, by update.
            best: the update with the best metric.
        """
        updates = sorted(manifests)
        keep = {*updates[-1:], *([best] if best is not None else [])}
        for wanted, epoch_end in ((self.interval, False), (self.epochs, True)):
            same = [
                u
                for u in updates
                if bool(manifests[u].get("epoch_end")) is epoch_end and not manifests[u].get("between")
            ]
            keep.update(same if wanted < 0 else same[len(same) - wanted :] if wanted else [])
        if self.best > 0:
            scored = [u for u in updates if manifests[u].get("metric") is not None]
            scored.sort(key=lambda u: manifests[u]["metric"], reverse=self.maximize)
            keep.update(scored[: self.best])
        return keep


@dataclass(frozen=True)
class Merit:
    """Why a checkpoint may be kept.

    Attributes:
        epoch_end: it was taken at the end of an epoch.
        metric: validation metric at its update.
        best: that is the best so far.
        between: the recipe asks for none here; it only protects what was computed since the last one.
    """

    epoch_end: bool = False
    metric: float | None = None
    best: bool = False
    between: bool = False


NO_MERIT = Merit()


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    update: int  # completed updates
    tensors: Mapping[str, Mapping[str, torch.Tensor]]  # tensors by file ("model", "optimizer") and name
    state: dict[str, Any]  # the loop's plain state
    folder: Path  # where it was read


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        root: the run's folder.
        retention: which ones to keep.
    """

    def __init__(self, root: Path | str, retention: Retention | None = None) -> None:
        self.folder = Path(root) / "checkpoints"
        self.retention = retention or Retention()
        self._pinned: set[int] = set()
        self._lock = threading.Lock()
        self._token = f"{os.getpid()}-{secrets.token_hex(4)}"  # a restarted container may get its old id

    def save(
        self,
        update: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        state: Mapping[str, Any],
        merit: Merit = NO_MERIT,
    ) -> Path:
        """Publish a checkpoint; replaces one of the same update.

        Args:
            update: completed updates.
            tensors: tensors by file and name.
            state: plain values.
            merit: why it may be kept.

        Raises:
            CheckpointError: the disk is full or the folder is not writable; older checkpoints stay whole.
        """
        final = self._path(update)
        beside = self.beside(update)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            for name, group in tensors.items():
                save_file(
                    {k: v.detach().contiguous() for k, v in group.items()}, beside / f"{name}.safetensors"
                )
            (beside / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
            files = {path.name: manifest_entry(path) for path in sorted(beside.iterdir())}
            manifest = {
                "update": update,
                "epoch_end": merit.epoch_end,
                "metric": merit.metric,
                "between": merit.between,
                "files": files,
            }
            write_text(beside / MANIFEST, json.dumps(manifest, indent=1), durable=True)
            usual_permissions(beside)
            self.publish(beside, update)
            if merit.best:
                self.mark_best(update)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            newest = max(self.updates(), default=None)
            rest = f"; that of update {newest} is whole" if newest is not None else ""
            raise CheckpointError(
                f"{final}: cannot write the checkpoint of update {update}: {error}{rest}"
            ) from error
        self.prune()
        return final

    def publish(self, beside: Path, update: int) -> Path:
        """Let a folder made beside, with its manifest, take its place."""
        final = self._path(update)
        take_place(beside, final)
        shutil.rmtree(beside, ignore_errors=True)  # one of the same update that was there
        _sync(self.folder)
        return final

    def updates(self) -> list[int]:
        """Updates with a published checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        found = [(update_of(path.name), path) for path in self.folder.iterdir()]
        return sorted(update for update, path in found if update is not None and (path / MANIFEST).is_file())

    def best_update(self) -> int | None:
        """The update with the best metric, if one was marked and is still there."""
        try:
            update = int(json.loads((self.folder / BEST).read_text(encoding="utf-8"))["update"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return update if update in self.updates() else None

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; damaged ones are named in the log and passed over."""
        for update in reversed(self.updates()):
            try:
                return self.load(update)
            except CheckpointError as error:
                logger.warning("%s; using an older checkpoint", error)
        return None

    def load(self, update: int) -> Checkpoint:
        """Read and verify one checkpoint.

        Raises:
            CheckpointError: a file is missing, truncated or altered; the message names it.
        """
        folder = self._path(update)
        verify(folder)
        try:
            tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder} cannot be read as a checkpoint: {error}") from error
        return Checkpoint(update, tensors, state, folder)

    def prune(self) -> None:
        """Delete what retention does not keep, and what dead writers left."""
        updates = self.updates()
        keep = self.retention.kept(self.manifests(), self.best_update())
        for update in updates:
            with self._lock:
                if update in keep or update in self._pinned:
                    continue
                # The manifest goes first: a half-deleted checkpoint must not look whole.
                (self._path(update) / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self._path(update), ignore_errors=True)
        for path in self.folder.glob(".update_*"):
            owner = path.name.rpartition(".")[2]
            pid = int(owner.partition("-")[0])
            if owner != self._token and (pid == os.getpid() or not _alive(pid)):
                shutil.rmtree(path, ignore_errors=True)

    def manifests(self) -> dict[int, dict[str, Any]]:
        """What is known of each published checkpoint without reading it, by update."""
        found: dict[int, dict[str, Any]] = {}
        for update in self.updates():
            with contextlib.suppress(OSError, json.JSONDecodeError):
                found[update] = json.loads((self._path(update) / MANIFEST).read_text(encoding="utf-8"))
        return found

    @contextlib.contextmanager
    def pinned(self, update: int) -> Iterator[Path]:
        """Keep a checkpoint from being pruned while another thread copies it."""
        with self._lock:
            self._pinned.add(update)
        try:
            yield self._path(update)
        finally:
            self._pinned.discard(update)

    def beside(self, update: int) -> Path:
        """The hidden folder in which a checkpoint is made."""
        final = self._path(update)
        return final.with_name(f".{final.name}.{self._token}")

    def mark_best(self, update: int) -> None:
        """Say which checkpoint holds the best metric."""
        write_text(self.folder / BEST, json.dumps({"update": update}), durable=True)

    def _path(self, update: int) -> Path:
        return self.folder / folder_name(update)


def folder_name(update: int) -> str:
    """The folder of an update's checkpoint."""
    return f"update_{update:08d}"


def update_of(name: str) -> int | None:
    """The update of a checkpoint's folder name; ``None`` for other names."""
    match = _NAME.match(name)
    return int(match.group(1)) if match else None


def verify(folder: Path) -> None:
    """Compare a checkpoint's files with its manifest.

    Raises:
        CheckpointError: naming the first file that differs.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is missing or unreadable: {error}") from error
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != wanted["size"]:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {wanted['size']}"
            )
        if manifest_entry(path) != wanted:
            raise CheckpointError(f"{path} does not match its sha256 in the manifest")


def manifest_entry(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, which is forced to disk."""
    digest = file_sha256(path)
    _sync(path)
    return {"size": path.stat().st_size, "sha256": digest}


def _sync(path: Path) -> None:
    """Force a file or a folder's list of names to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
