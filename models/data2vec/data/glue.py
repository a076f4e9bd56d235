"""The eight GLUE tasks: their raw columns, their prepared folders, and the test server's files.

Columns, splits and label treatment follow the reference's ``preprocess_GLUE_tasks.sh``: dev becomes
``valid``, MNLI's mismatched sets become ``valid1`` and ``test1``, class ids are ranks in the training
frequency of the labels, and STS-B's scores are divided by 5 and written as text.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..folders import file_sha256, written_folder
from .dictionary import NUM_SPECIALS, Dictionary
from .encoding import encode_lines, model_ids
from .glue_exports import EXPORTS, export_file, read_export
from .glue_rows import GlueSplit, SplitRows, read_rows
from .indexed import IndexedTokensWriter
from .prepared import CARD_NAME, fingerprint_files, read_card, sentence_files, write_card
from .tokenizer import DICTIONARY_NAME, TextTokenizer

SCORE_SCALE = 5.0  # STS-B scores lie in 0 ... 5; the model learns them divided by 5
PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
MRPC_PAIR = ("#1 String", "#2 String")
ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One task; ``dataclasses.replace`` makes a task of one's own in the same layout."""

    name: str  # the recipe's name
    folder: str  # folder of the raw files
    splits: tuple[GlueSplit, ...]
    labels: tuple[str, ...] = ()  # label strings, not in class-id order; empty for regression
    metric: str = "accuracy"  # the official one, a key of data2vec.metrics
    submission: dict[str, str] = field(default_factory=dict)  # test split to the test server's file name

    @property
    def regression(self) -> bool:
        """Scores instead of classes."""
        return not self.labels

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return len(self.labels) or 1

    @property
    def bin_folder(self) -> str:
        """Name of the prepared folder."""
        return f"{self.folder}-bin"


def _usual(
    inputs: tuple[str, ...], label: str, test_inputs: tuple[str, ...] | None = None
) -> tuple[GlueSplit, ...]:
    return (
        GlueSplit(file="train.tsv", split="train", inputs=inputs, label=label),
        GlueSplit(file="dev.tsv", split="valid", inputs=inputs, label=label),
        GlueSplit(file="test.tsv", split="test", inputs=test_inputs or inputs, label=None),
    )


def _one(name: str) -> dict[str, str]:
    return {"test": f"{name}.tsv"}


