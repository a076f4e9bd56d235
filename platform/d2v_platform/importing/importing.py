"""One import: the file, what it was recognised as, its model folder, and its registered version."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.data.dictionary import Dictionary
from data2vec.errors import DataError
from data2vec.families import describe, modality_of
from data2vec.folders import file_sha256
from data2vec.interop.fairseq import import_checkpoint
from data2vec.interop.fairseq_file import FairseqCheckpoint, read_checkpoint
from data2vec.interop.huggingface import import_folder, weights_file
from data2vec.interop.imported import ImportedModel
from data2vec.interop.model_folder import save_imported
from data2vec.interop.published import PublishedFile, candidates, recipe_of
from data2vec.interop.teacher_weights import with_teacher_weights

from ..markdown import code, literal
from ..registry.model_card import CardFacts, model_card
from ..registry.model_versions import PRETRAINED, NewVersion
from ..registry.register import record_check, register
from ..registry.reload_check import CHECK_FILE
from ..storage.cache import cached
from ..tracking.tracker import NewRun, Tracker

_COLLAPSED = 1e-3  # deviation between different inputs, relative to the features' size
_UNKNOWN_LICENCE = "Not recorded in the file: whoever made it decides. Published vision weights are CC-BY-NC."


@dataclass(frozen=True)
class Imported:
    """What came of an import."""

    folder: Path  # the model folder
    lines: list[str]  # the account, for people
    version: str | None  # ``models:/NAME/VERSION`` if it was registered


@dataclass(frozen=True)
class ImportRequest:
    """What is to become a model of ours.

    Attributes:
        file: a fairseq file, a data2vec_vision file or a Hugging Face folder.
        dict_path: the dictionary that belongs to it; default: the one inside, or beside the file.
        classes: file with the names of a classifier's classes, by number, one a line.
        out: model folder to write; default: one in the cache, which is bounded.
        weights: "student" or "teacher".
        register: name in the registry; needs MLflow.
        alias: alias to take, through the gate.
        sha256: refuse the file if its hash is another.
        tracking_uri: MLflow.
    """

    file: Path
    dict_path: Path | None = None
    classes: Path | None = None
    out: Path | None = None
    weights: str = "student"
    register: str | None = None
    alias: str | None = None
    sha256: str | None = None
    tracking_uri: str | None = None


def import_model(asked: ImportRequest) -> Imported:
    """Import a file or folder, and register it if that is asked.

    Raises:
        CheckpointError: the file cannot be read or does not fit its own configuration.
        DataError: a wrong checksum or dictionary; another number of classes.
    """

    file, weights = asked.file, asked.weights
    if file.is_dir():
        imported = import_folder(file)
        digest, cfg = file_sha256(weights_file(file)), {}
    else:
        checkpoint = read_checkpoint(file)  # what is wrong with the file is said before it is hashed
        digest, cfg = file_sha256(file), checkpoint.cfg
        imported = _with_dictionary(checkpoint, asked.dict_path)
    if asked.sha256 is not None and digest != asked.sha256.lower():
        raise DataError(f"{file} has SHA-256 {digest}, expected {asked.sha256.lower()}")
    if asked.classes is not None:
        imported = _with_classes(imported, asked.classes)
    if weights == "teacher":
        imported = with_teacher_weights(imported)
    found, recipe = candidates(imported), recipe_of(imported, cfg)
    origin = origin_of(file, digest, imported, found, recipe, weights)
    where = ""
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        folder = save_imported(imported, asked.out, origin)
    else:
        folder = _in_cache(imported, file, digest, origin)
        where = " (in the cache, where room is made for others: --out keeps it)"
    lines = [f"{file}: sha256 {digest}", *summary_lines(imported, cfg), f"model folder: {folder}{where}"]
    version = None
    if asked.register is not None:
        version = _register(folder, imported, asked.register, asked, origin, lines)
    return Imported(folder, lines, version)


def _in_cache(imported: ImportedModel, file: Path, digest: str, origin: Mapping[str, Any]) -> Path:
    """The model folder among what was fetched and converted, made once for each file and wish."""
    symbols = None if imported.dictionary is None else imported.dictionary.digest()
    wishes = json.dumps([digest, origin["weights"], symbols, imported.classes])
    key = hashlib.sha256(wishes.encode()).hexdigest()[:8]
    stem = re.sub(r"[^\w.-]+", "_", file.stem).strip(".") or "model"
    tensors = [*imported.state.values(), *(imported.teacher or {}).values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return cached(
        f"{stem}-{key}", size, f"{file}, converted",
        lambda beside: save_imported(imported, beside / "model", origin),
    )  # fmt: skip


def summary_lines(imported: ImportedModel, cfg: Mapping[str, Any]) -> list[str]:
    """Architecture, recipe, likely published files, and the report."""
    numbers = sum(tensor.numel() for tensor in imported.state.values())
    lines = [f"{describe(imported.model_config)}; {imported.kind}, {numbers:,} parameters"]
    recipe = recipe_of(imported, cfg)
    lines.append(
        f"recipe: {recipe}" if recipe else "recipe: none that the architecture and the file's cfg tell"
    )
    if found := candidates(imported):
        names = ", ".join(entry.name for entry in found)
        lines.append(f"published files of this architecture: {names} ({found[0].licence})")
    if imported.num_updates is not None:
        lines.append(f"trained for {imported.num_updates:,} updates")
    if imported.teacher is not None:
        lines.append(f"teacher: kept, {len(imported.teacher)} tensors")
    if imported.dictionary is not None:
        lines.append(f"dictionary: {len(imported.dictionary)} symbols")
    return lines + imported.report.lines()


def origin_of(
    file: Path,
    digest: str,
    imported: ImportedModel,
    found: list[PublishedFile],
    recipe: str | None,
    weights: str,
) -> dict[str, Any]:
    """Where the weights come from: what the model folder and the registered version keep."""
    exact = [entry for entry in found if entry.name.rpartition("/")[2] == file.name]
    named = exact[0] if len(exact) == 1 else None
    licences = {entry.licence for entry in found}
    return {
        "imported.file": file.name,
        "imported.sha256": digest,
        "imported.family": imported.report.family,
        "imported.published_as": named.name if named else "",
        "imported.address": (named.url or "") if named else "",
        # By architecture alone a file is not known to be the published one: the licence is then a hint.
        "licence": named.licence if named else "unknown",
        "licence.if_published": ", ".join(sorted(licences)),
        "recipe": recipe or "",
        "weights": weights,
    }


def _with_dictionary(checkpoint: FairseqCheckpoint, dict_path: Path | None) -> ImportedModel:
    """The model with the given dictionary, or the one inside the file, or the one beside it."""

    if dict_path is not None:
        imported = import_checkpoint(checkpoint, Dictionary.load(dict_path))
        if imported.vocab_size is None:
            raise DataError(f"--dict {dict_path}: a model of this kind has no dictionary; leave it out")
        return imported
    imported = import_checkpoint(checkpoint)
    if imported.vocab_size is None or imported.dictionary is not None:
        return imported
    beside = checkpoint.path.parent / imported.dictionary_file
    return import_checkpoint(checkpoint, Dictionary.load(beside)) if beside.is_file() else imported


def _with_classes(imported: ImportedModel, path: Path) -> ImportedModel:
    """The classifier with the names of its classes."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--classes {path} cannot be read: {error}") from None
    wanted = getattr(imported.head_config, "num_classes", None)
    if wanted is None or imported.regression:
        raise DataError(f"--classes {path}: a model of this kind has no classes; leave it out")
    if len(names) != wanted or len(set(names)) != wanted:
        raise DataError(
            f"--classes {path} names {len(set(names))} different classes in {len(names)} lines; "
            f"the model has {wanted}"
        )
    return dataclasses.replace(imported, classes=tuple(names))


