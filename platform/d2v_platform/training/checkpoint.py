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
sizes and hashes and falls back to the newest one that is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from data2vec.errors import CheckpointError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"^update_(\d{8,})$")
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay, besides the newest and the best; -1 is all.

    Attributes:
        interval: newest mid-epoch checkpoints.
        epochs: newest epoch-end checkpoints.
        best: checkpoints with the best metric, beside the very best; -1 is none.
        maximize: a larger metric is better.
    """

    interval: int = -1
    epochs: int = -1
    best: int = -1
    maximize: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint in memory.

    Attributes:
        update: completed updates.
        tensors: tensors by file ("model", "optimizer") and name.
        state: the loop's plain state.
        folder: where it was read.
    """

    update: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    folder: Path


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        root: the run's folder.
        retention: which ones to keep.
    """

    def __init__(self, root: Path | str, retention: Retention | None = None) -> None:
        self.folder = Path(root) / "checkpoints"
        self.retention = retention or Retention()

    def save(
        self,
        update: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        state: Mapping[str, Any],
        *,
        epoch_end: bool = False,
        metric: float | None = None,
        best: bool = False,
    ) -> Path:
        """Publish a checkpoint; replaces one of the same update.

        Args:
            update: completed updates.
            tensors: tensors by file and name.
            state: plain values.
            epoch_end: it was taken at the end of an epoch.
            metric: validation metric at this update, for keeping the best.
            best: it holds the best validation metric so far.

        Raises:
            CheckpointError: the disk is full or the folder is not writable; older checkpoints stay whole.
        """
        final = self._path(update)
        beside = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            for name, group in tensors.items():
                save_file(
                    {k: v.detach().contiguous() for k, v in group.items()}, beside / f"{name}.safetensors"
                )
            (beside / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
            files = {path.name: _describe(path) for path in sorted(beside.iterdir())}
            manifest = {"update": update, "epoch_end": epoch_end, "metric": metric, "files": files}
            _write_synced(beside / _MANIFEST, json.dumps(manifest, indent=1))
            if final.exists():
                shutil.rmtree(final)
            beside.rename(final)
            _sync_folder(self.folder)
            if best:
                self._write_best(update)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise CheckpointError(
                f"{final}: cannot write the checkpoint of update {update}: {error}"
            ) from error
        self.prune()
        return final

    def updates(self) -> list[int]:
        """Updates with a published checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        matches = [(_NAME.match(path.name), path) for path in self.folder.iterdir()]
        return sorted(int(m.group(1)) for m, path in matches if m and (path / _MANIFEST).is_file())

    def best_update(self) -> int | None:
        """The update with the best metric, if one was marked and is still there."""
        path = self.folder / "best.json"
        if not path.is_file():
            return None
        update = int(json.loads(path.read_text(encoding="utf-8"))["update"])
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
        tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(update, tensors, state, folder)

    def prune(self) -> None:
        """Delete what retention does not keep, and what dead writers left."""
        updates, keep = self.updates(), self._kept()
        for update in updates:
            if update not in keep:
                # The manifest goes first: a half-deleted checkpoint must not look whole.
                (self._path(update) / _MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(self._path(update), ignore_errors=True)
        for path in self.folder.glob(".update_*"):
            pid = int(path.name.rpartition(".")[2])
            if pid != os.getpid() and not _alive(pid):
                shutil.rmtree(path, ignore_errors=True)

    def _kept(self) -> set[int | None]:
        manifests: dict[int, dict[str, Any]] = {}
        for update in self.updates():
            try:
                text = (self._path(update) / _MANIFEST).read_text(encoding="utf-8")
                manifests[update] = json.loads(text)
            except (OSError, json.JSONDecodeError):
                continue
        updates, rule = sorted(manifests), self.retention
        keep: set[int | None] = {*updates[-1:], self.best_update()}
        for wanted, epoch_end in ((rule.interval, False), (rule.epochs, True)):
            same = [u for u in updates if bool(manifests[u].get("epoch_end")) is epoch_end]
            keep.update(same if wanted < 0 else same[len(same) - wanted :] if wanted else [])
        if rule.best > 0:
            scored = [u for u in updates if manifests[u].get("metric") is not None]
            scored.sort(key=lambda u: manifests[u]["metric"], reverse=rule.maximize)
            keep.update(scored[: rule.best])
        return keep

    def _path(self, update: int) -> Path:
        return self.folder / f"update_{update:08d}"

    def _write_best(self, update: int) -> None:
        beside = self.folder / ".best.json"
        _write_synced(beside, json.dumps({"update": update}))
        beside.replace(self.folder / "best.json")


def verify(folder: Path) -> None:
    """Compare a checkpoint's files with its manifest.

    Raises:
        CheckpointError: naming the first file that differs.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{folder / _MANIFEST} is missing or unreadable: {error}") from error
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != wanted["size"]:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {wanted['size']}"
            )
        if _describe(path) != wanted:
            raise CheckpointError(f"{path} does not match its sha256 in the manifest")


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": digest}


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
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
