"""GPT-2 BPE: known ids, round trips, and damaged vocabularies."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.data.bpe import GPT2BPE, OFFICIAL_SHA256, shared_bpe
from data2vec.data.dictionary import Dictionary
from data2vec.data.tokenizer import TextTokenizer
from data2vec.errors import DataError


def test_the_published_ids_of_hello_world() -> None:
    assert shared_bpe().encode("Hello world") == [15496, 995]
    assert shared_bpe().hashes == OFFICIAL_SHA256
    assert shared_bpe().size == 50257


def test_end_of_text_in_a_line_is_ordinary_text() -> None:
    ids = shared_bpe().encode("<|endoftext|>")
    assert 50256 not in ids
    assert shared_bpe().decode(ids) == "<|endoftext|>"


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_decoding_restores_any_text(text: str) -> None:
    assert shared_bpe().decode(shared_bpe().encode(text)) == text


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_the_tokenizer_restores_stripped_text_and_ends_in_eos(text: str) -> None:
    tokenizer = TextTokenizer(shared_bpe())
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert ids[-1] == 2
    assert (ids[:-1] >= 4).all()
    assert tokenizer.decode(ids) == text.strip()
    assert list(tokenizer.encode(text, append_eos=False)) == list(ids[:-1])


def test_identity_order_is_bpe_id_plus_four() -> None:
    assert TextTokenizer(shared_bpe()).encode("Hello world").tolist() == [15500, 999, 2]


def test_unknown_and_mask_are_written_out() -> None:
    dictionary = Dictionary(["15496"], [5])
    tokenizer = TextTokenizer(shared_bpe(), dictionary)
    assert tokenizer.encode("Hello world").tolist() == [4, 3, 2]
    assert tokenizer.decode([0, 4, 3, 5, 2, 1]) == "Hello<unk><mask>"
    with pytest.raises(DataError, match="token 6 is not in the dictionary of 6"):
        tokenizer.decode([6])


def test_a_model_folder_brings_its_tokenizer_back(tmp_path: Path) -> None:
    words = Dictionary.from_counts({"15496": 3, "995": 9})
    tokenizer = TextTokenizer(shared_bpe(), words)
    tokenizer.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dict.txt", "encoder.json", "vocab.bpe"]
    again = TextTokenizer.load(tmp_path)
    assert again.digest() == tokenizer.digest()
    assert again.encode("Hello world").tolist() == [5, 4, 2]
    assert again.digest() != TextTokenizer(shared_bpe()).digest()
    assert pickle.loads(pickle.dumps(again)).encode("Hello world").tolist() == [5, 4, 2]  # noqa: S301


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    shared_bpe().save(tmp_path)
    values = json.loads((tmp_path / "encoder.json").read_text(encoding="utf-8"))
    values["hello"], values["Hello"] = values["Hello"], values["hello"]
    (tmp_path / "encoder.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DataError, match="not a matching GPT-2 vocabulary"):
        GPT2BPE.load(tmp_path)
    (tmp_path / "encoder.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"encoder\.json"):
        GPT2BPE.load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        GPT2BPE.load(tmp_path / "nowhere")
    for half in ({"encoder_json": tmp_path / "encoder.json"}, {"vocab_bpe": tmp_path / "vocab.bpe"}):
        with pytest.raises(DataError, match="both paths or neither"):
            GPT2BPE(**half)


def test_a_bpe_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match="50257"):
        shared_bpe().decode([50257])


def test_preparing_needs_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, data2vec.data.text_chunks, data2vec.data.glue, data2vec.data.indexed; "
        "print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