def _register(
    folder: Path,
    imported: ImportedModel,
    name: str,
    asked: ImportRequest,
    origin: Mapping[str, Any],
    lines: list[str],
) -> str:
    from ..training.run_description import NOTE_TAG, code_version, source_tags

    facts = {f"import.{key.removeprefix('imported.')}": str(value) for key, value in origin.items() if value}
    alias = asked.alias
    record_check(folder)
    with Tracker(asked.tracking_uri) as tracker:
        run = tracker.open_run(
            NewRun(
                experiment=f"data2vec-{modality_of(imported.model_config).lower()}",
                name=f"import {origin['imported.file']}",
                params={"import": dict(origin)},
                tags={
                    "d2v.kind": "import",
                    **source_tags("d2v import", code_version()),
                    NOTE_TAG: f"Imported: {describe(imported.model_config)}, from {origin['imported.file']}.",
                    **facts,
                },
            )
        )
        tags = import_lineage_tags(imported, origin, code_version()) | facts
        if imported.kind == PRETRAINED:
            tags["collapse"] = str(has_collapsed(folder)).lower()
        card = model_card(import_card_facts(name, imported, origin, tags, alias, tracker.tracking_uri))
        version = register(
            tracker,
            NewVersion(
                folder=folder, name=name, run_id=run.run_id, tags=tags, card_markdown=card, alias=alias
            ),
        )
        tracker.finish(run.run_id)
    uri = f"models:/{name}/{version.version}"
    taken = f" ({name}@{alias})" if alias and alias in version.aliases else ""
    lines.append(f"registered: {uri}{taken}")
    if version.refusal:
        lines.append(f"the alias was not moved: {version.refusal}")
    return uri


