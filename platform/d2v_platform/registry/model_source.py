"""One way to name a model everywhere: registry, run, folder, object storage, fairseq file, Hugging Face.

models:/NAME@ALIAS   models:/NAME/3   runs:/RUN_ID[/path]   FOLDER   s3://bucket/folder
checkpoint.pt (fairseq)   folder with a Hugging Face config.json
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlparse

from data2vec.errors import CheckpointError, Data2VecError
from data2vec.folders import inside
from data2vec.json_files import read_json

from ..home import home_folder
from ..redaction import redact_text
from ..storage.cache import cached, cached_folder
from ..storage.locations import is_uri, local_path, with_retries
from ..tracking.mlflow_access import configure_environment, error_code
from ..tracking.tracker import Tracker as NewTracker
from .alias_history import notice_outside_moves
from .model_package import MODEL_FOLDER
from .model_versions import ModelVersion, get_alias, get_version, show

if TYPE_CHECKING:
    from mlflow.entities import Run

    from ..tracking.tracker import Tracker

_REGISTRY = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^/]+)|/(?P<version>[^/]+))?/?")
_FORMS = (
    "models:/NAME@ALIAS, models:/NAME/3, runs:/RUN_ID, a model folder, an s3:// or other URI of one, "
    "a fairseq .pt file, or a Hugging Face folder"
)


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model is on this machine.

    Attributes:
        kind: ``artifact`` (folder of ours), ``fairseq`` (a ``.pt`` file) or ``huggingface`` (a folder).
        path: local folder or file.
        uri: the name with an alias replaced by the version it stood for: what belongs into lineage.
        version: the registered version, if it came from the registry.
        package: the MLflow model folder around ``path``, if there is one.
    """

    kind: Literal["artifact", "fairseq", "huggingface"]
    path: Path
    uri: str
    version: ModelVersion | None = None
    package: Path | None = None


def resolve(model_name: str, tracker: Tracker | None = None) -> ResolvedModel:
    """Find a model by its name and bring it to this machine.

    Args:
        model_name: see the forms above.
        tracker: for ``models:/`` and ``runs:/``; default: a new one on the default server.

    Raises:
        Data2VecError: unknown name, alias, version or form; the message lists what exists.
        CheckpointError: what is there is no model.
    """
    name = str(model_name).strip()
    if name.startswith(("models:", "runs:")):
        return _with_tracker(tracker, lambda t: _from_mlflow(t, name))
    if re.match(r"[A-Za-z][A-Za-z0-9+.\-]*://", name) and not name.startswith("file://"):
        return _classify(_download_uri(name, tracker), redact_text(name))
    path = Path(unquote(urlparse(name).path)) if name.startswith("file://") else Path(name).expanduser()
    if not path.exists():
        raise Data2VecError(f"model {name!r}: no such file or folder; a model is named by {_FORMS}")
    path = Path(os.path.abspath(path))
    return _classify(path, str(path))


def _with_tracker(tracker: Tracker | None, use: Callable[[Tracker], ResolvedModel]) -> ResolvedModel:
    if tracker is not None:
        return use(tracker)

    with NewTracker() as own:
        return use(own)


def _from_mlflow(tracker: Tracker, name: str) -> ResolvedModel:
    if name.startswith("runs:"):
        return _from_run(tracker, name)
    match = _REGISTRY.fullmatch(name)
    if not match:
        raise Data2VecError(
            f"model {name!r} is not a registry name; write models:/NAME@ALIAS or models:/NAME/3"
        )
    model, alias, number = match["name"], match["alias"], match["version"]
    if alias:
        version = get_alias(tracker, model, alias)
        notice_outside_moves(tracker, model)
    elif number and number.isdigit():
        version = get_version(tracker, model, number)
    else:
        known = show(tracker, model)
        choices = [f"models:/{model}@{a}" for a in sorted(known.aliases)]
        choices += [f"models:/{model}/{v.version}" for v in known.versions]
        why = "'latest' and stages change under you" if number else "it names no version"
        raise Data2VecError(f"model {name!r}: {why}; choose {', '.join(choices) or 'a version (none yet)'}")
    if version.model_id:
        package = _logged_model(tracker, version.model_id)
    else:  # registered by another program
        source = tracker.client.get_model_version_download_uri(model, str(version.version))
        package = _mlflow_download(tracker, source, f"version-{model}-{version.version}-{version.created_ms}")
    return _classify(package, version.uri, version)


def _from_run(tracker: Tracker, name: str) -> ResolvedModel:
    match = re.fullmatch(r"runs:/+(?P<run>[^/]+)(?:/(?P<path>.+?))?/?", name)
    if not match:
        raise Data2VecError(f"model {name!r}: write runs:/RUN_ID or runs:/RUN_ID/path")
    run_id, path = match["run"], match["path"]
    try:
        run = tracker.client.get_run(run_id)
    except Exception as error:
        if error_code(error) not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise Data2VecError(f"model {name!r}: MLflow has no run {run_id!r}") from error
    logged = [
        model
        for model in tracker.client.search_logged_models(
            [run.info.experiment_id],
            f"source_run_id = '{run_id}'",
            order_by=[{"field_name": "creation_time", "ascending": False}],
        )
        if path in (None, model.name)
    ]
    if logged:
        return _classify(_logged_model(tracker, logged[0].model_id), f"models:/{logged[0].model_id}")
    there = [item.path for item in tracker.client.list_artifacts(run_id)]
    wanted = path or MODEL_FOLDER
    if wanted.split("/")[0] not in there:
        folder, remote = _left_by_training(tracker, run)
        if wanted == MODEL_FOLDER and (folder / "config.json").is_file():
            return _classify(folder, f"runs:/{run_id}")
        if wanted == MODEL_FOLDER and remote is not None:
            return _classify(_download_uri(remote, tracker), f"runs:/{run_id}")
        raise Data2VecError(
            f"model {name!r}: the run {run.info.run_name} has no model {wanted!r}; its artifacts are: "
            f"{', '.join(there) or 'none'}, and {folder} is not there; if it left checkpoints: "
            f"d2v registry add {run_id}@last --name NAME"
        )
    place = f"{str(run.info.artifact_uri).rstrip('/')}/{wanted}"
    folder = _mlflow_download(tracker, place, f"run-{run_id}-{wanted.replace('/', '-')}")
    return _classify(folder, f"runs:/{run_id}/{wanted}")


