"""Text to model ids and back: BPE and dictionary together, as stored in a model folder's ``tokenizer/``."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .bpe import GPT2BPE
from .dictionary import MASK, Dictionary

DICTIONARY_NAME = "dict.txt"


class TextTokenizer:
    """What turns a sentence into the ids a text model was trained on.

    Args:
        bpe: default is GPT-2's.
        dictionary: default is the identity order; ``<mask>`` is appended if it is not there.
    """

    def __init__(self, bpe: GPT2BPE | None = None, dictionary: Dictionary | None = None) -> None:
        self.bpe = bpe if bpe is not None else GPT2BPE()
        self.dictionary = (dictionary if dictionary is not None else Dictionary.identity()).with_mask()
        self.dictionary.bpe_lookup()  # refuses one that is not over BPE ids

    @functools.cached_property
    def _table(self) -> np.ndarray:
        return self.dictionary.bpe_lookup(self.bpe.size)

    def __len__(self) -> int:
        """The vocabulary, ``<mask>`` included."""
        return len(self.dictionary)

    def encode(self, text: str, append_eos: bool = True) -> np.ndarray:
        """Model ids of ``text``, int64.

        Space at both ends is stripped, as the reference's encoder does with every line, so the first word has
        no space marker.
        """
        return self._ids(self.bpe.encode(text.strip()), append_eos)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of model ids. ``<s>``, ``<pad>`` and ``</s>`` vanish; ``<unk>`` and ``<mask>`` are written
        out.

        Raises:
            DataError: an id is outside the dictionary.
        """
        parts: list[str] = []
        run: list[int] = []
        for i in ids:
            symbol = self.dictionary.symbol(int(i))
            if symbol.isascii() and symbol.isdecimal():
                run.append(int(symbol))
                continue
            if int(i) == self.dictionary.unk or symbol == MASK:
                parts += [self.bpe.decode(run), symbol]
                run = []
        return "".join([*parts, self.bpe.decode(run)])

    def digest(self) -> str:
        """SHA-256 over vocabulary files and dictionary."""
        return hashlib.sha256(f"{self.bpe.digest()}\n{self.dictionary.digest()}".encode()).hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``encoder.json``, ``vocab.bpe`` and ``dict.txt``."""
        self.bpe.save(folder)
        self.dictionary.save(Path(folder) / DICTIONARY_NAME)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TextTokenizer:
        """Read what :meth:`save` wrote."""
        return cls(GPT2BPE.load(folder), Dictionary.load(Path(folder) / DICTIONARY_NAME))

    def _ids(self, bpe_ids: list[int], append_eos: bool) -> np.ndarray:
        out = np.empty(len(bpe_ids) + append_eos, dtype=np.int64)
        out[: len(bpe_ids)] = self._table[np.asarray(bpe_ids, dtype=np.int64)]
        if append_eos:
            out[-1] = self.dictionary.eos
        return out
