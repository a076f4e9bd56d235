"""The demo's prose and tasks: real sentences, balanced, deterministic, nothing shared between documents."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v_platform.preparation.glue import prepare_glue
from data2vec.errors import DataError
from experiments.demo import prose, prose_tasks
from experiments.demo.material import MaterialSize, make_prose, prepare_material, read_task
from experiments.demo.prose import Document, is_sentence, split_sentences

TEXT = """
Objects and names
*****************

Objects are *Python's* abstraction for data. All data in a Python program
is represented by objects, e.g. numbers. See ``id()`` or :func:`~os.path.join` for more.

   assignment_stmt ::= (target_list "=")+ (starred_expression)

* If the target list is a single target with no trailing comma, the object
  is assigned to that target.

   >>> x = [1, 2]  # The list is shown.

x : array_like
    The values that are to be summed along the axis.
"""


SMALL = MaterialSize(packages=(), standard_library=False, vocabulary=1000, train=80, dev=20)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    """Python's language reference: read in half a second."""
    return prose.collect(packages=(), standard_library=False)


def test_code_headings_and_markup_are_dropped() -> None:
    found = prose._paragraphs([TEXT], set())
    assert found == (
        (
            "Objects are Python's abstraction for data.",
            "All data in a Python program is represented by objects, e.g. numbers.",
        ),
        (
            "If the target list is a single target with no trailing comma, "
            "the object is assigned to that target.",
        ),
        ("The values that are to be summed along the axis.",),
    )


@pytest.mark.parametrize(
    "text",
    [
        "x = the sum of a and b.",
        "the first letter of this is small.",
        "This has no end of the sentence",
        "Notes ----- This is a heading of the text.",
        "Too short.",
        "Foo bar baz qux quux corge grault garply.",
        "A parenthesis (of the text is not closed.",
    ],
)
def test_what_is_no_sentence(text: str) -> None:
    assert not is_sentence(text)


def test_abbreviations_end_no_sentence() -> None:
    text = "It was shown by J. Smith et al. Later this was used, cf. Chapter two. It works."
    assert split_sentences(text) == [
        "It was shown by J. Smith et al. Later this was used, cf. Chapter two.",
        "It works.",
    ]


def test_python_ships_enough_and_no_sentence_twice(documents: list[Document]) -> None:
    sentences = [sentence.casefold() for document in documents for sentence in document.sentences]
    assert len(sentences) == len(set(sentences)) > 1000
    assert all(is_sentence(sentence) for document in documents for sentence in document.sentences)
    assert {document.part for document in documents} == set(prose.SHARES)
    assert prose.collect(packages=(), standard_library=False) == documents


def test_docstrings_of_modules_are_read_and_function_bodies_are_not(tmp_path: Path) -> None:
    code = """'''The list of the names is kept in a file.'''

class Box:
    \'\'\'A box for the things of the house.\'\'\'

    def close(self):
        \'\'\'Close the lid of the box.\'\'\'
        def inner():
            \'\'\'This is in the body of a function.\'\'\'
"""
    (tmp_path / "tests").mkdir()
    for name in ("box.py", "tests/box.py"):
        (tmp_path / name).write_text(code)
    (tmp_path / "broken.py").write_text("def (:")
    found = list(prose._docstrings("house", tmp_path, recursive=True))
    texts = ["The list of the names is kept in a file.", "A box for the things of the house."]
    assert found == [("house/box.py", [*texts, "Close the lid of the box."])]


def test_the_task_is_balanced_and_a_function_of_the_seed(documents: list[Document]) -> None:
    rows = prose_tasks.word_order(documents, 300, seed=1)
    assert Counter(row.label for row in rows) == {"0": 150, "1": 150}
    assert rows == prose_tasks.word_order(documents, 300, seed=1)
    assert rows != prose_tasks.word_order(documents, 300, seed=2)
    written = {sentence for document in documents for sentence in document.sentences}
    assert all((row.sentence in written) == (row.label == "1") for row in rows)
    assert len({row.sentence for row in rows}) == len(rows)


@settings(deadline=None)  # a busy machine
@given(st.integers(0, 10_000))
def test_shuffled_words_are_the_same_words_between_the_same_ends(seed: int) -> None:
    sentence = "When it is shut, the value of it is kept."
    words, found = sentence.split(), prose_tasks.shuffled(sentence, random.Random(seed)).split()
    assert found != words and Counter(found) == Counter(words)
    assert (found[0], found[-1]) == (words[0], words[-1])


def test_too_little_prose_is_said() -> None:
    document = Document("one", (("The list of the names is short.", "It is of no use to anybody."),))
    with pytest.raises(DataError, match="20 are needed"):
        prose_tasks.word_order([document], 10, seed=1)


def test_material_is_prepared_by_our_own_functions_and_found_again(home: Path, tmp_path: Path) -> None:
    folder, facts = make_prose(SMALL)
    material = prepare_material(folder, facts, SMALL, data=None)
    assert material.tokens.vocabulary <= 1001
    assert folder.is_relative_to(home)
    [report] = prepare_glue(material.raw, tmp_path, ["cola"], dictionary=material.text / "dict.txt")
    assert report.dropped == 0
    assert report.splits["train"].kept == 80 and report.splits["valid"].kept == 20
    assert (len(material.train), len(material.dev)) == (80, 20)
    assert {label for _, label in material.dev} == {"0", "1"}
    before = (folder / "prose.json").stat().st_mtime_ns
    again, same = make_prose(SMALL)
    assert (again, same) == (folder, facts) and (folder / "prose.json").stat().st_mtime_ns == before


def test_train_dev_and_pretraining_share_no_document_and_no_sentence(home: Path) -> None:
    folder, _ = make_prose(SMALL)
    rows = {
        split: [line.split("\t") for line in (folder / "raw/CoLA" / f"{split}.tsv").read_text().splitlines()]
        for split in ("train", "dev")
    }
    assert not {row[0] for row in rows["train"]} & {row[0] for row in rows["dev"]}
    pretraining = (folder / "train.txt").read_text()
    found = {split: {row[3] for row in kept} for split, kept in rows.items()}
    assert not found["train"] & found["dev"]
    written = [row[3] for kept in rows.values() for row in kept if row[1] == "1"]
    assert not any(sentence in pretraining for sentence in written if len(sentence) > 40)


def test_a_wrong_data_folder_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"give a raw GLUE folder, which holds CoLA/\n.*train.tsv is missing"):
        read_task(tmp_path / "absent")
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_text("gj04\t1\t\tThe book was read.\ngj04\t1")  # cut off
    with pytest.raises(DataError, match=r"dev.tsv is missing") as caught:
        read_task(tmp_path)
    assert "train.tsv" not in str(caught.value), "one cut row of two is left out, as in training"
    (tmp_path / "CoLA" / "dev.tsv").write_text("The book was read.\n")
    with pytest.raises(DataError, match=r"dev.tsv, line 1: column 4 is missing"):
        read_task(tmp_path)
