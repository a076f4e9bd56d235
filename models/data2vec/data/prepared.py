"""What prepared data folders have in common: dictionary, card, fingerprint, and too long samples."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import DataError
from ..folders import write_text
from .bpe import ENCODER_NAME, GPT2BPE, MERGES_NAME
from .dictionary import Dictionary
from .tokenizer import DICTIONARY_NAME, TextTokenizer

CARD_NAME = "card.json"
ShortenMethod = Literal["none", "truncate", "random_crop"]
_WHOLE_BYTES = 8 << 20
_WINDOW_BYTES = 64 << 10
_WINDOWS = 32

logger = logging.getLogger(__name__)


def read_card(folder: Path) -> dict[str, Any] | None:
    """The folder's ``card.json``; ``None`` for folders that the reference wrote.

    Raises:
        DataError: the file is there but is not a JSON object.
    """
    path = folder / CARD_NAME
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); prepare the folder again") from error
    if not isinstance(card, dict):
        raise DataError(f"{path} must hold a JSON object; prepare the folder again")
    return card


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write ``card.json``, complete or not at all."""
    write_text(folder / CARD_NAME, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def load_dictionary(folder: Path, card: dict[str, Any] | None) -> Dictionary:
    """``dict.txt`` of a folder, checked against the digest that the card recorded when the data was made.

    Raises:
        DataError: missing or malformed, or not the dictionary that the data was made with.
    """
    dictionary = Dictionary.load(folder / DICTIONARY_NAME)
    recorded = (card or {}).get("dictionary")
    if recorded is not None and recorded != dictionary.digest():
        raise DataError(
            f"{folder / DICTIONARY_NAME} (hash {dictionary.digest()[:12]}) is not the dictionary this data "
            "was prepared "
            f"with (hash {str(recorded)[:12]}); restore the file or prepare the data again"
        )
    return dictionary


def load_tokenizer(folder: Path, dictionary: Dictionary) -> TextTokenizer:
    """What the text of a folder was encoded with: the vocabulary that lies beside it, or GPT-2's.

    Raises:
        DataError: the card tells of another vocabulary.
    """
    beside = any((folder / name).is_file() for name in (ENCODER_NAME, MERGES_NAME))
    tokenizer = TextTokenizer(GPT2BPE.load(folder) if beside else None, dictionary)
    if (read_card(folder) or {}).get("tokenizer") not in (None, tokenizer.digest()):
        what = "the one beside it" if beside else "GPT-2's"
        raise DataError(
            f"{folder} was prepared with another vocabulary than {what}: copy its {ENCODER_NAME} and "
            f"{MERGES_NAME} into the folder, or prepare it again"
        )
    return tokenizer


def fingerprint_files(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over names, sizes and contents; independent of where the folder lies.

    Files up to 8 MiB are read whole, larger ones through 32 windows of 64 KiB spread evenly from their first
    to their last byte, so that the cost does not grow with the corpus. An index holds the length of every
    line, so edited text changes it almost surely.
    """
    digest = hashlib.sha256()
    for name, path in files:
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE_BYTES:
                digest.update(file.read())
                continue
            for window in range(_WINDOWS):
                file.seek((size - _WINDOW_BYTES) * window // (_WINDOWS - 1))
                digest.update(file.read(_WINDOW_BYTES))
    return digest.hexdigest()


def split_files(folder: Path, split: str, combine: bool) -> list[tuple[str, Path]]:
    """The ``.idx``/``.bin`` pairs that :func:`data2vec.data.indexed.open_tokens` reads."""
    names = [split]
    while combine and (folder / f"{split}{len(names)}.idx").is_file():
        names.append(f"{split}{len(names)}")
    return [(f"{n}.{kind}", folder / f"{n}.{kind}") for n in names for kind in ("idx", "bin")]


def sentence_files(folder: Path, split: str, combine: bool) -> list[tuple[str, Path]]:
    """All files of one split of a ``<TASK>-bin`` folder that exist: sentences, labels, dictionaries."""
    files: list[tuple[str, Path]] = []
    for part in ("input0", "input1", "label"):
        names = [(name, folder / part / name) for name in (DICTIONARY_NAME, f"{split}.label")]
        found = [*names, *split_files(folder / part, split, combine)]
        files += [(f"{part}/{name}", path) for name, path in found if path.is_file()]
    return files


def check_ids(tokens: np.ndarray, dictionary: Dictionary, where: str) -> None:
    """Refuse tokens that the dictionary does not have.

    Raises:
        DataError: naming the id and both sizes.
    """
    if len(tokens) and int(tokens.max()) >= len(dictionary):
        raise DataError(
            f"{where} holds token {int(tokens.max())}, but its dict.txt gives {len(dictionary)} ids with "
            "<mask>; "
            "data and dictionary do not belong together"
        )


def fitting_samples(sizes: np.ndarray, limit: int, *, drop: bool, where: str) -> np.ndarray | None:
    """Which samples fit.

    Args:
        sizes: ``(N,)`` lengths.
        limit: the longest allowed.
        drop: leave long ones out and say so once; otherwise they are an error.
        where: the data's name for messages.

    Returns:
        Their numbers, or ``None`` if all fit.

    Raises:
        DataError: samples are too long and ``drop`` is false, or none would be left.
    """
    long = sizes > limit
    number = int(long.sum())
    if not number:
        return None
    first = int(np.flatnonzero(long)[0])
    text = (
        f"{where}: {number} of {len(sizes)} samples are longer than {limit} tokens "
        f"(longest {int(sizes.max())}; the first is number {first})"
    )
    if not drop:
        raise DataError(
            f"{text}; set task.shorten_method=truncate, or leave them out with "
            "dataset.skip_invalid_size_inputs_valid_test=true"
        )
    if number == len(sizes):
        raise DataError(
            f"{text}: nothing is left; raise the limit (task.max_positions, task.tokens_per_sample) or set "
            "task.shorten_method=truncate"
        )
    _say_once(f"{text} and are left out")
    return np.flatnonzero(~long)


@functools.cache
def _say_once(text: str) -> None:
    """The same data are opened by the checks, by the plan and by the training of one process."""
    logger.warning("%s", text)


def shortens(split: str, method: ShortenMethod, split_list: str) -> bool:
    """Whether ``shorten_method`` applies to a split (an empty list means all)."""
    names = [name.strip() for name in split_list.split(",") if name.strip()]
    return method != "none" and (not names or split in names)