def _left_by_training(tracker: Tracker, run: Run) -> tuple[Path, str | None]:
    """Where a training that registered nothing left its model: on this machine, and at a URI."""
    storage, run_id = run.data.params.get("platform.storage", "None"), run.info.run_id
    if storage in ("None", "null") or is_uri(storage):
        folder = home_folder("runs", tracker.home)
        remote = f"{storage.rstrip('/')}/{run_id}/{MODEL_FOLDER}" if is_uri(storage) else None
    else:
        folder, remote = local_path(storage), None
    return folder / run_id / MODEL_FOLDER, remote


def _logged_model(tracker: Tracker, model_id: str) -> Path:
    # Not models:/m-...: MLflow would look that up in the default store of the process, which is not ours.
    return _mlflow_download(tracker, tracker.client.get_logged_model(model_id).artifact_location, model_id)


def _as_local(location: str) -> Path | None:
    parts = urlparse(location)
    if parts.scheme not in ("", "file"):
        return None
    path = Path(unquote(parts.path))
    return path if path.is_dir() else None


def _mlflow_download(tracker: Tracker, uri: str, key: str) -> Path:
    """Download once into the cache. Logged models and versions never change, so the key needs no hash."""
    local = _as_local(uri)
    if local:
        return local
    configure_environment()
    import mlflow.artifacts

    shown = f"model {redact_text(uri)!r}"

    def fetch(into: Path) -> Path:
        # MLflow puts the last part of the path below the folder we gave, and says so.
        got = with_retries(
            lambda: mlflow.artifacts.download_artifacts(
                artifact_uri=uri,
                dst_path=str(into),
                tracking_uri=tracker.tracking_uri,
                registry_uri=tracker.tracking_uri,
            ),
            shown,
        )
        return Path(got)

    server = hashlib.sha256(tracker.tracking_uri.encode()).hexdigest()[:8]
    root = home_folder("cache", tracker.home) / "data"
    key = re.sub(r"[^A-Za-z0-9._-]", "-", key)
    return cached(f"mlflow-{server}-{key}", _mlflow_bytes(tracker, uri, shown), shown, fetch, root)


def _mlflow_bytes(tracker: Tracker, uri: str, shown: str) -> int:
    """Size of what lies at an MLflow address.

    Raises:
        DataError: a name in the server's listing leads outside the folder.
    """
    import mlflow.artifacts

    above, total, folders = uri.rstrip("/").rpartition("/")[0], 0, [uri]
    while folders:
        place = folders.pop()
        for entry in with_retries(
            lambda place=place: mlflow.artifacts.list_artifacts(
                artifact_uri=place, tracking_uri=tracker.tracking_uri
            ),
            shown,
        ):
            inside(Path("model"), entry.path)
            if entry.is_dir:
                folders.append(f"{above}/{entry.path}")
            total += entry.file_size or 0
    return total


def _download_uri(uri: str, tracker: Tracker | None) -> Path:
    """A folder or file at any fsspec URI; the cache is keyed by what lies there, so a change is noticed."""
    home = tracker.home if tracker else None
    folder = cached_folder(uri, home_folder("cache", home) / "data", what="model")
    single = folder / Path(urlparse(uri).path).name
    return single if [single] == list(folder.iterdir()) and single.is_file() else folder


def _classify(path: Path, uri: str, version: ModelVersion | None = None) -> ResolvedModel:
    """Say what lies at ``path``."""
    if path.is_file():
        if path.suffix not in (".pt", ".pth"):
            raise CheckpointError(
                f"{path} is a file, but no fairseq .pt checkpoint; a model is named by {_FORMS}"
            )
        return ResolvedModel("fairseq", path, uri, version)
    if (path / "MLmodel").is_file():
        inner = path / "artifacts" / MODEL_FOLDER
        if not inner.is_dir():
            raise CheckpointError(f"{uri}: an MLflow model, but not one of d2v: {inner} is missing")
        return ResolvedModel("artifact", inner, uri, version, package=path)
    config_file = path / "config.json"
    if not config_file.is_file():
        if (path / MODEL_FOLDER / "config.json").is_file():
            return _classify(path / MODEL_FOLDER, uri, version)
        raise CheckpointError(
            f"{path} is no model folder: it has no config.json; a model is named by {_FORMS}"
        )
    config = read_json(config_file)
    if "kind" in config and "model" in config:
        return ResolvedModel("artifact", path, uri, version)
    if "model_type" in config:
        return ResolvedModel("huggingface", path, uri, version)
    raise CheckpointError(f"{config_file} is neither ours (kind, model) nor Hugging Face's (model_type)")
