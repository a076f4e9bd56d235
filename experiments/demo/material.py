"""The demo's input on disk: text files, a dictionary made from them, token files, a raw task.

Everything lies in one folder of the cache, named after what it was made from, so that a second demo finds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from d2v_platform.home import home_folder
from d2v_platform.preparation.text import TextOptions, TextReport, prepare_text
from data2vec.data.glue import GLUE_TASKS
from data2vec.data.glue_rows import read_rows
from data2vec.errors import DataError
from data2vec.folders import write_text

from . import prose, prose_tasks
from .prose import Document, Part

_TASK = GLUE_TASKS["cola"]
_FORMAT = 2  # raise it when the same sources give other files
_SEED = 1


@dataclass(frozen=True, kw_only=True)
class MaterialSize:
    """How much is made.

    Attributes:
        packages: installed packages whose docstrings are read, besides Python's language reference.
        standard_library: also Python's own modules.
        vocabulary: largest dictionary.
        train: examples of each task.
        dev: examples of each task's dev set.
    """

    packages: tuple[str, ...] = prose.PACKAGES
    standard_library: bool = True
    vocabulary: int = 8000
    train: int = 4800
    dev: int = 400


@dataclass(frozen=True, kw_only=True)
class ProseFacts:
    """What was found."""

    sources: dict[str, str]  # where it is from, with versions
    documents: dict[str, int]  # topics and modules of each part
    characters: dict[str, int]  # of the sentences of each part
    sentences: dict[str, int]  # of each part

    def lines(self) -> list[str]:
        """In words."""
        where = ", ".join(f"{name} {version}" for name, version in self.sources.items())
        lines = [f"English prose of {where}"]
        for part, told in (
            ("pretrain", "to pretrain on"),
            ("valid", "held out from that"),
            ("task_train", "for the tasks' training examples"),
            ("task_dev", "for the tasks' dev examples"),
        ):
            lines.append(
                f"{self.documents[part]:5d} documents  {self.sentences[part]:6d} sentences  "
                f"{self.characters[part]:8d} characters  {told}"
            )
        return lines


@dataclass(frozen=True, kw_only=True)
class Material:
    """Where everything is."""

    facts: ProseFacts  # about the prose
    text: Path  # token files, for ``task.data`` of pretraining
    tokens: TextReport  # the report on the token files
    raw: Path  # raw GLUE, for ``task.data`` of the sweep

    train: list[tuple[str, str]]  # the task's sentences with their labels
    dev: list[tuple[str, str]]  # the same, held out


def read_task(raw: Path) -> dict[str, list[tuple[str, str]]]:
    """Sentences of CoLA's ``train`` and ``valid`` with their labels.

    Raises:
        DataError: everything that is wrong with the folder.
    """
    found, problems = dict[str, list[tuple[str, str]]](), list[str]()
    for split in _TASK.splits:
        if split.required:
            rows = read_rows(raw / _TASK.folder / split.file, split, _TASK.labels, False, problems)
            found[split.split] = (
                [] if rows is None else list(zip(rows.inputs[0], rows.labels or [], strict=True))
            )
    if problems:
        what = f"give a raw GLUE folder, which holds {_TASK.folder}/"
        raise DataError(f"--data {raw}: {what}\n  " + "\n  ".join(problems))
    return found


def make_prose(size: MaterialSize) -> tuple[Path, ProseFacts]:
    """Text files and a raw task; found again if they are there.

    Args:
        size: how much.

    Returns:
        The folder, with ``train.txt``, ``valid.txt`` and ``raw/``, and what it holds.

    Raises:
        DataError: there is not enough prose.
    """
    sources = {name: v for name, v in prose.sources().items() if name in ("python", *size.packages)}
    key = json.dumps([_FORMAT, _SEED, sources, asdict(size), prose.SHARES], sort_keys=True)
    folder = home_folder("cache") / "demo" / hashlib.sha256(key.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    card = folder / "prose.json"
    with filelock.FileLock(folder / "lock", timeout=600):
        if not card.is_file():
            facts = _write_prose(folder, size, sources)
            write_text(card, json.dumps(asdict(facts), indent=1))
    return folder, ProseFacts(**json.loads(card.read_text(encoding="utf-8")))


def prepare_material(folder: Path, facts: ProseFacts, size: MaterialSize, data: Path | None) -> Material:
    """Dictionary and token files, by the same function as ``d2v prepare text``.

    Args:
        folder: of :func:`make_prose`.
        facts: of :func:`make_prose`.
        size: how much.
        data: a raw GLUE folder instead of the task made from prose.
    """
    with filelock.FileLock(folder / "lock", timeout=600):
        options = TextOptions(build_dict=True, max_size=size.vocabulary)
        texts = {"train": folder / "train.txt", "valid": folder / "valid.txt"}
        tokens = prepare_text(texts, folder / "text", options)
    raw = data or folder / "raw"
    task = read_task(raw)
    return Material(
        facts=facts, text=folder / "text", tokens=tokens, raw=raw, train=task["train"], dev=task["valid"]
    )


def _write_prose(folder: Path, size: MaterialSize, sources: Mapping[str, str]) -> ProseFacts:
    documents = prose.collect(size.packages, size.standard_library)
    parts: dict[Part, list[Document]] = {
        part: [document for document in documents if document.part == part] for part in prose.SHARES
    }
    _write_text(folder / "train.txt", parts["pretrain"])
    _write_text(folder / "valid.txt", parts["valid"])
    train, dev = parts["task_train"], parts["task_dev"]
    prose_tasks.write_cola(
        folder / "raw",
        prose_tasks.word_order(train, size.train, _SEED),
        prose_tasks.word_order(dev, size.dev, _SEED),
    )
    sentences = {part: [s for document in parts[part] for s in document.sentences] for part in parts}
    return ProseFacts(
        sources=dict(sources),
        documents={part: len(found) for part, found in parts.items()},
        characters={part: sum(map(len, found)) for part, found in sentences.items()},
        sentences={part: len(found) for part, found in sentences.items()},
    )


def _write_text(path: Path, documents: Sequence[Document]) -> None:
    """One paragraph a line, an empty line between documents."""
    texts = ["".join(" ".join(paragraph) + "\n" for paragraph in d.paragraphs) for d in documents]
    path.write_text("\n".join(texts), encoding="utf-8")
