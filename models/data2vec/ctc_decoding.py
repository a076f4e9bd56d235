"""Beam search over CTC emissions with a lexicon and an n-gram language model, by flashlight-text.

A hypothesis scores the sum of its emissions, ``lm_weight`` times the language model, ``word_score`` times its
words and ``sil_weight`` times its silences, with emissions in natural and the language model in decimal
logarithms, as in the reference.

T frames, V symbols.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .data.dictionary import Dictionary
from .data.letters import WORD_END, words_of_ids
from .errors import ConfigError, DataError, Problem
from .language_model import arpa_unigrams

BLANK = 0
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class BeamOptions:
    """The ``decoding.*`` options that are numbers."""

    beam: int = 50  # hypotheses kept at each frame
    beam_threshold: float = 50.0  # worse ones than the best by more are dropped
    beam_size_token: int | None = None  # symbols tried at each frame; None = all
    lm_weight: float = 2.0  # of the language model
    word_score: float = -1.0  # added for each word
    sil_weight: float = 0.0  # added for each word delimiter
    unk_weight: float = -math.inf  # of an unknown word; -inf forbids them
    nbest: int = 1  # hypotheses returned

    def check(self) -> None:
        """Raise :class:`ConfigError` with all problems."""
        found = []
        if self.beam < 1:
            found.append(Problem("decoding.beam", self.beam, "must be >= 1"))
        if self.beam_threshold <= 0:
            found.append(Problem("decoding.beamthreshold", self.beam_threshold, "must be > 0"))
        if self.beam_size_token is not None and self.beam_size_token < 1:
            found.append(Problem("decoding.beamsizetoken", self.beam_size_token, "must be >= 1"))
        if not 1 <= self.nbest <= max(self.beam, 1):
            found.append(Problem("decoding.nbest", self.nbest, f"must lie in 1 ... beam ({self.beam})"))
        if found:
            raise ConfigError(found, "the decoder")


@dataclass(frozen=True)
class Hypothesis:
    """One result of the search.

    Attributes:
        text: the words.
        score: see the module.
        letters: ids without blanks and repeats.
        frames: frame at which each letter begins.
        word_ends: frame at which each word ends.
    """

    text: str
    score: float
    letters: tuple[int, ...]
    frames: tuple[int, ...]
    word_ends: tuple[int, ...]


class LexiconBeam:
    """Words of a lexicon, weighed by a word language model.

    Args:
        letters: the model's symbols.
        lexicon: file with ``WORD<white space>W O R D |`` a line.
        language_model: ARPA text or KenLM binary over the lexicon's words; ``None`` decodes without.
        options: see :class:`BeamOptions`.

    Raises:
        DataError: flashlight-text is missing; the lexicon is malformed or does not fit the letters; the
            language model is broken or over other units.
    """

    def __init__(
        self, letters: Dictionary, lexicon: Path, language_model: Path | None, options: BeamOptions
    ) -> None:
        options.check()
        decoder, dictionary = _flashlight()
        self.letters = letters
        entries = read_lexicon(lexicon, letters)
        if language_model is not None:
            check_language_model(language_model, entries)
        self._words = dictionary.create_word_dict({**entries, "<unk>": []})
        if language_model is None:
            self._lm = decoder.ZeroLM()
        else:
            self._lm = _kenlm(language_model, self._words)
        delimiter = letters.index(WORD_END)
        trie = decoder.Trie(len(letters), delimiter)
        start = self._lm.start(False)
        for word, spellings in entries.items():
            word_id = self._words.get_index(word)
            _, score = self._lm.score(start, word_id)
            for spelling in spellings:
                trie.insert([letters.index(symbol) for symbol in spelling], word_id, score)
        trie.smear(decoder.SmearingMode.MAX)
        settings = decoder.LexiconDecoderOptions(
            beam_size=options.beam,
            beam_size_token=options.beam_size_token or len(letters),
            beam_threshold=options.beam_threshold,
            lm_weight=options.lm_weight,
            word_score=options.word_score,
            unk_score=options.unk_weight,
            sil_score=options.sil_weight,
            log_add=False,
            criterion_type=decoder.CriterionType.CTC,
        )
        unknown = self._words.get_index("<unk>")
        self._decoder = decoder.LexiconDecoder(settings, trie, self._lm, delimiter, BLANK, unknown, [], False)
        self._nbest = options.nbest

    def decode(self, emissions_TV: np.ndarray) -> list[Hypothesis]:
        """The best hypotheses, best first; an utterance without a possible word gives an empty one."""
        found = _decode(self._decoder, emissions_TV)[: self._nbest]
        out = []
        for result in found:
            words = [(self._words.get_entry(w), t - 1) for t, w in enumerate(result.words) if w >= 0]
            ids, frames = _letters(result.tokens)
            out.append(
                Hypothesis(
                    " ".join(word for word, _ in words),
                    float(result.score),
                    ids,
                    frames,
                    tuple(min(end, len(emissions_TV)) for _, end in words),
                )
            )
        return out or [Hypothesis("", -math.inf, (), (), ())]


class LetterBeam:
    """Letters alone, weighed by a language model over letters (``decoding.unitlm``).

    Args:
        letters: the model's symbols.
        language_model: ARPA text or KenLM binary over the letters; ``None`` decodes without.
        options: see :class:`BeamOptions`; words have no score here.
    """

    def __init__(self, letters: Dictionary, language_model: Path | None, options: BeamOptions) -> None:
        options.check()
        decoder, dictionary = _flashlight()
        self.letters = letters
        units = dictionary.Dictionary()
        for symbol in letters.symbols:
            units.add_entry(symbol)
        if language_model is None:
            self._lm = decoder.ZeroLM()
        else:
            check_language_model(language_model, {s: [] for s in letters.symbols[4:]}, unit="letters")
            self._lm = _kenlm(language_model, units)
        settings = decoder.LexiconFreeDecoderOptions(
            beam_size=options.beam,
            beam_size_token=options.beam_size_token or len(letters),
            beam_threshold=options.beam_threshold,
            lm_weight=options.lm_weight,
            sil_score=options.sil_weight,
            log_add=False,
            criterion_type=decoder.CriterionType.CTC,
        )
        delimiter = letters.index(WORD_END)
        self._decoder = decoder.LexiconFreeDecoder(settings, self._lm, delimiter, BLANK, [])
        self._nbest = options.nbest

    def decode(self, emissions_TV: np.ndarray) -> list[Hypothesis]:
        """The best hypotheses, best first."""
        out = []
        for result in _decode(self._decoder, emissions_TV)[: self._nbest]:
            ids, frames = _letters(result.tokens)
            text = words_of_ids(ids, self.letters)
            out.append(Hypothesis(text, float(result.score), ids, frames, ()))
        return out or [Hypothesis("", -math.inf, (), (), ())]


def read_lexicon(path: Path, letters: Dictionary) -> dict[str, list[list[str]]]:
    """Spellings by word; every line that does not fit is reported at once.

    Raises:
        DataError: the file is missing, malformed, or has symbols that the letters lack.
    """
    if not path.is_file():
        raise DataError(f"lexicon {path} does not exist")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"lexicon {path}: byte {error.start} is not UTF-8") from None
    entries: dict[str, list[list[str]]] = {}
    wrong: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        word, *spelling = line.split()
        unknown = [s for s in spelling if letters.index(s) == Dictionary.unk]
        if not spelling:
            wrong.append(f"line {number}: {word!r} has no spelling")
        elif unknown:
            wrong.append(
                f"line {number}: {word!r} is spelt with {', '.join(unknown[:3])}, which the dictionary lacks"
            )
        elif spelling[-1] != WORD_END:
            wrong.append(f"line {number}: the spelling of {word!r} must end with {WORD_END}")
        else:
            entries.setdefault(word, []).append(spelling)
    if wrong:
        more = f"\n  ... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise DataError(f"lexicon {path} does not fit:\n  " + "\n  ".join(wrong[:_SHOWN]) + more)
    if not entries:
        raise DataError(f"lexicon {path} is empty")
    return entries


def check_language_model(path: Path, words: dict[str, Any], unit: str = "words") -> None:
    """A language model over other units than the decoder's gives every word the same score: refuse it."""
    if not path.is_file():
        raise DataError(f"language model {path} does not exist")
    known = arpa_unigrams(path)
    if known is None:
        return  # a binary: KenLM itself says what is wrong with it
    shared = sum(word in known for word in words)
    if shared == 0 or (unit == "words" and len(words) > 100 and shared < 0.01 * len(words)):
        shown = ", ".join(sorted(known - {"<s>", "</s>", "<unk>"})[:6])
        raise DataError(
            f"language model {path} knows {shared} of {len(words)} {unit}; it has {shown}, ...: it is over "
            "other units or in other letters (upper and lower case differ); see decoding.unitlm"
        )


