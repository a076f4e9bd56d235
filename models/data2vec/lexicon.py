"""Lexicons of spellings, and whether an n-gram model is over the words or letters that are decoded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from .data.dictionary import Dictionary
from .data.letters import WORD_END
from .errors import DataError
from .language_model import arpa_unigrams, try_binary

logger = logging.getLogger(__name__)

_SHOWN = 10
_EXAMPLES = 3


def read_lexicon(path: Path, letters: Dictionary) -> dict[str, list[list[str]]]:
    """Spellings by word; every malformed line is reported at once.

    Words spelt with symbols that the letters lack cannot be heard; they are left out and counted.

    Raises:
        DataError: the file is missing or malformed, or no word can be spelt with the letters.
    """
    if not path.is_file():
        raise DataError(f"lexicon {path} does not exist")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"lexicon {path}: byte {error.start} is not UTF-8") from None
    entries: dict[str, list[list[str]]] = {}
    wrong: list[str] = []
    foreign: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        word, *spelling = line.split()
        unknown = [s for s in spelling if letters.index(s) == Dictionary.unk]
        if not spelling:
            wrong.append(f"line {number}: {word!r} has no spelling")
        elif unknown:
            foreign.append(f"{word!r} with {', '.join(unknown[:3])} (line {number})")
        elif spelling[-1] != WORD_END:
            wrong.append(f"line {number}: the spelling of {word!r} must end with {WORD_END}")
        else:
            entries.setdefault(word, []).append(spelling)
    if wrong:
        more = f"\n  ... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise DataError(f"lexicon {path} does not fit:\n  " + "\n  ".join(wrong[:_SHOWN]) + more)
    if foreign:
        told = (
            f"{path}: {len(foreign)} spellings have symbols that the dictionary lacks and are left out: "
            f"{'; '.join(foreign[:_EXAMPLES])}{'; ...' if len(foreign) > _EXAMPLES else ''}"
        )
        if not entries:
            raise DataError(f"lexicon {told}. None is left: it is for other letters, or in another case")
        logger.warning("lexicon %s", told)
    if not entries:
        raise DataError(f"lexicon {path} is empty")
    return entries


def check_language_model(path: Path, words: dict[str, Any], unit: str = "words") -> None:
    """A language model over other units than the decoder's gives every word the same score: refuse it."""
    if not path.is_file():
        raise DataError(f"language model {path} does not exist")
    known = arpa_unigrams(path)
    if known is None:
        try_binary(path, words)
        return  # what else is wrong with it KenLM itself says
    shared = sum(word in known for word in words)
    if shared == 0 or (unit == "words" and len(words) > 100 and shared < 0.01 * len(words)):
        shown = ", ".join(sorted(known - {"<s>", "</s>", "<unk>"})[:6])
        raise DataError(
            f"language model {path} knows {shared} of {len(words)} {unit}; it has {shown}, ...: it is over "
            "other units or in other letters (upper and lower case differ); see decoding.unitlm"
        )