GLUE_TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            name="cola", folder="CoLA", labels=("0", "1"), metric="mcc", submission=_one("CoLA"),
            splits=(
                GlueSplit(file="train.tsv", split="train", inputs=("4",), label="2", header=False),
                GlueSplit(file="dev.tsv", split="valid", inputs=("4",), label="2", header=False),
                GlueSplit(file="test.tsv", split="test", inputs=("sentence",), label=None),
            ),
        ),
        GlueTask(
            name="qnli", folder="QNLI", labels=ENTAILMENT, submission=_one("QNLI"),
            splits=_usual(("question", "sentence"), "label"),
        ),
        GlueTask(
            name="mrpc", folder="MRPC", labels=("0", "1"), metric="acc_and_f1", submission=_one("MRPC"),
            splits=_usual(MRPC_PAIR, "Quality"),
        ),
        GlueTask(
            name="rte", folder="RTE", labels=ENTAILMENT, submission=_one("RTE"), splits=_usual(PAIR, "label")
        ),
        GlueTask(
            name="sst_2", folder="SST-2", labels=("0", "1"), submission=_one("SST-2"),
            splits=_usual(("sentence",), "label"),
        ),
        GlueTask(
            name="mnli", folder="MNLI", labels=("contradiction", "entailment", "neutral"),
            submission={"test": "MNLI-m.tsv", "test1": "MNLI-mm.tsv"},
            splits=(
                GlueSplit(file="train.tsv", split="train", inputs=PAIR, label="gold_label"),
                GlueSplit(file="dev_matched.tsv", split="valid", inputs=PAIR, label="gold_label"),
                GlueSplit(file="dev_mismatched.tsv", split="valid1", inputs=PAIR, label="gold_label"),
                GlueSplit(file="test_matched.tsv", split="test", inputs=PAIR, label=None),
                GlueSplit(file="test_mismatched.tsv", split="test1", inputs=PAIR, label=None),
            ),
        ),
        GlueTask(
            name="qqp", folder="QQP", labels=("0", "1"), metric="acc_and_f1", submission=_one("QQP"),
            splits=_usual(QUESTIONS, "is_duplicate"),
        ),
        GlueTask(
            name="sts_b", folder="STS-B", metric="pearson_and_spearman", submission=_one("STS-B"),
            splits=_usual(PAIR, "score"),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class SplitReport:
    """What became of one raw file."""

    file: str
    bytes: int
    sha256: str
    rows: int  # rows of the file, header excluded
    kept: int
    dropped: dict[str, int]  # reason to number
    dropped_examples: dict[str, list[int]]  # reason to the first line numbers
    empty_sentences: int
    tokens: int
    unknown_tokens: int
    longest: int  # tokens of the longest sample, <s> and separator included
    label_counts: dict[str, int]


@dataclass(frozen=True)
class GlueReport:
    """What :func:`prepare_task` made."""

    task: str
    folder: Path
    labels: tuple[str, ...]  # by class id; empty for regression
    splits: dict[str, SplitReport]
    dictionary: str  # hash
    fingerprint: dict[str, str]  # by split

    @property
    def dropped(self) -> int:
        """Rows left out, all splits together."""
        return sum(sum(split.dropped.values()) for split in self.splits.values())


def prepare_task(
    task: GlueTask,
    raw_folder: str | os.PathLike[str],
    out_folder: str | os.PathLike[str],
    tokenizer: TextTokenizer,
) -> GlueReport:
    """Raw files of one task, GLUE's own or Hugging Face's exports, into ``<out_folder>/<TASK>-bin``.

    The folder appears complete or not at all, with a ``card.json`` beside ``input0/``, ``input1/`` and
    ``label/``.

    Args:
        task: which.
        raw_folder: holds ``<TASK>/train.tsv`` and so on, or is that folder itself.
        out_folder: receives ``<TASK>-bin``.
        tokenizer: BPE and dictionary.

    Raises:
        DataError: everything that is wrong with the task's files, at once; or the target holds other data.
    """
    raw = Path(raw_folder)
    raw = _task_folder(raw, task)
    target = Path(out_folder) / task.bin_folder
    problems: list[str] = []
    if target.exists() and (read_card(target) or {}).get("kind") != "glue":
        problems.append(
            f"{target} exists and was not written by d2v prepare glue; move it or choose another --dest"
        )
    if not raw.is_dir():
        problems.append(f"{raw} does not exist; it should hold {', '.join(s.file for s in task.splits)}")
    rows: dict[str, SplitRows] = {}
    for split in task.splits if raw.is_dir() else ():
        try:
            export = export_file(raw, task.name, split)
        except DataError as error:
            problems.append(str(error))
            continue
        if export is not None:
            found = read_export(export, task.name, split, problems)
        else:
            found = read_rows(raw / split.file, split, task.labels, task.regression, problems)
        if found is not None:
            rows[split.split] = found
    if problems:
        raise DataError(f"GLUE task {task.folder} cannot be prepared:\n  " + "\n  ".join(problems))
    with written_folder(target) as beside:
        report = _write(task, rows, beside, target, tokenizer)
    return report


def _task_folder(raw: Path, task: GlueTask) -> Path:
    """Where the task's files lie: under GLUE's name of it, under Hugging Face's, or in the folder given."""
    names = [task.folder, *([EXPORTS[task.name].name] if task.name in EXPORTS else [])]
    places = [raw / name for name in names if (raw / name).is_dir()]
    return (places or ([raw] if raw.name in names else [raw / task.folder]))[0]


def write_submission(
    task: GlueTask,
    predictions: np.ndarray | Sequence[Any],
    path: str | os.PathLike[str],
    labels: Sequence[str] | None = None,
) -> Path:
    """Write the GLUE test server's file: a header, then ``index<TAB>prediction`` a row, in the order of the
    test file.

    Args:
        task: which.
        predictions: one a test row: label strings; class ids if ``labels`` is given; for regression the
            model's
            scores, which are brought back to 0 ... 5 here.
        path: the file, or a folder for the task's own name (:attr:`GlueTask.submission`, split ``test``).
        labels: label string of each class id (``SentenceDataset.labels``).

    Returns:
        The file.

    Raises:
        DataError: a prediction is not a label of the task or not a finite number.
    """
    path = Path(path)
    if path.is_dir():
        path = path / task.submission["test"]
    if task.regression:
        scores = np.asarray(predictions, dtype=np.float64)
        if not np.isfinite(scores).all():
            raise DataError(
                f"{path}: {int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite"
            )
        words = [f"{score:.3f}" for score in np.clip(scores * SCORE_SCALE, 0.0, SCORE_SCALE)]
    else:
        words = [str(p) if labels is None else labels[int(p)] for p in predictions]
        if wrong := sorted(set(words) - set(task.labels)):
            raise DataError(f"{path}: {wrong[0]!r} is no label of {task.folder} ({', '.join(task.labels)})")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "index\tprediction\n" + "".join(f"{i}\t{word}\n" for i, word in enumerate(words))
    path.write_text(text, encoding="utf-8")
    return path


def _write(
    task: GlueTask, rows: dict[str, SplitRows], folder: Path, target: Path, tokenizer: TextTokenizer
) -> GlueReport:
    dictionary, bpe = tokenizer.dictionary, tokenizer.bpe
    num_inputs = len(task.splits[0].inputs)
    label_dictionary = _label_dictionary(task, rows["train"].labels)
    reports: dict[str, SplitReport] = {}
    for split, found in rows.items():
        tokens = unknown = 0
        lengths = np.ones(len(found.inputs[0]), dtype=np.int64) if num_inputs == 1 else 2
        for number in range(num_inputs):
            encoded = encode_lines(bpe, found.inputs[number])
            ids = model_ids(encoded.ids, dictionary, bpe.size)
            with IndexedTokensWriter(folder / f"input{number}" / split, len(dictionary)) as writer:
                writer.add_lines(ids, encoded.sizes)
            tokens, unknown = tokens + len(ids), unknown + int((ids == dictionary.unk).sum())
            lengths = lengths + encoded.sizes
        _write_labels(task, found.labels, folder / "label", split, label_dictionary)
        reports[split] = SplitReport(
            file=found.path.name,
            bytes=found.path.stat().st_size,
            sha256=file_sha256(found.path),
            rows=found.rows,
            kept=len(found.inputs[0]),
            dropped={reason: len(lines) for reason, lines in found.dropped.items()},
            dropped_examples={reason: lines[:5] for reason, lines in found.dropped.items()},
            empty_sentences=sum(not text.strip() for column in found.inputs for text in column),
            tokens=tokens,
            unknown_tokens=unknown,
            longest=int(np.max(lengths)),
            label_counts=dict(Counter(found.labels or ()).most_common()) if not task.regression else {},
        )
    for number in range(num_inputs):
        dictionary.save(folder / f"input{number}" / DICTIONARY_NAME)
    if label_dictionary is not None:
        label_dictionary.save(folder / "label" / DICTIONARY_NAME)
    report = GlueReport(
        task=task.name,
        folder=target,
        labels=()
        if label_dictionary is None
        else label_dictionary.symbols[NUM_SPECIALS:][: task.num_classes],
        splits=reports,
        dictionary=dictionary.digest(),
        fingerprint={s: fingerprint_files(sentence_files(folder, s, s == "train")) for s in rows},
    )
    if bpe.own:
        bpe.save(folder)
    write_card(folder, _card(task, report, tokenizer))
    assert (folder / CARD_NAME).is_file()
    return report


def _label_dictionary(task: GlueTask, labels: Sequence[str] | None) -> Dictionary | None:
    """Class id = rank in training frequency; a label that training lacks comes last."""
    if task.regression:
        return None
    return Dictionary.from_counts({**dict.fromkeys(task.labels, 0), **Counter(labels or ())})


def _write_labels(
    task: GlueTask, labels: Sequence[str] | None, folder: Path, split: str, dictionary: Dictionary | None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if labels is None:
        return
    if dictionary is None:
        text = "".join(f"{float(score) / SCORE_SCALE:.6g}\n" for score in labels)
        (folder / f"{split}.label").write_text(text, encoding="utf-8")
        return
    ids = np.asarray([dictionary.index(label) for label in labels], dtype=np.int64)
    lines = np.stack([ids, np.full_like(ids, Dictionary.eos)], axis=1).ravel()
    with IndexedTokensWriter(folder / split, len(dictionary)) as writer:
        writer.add_lines(lines, np.full(len(ids), 2, dtype=np.int32))


def _card(task: GlueTask, report: GlueReport, tokenizer: TextTokenizer) -> dict[str, Any]:
    return {
        "format": 1,
        "kind": "glue",
        "task": task.name,
        "regression": task.regression,
        "labels": {str(i): label for i, label in enumerate(report.labels)},
        "score_scale": SCORE_SCALE if task.regression else None,
        "metric": task.metric,
        "dictionary": report.dictionary,
        "tokenizer": tokenizer.digest(),
        "vocabulary": len(tokenizer),
        "splits": {name: vars(split) for name, split in report.splits.items()},
        "fingerprint": report.fingerprint,
    }
