"""GLUE tasks: prepared folders read back, label maps, dropped rows, messages, submissions, the real data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data2vec.data.bpe import shared_bpe
from data2vec.data.glue import GLUE_TASKS, GlueReport, prepare_task, write_submission
from data2vec.data.sentences import SentenceDataset
from data2vec.data.tokenizer import TextTokenizer
from data2vec.errors import DataError

RTE_HEADER = "index\tsentence1\tsentence2\tlabel\n"


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(shared_bpe())


def raw(folder: Path, **files: str | bytes) -> Path:
    """Raw files of one task; the returned folder is the GLUE root."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / f"{name}.tsv").write_bytes(data)
    return folder.parent


def rte_rows(labels: str, start: int = 0) -> str:
    names = {"e": "entailment", "n": "not_entailment"}
    return "".join(f"{i}\tfirst {i}.\tsecond {i}.\t{names[x]}\n" for i, x in enumerate(labels, start))


def test_a_pair_task_reads_back(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    root = raw(
        tmp_path / "glue" / "RTE",
        train=RTE_HEADER + rte_rows("nene"),
        dev=RTE_HEADER + rte_rows("en"),
        test="index\tsentence1\tsentence2\n0\ta b\tc\n1\t\td\n",
    )
    report = prepare_task(GLUE_TASKS["rte"], root, tmp_path / "out", tokenizer)
    assert report.folder == tmp_path / "out" / "RTE-bin"
    assert report.labels == ("entailment", "not_entailment")  # equal counts: string order
    train = SentenceDataset(report.folder, "train", num_classes=2)
    assert train.targets is not None
    assert train.targets.tolist() == [1, 0, 1, 0]
    expected = [0, *tokenizer.encode("first 2."), 2, *tokenizer.encode("second 2.")]
    assert train[2]["source"].tolist() == expected
    assert report.splits["train"].longest == max(train.sizes)
    test = SentenceDataset(report.folder, "test", num_classes=2)
    assert test.targets is None
    assert test[1]["source"].tolist() == [0, 2, 2, *tokenizer.encode("d")]
    assert report.splits["test"].empty_sentences == 1
    card = json.loads((report.folder / "card.json").read_text(encoding="utf-8"))
    assert card["labels"] == {"0": "entailment", "1": "not_entailment"}
    assert card["dictionary"] == tokenizer.dictionary.digest() == train.dictionary.digest()
    assert card["fingerprint"]["train"] == train.fingerprint()
    assert card["fingerprint"]["test"] == test.fingerprint()
    assert card["vocabulary"] == 50265


# Columns of the published files, and what the reference takes of them: inputs in order, label, class names.
PUBLISHED = {
    "cola": ("", (3,), 1, ("0", "1")),  # no header: source, label, author's mark, sentence
    "mnli": ("index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
             "sentence2_parse sentence1 sentence2 label1 gold_label", (8, 9), 11,
             ("contradiction", "entailment", "neutral")),
    "mrpc": ("Quality|#1 ID|#2 ID|#1 String|#2 String", (3, 4), 0, ("0", "1")),
    "qnli": ("index question sentence label", (1, 2), 3, ("entailment", "not_entailment")),
    "qqp": ("id qid1 qid2 question1 question2 is_duplicate", (3, 4), 5, ("0", "1")),
    "rte": ("index sentence1 sentence2 label", (1, 2), 3, ("entailment", "not_entailment")),
    "sst_2": ("sentence label", (0,), 1, ("0", "1")),
    "sts_b": ("index genre filename year old_index source1 source2 sentence1 sentence2 score", (7, 8), 9, ()),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_columns_of_the_published_files(name: str, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    head, inputs, label, classes = PUBLISHED[name]
    task = GLUE_TASKS[name]
    columns = head.split("|" if "|" in head else " ") if head else ["source", "label", "mark", "sentence"]
    values = classes or ("1.0", "2.5", "4.0")
    rows = [[f"{'abcdefghijkl'[at]}{row}" for at in range(len(columns))] for row in range(2 * len(values))]
    for number, row in enumerate(rows):
        row[label] = values[number % len(values)]
    text = "\t".join(columns) + "\n" if head else ""
    text += "".join("\t".join(row) + "\n" for row in rows)
    files = {split.file.removesuffix(".tsv"): text for split in task.splits if split.label is not None}
    root = raw(tmp_path / "glue" / task.folder, **files)
    wanted = replace(task, splits=tuple(split for split in task.splits if split.label is not None))
    folder = prepare_task(wanted, root, tmp_path / "out", tokenizer).folder
    for split in wanted.splits:
        data = SentenceDataset(
            folder, split.split, num_classes=max(len(classes), 1), regression_target=not classes
        )
        assert len(data) == len(rows) and data.targets is not None
        for number, row in enumerate(rows):
            expected = [0, *tokenizer.encode(row[inputs[0]])]
            for at in inputs[1:]:
                expected += [2, *tokenizer.encode(row[at])]
            assert data[number]["source"].tolist() == expected
        ranks = [float(v) / 5 for v in values] if not classes else list(range(len(classes)))
        assert data.targets.flatten().tolist() == pytest.approx(ranks * 2)
    splits = [(split.file, split.split) for split in wanted.splits]
    if name == "mnli":
        assert splits[1:] == [("dev_matched.tsv", "valid"), ("dev_mismatched.tsv", "valid1")]
    else:
        assert splits == [("train.tsv", "train"), ("dev.tsv", "valid")]
    scores = {"cola": "mcc", "mrpc": "acc_and_f1", "qqp": "acc_and_f1", "sts_b": "pearson_and_spearman"}
    assert task.metric == scores.get(name, "accuracy")


def test_the_majority_label_is_class_zero_and_labels_absent_from_training_come_last(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    root = raw(tmp_path / "CoLA", train="x\t1\t\tgood\nx\t1\t*\tfine\nx\t0\t\tbad\n", dev="x\t0\t\tbad\n")
    report = prepare_task(GLUE_TASKS["cola"], root, tmp_path / "out", tokenizer)
    assert report.labels == ("1", "0")
    text = (report.folder / "label" / "dict.txt").read_text(encoding="utf-8")
    assert text == "1 2\n0 1\nmadeupword0000 0\nmadeupword0001 0\n"
    raw(tmp_path / "CoLA", train="x\t0\t\tgood\n")
    assert prepare_task(GLUE_TASKS["cola"], root, tmp_path / "out", tokenizer).labels == ("0", "1")


def test_scores_are_divided_by_five_and_printed_with_six_digits(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    header = (
        "\t".join(
            [
                "index",
                "genre",
                "filename",
                "year",
                "old_index",
                "source1",
                "source2",
                "sentence1",
                "sentence2",
                "score",
            ]
        )
        + "\n"
    )
    scores = ["5.000", "3.8", "0", "2.333"]
    rows = "".join(f"{i}\tg\tf\ty\to\ts\ts\ta {i}\tb\t{score}\n" for i, score in enumerate(scores))
    root = raw(tmp_path / "STS-B", train=header + rows, dev=header + rows)
    report = prepare_task(GLUE_TASKS["sts_b"], root, tmp_path / "out", tokenizer)
    assert (report.folder / "label" / "train.label").read_text(encoding="utf-8") == "1\n0.76\n0\n0.4666\n"
    assert not (report.folder / "label" / "dict.txt").exists()
    data = SentenceDataset(report.folder, "valid", num_classes=1, regression_target=True)
    assert data.targets is not None
    assert data.targets[:, 0].tolist() == pytest.approx([1, 0.76, 0, 0.4666])


def test_byte_order_mark_carriage_returns_and_quotes(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    root = raw(tmp_path / "MRPC", train=header + '1\t1\t2\t"a" b\tc "\r\n', dev=header + "0\t1\t2\ta\tb\r\n")
    report = prepare_task(GLUE_TASKS["mrpc"], root, tmp_path / "out", tokenizer)
    data = SentenceDataset(report.folder, "train", num_classes=2)
    assert tokenizer.decode(data[0]["source"].tolist()) == '"a" bc "'


def test_unusable_rows_are_dropped_with_reason_and_line(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    good = "".join(f"{i}\t1\t2\tq {i}\tr\t{i % 2}\n" for i in range(6))
    bad = "7\t1\t2\tq\n8\t1\t2\tq\tr\t-\n9\t1\t2\tq\tr\t-\n"
    root = raw(tmp_path / "QQP", train=header + good + bad, dev=header + good)
    report = prepare_task(GLUE_TASKS["qqp"], root, tmp_path / "out", tokenizer)
    split = report.splits["train"]
    assert (split.rows, split.kept, report.dropped) == (9, 6, 3)
    assert split.dropped == {"4 fields instead of 6": 1, "label '-' is not one of 0, 1": 2}
    assert split.dropped_examples["label '-' is not one of 0, 1"] == [9, 10]
    data = SentenceDataset(report.folder, "train", num_classes=2)
    assert len(data) == 6
    assert tokenizer.decode(data[5]["source"].tolist()) == "q 5r"


def test_all_problems_of_a_task_at_once(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    mnli = "index\tsentence1\tsentence2\tgold_label\n"
    raw(
        tmp_path / "MNLI",
        train=mnli + "0\ta\tb\tneutral\n1\tcaf\tb\tneutral\n".replace("caf", "caf\x00"),
        dev_matched="index\tsentence_1\tsentence2\tgold_label\n0\ta\tb\tneutral\n",
        dev_mismatched=(mnli + "0\tok\tb\tneutral\n1\tcaf").encode() + b"\xe9\tb\tneutral\n",
        test_matched="index\tsentence1\tsentence2\n0\ta\n",
        test_mismatched="",
    )
    with pytest.raises(DataError) as error:
        prepare_task(GLUE_TASKS["mnli"], tmp_path, tmp_path / "out", tokenizer)
    text = str(error.value)
    assert "dev_matched.tsv, line 1: column 'sentence1' is missing; did you mean 'sentence_1'" in text
    position = len(mnli + "0\tok\tb\tneutral\n1\tcaf")
    assert f"dev_mismatched.tsv, line 3: byte {position} of the file (0xe9) is not UTF-8" in text
    assert "test_matched.tsv: 1 test rows cannot be used" in text
    assert "test_mismatched.tsv is empty" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (None, "train.tsv is missing"),
        ("", "train.tsv is empty"),
        ("x\t1\n", r"line 1: column 4 is missing; this file has no header"),
        ("x\t2\t\ta\nx\t1\t\tb\nx\t3\t\tc\n", "2 of 3 rows cannot be used"),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, tokenizer: TextTokenizer, train: str | None, message: str
) -> None:
    raw(tmp_path / "CoLA", dev="x\t0\t\tbad\n", **({} if train is None else {"train": train}))
    with pytest.raises(DataError, match=message):
        prepare_task(GLUE_TASKS["cola"], tmp_path, tmp_path / "out", tokenizer)


def test_a_header_without_rows_and_a_missing_folder(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(DataError, match=r"RTE does not exist; it should hold train\.tsv"):
        prepare_task(GLUE_TASKS["rte"], tmp_path, tmp_path / "out", tokenizer)
    raw(tmp_path / "RTE", train=RTE_HEADER, dev=RTE_HEADER + rte_rows("e"))
    with pytest.raises(DataError, match="has a header but no rows"):
        prepare_task(GLUE_TASKS["rte"], tmp_path, tmp_path / "out", tokenizer)


def test_a_folder_of_the_reference_is_not_overwritten(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    root = raw(tmp_path / "RTE", train=RTE_HEADER + rte_rows("en"), dev=RTE_HEADER + rte_rows("e"))
    (tmp_path / "out" / "RTE-bin").mkdir(parents=True)
    (tmp_path / "out" / "RTE-bin" / "mine").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="was not written by d2v prepare glue"):
        prepare_task(GLUE_TASKS["rte"], root, tmp_path / "out", tokenizer)
    assert (tmp_path / "out" / "RTE-bin" / "mine").exists()


def test_the_same_input_gives_the_same_folder(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    root = raw(tmp_path / "RTE", train=RTE_HEADER + rte_rows("en"), dev=RTE_HEADER + rte_rows("e"))

    def content() -> dict[str, bytes]:
        folder = prepare_task(GLUE_TASKS["rte"], root, tmp_path / "out", tokenizer).folder
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    first = content()
    assert content() == first
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["RTE-bin"]


def test_a_task_of_ones_own(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    task = replace(GLUE_TASKS["cola"], name="order", folder="Order")
    root = raw(tmp_path / "Order", train="x\t1\t\ta\nx\t0\t\tb\n", dev="x\t0\t\tb\n")
    assert prepare_task(task, root / "Order", tmp_path / "out", tokenizer).folder.name == "Order-bin"


def test_submissions(tmp_path: Path) -> None:
    path = write_submission(GLUE_TASKS["rte"], np.asarray([1, 0]), tmp_path, ["entailment", "not_entailment"])
    assert path.name == "RTE.tsv"
    assert path.read_text(encoding="utf-8") == "index\tprediction\n0\tnot_entailment\n1\tentailment\n"
    scores = write_submission(GLUE_TASKS["sts_b"], [0.5, 1.2, -0.1], tmp_path / "x.tsv")
    assert scores.read_text(encoding="utf-8") == "index\tprediction\n0\t2.500\n1\t5.000\n2\t0.000\n"
    assert GLUE_TASKS["mnli"].submission == {"test": "MNLI-m.tsv", "test1": "MNLI-mm.tsv"}
    with pytest.raises(DataError, match="'maybe' is no label of RTE"):
        write_submission(GLUE_TASKS["rte"], ["maybe"], tmp_path)
    with pytest.raises(DataError, match="1 of 2 scores are not finite"):
        write_submission(GLUE_TASKS["sts_b"], [0.5, float("nan")], tmp_path)


REAL = {  # kept rows by split, class labels in id order: counts of the data's README and the specification
    "cola": ({"train": 8551, "valid": 522, "test": 1063}, ("1", "0")),
    "qnli": ({"train": 3537, "valid": 1033, "test": 5463}, ("not_entailment", "entailment")),
    "mrpc": ({"train": 3668, "valid": 408}, ("1", "0")),
    "rte": ({"train": 2490, "valid": 277, "test": 3000}, ("entailment", "not_entailment")),
    "sst_2": ({"train": 67349, "valid": 872}, ("1", "0")),
    "mnli": ({"train": 6136, "valid": 1849, "valid1": 2062}, ("entailment", "contradiction", "neutral")),
    "qqp": ({"train": 16615, "valid": 3562}, ("0", "1")),
    "sts_b": ({"train": 5749, "valid": 1500}, ()),
}


@pytest.mark.parametrize("name", sorted(GLUE_TASKS))
def test_the_real_data(name: str, shared_dir: Path, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    if not (shared_dir / "data" / "glue").is_dir():
        pytest.skip("no GLUE data")
    task = GLUE_TASKS[name]
    report: GlueReport = prepare_task(task, shared_dir / "data" / "glue", tmp_path, tokenizer)
    counts, labels = REAL[name]
    assert {split: found.kept for split, found in report.splits.items()} == counts
    assert report.dropped == 0
    assert report.labels == labels
    for split in counts:
        data = SentenceDataset(
            report.folder, split, num_classes=task.num_classes, regression_target=task.regression
        )
        assert len(data) == counts[split]
        first = tokenizer.decode(data[0]["source"].tolist())
        assert first.split()[0] in (
            shared_dir / "data" / "glue" / task.folder / report.splits[split].file
        ).read_text(encoding="utf-8-sig").replace("\t", " ")


# What load_dataset("glue", NAME) has: name there, columns, our label of its numbers 0, 1, 2.
EXPORTED = {
    "cola": ("cola", ("sentence",), ("0", "1")),
    "qnli": ("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
    "mrpc": ("mrpc", ("sentence1", "sentence2"), ("0", "1")),
    "rte": ("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "sst_2": ("sst2", ("sentence",), ("0", "1")),
    "mnli": ("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qqp": ("qqp", ("question1", "question2"), ("0", "1")),
    "sts_b": ("stsb", ("sentence1", "sentence2"), ()),
}
QUOTED = ('"so-so" , he said', "a, b\tc", 'it"s')


@pytest.mark.parametrize(
    ("name", "ending"),
    [(name, "tsv") for name in EXPORTED]
    + [(name, ending) for name in ("sst_2", "mnli", "sts_b") for ending in ("csv", "jsonl", "parquet")],
)
def test_exports_of_hugging_face(name: str, ending: str, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    theirs, texts, labels = EXPORTED[name]
    task = GLUE_TASKS[name]
    folder = tmp_path / (task.folder if ending == "tsv" else theirs)
    folder.mkdir()
    for split in task.splits:
        count = len(labels) or 3
        table = pd.DataFrame({text: [f"{QUOTED[i % 3]} {text}" for i in range(count)] for text in texts})
        table["label"] = (
            [-1] * count if split.label is None else (list(range(count)) if labels else [0.0, 2.5, 3.8])
        )
        table["idx"] = range(count)
        stem = Path(split.file).stem
        if ending == "tsv":
            table.to_csv(folder / f"{stem}.tsv", sep="\t", index=False)
        elif ending == "csv":
            table.to_csv(folder / f"{stem.replace('dev', 'validation')}.csv", index=False)
        elif ending == "jsonl":
            table.to_json(folder / f"{stem}.jsonl", orient="records", lines=True)
        else:
            table.to_parquet(
                folder / f"{stem.replace('dev', 'validation')}-00000-of-00001.parquet", index=False
            )
    report = prepare_task(task, tmp_path, tmp_path / "out", tokenizer)
    assert {split.split for split in task.splits} == set(report.splits) and report.dropped == 0
    data = SentenceDataset(
        report.folder, "valid", num_classes=task.num_classes, regression_target=task.regression
    )
    for row in range(len(data)):
        parts = [tokenizer.encode(f"{QUOTED[row % 3]} {text}") for text in texts]
        assert data[row]["source"].tolist() == [
            0,
            *(t for i, p in enumerate(parts) for t in ([2] * (i > 0) + [*p])),
        ]
    targets = np.asarray(data.targets).ravel().tolist()
    if labels:
        assert [report.labels[target] for target in targets] == list(labels)
    else:
        assert targets == pytest.approx([0.0, 0.5, 0.76])


def test_exports_that_cannot_be_used_are_told(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    head = "sentence1,sentence2,label,idx\n"
    folder = tmp_path / "mrpc"
    folder.mkdir()

    def problems(**files: str) -> str:
        for path in folder.iterdir():
            path.unlink()
        files = {"train_csv": head + "a,b,1,0\nc,d,0,1\n", "dev_csv": head + "a,b,1,0\n"} | files
        for name, text in files.items():
            if text:
                (folder / name.replace("_", ".")).write_text(text)
        with pytest.raises(DataError) as caught:
            prepare_task(GLUE_TASKS["mrpc"], tmp_path, tmp_path / "out", tokenizer)
        return str(caught.value)

    assert "dev.csv, line 2: 'sentence2', 'label' is missing" in problems(dev_csv="sentence1,idx\na,0\n")
    assert "has dev.csv, validation.csv for dev" in problems(validation_csv=head)
    assert "dev.csv has no rows" in problems(dev_csv=head)
    assert "dev.csv cannot be read: line 2: 3 fields instead of 4" in problems(dev_csv=head + "a,b,1\n")
    assert "dev.csv cannot be read: " in problems(dev_csv=head + '"a,b,1,0\n')
    assert "label '-1' is not one of 0, 1: 1 (line 2 first)" in problems(dev_csv=head + "a,b,-1,0\n")
    assert "label '2' is not one of" in problems(dev_csv=head + "a,b,2,0\n")
    assert "test rows must be in the order of their idx" in problems(test_csv=head + "a,b,-1,1\na,b,-1,0\n")
    assert "a text is missing" in problems(
        dev_csv="", dev_jsonl='{"sentence1": null, "sentence2": "b", "label": 1}'
    )