def _letters(tokens: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids without blanks and repeats, and the frame where each begins; the search pads one frame a side."""
    ids: list[int] = []
    frames: list[int] = []
    last = BLANK
    for position, token in enumerate(tokens[1:-1]):
        if token not in (last, BLANK):
            ids.append(int(token))
            frames.append(position)
        last = token
    return tuple(ids), tuple(frames)


def _decode(decoder: Any, emissions_TV: np.ndarray) -> list[Any]:
    if not len(emissions_TV):
        return []
    emissions = np.ascontiguousarray(emissions_TV, dtype=np.float32)
    emissions = np.maximum(emissions, np.float32(-1e30))  # the search adds them up
    return decoder.decode(emissions.ctypes.data, *emissions.shape)


def _flashlight() -> tuple[Any, Any]:
    try:
        from flashlight.lib.text import decoder, dictionary
    except ImportError:
        raise DataError(
            "beam search needs flashlight-text: pip install 'data2vec-platform[decoding]', or use "
            "decoding.type=viterbi"
        ) from None
    return decoder, dictionary


def _kenlm(path: Path, words: Any) -> Any:
    from flashlight.lib.text.decoder.kenlm import KenLM

    try:
        return KenLM(str(path), words)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"language model {path} cannot be read: {' '.join(str(error).split())[:300]}"
        ) from None
