"""The dictionary between BPE ids and model ids, in the reference's ``dict.txt`` format.

``dict.txt`` has one ``<symbol> <count>`` a line; the four specials are not in the file, so the first line is
id 4. For GPT-2 BPE the symbols are decimal BPE ids. The released models' file is sorted by the frequency in
their training corpus; a fresh project may use the identity order (id = BPE id + 4). Both have the same size,
so only :meth:`Dictionary.digest` tells them apart: cards and models carry it and a mismatch is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import DataError

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"
NUM_SPECIALS = len(SPECIALS)
GPT2_SIZE = 50257
MAX_BPE_SIZE = 2**24  # far more than any BPE has
_OVERWRITE = "#fairseq:overwrite"
_DIGITS, _COUNT = re.compile("[0-9]{1,18}"), re.compile("-?[0-9]{1,18}")


class Dictionary:
    """Symbols with ids and counts.

    Args:
        symbols: the symbols of ``dict.txt`` in order, without the specials.
        counts: their corpus counts.
        mask: append ``<mask>`` in memory (the task does; the file does not hold it).
    """

    bos, pad, eos, unk = 0, 1, 2, 3

    def __init__(self, symbols: Sequence[str], counts: Sequence[int], *, mask: bool = False) -> None:
        assert len(symbols) == len(counts)
        self._stored = len(symbols)
        extra = (MASK,) if mask and MASK not in symbols else ()
        self.symbols: tuple[str, ...] = (*SPECIALS, *symbols, *extra)
        self.counts: tuple[int, ...] = (*(1,) * NUM_SPECIALS, *counts, *(1,) * len(extra))
        self.mask: int | None = self.symbols.index(MASK) if mask else None
        self._lookup: np.ndarray | None = None
        self._digest: str | None = None
        self._masked: Dictionary | None = self if mask else None

    def __len__(self) -> int:
        return len(self.symbols)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (
            self.symbols[NUM_SPECIALS:][: self._stored],
            self._stored_counts(),
            self.mask is not None,
        )

    @cached_property
    def _index(self) -> dict[str, int]:
        """A repeated symbol (only possible with the overwrite flag) is found at its last place."""
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    def index(self, symbol: str) -> int:
        """Id of ``symbol``; 3 (``<unk>``) if it is not there."""
        return self._index.get(symbol, self.unk)

    def with_mask(self) -> Dictionary:
        """The same dictionary with ``<mask>`` appended: its length is the model's vocabulary."""
        if self._masked is None:
            self._masked = _rebuild(self.symbols[NUM_SPECIALS:], self._stored_counts(), True)
            self._masked._lookup, self._masked._digest = self._lookup, self._digest  # <mask> changes neither
        return self._masked

    def digest(self) -> str:
        """SHA-256 over the order of the symbols: the "dictionary hash" of cards, models and checks.

        Counts and an appended ``<mask>`` do not enter, so data and model agree however they were loaded.
        """
        if self._digest is None:
            text = "\n".join(self.symbols[: NUM_SPECIALS + self._stored])
            self._digest = hashlib.sha256(text.encode()).hexdigest()
        return self._digest

    def bpe_lookup(self, bpe_size: int | None = None) -> np.ndarray:
        """Table from BPE id to model id, ``(bpe_size,)`` int64; 3 where the dictionary lacks the id.

        Raises:
            DataError: no symbol is a decimal number, so this is no dictionary over BPE ids.
        """
        if self._lookup is None:
            known = {int(s): i for i, s in enumerate(self.symbols) if _DIGITS.fullmatch(s)}
            if known and max(known) >= MAX_BPE_SIZE:
                raise DataError(
                    f"the dictionary has the BPE id {max(known)}; ids must be < {MAX_BPE_SIZE}: a table of "
                    "all of them is kept"
                )
            if not known:
                raise DataError(
                    f"the dictionary ({len(self)} symbols, first: {', '.join(self.symbols[4:8])}) is not "
                    "over GPT-2 BPE ids"
                )
            table = np.full(max(max(known) + 1, GPT2_SIZE), self.unk, dtype=np.int64)
            table[list(known)] = list(known.values())
            self._lookup = table
        if bpe_size is not None and bpe_size > len(self._lookup):
            missing = np.full(bpe_size - len(self._lookup), self.unk, dtype=np.int64)
            return np.concatenate([self._lookup, missing])
        return self._lookup

    def encode_line(self, bpe_ids: Sequence[int], append_eos: bool = True) -> np.ndarray:
        """Model ids of one line of BPE ids, int64, with ``</s>`` at the end unless ``append_eos`` is "
        "false."""
        out = np.empty(len(bpe_ids) + append_eos, dtype=np.int64)
        if len(bpe_ids):
            out[: len(bpe_ids)] = self.bpe_lookup(max(bpe_ids) + 1)[np.asarray(bpe_ids, dtype=np.int64)]
        if append_eos:
            out[-1] = self.eos
        return out

    def decode_ids(self, ids: Iterable[int]) -> list[int]:
        """BPE ids of model ids; specials, ``<mask>`` and padding words are left out."""
        names = (self.symbol(int(i)) for i in ids)
        return [int(name) for name in names if _DIGITS.fullmatch(name)]

    def symbol(self, index: int) -> str:
        """Symbol of an id.

        Raises:
            DataError: the id is outside the dictionary.
        """
        if not 0 <= index < len(self.symbols):
            raise DataError(f"token {index} is not in the dictionary of {len(self.symbols)} symbols")
        return self.symbols[index]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``dict.txt`` (specials and an appended ``<mask>`` are not stored)."""
        Path(path).write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """The content of ``dict.txt``."""
        seen, lines = set(map(str, SPECIALS)), list[str]()
        for symbol, count in zip(self.symbols[NUM_SPECIALS:], self._stored_counts(), strict=False):
            lines.append(f"{symbol} {count}{f' {_OVERWRITE}' if symbol in seen else ''}\n")
            seen.add(symbol)
        return "".join(lines)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Dictionary:
        """Read ``dict.txt``; every malformed line is reported at once.

        Raises:
            DataError: the file is missing, empty, not UTF-8, or has malformed or repeated lines.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(
                f"dictionary {path} does not exist; a prepared folder holds one (see d2v prepare)"
            )
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"dictionary {path}: byte {error.start} is not UTF-8") from error
        if lines and not lines[-1]:
            lines.pop()
        symbols: list[str] = []
        counts: list[int] = []
        seen: dict[str, int] = dict.fromkeys(map(str, SPECIALS), 0)
        wrong: list[str] = []
        for number, line in enumerate(lines, start=1):
            text, overwrite = line.rstrip(), False
            if text.endswith(" " + _OVERWRITE):
                text, overwrite = text[: -len(_OVERWRITE) - 1], True
            symbol, _, count = text.rpartition(" ")
            if not symbol or not _COUNT.fullmatch(count):
                wrong.append(f"line {number}: {line[:60]!r} is not '<symbol> <count>'")
            elif symbol in seen and not overwrite:
                where = f"line {seen[symbol]}" if seen[symbol] else "a special symbol"
                wrong.append(
                    f"line {number}: {symbol!r} is there already ({where}); mark it {_OVERWRITE} to allow "
                    "that"
                )
            else:
                seen[symbol] = number
                symbols.append(symbol)
                counts.append(int(count))
        if not symbols and not wrong:
            raise DataError(f"dictionary {path} is empty")
        if wrong:
            more = f"\n  ... and {len(wrong) - 10} more" if len(wrong) > 10 else ""
            raise DataError(f"dictionary {path} is malformed:\n  " + "\n  ".join(wrong[:10]) + more)
        return cls(symbols, counts)

    @classmethod
    def identity(cls, bpe_size: int = GPT2_SIZE, padding_factor: int = 8) -> Dictionary:
        """Id = BPE id + 4, padded like the released one: 50264 symbols, 50265 with ``<mask>``."""
        symbols = [str(i) for i in range(bpe_size)]
        symbols += _padding(NUM_SPECIALS + bpe_size, padding_factor)
        return cls(symbols, [0] * len(symbols))

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[str, int],
        *,
        threshold: int = 0,
        max_size: int | None = None,
        padding_factor: int = 8,
    ) -> Dictionary:
        """A dictionary sorted by falling count; equal counts in string order.

        Args:
            counts: symbol to count.
            threshold: symbols seen less often are left out.
            max_size: most symbols in the result, specials included, before padding.
            padding_factor: ``madeupwordNNNN`` entries fill the size up to a multiple of this.
        """
        order = sorted(
            ((s, n) for s, n in counts.items() if n >= threshold and s not in SPECIALS),
            key=lambda x: (-x[1], x[0]),
        )
        if max_size is not None:
            order = order[: max(max_size - NUM_SPECIALS, 0)]
        padding = _padding(NUM_SPECIALS + len(order), padding_factor)
        return cls([s for s, _ in order] + padding, [n for _, n in order] + [0] * len(padding))

    def _stored_counts(self) -> tuple[int, ...]:
        return self.counts[NUM_SPECIALS : NUM_SPECIALS + self._stored]


def _rebuild(symbols: Sequence[str], counts: Sequence[int], mask: bool) -> Dictionary:
    return Dictionary(symbols, counts, mask=mask)


def is_padding_word(symbol: str) -> bool:
    """Whether a symbol only fills a dictionary up to a multiple of the padding factor."""
    return symbol.startswith("madeupword") and symbol[len("madeupword") :].isdecimal()


def _padding(size: int, factor: int) -> list[str]:
    missing = -size % factor if factor > 1 else 0
    return [f"madeupword{i:04d}" for i in range(missing)]
