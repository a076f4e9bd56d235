"""The mean of several sets of weights, in float32: of checkpoints of a run, or of model folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .artifact import Artifact, read_artifact
from .errors import CheckpointError
from .folders import written_folder

_SAME = ("kind", "family", "model", "head", "dictionary", "tokenizer")  # of config.json, in all folders
_WEIGHTS = ("model.safetensors", "teacher.safetensors")
_OF_ONE = ("check.json", *_WEIGHTS)  # outputs recorded with the weights of one folder


def mean_weights(states: Iterable[tuple[str, Mapping[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """The mean of weights of the same names and shapes; whole numbers are those of the last.

    Args:
        states: what to call each in messages, and its weights; read one after another.

    Raises:
        CheckpointError: names or shapes differ, or there are none.
    """
    total: dict[str, torch.Tensor] = {}
    first, count = "", 0
    for name, state in states:
        if count and (problem := _difference(total, state)):
            raise CheckpointError(f"{name} and {first} are not weights of one network: {problem}")
        first, count = first or name, count + 1
        for key, tensor in state.items():
            if not tensor.is_floating_point():
                total[key] = tensor
            elif key in total:
                total[key] += tensor.float()
            else:
                total[key] = tensor.float().clone()
    if not count:
        raise CheckpointError("there are no weights to average")
    return {key: t / count if t.is_floating_point() else t for key, t in total.items()}


def _difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> str:
    only = sorted(one.keys() ^ other.keys())
    if only:
        return f"{len(only)} names are in one of them only, first {only[0]}"
    for key in sorted(one):
        if one[key].shape != other[key].shape:
            return f"{key} is {tuple(one[key].shape)} and {tuple(other[key].shape)}"
    return ""


def average_folders(folders: Sequence[Path], out: Path) -> None:
    """Write the model folder whose weights are the mean of those of others.

    Args:
        folders: model folders of one architecture, head and dictionary; all else is that of the first.
        out: the new folder.

    Raises:
        CheckpointError: they do not fit each other, or ``out`` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is not empty; give a new folder")
    found = [read_artifact(folder) for folder in folders]
    _refuse_others(found)
    config = dict(found[0].config)
    origins = [artifact.config.get("origin") or {} for artifact in found]
    runs = {str(origin.get("run_id")) for origin in origins}
    updates = [origin["update"] for origin in origins if isinstance(origin.get("update"), int)]
    config["origin"] = {**origins[0], "averaged": [str(folder) for folder in folders]} | (
        {"update": max(updates)} if updates else {}
    )
    if len(runs) > 1:
        config["origin"].pop("run_id", None)
    with written_folder(out) as beside:
        shutil.copytree(found[0].folder, beside, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_OF_ONE))
        for file in _WEIGHTS:
            paths = [artifact.folder / file for artifact in found]
            if all(path.is_file() for path in paths):
                save_file(mean_weights((str(path), load_file(path)) for path in paths), beside / file)
        (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _refuse_others(found: Sequence[Artifact]) -> None:
    for artifact in found[1:]:
        differ = [key for key in _SAME if artifact.config.get(key) != found[0].config.get(key)]
        if differ:
            raise CheckpointError(
                f"{artifact.folder} and {found[0].folder} are not one model: {', '.join(differ)} of their "
                "config.json differ"
            )
