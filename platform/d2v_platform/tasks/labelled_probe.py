"""Probes of audio and text pretraining at validations: what frozen features say about a small labelled set.

``task.probe_data`` holds ``train`` and ``valid``: of audio manifests with a class a line beside them
(``train.tsv``, ``train.wrd``), of text ``class<TAB>text`` a line (``train.tsv``), or of words in their texts
``class<TAB>text<TAB>number``, where the first word has number 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data2vec.artifact import EMBEDDING_KEY, V1_EMBEDDING_KEY, Artifact
from data2vec.data.manifest import read_manifest
from data2vec.errors import Data2VecError, DataError
from data2vec.families import model_in_use
from data2vec.probes import knn_predict, linear_probe, top1
from data2vec.shards import is_sharded

from ..recipe.groups import LabelledProbe
from ..recipe.schema import Recipe
from .reduction import gather_objects, rank_and_size

_SIDES = ("train", "valid")  # taught on, judged on
NEIGHBOURS = 20


@dataclass(frozen=True)
class Labelled:
    """Inputs of one side with their classes."""

    inputs: list[str]  # paths of recordings, or texts
    classes: list[str]
    words: list[int] | None = None  # number of the word of each text that is judged; None: the whole text


Reader = Callable[[str, str], Labelled]
"""A folder and a side's name to its inputs and classes."""


def read_recordings(folder: str, side: str) -> Labelled:
    """A manifest and the classes beside it.

    Raises:
        DataError: a file is missing, or they do not have equally many lines.
    """
    manifest = read_manifest(Path(folder) / f"{side}.tsv")
    path = Path(folder) / f"{side}.wrd"
    classes = _lines(path)
    if len(classes) != len(manifest):
        raise DataError(f"{path} has {len(classes)} lines for {len(manifest)} recordings of {manifest.path}")
    return Labelled([manifest.file(index) for index in range(len(manifest))], classes)


def read_texts(folder: str, side: str) -> Labelled:
    """A class and a text a line, or a class, a text and the number of a word in it.

    Raises:
        DataError: the file is missing, lines differ in their fields, or a text has no such word.
    """
    path = Path(folder) / f"{side}.tsv"
    rows = [line.split("\t") for line in _lines(path)]
    fields = len(rows[0]) if rows and len(rows[0]) == 3 else 2
    if wrong := [number for number, row in enumerate(rows, start=1) if len(row) != fields]:
        form = "class<TAB>text" + "<TAB>number" * (fields == 3)
        raise DataError(f"{path}: line {wrong[0]} is no {form}")
    if not rows:
        raise DataError(f"{path} is empty")
    found = Labelled([row[1] for row in rows], [row[0] for row in rows])
    if fields == 2:
        return found
    for number, (_, text, word) in enumerate(rows, start=1):
        if not (word.isascii() and word.isdecimal() and 1 <= int(word) <= len(text.split())):
            most = len(text.split())
            raise DataError(f"{path}: line {number} names word {word!r}; its text has the words 1 ... {most}")
    return replace(found, words=[int(row[2]) for row in rows])


def both_sides(recipe: Recipe, read: Reader) -> tuple[Labelled, Labelled] | None:
    """What a pretraining is probed with; ``None`` if its recipe does not ask for it.

    Args:
        recipe: of a pretraining.
        read: one side of a folder.

    Raises:
        DataError: it cannot be used.
    """
    task = recipe.task
    if not isinstance(task, LabelledProbe) or task.probe_data is None:
        return None
    return taught_and_judged(task.probe_data, _SIDES, read, "task.probe_data")


def taught_and_judged(
    folder: str, sides: tuple[str, str], read: Reader, what: str
) -> tuple[Labelled, Labelled]:
    """Both sides of a folder.

    Args:
        folder: holds them.
        sides: their names.
        read: reads one.
        what: who asks, for messages.

    Raises:
        DataError: a side cannot be read, or no probe can learn from them.
    """
    taught, judged = (read(folder, side) for side in sides)
    unknown = sorted(set(judged.classes) - set(taught.classes))
    if unknown or len(set(taught.classes)) < 2:
        rule = f"{sides[0]} has one class only"
        if unknown:
            rule = f"{sides[1]} has the class {unknown[0]!r}, {sides[0]} has not"
        raise DataError(f"{what} {folder}: {rule}")
    return taught, judged


def probe_scores(task: Any) -> dict[str, float]:
    """kNN and linear probe in percent; rank 0 computes them and every worker gets them."""
    sides = both_sides(task.recipe, task.read_labelled)
    if sides is None:
        return {}
    mine = _scores(task, *sides) if rank_and_size()[0] == 0 else {}
    return gather_objects(mine)[0]


def _scores(task: Any, taught: Labelled, judged: Labelled) -> dict[str, float]:
    recipe = task.recipe
    return judge(_in_use(task), taught, judged, recipe.task.probe_layer, NEIGHBOURS, recipe.common.seed)


def judge(
    model: Any, taught: Labelled, judged: Labelled, layer: int, neighbours: int, seed: int
) -> dict[str, float]:
    """kNN and linear probe of frozen features, the mean over positions of a block's output, in percent.

    Args:
        model: gives the features.
        taught: what the probes learn from.
        judged: what they are judged on; its classes are all in ``taught``.
        layer: block whose output is taken.
        neighbours: k.
        seed: of the linear probe.
    """
    names = sorted(set(taught.classes))
    features, labels = [], []
    for side in (taught, judged):
        if side.words is None:
            rows = model.embed(side.inputs, "mean", layer)
        else:
            rows = model.embed_words(side.inputs, side.words, layer)
        features.append(torch.from_numpy(np.stack(rows)))
        labels.append(torch.tensor([names.index(name) for name in side.classes]))
    logits = linear_probe(features[0], labels[0], features[1], len(names), seed=seed)
    votes = knn_predict(features[0], labels[0], features[1], neighbours, len(names))
    return {"knn": top1(votes, labels[1]), "linear_probe": top1(logits, labels[1])}


def _in_use(task: Any) -> Any:
    """The student as a user has it, with the weights of this moment."""
    weights: Mapping[str, torch.Tensor] = task.model.student.state_dict()
    if any(map(is_sharded, weights.values())):
        raise Data2VecError("task.probe_data needs the whole model on a worker: set platform.sharding=none")
    kept = task.kept()
    described = {"kind": "pretrained", "task": kept.get("task", {})}
    artifact = Artifact(
        "pretrained", task.config, None, described, kept.get("tokenizer"), Path("the student")
    )
    artifact.state = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    for key in (EMBEDDING_KEY, V1_EMBEDDING_KEY):
        if key in weights:
            artifact.vocab_size = weights[key].shape[0]
    with torch.random.fork_rng(devices=[]):  # training goes on with its own random numbers
        model = model_in_use(artifact.kind, artifact.modality)(artifact)
    return model.to(next(task.model.parameters()).device)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
