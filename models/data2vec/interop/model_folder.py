"""An imported model as a model folder of ours, and what the file's name, hash and licence say about it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import Artifact, save_artifact
from ..data.bpe import shared_bpe
from ..data.dictionary import Dictionary
from ..data.tokenizer import TextTokenizer
from ..errors import CheckpointError
from ..families import modality_of
from .fairseq import import_checkpoint
from .fairseq_file import read_checkpoint
from .imported import ImportedModel


def import_file(
    path: str | os.PathLike[str], dict_path: str | os.PathLike[str] | None = None
) -> ImportedModel:
    """A fairseq checkpoint of any family.

    Args:
        path: the ``.pt`` file.
        dict_path: its dictionary: ``dict.txt`` of a text or language model, ``dict.ltr.txt`` of a CTC model.
            By default the one inside the file (CTC); without any a vocabulary is not checked, which the
            report says.

    Raises:
        CheckpointError: the file cannot be read or does not fit its own configuration or dictionary.
    """
    dictionary = None if dict_path is None else Dictionary.load(dict_path)
    return import_checkpoint(read_checkpoint(path), dictionary)


def save_imported(
    imported: ImportedModel, folder: Path | str, origin: Mapping[str, Any] | None = None
) -> Path:
    """Write the model folder of an import.

    Args:
        imported: the model.
        folder: replaced if it exists.
        origin: where the file came from; the number of updates is added.

    Raises:
        CheckpointError: a text model without dictionary, which could not be used.
    """
    modality = modality_of(imported.model_config)
    if modality == "TEXT" and imported.dictionary is None:
        raise CheckpointError(
            "a text model is of no use without its dictionary: give the dict.txt that belongs to it (--dict)"
        )
    tokenizer, letters, words = _vocabulary(imported)
    return save_artifact(
        folder,
        kind=imported.kind,
        model_config=imported.model_config,
        head_config=imported.head_config,
        state=imported.state,
        teacher=imported.teacher,
        task=task_of(imported),
        tokenizer=tokenizer,
        letters=letters,
        words=words,
        origin={**(origin or {}), "update": imported.num_updates},
    )


def task_of(imported: ImportedModel) -> dict[str, Any]:
    """What is needed to use the model: labels, normalisation, number of symbols.

    Class names are not part of fairseq's files: unless they are given, classes are called by their numbers.
    """
    modality, task = modality_of(imported.model_config), dict[str, Any]()
    if modality == "AUDIO":
        task["normalize"] = imported.normalize
    if imported.pixel_norm is not None:
        task["mean"], task["std"] = (list(values) for values in imported.pixel_norm)
    if imported.kind == "ctc":
        task["num_symbols"] = imported.vocab_size
    if imported.kind == "sentence_classifier":
        task["regression"] = imported.regression
    classifiers = ("sentence_classifier", "image_classifier", "audio_classifier")
    if imported.kind in classifiers and imported.head_config is not None:
        classes = int(getattr(imported.head_config, "num_classes", 0))
        task["labels"] = list(imported.classes or map(str, range(classes)))
    return task


def foreign_artifact(
    model: str | os.PathLike[str], dictionary: str | os.PathLike[str] | None = None
) -> Artifact:
    """A fairseq file or a Hugging Face folder as an artifact in memory: nothing is written.

    Raises:
        CheckpointError: there is no model, or it cannot be read.
    """
    path = Path(model)
    if path.is_dir():
        from .huggingface import import_folder

        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path} is no model folder: it has no config.json")
        imported = import_folder(path)
        if dictionary is not None:
            imported = dataclasses.replace(imported, dictionary=Dictionary.load(dictionary).with_mask())
    elif path.is_file():
        imported = import_file(path, dictionary)
        if dictionary is None and imported.vocab_size is not None and imported.dictionary is None:
            beside = path.parent / ("dict.ltr.txt" if imported.kind == "ctc" else "dict.txt")
            imported = import_file(path, beside) if beside.is_file() else imported
    else:
        raise CheckpointError(f"{path}: no such file or folder")
    return in_memory(imported, path)


def in_memory(imported: ImportedModel, path: Path) -> Artifact:
    """An import as what reading its model folder would give."""
    tokenizer, letters, words = _vocabulary(imported)
    config = {
        "kind": imported.kind,
        "task": task_of(imported),
        "origin": {"file": path.name, "update": imported.num_updates},
    }
    artifact = Artifact(
        imported.kind, imported.model_config, imported.head_config, config, tokenizer, path, letters, words
    )
    artifact.state = imported.state
    if imported.vocab_size is not None:
        artifact.vocab_size = imported.vocab_size
    return artifact


def _vocabulary(
    imported: ImportedModel,
) -> tuple[TextTokenizer | None, Dictionary | None, Dictionary | None]:
    """Tokenizer of a text model, letters of a CTC model, words of a language model."""
    if imported.dictionary is None:
        return None, None, None
    if imported.kind == "language_model":
        return None, None, imported.dictionary
    if modality_of(imported.model_config) == "TEXT":
        return TextTokenizer(shared_bpe(), imported.dictionary), None, None
    return None, imported.dictionary if imported.kind == "ctc" else None, None
