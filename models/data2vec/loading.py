"""A ready model from a model folder, a fairseq file or a Hugging Face folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .artifact import is_artifact, read_artifact
from .errors import CheckpointError
from .families import model_in_use
from .in_use import device_of
from .interop.model_folder import foreign_artifact
from .json_files import read_json


def load(
    model: Path | str, dictionary: Path | str | None = None, *, device: torch.device | str = "cpu"
) -> Any:
    """A ready model: ``data2vec.load(folder).embed("some text")``.

    A model takes one item or a list: one text gives one result, a list of texts gives a list.

    Args:
        model: a model folder of ours, a fairseq ``.pt`` file, or a Hugging Face folder.
        dictionary: ``dict.txt`` or ``dict.ltr.txt`` of a ``.pt`` file; default: the one inside or beside.
        device: where it computes: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1"; see its ``to``.

    Returns:
        :class:`data2vec.text_model.TextModel`, :class:`data2vec.audio_model.AudioModel`,
        :class:`data2vec.image_model.ImageModel` or :class:`data2vec.lm.loaded.LanguageModel`.

    Raises:
        CheckpointError: there is no model, it is damaged, a text model has no dictionary, or what was given
            is no path.
        DataError: this machine has no such device.
    """
    _check_name(model)
    device = device_of(device)
    if is_artifact(model) and _is_ours(Path(model)):
        artifact = read_artifact(model)
    else:
        artifact = foreign_artifact(model, dictionary)
    return model_in_use(artifact.kind, artifact.modality)(artifact).to(device)


def _check_name(model: object) -> None:
    """Refuse what is no path, with what to do instead."""
    if isinstance(model, Mapping):
        raise CheckpointError(
            "data2vec.load takes the path of a model, not weights in a dictionary: they do not say which "
            "network they belong to. Give the .pt file or the folder that they come from; a network of your "
            "own becomes a folder with data2vec.artifact.save_artifact(FOLDER, kind=..., model_config=..., "
            "state=...)"
        )
    if not isinstance(model, str | os.PathLike):
        raise CheckpointError(f"data2vec.load takes the path of a model, not {type(model).__name__}")
    name = os.fspath(model)
    scheme = re.match(r"([a-z][a-z0-9+.-]+):/", str(name))
    if scheme is None:
        return
    if scheme[1] in ("models", "runs"):
        raise CheckpointError(
            f"{name} is a name in MLflow, which this library does not know. With MLflow: "
            f'mlflow.pyfunc.load_model("{name}").predict(...); or with this library: '
            f'data2vec.load(mlflow.artifacts.download_artifacts("{name}") + "/artifacts/model"). Both need '
            'MLFLOW_TRACKING_URI, which `eval "$(d2v env)"` sets'
        )
    raise CheckpointError(f"{name} is an address; copy the model's folder or file here and give its path")


def _is_ours(folder: Path) -> bool:
    """Not a Hugging Face folder, which has a ``config.json`` too."""
    try:
        config = read_json(folder / "config.json")
    except CheckpointError:
        return True  # read_artifact says what is wrong with it
    return not ("model_type" in config and "kind" not in config)