def import_lineage_tags(imported: ImportedModel, origin: Mapping[str, Any], code: str) -> dict[str, str]:
    """The lineage of a version that was not trained here: the file stands for recipe and data."""
    digest = str(origin["imported.sha256"])
    dictionary = imported.dictionary.digest() if imported.dictionary is not None else "none"
    return {
        "recipe.name": str(origin["recipe"]) or "imported, not recorded",
        "recipe.digest": f"imported:{digest}",
        "recipe.difference": "unknown: trained elsewhere",
        "data.fingerprint": f"imported:{digest}",
        "dictionary.hash": dictionary,
        "code.version": code,
        "parent.version": "none",
        "run.update": str(imported.num_updates if imported.num_updates is not None else "unknown"),
    }


def has_collapsed(folder: Path) -> bool:
    """Whether the recorded check inputs, which differ, get (almost) the same features.

    The variances of a foreign training are not known; this is what the weights themselves show.
    """
    rows = np.array(json.loads((folder / CHECK_FILE).read_text(encoding="utf-8"))["expected"], dtype=float)
    rows = rows.reshape(len(rows), -1)
    return bool(rows.std(axis=0).mean() < _COLLAPSED * max(np.abs(rows).mean(), 1e-12))


def import_card_facts(
    name: str,
    imported: ImportedModel,
    origin: Mapping[str, Any],
    tags: Mapping[str, str],
    alias: str | None,
    tracking_uri: str,
) -> CardFacts:
    """What the card of an import states."""
    licence = str(origin["licence"])
    if licence == "unknown":
        hint = origin["licence.if_published"]
        licence = _UNKNOWN_LICENCE + (f" If it is a published file: {hint}." if hint else "")
    source = origin["imported.address"] or "a file given by the user"
    body = (
        f"- file: {code(origin['imported.file'])}\n- sha256: {code(origin['imported.sha256'])}\n"
        f"- from: {code(source)}\n- recognised as: {literal(origin['imported.family'])}\n"
        f"- weights: {literal(origin['weights'])}"
    )
    modality = modality_of(imported.model_config).lower()
    count = 0 if imported.regression else getattr(imported.head_config, "num_classes", 0)
    return CardFacts(
        name=name,
        kind=imported.kind,
        summary=f"Imported, not trained here: {describe(imported.model_config)}",
        recipe=str(origin["recipe"]) or "not recorded",
        data_fingerprint=tags["data.fingerprint"],
        metrics={},
        metrics_note="none: the file states no figures; evaluate it before you compare",
        lineage=tags,
        licence=licence,
        modality=modality,
        labels=imported.classes or tuple(map(str, range(count))),
        alias=alias,
        tracking_uri=tracking_uri,
        extra={"Origin": body},
    )


__all__ = ["Imported", "import_lineage_tags", "import_model", "origin_of", "summary_lines"]
