"""The units in which a language model of words, letters or BPE pieces reads a sentence."""

from __future__ import annotations

from typing import Literal

from .bpe import shared_bpe
from .letters import letter_line

Units = Literal["words", "letters", "bpe"]


def unit_symbols(text: str, units: Units) -> list[str]:
    """A sentence as the symbols of a dictionary of these units; letters end with the word delimiter."""
    if units == "bpe":
        return [str(i) for i in shared_bpe().encode(text.strip())]
    return letter_line(text).split(" ") if units == "letters" and text.strip() else text.split()
