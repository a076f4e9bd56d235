"""How each kind of model is served: ours, and those that users registered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import data2vec
from data2vec.families import modality_of, read_model_config

from . import audio_models, image_models, language_models, text_models
from .reload_check import ATOL, CHECK_FILE, FORMAT, RTOL
from .serving import SERVED, Served

_OURS = text_models.SERVED | audio_models.SERVED | image_models.SERVED | language_models.SERVED


def served_as(kind: str, modality: str) -> Served:
    """How such models are served."""
    known = _OURS | SERVED
    return known.get(kind) or known[modality.upper()]


def served_of(config: Mapping[str, Any]) -> Served:
    """How the model of this ``config.json`` is served."""
    return served_as(config["kind"], modality_of(read_model_config(config.get("family"), config["model"])))


def record_check(folder: Path | str, model: Any = None) -> Path:
    """Write ``check.json`` into a model folder.

    Args:
        folder: a model folder of ours.
        model: the model that was saved, with ``config`` and what its kind can do; default: load it.
    """
    folder = Path(folder)
    if model is None:
        model = data2vec.load(folder)
    content = {"format": FORMAT, **served_of(model.config).check(model), "rtol": RTOL, "atol": ATOL}
    path = folder / CHECK_FILE
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return path
