"""Models that a recipe or a command names, as folders of ours on this machine; foreign ones are imported."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data2vec.errors import DataError
from data2vec.folders import file_sha256
from data2vec.interop.huggingface import import_folder
from data2vec.interop.model_folder import import_file, save_imported

from ..recipe.components import pretrained_field
from ..recipe.local_data import see_data
from ..recipe.schema import Recipe
from ..storage.cache import cached, keep_if_cached, on_this_node
from ..training.job import ResolvedModels
from .model_source import resolve

logger = logging.getLogger(__name__)

DEFAULT_RESTORE_FILE = "checkpoint_last.pt"  # the reference's default: whatever the run itself left


def resolve_models(recipe: Recipe) -> ResolvedModels:
    """Bring the models that a recipe names to this machine, as model folders of ours.

    Raises:
        Data2VecError: an unknown name, or a file that is no model.
    """
    rules, field = recipe.checkpoint, pretrained_field(recipe.model)
    restored = rules.finetune_from_model or rules.restore_file
    if field == "checkpoint.restore_file":  # as the reference names the pretrained model of roberta
        pretrained, uri = model_folder(restored, data=recipe.task.data)
        return ResolvedModels(pretrained, uri, None)
    pretrained, uri, initial, initial_uri = None, None, None, None
    if field is not None:
        pretrained, uri = model_folder(getattr(recipe.model, field.split(".")[1]), data=recipe.task.data)
    if restored and (rules.finetune_from_model or Path(restored).name != DEFAULT_RESTORE_FILE):
        initial, initial_uri = model_folder(restored, data=recipe.task.data)
    return ResolvedModels(pretrained, uri, initial, initial_uri)


def models_on_this_node(models: ResolvedModels, recipe: Recipe) -> ResolvedModels:
    """A worker's models: the driver's folders where this node sees them, else brought here by their names.

    Raises:
        Data2VecError: a model or the data is on the driver's node alone, or MLflow does not answer from here.
    """
    see_data(recipe)

    def here(field: str, folder: Path | None, uri: str | None) -> Path | None:
        if folder is None:
            return None
        return Path(on_this_node(field, str(folder), uri or str(folder), bring))

    def bring(name: str) -> str:
        return str(model_folder(name, data=recipe.task.data)[0])

    field = pretrained_field(recipe.model) or "checkpoint.restore_file"
    initial = "finetune_from_model" if recipe.checkpoint.finetune_from_model else "restore_file"
    return replace(
        models,
        pretrained=here(field, models.pretrained, models.pretrained_uri),
        initial=here(f"checkpoint.{initial}", models.initial, models.initial_uri),
    )


def model_folder(name: str, data: str | None = None) -> tuple[Path, str]:
    """A model name as a folder of ours and its exact URI; a reference ``.pt`` is imported once.

    Args:
        name: any model name.
        data: ``task.data``, whose dictionary a ``.pt`` without a ``dict.txt`` beside it is read with.
    """
    found = resolve(name)
    if found.kind == "artifact":
        keep_if_cached(found.path)
        return found.path, found.uri
    if found.kind == "fairseq":
        return _imported(found.path, data), found.uri
    return _imported_folder(found.path), found.uri


def _imported_folder(path: Path) -> Path:
    """A Hugging Face folder as a model folder in the cache, made once for each content."""
    files = sorted(path.iterdir())
    key = "|".join([str(path), *map(_state, files)])

    def convert(beside: Path) -> Path:
        model = import_folder(path)
        for line in model.report.lines():
            logger.info("  %s", line)
        return save_imported(model, beside / "model", {"file": path.name})

    return _converted(path, key, sum(file.stat().st_size for file in files), convert)


def _imported(path: Path, data: str | None) -> Path:
    """A reference ``.pt`` as a model folder in the cache, made once for each file and dictionary."""
    candidates = [path.parent / name for name in ("dict.txt", "dict.ltr.txt")]
    if data:
        first = Path(data.split(":")[0])
        candidates += [first / "input0" / "dict.txt", first / "dict.txt", first / "dict.ltr.txt"]
    there = [file for file in candidates if file.is_file()]
    key = f"{path}|{_state(path)}|{[file_sha256(file) for file in there]}"

    def convert(beside: Path) -> Path:
        model = import_file(path)
        if model.vocab_size is not None and model.dictionary is None:
            wanted = model.dictionary_file
            dictionary = next((file for file in there if file.name == wanted), None)
            if dictionary is None:
                looked = [str(file) for file in candidates if file.name == wanted]
                raise DataError(
                    f"{path} needs its dictionary: put {wanted} beside it, or prepare task.data with it "
                    f"(looked for {', '.join(looked)})"
                )
            model = import_file(path, dictionary)
            logger.info("  with the dictionary %s", dictionary)
        for line in model.report.lines():
            logger.info("  %s", line)
        return save_imported(model, beside / "model", {"file": path.name})

    return _converted(path, key, path.stat().st_size, convert)


def _state(file: Path) -> str:
    status = file.stat()
    return f"{file.name}|{status.st_size}|{status.st_mtime_ns}"


def _converted(path: Path, key: str, size: int, convert: Callable[[Path], Path]) -> Path:
    """The model of a key, in about as many bytes as its source."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cached(f"import-{digest}", size, f"{path}, converted", convert)
