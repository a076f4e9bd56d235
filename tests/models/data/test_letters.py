"""Letters, label lines and BPE ids in bulk: what transcripts and text become, fact by fact."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data2vec.data.bpe import shared_bpe
from data2vec.data.dictionary import Dictionary
from data2vec.data.encoding import chunk_bounds, encode_lines, id_dtype, model_ids, text_lines
from data2vec.data.letters import (
    encode_letters,
    greedy_ids,
    letter_dictionary,
    letter_line,
    read_label_lines,
    released_letters,
    words_of,
    words_of_ids,
)
from data2vec.data.names import Names
from data2vec.data.text_chunks import ChunkJob, encode_chunk, read_chunk
from data2vec.errors import DataError
from data2vec.folders import file_sha256


def test_the_released_letters() -> None:
    letters = released_letters()
    assert letters.symbols == ("<s>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
    assert letters.counts[4:8] == (94802, 51860, 38431, 33152) and letters.counts[-1] == 213
    assert sum(letters.counts[4:]) == 511776
    assert len(letters) == 32 and letters.mask is None


def test_transcripts_become_letters_and_back() -> None:
    assert letter_line("  A  MAN\tsaid ") == "A | M A N | s a i d |"
    letters = released_letters()
    ids = encode_letters("A | M Ä N |", letters)
    assert ids.dtype == np.int64 and ids.tolist() == [7, 4, 17, 3, 9, 4]
    assert words_of_ids([0, 7, 4, 1, 17, 7, 2, 9, 4], letters) == "A MAN"
    assert words_of_ids([7, 3, 9], letters) == "A<unk>N"  # only <s>, <pad> and </s> say nothing
    assert words_of(["A", " ", "B", "|", "|", "C"]) == "AB C"


def test_greedy_labels_collapse_repeats_before_blanks_go() -> None:
    assert greedy_ids([0, 5, 5, 0, 5, 6, 6, 0]) == [5, 5, 6]
    assert greedy_ids([1, 1, 0, 1], blank=1) == [0]


def test_letters_are_counted_and_not_padded() -> None:
    letters = letter_dictionary(["BA B", "A"])
    assert letters.symbols[4:] == ("|", "A", "B")
    assert letters.counts[4:] == (3, 2, 2)


def test_label_files_are_checked_against_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "train.ltr"
    with pytest.raises(DataError, match="do not exist; make them with d2v prepare audio-labels"):
        read_label_lines(path, 2)
    path.write_bytes("\ufeffA |\nB |\n".encode())
    assert read_label_lines(path, 2) == ["A |", "B |"]
    path.write_text("A |\nB |")  # the last line feed may be missing
    assert read_label_lines(path, 2) == ["A |", "B |"]
    with pytest.raises(DataError, match="have 2 lines, but the manifest lists 3 files"):
        read_label_lines(path, 3)
    path.write_text("A |\n\n \nB |\n")
    with pytest.raises(DataError, match=r"2 empty lines \(2, 3\)"):
        read_label_lines(path, 4)
    path.write_text("\n" * 11)
    with pytest.raises(DataError, match=r"11 empty lines \(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, \.\.\.\)"):
        read_label_lines(path, 11)
    path.write_text("\n" * 10)
    with pytest.raises(DataError, match=r"10 empty lines \(1, 2, 3, 4, 5, 6, 7, 8, 9, 10\)"):
        read_label_lines(path, 10)
    path.write_bytes(b"A\xff\n")
    with pytest.raises(DataError, match="byte 1 is not UTF-8"):
        read_label_lines(path, 1)


def test_names_of_any_length_and_bytes() -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    names = Names(["a/b.png", "", "ü", odd])
    assert len(names) == 4
    assert [names[i] for i in range(4)] == ["a/b.png", "", "ü", odd]


def test_lines_are_stripped_and_end_in_the_sentinel() -> None:
    bpe = shared_bpe()
    encoded = encode_lines(bpe, ["  Hello world \n", "", "\t", "Hello"])
    assert encoded.ids.tolist() == [15496, 995, 50257, 50257, 50257, 15496, 50257]
    assert encoded.sizes.tolist() == [3, 1, 1, 2] and encoded.sizes.dtype == np.int32
    assert encoded.ids.dtype == np.uint16
    without = encode_lines(bpe, ["Hello", "", "Hello"], keep_empty=False)
    assert without.sizes.tolist() == [2, 2]
    assert encode_lines(bpe, []).sizes.tolist() == []
    assert id_dtype(2**16 - 1) == np.uint16 and id_dtype(2**16) == np.uint32  # the sentinel is bpe_size


def test_unknown_bpe_ids_become_three_and_the_sentinel_two() -> None:
    dictionary = Dictionary(["995", "50300", "11"], [1, 1, 1])
    assert model_ids(np.array([995, 11, 12, 50257]), dictionary, 50257).tolist() == [4, 6, 3, 2]


def test_bytes_become_lines(tmp_path: Path) -> None:
    path = tmp_path / "text"
    assert text_lines(b"\xef\xbb\xbfa\r\nb\rc\n\nd", True, path) == ["a", "b", "c", "", "d"]
    assert text_lines(b"\xef\xbb\xbfa\n", False, path) == ["\ufeffa"]
    assert text_lines(b"", True, path) == []
    content = b"\xef\xbb\xbfone\ntwo\nth\xffree\n"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"line 3: byte 13 of the file \(0xff\) is not UTF-8"):
        text_lines(content, True, path)
    with pytest.raises(DataError, match=r"line 3: byte 13 of the file \(0xff\)"):
        text_lines(content[7:], False, path, byte_offset=7)


def test_chunks_end_after_line_feeds_and_cover_the_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"aaa\nbb\ncccccc\nd")
    assert chunk_bounds(path, 4) == [(0, 4), (4, 14), (14, 15)]
    assert chunk_bounds(path, 3) == [(0, 4), (4, 7), (7, 14), (14, 15)]
    assert chunk_bounds(path, 15) == [(0, 15)] == chunk_bounds(path, 100)
    path.write_bytes(b"")
    assert chunk_bounds(path, 4) == []
    assert file_sha256(path) == hashlib.sha256(b"").hexdigest()


def test_a_chunk_is_its_range_and_is_made_again_when_anything_differs(tmp_path: Path) -> None:
    source = tmp_path / "text"
    source.write_bytes(b"skip\nHello\n\nworld\nskip")
    job = ChunkJob(source, 5, 18, tmp_path / "chunk.npz", True, None, None, "digest", os.getpid())
    result = encode_chunk(job)
    assert (result.target, result.bytes, result.tokens, result.reused) == (job.target, 13, 5, False)
    assert result.cpu_s >= 0
    assert read_chunk(job.target).ids.tolist() == [15496, 50257, 50257, 6894, 50257]
    assert read_chunk(job.target).sizes.tolist() == [2, 1, 2]
    again = encode_chunk(job)
    assert again.reused and again.tokens == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chunk.npz", "text"]  # nothing partial stays
    fewer = encode_chunk(replace(job, keep_empty=False))
    assert (fewer.reused, fewer.tokens) == (False, 4)
    assert not encode_chunk(replace(job, tokenizer="other")).reused
    source.write_bytes(b"skip\nHellO\n\nworld\nskip")
    assert not encode_chunk(replace(job, tokenizer="other")).reused
    job.target.write_bytes(b"PK damaged")
    assert not encode_chunk(replace(job, tokenizer="other")).reused
    assert encode_chunk(replace(job, tokenizer="other")).reused
