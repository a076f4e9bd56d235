"""``task.data`` as a raw GLUE folder: its tasks are prepared once, with the model's own dictionary."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from data2vec.artifact import read_artifact
from data2vec.data.glue import GLUE_TASKS, GlueTask, prepare_task
from data2vec.data.tokenizer import TextTokenizer
from data2vec.errors import ConfigError, Problem
from data2vec.folders import file_sha256

from ..home import home_folder
from ..recipe.sweep_definition import Trial
from ..storage.cache import cached, cached_folder
from ..storage.locations import is_uri, local_path, open_location

logger = logging.getLogger(__name__)


class RawGlue:
    """Turns a trial's missing ``<TASK>-bin`` folder into one prepared from the raw folder beside it.

    Args:
        data_folders: the definition's: task -> folder below ``task.data``.
    """

    def __init__(self, data_folders: Mapping[str, str]) -> None:
        self._folders = dict(data_folders)
        self._tokenizers: dict[Path, TextTokenizer] = {}
        self._prepared: dict[tuple[str, str, str], Path] = {}

    def prepared(self, trial: Trial, model: Path | None) -> Trial:
        """The trial with ``task.data`` at prepared data.

        Args:
            trial: may name a folder that does not exist.
            model: its model folder, whose tokenizer prepares raw data.

        Raises:
            ConfigError: neither prepared nor raw data is there.
            DataError: the raw files are damaged.
        """
        task = GLUE_TASKS.get(str(trial.values.get("task")))
        node = trial.recipe.task
        named = self._folders.get(str(trial.values.get("task")))
        folder = Path(node.data)
        if task is not None and is_uri(node.data):
            if open_location(node.data).listing():
                return trial
            folder = _fetched_raw(node.data, task.folder)
        if task is None or folder.is_dir() or folder.name != named:
            return trial
        root = folder.parent
        if not (root / task.folder).is_dir():
            there = "" if root.is_dir() else f"; {root} does not exist"
            rule = (
                f"there is neither {named} (written by d2v prepare glue) nor the raw folder {task.folder} "
                f"in it{there}; leave {task.name} out with grid.task=[...] or add its data"
            )
            raise ConfigError([Problem("task.data", str(root), rule)])
        if model is None:
            return trial
        place = prepared_root(trial.recipe.platform.storage)
        made = dataclasses.replace(node, data=str(self._prepare(task, root, model, place)))
        overrides = (
            *(o for o in trial.overrides if not o.startswith("task.data=")),
            f"task.data='{made.data}'",
        )
        return dataclasses.replace(
            trial, recipe=dataclasses.replace(trial.recipe, task=made), overrides=overrides
        )

    def _prepare(self, task: GlueTask, root: Path, model: Path, place: Path) -> Path:
        key = (task.name, str(root), str(model))
        if key not in self._prepared:
            tokenizer, raw = self._tokenizer(model), root / task.folder
            content = _content_key(task, root, tokenizer)
            done = place / content / task.bin_folder
            if done.is_dir():
                logger.info("%s: raw files of %s, prepared before in %s", task.name, raw, done)

            def prepare(beside: Path) -> Path:
                logger.info("%s: preparing the raw files of %s with the model's dictionary", task.name, raw)
                report = prepare_task(task, root, beside, tokenizer)
                kept = ", ".join(f"{name} {split.kept}" for name, split in report.splits.items())
                logger.info("%s: %s rows (%d dropped) in %s", task.name, kept, report.dropped, done)
                return beside

            size = 2 * sum(file.stat().st_size for file in raw.rglob("*") if file.is_file())
            cached(content, size, f"{task.name} of {raw}, prepared", prepare, place)
            self._prepared[key] = done
        return self._prepared[key]

    def _tokenizer(self, model: Path) -> TextTokenizer:
        if model not in self._tokenizers:
            tokenizer = read_artifact(model).tokenizer
            if tokenizer is None:
                rule = "has no tokenizer, so raw GLUE files cannot be prepared with it; run d2v prepare glue"
                raise ConfigError([Problem("model.model_path", str(model), rule)])
            self._tokenizers[model] = tokenizer
        return self._tokenizers[model]


def prepared_root(storage: str | None) -> Path:
    """Where all nodes of a sweep see what is prepared: below ``platform.storage``, or on the one node."""
    if storage is None or is_uri(storage):
        return home_folder("cache") / "glue"
    return local_path(storage) / "glue"


def _fetched_raw(prepared: str, raw: str) -> Path:
    """Where the prepared folder of this name would be, beside a local copy of the raw one at the URI."""
    root, _, name = prepared.rpartition("/")
    if not open_location(root).child(raw).listing():
        return Path(f"{root}/{name}")
    copy = cached_folder(f"{root}/{raw}")
    beside = home_folder("cache") / "raw" / copy.name
    beside.mkdir(parents=True, exist_ok=True)
    if not (beside / raw).exists():
        (beside / raw).symlink_to(copy)
    return beside / name


def _content_key(task: GlueTask, root: Path, tokenizer: TextTokenizer) -> str:
    """Hash of the dictionary and of the raw files: other files or another dictionary are prepared anew."""
    digest = hashlib.sha256(tokenizer.digest().encode())
    for split in task.splits:
        path = root / task.folder / split.file
        digest.update(f"|{split.file}:{file_sha256(path) if path.is_file() else 'none'}".encode())
    return digest.hexdigest()[:16]
