"""The reference's dict.txt: order, padding, flags, hash, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.data.dictionary import MAX_BPE_SIZE, Dictionary
from data2vec.errors import DataError

SYMBOLS = st.lists(st.integers(0, 50256).map(str), min_size=1, max_size=30, unique=True)


def test_specials_come_first_and_mask_last() -> None:
    words = Dictionary(["13", "262"], [9, 5])
    assert (words.bos, words.pad, words.eos, words.unk) == (0, 1, 2, 3)
    assert words.symbols == ("<s>", "<pad>", "</s>", "<unk>", "13", "262")
    assert words.with_mask().symbols[-1] == "<mask>"
    assert words.with_mask().mask == 6
    assert words.mask is None
    assert words.index("nothing") == 3


def test_identity_has_the_released_size() -> None:
    words = Dictionary.identity()
    assert len(words) == 50264
    assert len(words.with_mask()) == 50265
    assert words.index("0") == 4
    assert words.symbols[-3:] == ("madeupword0000", "madeupword0001", "madeupword0002")


def test_counts_are_sorted_with_ties_in_string_order_and_padded_to_eight() -> None:
    words = Dictionary.from_counts({"b": 2, "a": 2, "c": 7, "rare": 1}, threshold=2)
    assert words.symbols[4:] == ("c", "a", "b", "madeupword0000")
    assert words.counts[4:] == (7, 2, 2, 0)
    small = Dictionary.from_counts({"b": 2, "a": 2, "c": 7}, max_size=5, padding_factor=1)
    assert small.symbols[4:] == ("c",)


@settings(max_examples=50, deadline=None)
@given(SYMBOLS, st.booleans())
def test_round_trip_through_the_file(
    tmp_path_factory: pytest.TempPathFactory, symbols: list[str], mask: bool
) -> None:
    path = tmp_path_factory.mktemp("dict") / "dict.txt"
    words = Dictionary(symbols, range(len(symbols)))
    (words.with_mask() if mask else words).save(path)
    again = Dictionary.load(path)
    assert again.symbols == words.symbols
    assert again.counts[4:] == words.counts[4:]
    assert again.digest() == words.digest() == words.with_mask().digest()
    assert pickle.loads(pickle.dumps(words.with_mask())).symbols == words.with_mask().symbols  # noqa: S301
    ids = [int(s) for s in symbols]
    assert words.decode_ids(words.encode_line(ids)) == ids


def test_the_hash_knows_the_order_but_not_the_counts() -> None:
    one, two = Dictionary(["1", "2"], [5, 4]), Dictionary(["2", "1"], [5, 4])
    assert one.digest() != two.digest()
    assert one.digest() == Dictionary(["1", "2"], [0, 0]).digest()


def test_unknown_bpe_ids_become_three() -> None:
    words = Dictionary(["13"], [1])
    assert words.encode_line([13, 14, 70000]).tolist() == [4, 3, 3, 2]
    assert words.encode_line([], append_eos=True).tolist() == [2]
    assert words.encode_line([], append_eos=False).tolist() == []


def test_a_file_that_already_holds_mask_is_not_given_a_second(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("13 5\n<mask> 1\n", encoding="utf-8")
    words = Dictionary.load(tmp_path / "dict.txt").with_mask()
    assert len(words) == 6
    assert words.mask == 5


def test_the_overwrite_flag_of_the_reference(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text(
        "13 5\n<s> 7 #fairseq:overwrite\n13 1 #fairseq:overwrite\n", encoding="utf-8"
    )
    words = Dictionary.load(tmp_path / "dict.txt")
    assert len(words) == 7
    assert words.index("13") == 6


def test_every_malformed_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_text("13 5\n262\n13 4\n<pad> 3\n11 x\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        Dictionary.load(path)
    text = str(error.value)
    assert "line 2: '262'" in text
    assert "line 3: '13' is there already (line 1)" in text
    assert "line 4: '<pad>' is there already (a special symbol)" in text
    assert "line 5" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"13 5\n\xff 4\n", "byte 5 is not UTF-8"), (None, "does not exist")],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "dict.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Dictionary.load(path)


def test_a_dictionary_of_words_is_no_bpe_dictionary() -> None:
    with pytest.raises(DataError, match="not over GPT-2 BPE ids"):
        Dictionary(["the", "of"], [1, 1]).encode_line([1])


def test_numbers_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    largest = Dictionary([str(MAX_BPE_SIZE - 1)], [1])
    assert largest.bpe_lookup()[MAX_BPE_SIZE - 1] == 4
    with pytest.raises(DataError, match=r"BPE id 3000000000; ids must be < 16777216"):
        Dictionary(["7", "3000000000"], [1, 1]).bpe_lookup()
    long = "9" * 5000  # Python itself refuses to read so many digits
    assert Dictionary([long, "5"], [1, 1]).bpe_lookup()[5] == 5
    path = tmp_path / "dict.txt"
    for count in (long, "--5", "5-"):
        path.write_text(f"a {count}\n")
        with pytest.raises(DataError, match=r"line 1: .* is not '<symbol> <count>'"):
            Dictionary.load(path)
