"""Where a run's state lies: its folder on this machine, and beside it one at a URI if the recipe asks so."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data2vec.errors import ConfigError, Problem

from ..home import home_folder
from ..recipe.schema import Recipe
from ..redaction import redact
from ..storage.locations import (
    Location,
    Patience,
    StorageAwayError,
    StorageError,
    check_writable,
    is_uri,
    local_path,
    open_location,
)
from .loop_state import Summary
from .remote_checkpoints import fetch_model

logger = logging.getLogger(__name__)

_RECIPE = "recipe.json"
_DATA = "data.json"  # fingerprint of the training data
_END = "summary.json"  # how the training ended
_REMOTE = "remote.json"  # names the URI, so that what could not be uploaded is found later
_SHORT = Patience(seconds=20)


def run_root(storage: str | None) -> Path:
    """The folder of all runs on this machine: ``platform.storage`` where that is a folder."""
    if storage is None or is_uri(storage):
        return home_folder("runs")
    return local_path(storage)


def remote_folder(storage: str | None, run_id: str) -> str | None:
    """A run's folder below ``platform.storage`` where that is a URI."""
    return f"{storage.rstrip('/')}/{run_id}" if storage is not None and is_uri(storage) else None


@dataclass(frozen=True)
class RayNotes:
    """Where Ray Train keeps its own notes: on this machine, unless several must read them.

    An object store that is away for a while would otherwise end a training that can do without it. Where it
    is needed, Ray goes through our file system: Ray's own would not read the AWS files.
    """

    path: str  # in the file system's words
    at: Location | None = None  # the object store; ``None`` is this machine

    @classmethod
    def of(cls, run_folder: Path, remote: str | None) -> RayNotes:
        """For a run's folders."""
        import ray

        if remote is not None and sum(bool(node["Alive"]) for node in ray.nodes()) > 1:
            place = open_location(f"{remote}/ray")
            return cls(place.root, place)
        return cls(str(run_folder / "ray"))

    def filesystem(self) -> Any:
        """pyarrow's, for Ray; ``None`` where a path is enough."""
        if self.at is None:
            return None
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self.at.filesystem))

    def remove(self, name: str = "") -> None:
        """Delete what Ray has written for one attempt, or for all: checkpoints say where a run goes on."""
        if self.at is None:
            shutil.rmtree(Path(self.path) / name, ignore_errors=True)
            return
        place = self.at.child(name) if name else self.at
        try:
            place.delete(*place.listing(_SHORT), patience=_SHORT)
        except StorageError as error:
            logger.warning("%s", error)


def check_storage(storage: str | None, *, new: bool) -> None:
    """Write and read a small file at ``platform.storage``.

    Args:
        storage: the recipe's value.
        new: a new run is refused when nothing answers; one that goes on may have all it needs here.

    Raises:
        ConfigError: with the reason and what to do.
    """
    if storage is None or not is_uri(storage):
        return
    try:
        check_writable(open_location(storage), _SHORT)
    except StorageAwayError as error:
        if new:
            raise ConfigError([Problem("platform.storage", storage, str(error))]) from error
        logger.warning("%s; checkpoints stay on this machine until it does", error)
    except StorageError as error:
        raise ConfigError([Problem("platform.storage", storage, str(error))]) from error


def started_with(folder: Path, remote: str | None) -> dict[str, Any] | None:
    """The recipe that a run was started with, from here or from the URI; ``None`` if neither has it.

    Raises:
        StorageAwayError: only the URI could have it, and it does not answer.
    """
    return _kept(_RECIPE, folder, remote)


def data_started_with(folder: Path, remote: str | None) -> str | None:
    """Fingerprint of the data that a run was started with; ``None`` if neither place has it.

    Raises:
        StorageAwayError: only the URI could have it, and it does not answer.
    """
    found = _kept(_DATA, folder, remote)
    return None if found is None else found.get("fingerprint")


def _kept(name: str, folder: Path, remote: str | None) -> dict[str, Any] | None:
    path = folder / name
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    if remote is None:
        return None
    try:
        return json.loads(open_location(remote).read(name, _SHORT))
    except FileNotFoundError:
        return None


def keep_start(folder: Path, remote: str | None, recipe: Recipe, fingerprint: str | None) -> None:
    """Write the recipe, without secrets, and the data's fingerprint into the run's folders."""
    files = {_RECIPE: json.dumps(redact(recipe.to_dict()), indent=1)}
    if fingerprint is not None:
        files[_DATA] = json.dumps({"fingerprint": fingerprint})
    if remote is not None:
        (folder / _REMOTE).write_text(json.dumps({"uri": remote}), encoding="utf-8")
    _keep(files, folder, remote)


def keep_end(folder: Path, remote: str | None, summary: Summary, registered: str | None) -> None:
    """Write how a training ended into the run's folders."""
    _keep(
        {_END: json.dumps({"summary": asdict(summary), "registered": registered}, indent=1)}, folder, remote
    )


def ended_with(folder: Path, remote: str | None) -> tuple[Summary, str | None] | None:
    """How a training ended, and what it was registered as; ``None`` if neither place has it.

    Raises:
        StorageAwayError: only the URI could have it, and it does not answer.
    """
    found = _kept(_END, folder, remote)
    return None if found is None else (Summary(**found["summary"]), found["registered"])


def _keep(files: Mapping[str, str], folder: Path, remote: str | None) -> None:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    if remote is None:
        return
    try:
        for name, text in files.items():
            open_location(remote).write(name, text.encode(), _SHORT)
    except StorageAwayError as error:
        logger.warning("%s", error)


def remote_of(folder: Path) -> str | None:
    """The URI that a run's folder on this machine is copied to."""
    try:
        found: Mapping[str, Any] = json.loads((folder / _REMOTE).read_text(encoding="utf-8"))
        return str(found["uri"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def bring_model(folder: Path, remote: str | None) -> None:
    """Have the exported model on the driver's machine, wherever rank 0 wrote it."""
    if remote is not None and not (folder / "model" / "config.json").is_file():
        fetch_model(open_location(remote), folder / "model")
