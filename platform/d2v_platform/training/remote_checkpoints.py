"""A run's checkpoints at a URI (``platform.storage=s3://...``), beside those on this machine.

::

    s3://bucket/folder/<run id>/
      recipe.json               what the run was started with: a changed recipe is refused on any machine
      checkpoints/update_00000200/{model,optimizer}.safetensors state.json
                                  manifest.json      written last: without it the checkpoint is not there
                  best.json
      model/ ...                the exported model, its manifest.json last

What belongs there is a function of both sides: what retention keeps of all checkpoints, here and there. A
copy that S3 refused for a while is therefore made by the next :meth:`RemoteCheckpoints.sync`, whoever calls
it, and nothing needs to be remembered about failures.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data2vec.errors import CheckpointError, DataError
from data2vec.folders import inside, written_folder

from ..storage.locations import Location, Patience, StorageError
from .checkpoint import BEST, MANIFEST, CheckpointStore, folder_name, manifest_entry, update_of, verify

logger = logging.getLogger(__name__)


class RemoteCheckpoints:
    """The other side of a run's checkpoint store.

    Args:
        store: this machine's side.
        run: the run's folder at the URI.
    """

    def __init__(self, store: CheckpointStore, run: Location) -> None:
        self.store, self.run = store, run
        self.folder = run.child("checkpoints")
        self._manifests: dict[int, dict[str, Any]] = {}

    def updates(self, patience: Patience | None = None) -> list[int]:
        """Updates with a complete checkpoint there, ascending."""
        return _complete(self.folder.listing(patience))

    def sync(self, patience: Patience | None = None) -> list[int]:
        """Copy what is missing there, newest first, and delete there what retention does not keep.

        Returns:
            The updates that were copied.

        Raises:
            StorageAwayError: the place does not answer; everything is still here, and a later call goes on.
            StorageError: the place refuses.
        """
        listing = self.folder.listing(patience)
        there = _complete(listing)
        mine = self.store.manifests()
        manifests = {update: self._manifest(update, patience) for update in there} | mine
        best = self._best(listing, manifests, patience)
        keep = self.store.retention.kept(manifests, best)
        copied: list[int] = []
        for update in sorted(keep & mine.keys() - set(there), reverse=True):
            if self._copy(update, patience):
                copied.append(update)
                self._manifests[update] = mine[update]
        if best is not None and best in (*there, *copied):
            self.folder.write(BEST, json.dumps({"update": best}).encode(), patience)
        self._prune(listing, keep, newest=max([*there, *copied], default=-1), patience=patience)
        return copied

    def missing(self, patience: Patience | None = None) -> list[int]:
        """Updates that are only on this machine though they belong there too."""
        there = self.updates(patience)
        mine = self.store.manifests()
        manifests = {update: self._manifest(update, patience) for update in there} | mine
        keep = self.store.retention.kept(manifests, self.store.best_update())
        return sorted(keep & mine.keys() - set(there))

    def fetch(self, update: int, patience: Patience | None = None) -> Path:
        """Bring a checkpoint here: verified, and complete or invisible.

        Raises:
            CheckpointError: it is not there or is damaged.
            StorageError: the place cannot be read.
        """
        source, beside = self.folder.child(folder_name(update)), self.store.beside(update)
        self.store.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            source.download(MANIFEST, beside / MANIFEST, patience)
            for name in _files(beside / MANIFEST):
                source.download(name, beside / name, patience)
            verify(beside)
            return self.store.publish(beside, update)
        except FileNotFoundError as error:
            raise CheckpointError(f"{source.uri}: {error} is missing") from error
        except CheckpointError as error:
            raise CheckpointError(f"{source.uri}: {error}") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _copy(self, update: int, patience: Patience | None) -> bool:
        """Upload one checkpoint; ``False`` if it was pruned here in the meantime."""
        with self.store.pinned(update) as folder:
            if not (folder / MANIFEST).is_file():
                return False
            copy_folder(folder, self.folder.child(folder.name), _files(folder / MANIFEST), patience)
        logger.info("checkpoint of update %d is at %s", update, self.folder.child(folder_name(update)).uri)
        return True

    def _prune(
        self, listing: Mapping[str, int], keep: Iterable[int], newest: int, patience: Patience | None
    ) -> None:
        """What is not kept goes, manifest first; so do the remains of uploads that were cut off."""
        kept = set(keep)
        for update in {update for name in listing if (update := _update(name)) is not None}:
            whole = f"{folder_name(update)}/{MANIFEST}" in listing
            if update in kept or (not whole and update >= newest):
                continue
            names = [name for name in listing if _update(name) == update]
            names.sort(key=lambda name: not name.endswith(MANIFEST))
            self.folder.delete(*names, patience=patience)
            self._manifests.pop(update, None)

    def _manifest(self, update: int, patience: Patience | None) -> dict[str, Any]:
        if update not in self._manifests:
            try:
                found = json.loads(self.folder.read(f"{folder_name(update)}/{MANIFEST}", patience))
            except (FileNotFoundError, ValueError):
                found = {}
            self._manifests[update] = found if isinstance(found, dict) else {}
        return self._manifests[update]

    def _best(
        self, listing: Mapping[str, int], known: Mapping[int, Any], patience: Patience | None
    ) -> int | None:
        """This machine's mark wins; a resumed run took it over from its checkpoint."""
        mine = self.store.best_update()
        if mine is not None or BEST not in listing:
            return mine
        try:
            update = int(json.loads(self.folder.read(BEST, patience))["update"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return update if update in known else None


def copy_folder(folder: Path, target: Location, names: Iterable[str], patience: Patience | None) -> None:
    """Upload files, check that their sizes arrived, then upload the manifest.

    Raises:
        StorageError: a size differs there.
    """
    wanted = list(names)
    for name in wanted:
        target.upload(folder / name, name, patience)
    there = target.listing(patience)
    for name in wanted:
        if there.get(name) != (folder / name).stat().st_size:
            raise StorageError(
                f"{target.uri}/{name} has {there.get(name)} bytes after the upload, "
                f"not {(folder / name).stat().st_size}"
            )
    target.upload(folder / MANIFEST, MANIFEST, patience)


def upload_model(folder: Path, run: Location, patience: Patience | None = None) -> None:
    """Copy an exported model folder to ``model/`` of a run, its manifest last."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    target = run.child("model")
    target.delete(MANIFEST, patience=patience)  # from here on the old one is not there
    for name in names:
        target.upload(folder / name, name, patience)
    manifest = {"files": {name: manifest_entry(folder / name) for name in names}}
    target.write(MANIFEST, json.dumps(manifest, indent=1).encode(), patience)


def fetch_model(run: Location, folder: Path, patience: Patience | None = None) -> Path:
    """Bring the exported model of a run here, for a driver on another machine than rank 0.

    Raises:
        CheckpointError: it is not complete there.
    """
    source = run.child("model")
    try:
        with written_folder(folder) as beside:
            source.download(MANIFEST, beside / MANIFEST, patience)
            for name in _files(beside / MANIFEST):
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                source.download(name, beside / name, patience)
            verify(beside)
            (beside / MANIFEST).unlink()
    except FileNotFoundError as error:
        raise CheckpointError(f"{source.uri} holds no complete model: {error}") from error
    return folder


def _files(manifest: Path) -> list[str]:
    """The files that a manifest names, all inside its folder."""
    try:
        names = list(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest} is unreadable: {error}") from error
    try:
        for name in names:
            inside(manifest.parent, name)
    except DataError as error:
        raise CheckpointError(f"{manifest}: {error}") from None
    return names


def _update(name: str) -> int | None:
    return update_of(name.partition("/")[0])


def _complete(listing: Mapping[str, int]) -> list[int]:
    found = {update for name in listing if (update := _update(name)) is not None}
    return sorted(update for update in found if f"{folder_name(update)}/{MANIFEST}" in listing)
