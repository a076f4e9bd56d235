"""An imported model as a model folder of ours, and what the file's name, hash and licence say about it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import save_artifact
from ..data.bpe import GPT2BPE
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
        dict_path: its dictionary: ``dict.txt`` of a text model, ``dict.ltr.txt`` of a CTC model. By default
            the one inside the file (CTC); without any a vocabulary is not checked, which the report says.

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
    tokenizer, letters = None, None
    if modality == "TEXT" and imported.dictionary is not None:
        tokenizer = TextTokenizer(GPT2BPE(), imported.dictionary)
    elif imported.kind == "ctc":
        letters = imported.dictionary
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
        origin={**(origin or {}), "update": imported.num_updates},
    )


def task_of(imported: ImportedModel) -> dict[str, Any]:
    """What is needed to use the model: labels, normalisation, number of symbols.

    Class names are not part of fairseq's files: classes are called by their numbers.
    """
    modality, task = modality_of(imported.model_config), dict[str, Any]()
    if modality == "AUDIO":
        task["normalize"] = imported.normalize
    if imported.kind == "ctc":
        task["num_symbols"] = imported.vocab_size
    if imported.kind == "sentence_classifier":
        task["regression"] = imported.regression
    if imported.kind in ("sentence_classifier", "image_classifier") and imported.head_config is not None:
        classes = int(getattr(imported.head_config, "num_classes", 0))
        task["labels"] = [str(index) for index in range(classes)]
    return task


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hash of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
