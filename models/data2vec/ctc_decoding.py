"""Beam search over CTC emissions with a lexicon and a language model, by flashlight-text.

A hypothesis scores the sum of its emissions, ``lm_weight`` times the language model, ``word_score`` times its
words and ``sil_weight`` times its silences. Emissions and transformer language models score in natural
logarithms, n-gram models in decimal ones, as in the reference.

T frames, V symbols.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .data.dictionary import Dictionary
from .data.letters import WORD_END, words_of_ids
from .errors import ConfigError, DataError, Problem
from .lexicon import check_language_model, read_lexicon
from .lm.loaded import LanguageModel
from .lm.search import TransformerScorer, check_letters, known_words

logger = logging.getLogger(__name__)
BLANK = 0
_SHOWN = 10
_BARS = ("Loading the LM will be faster if you build a binary file.", "Reading ", "----5---10")  # KenLM's


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
    """One result of the search."""

    text: str  # the words
    score: float  # see the module
    letters: tuple[int, ...]  # ids without blanks and repeats
    frames: tuple[int, ...]  # frame at which each letter begins
    word_ends: tuple[int, ...]  # frame at which each word ends

    def spans(self, letters: Dictionary) -> list[tuple[str, int, int]]:
        """Each word with its first frame and the one after its last letter begins."""
        delimiter, found = letters.index(WORD_END), list[tuple[int, int]]()
        first = last = -1
        for symbol, frame in zip((*self.letters, delimiter), (*self.frames, -1), strict=True):
            if symbol == delimiter:
                if first >= 0:
                    found.append((first, last + 1))
                first = -1
                continue
            first, last = (frame if first < 0 else first), frame
        return [(word, *span) for word, span in zip(self.text.split(), found, strict=False)]


class LexiconBeam:
    """Words of a lexicon, weighed by a language model over words (or, with ``unit``, over letters).

    Args:
        letters: the model's symbols.
        lexicon: file with ``WORD<white space>W O R D |`` a line.
        language_model: ARPA text, KenLM binary, or a transformer; ``None`` decodes without. Words that a
            transformer does not know are left out, as they would score minus infinity.
        options: see :class:`BeamOptions`.
        unit: the language model is over letters.

    Raises:
        DataError: flashlight-text is missing; the lexicon is malformed or does not fit the letters; the
            language model is broken or over other units.
    """

    def __init__(
        self,
        letters: Dictionary,
        lexicon: Path,
        language_model: Path | LanguageModel | None,
        options: BeamOptions,
        *,
        unit: bool = False,
    ) -> None:
        decoder, dictionary = _flashlight()
        self.letters = letters
        entries = read_lexicon(lexicon, letters)
        if isinstance(language_model, LanguageModel) and not unit:
            entries, left_out = known_words(language_model, entries, _name(language_model))
            if left_out:
                told = ", ".join(left_out[:_SHOWN]) + (", ..." if len(left_out) > _SHOWN else "")
                text = "%d words of %s are unknown to the language model and left out: %s"
                logger.warning(text, len(left_out), lexicon, told)
        self._words = dictionary.create_word_dict({**entries, "<unk>": []})
        symbols: Sequence[str] = letters.symbols
        if not unit:
            symbols = [self._words.get_entry(index) for index in range(self._words.index_size())]
        self._scorer, self._lm = _language_model(
            decoder, dictionary, language_model, letters, symbols, entries, unit=unit
        )
        delimiter = letters.index(WORD_END)
        trie = decoder.Trie(len(letters), delimiter)
        start = self._lm.start(False)
        for word, spellings in entries.items():
            word_id = self._words.get_index(word)
            score = 0.0 if unit else self._lm.score(start, word_id)[1]
            for spelling in spellings:
                trie.insert([letters.index(symbol) for symbol in spelling], word_id, score)
        trie.smear(decoder.SmearingMode.MAX)
        self._trie, self._unit = trie, unit
        self._set(options)

    def with_options(self, options: BeamOptions) -> LexiconBeam:
        """The same lexicon and language model with other numbers; both share them, so use one at a time."""
        other = copy.copy(self)
        other._set(options)
        return other

    def _set(self, options: BeamOptions) -> None:
        options.check()
        decoder, _ = _flashlight()
        letters, delimiter = self.letters, self.letters.index(WORD_END)
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
        self._decoder = decoder.LexiconDecoder(
            settings, self._trie, self._lm, delimiter, BLANK, unknown, [], self._unit
        )
        self._nbest = options.nbest

    def decode(self, emissions_TV: np.ndarray) -> list[Hypothesis]:
        """The best hypotheses, best first; an utterance without a possible word gives an empty one."""
        found = _decode(self._decoder, emissions_TV, self._scorer)[: self._nbest]
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
        language_model: ARPA text, KenLM binary or a transformer over the letters; ``None`` decodes without.
        options: see :class:`BeamOptions`; words have no score here.
    """

    def __init__(
        self, letters: Dictionary, language_model: Path | LanguageModel | None, options: BeamOptions
    ) -> None:
        decoder, dictionary = _flashlight()
        self.letters = letters
        self._scorer, self._lm = _language_model(
            decoder, dictionary, language_model, letters, letters.symbols, {}, unit=True
        )
        self._set(options)

    def with_options(self, options: BeamOptions) -> LetterBeam:
        """The same language model with other numbers; both share it, so use one at a time."""
        other = copy.copy(self)
        other._set(options)
        return other

    def _set(self, options: BeamOptions) -> None:
        options.check()
        decoder, _ = _flashlight()
        letters = self.letters
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
        for result in _decode(self._decoder, emissions_TV, self._scorer)[: self._nbest]:
            ids, frames = _letters(result.tokens)
            text = words_of_ids(ids, self.letters)
            out.append(Hypothesis(text, float(result.score), ids, frames, ()))
        return out or [Hypothesis("", -math.inf, (), (), ())]


def _language_model(
    decoder: Any,
    dictionary: Any,
    model: Path | LanguageModel | None,
    letters: Dictionary,
    symbols: Sequence[str],
    entries: dict[str, Any],
    *,
    unit: bool,
) -> tuple[TransformerScorer | None, Any]:
    """What the decoder asks, checked against the units it is over.

    Args:
        symbols: the decoder's words, or its letters with ``unit``, in the order of their ids.
        entries: words of the lexicon.
    """
    if model is None:
        return None, decoder.ZeroLM()
    if isinstance(model, LanguageModel):
        if unit:
            check_letters(model, letters, _name(model))
        silence = letters.index(WORD_END) if unit and entries else None
        scorer = TransformerScorer(decoder, model, symbols, over_letters=unit, silence=silence)
        return scorer, scorer.lm
    units = dictionary.Dictionary()
    for symbol in symbols:
        units.add_entry(symbol)
    if unit:
        check_language_model(model, {s: [] for s in letters.symbols[4:]}, unit="letters")
    else:
        check_language_model(model, entries)
    return None, _kenlm(model, units)


def _name(model: LanguageModel) -> str:
    return str(model.config.get("origin", {}).get("file") or model.folder)


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


def _decode(decoder: Any, emissions_TV: np.ndarray, scorer: TransformerScorer | None) -> list[Any]:
    if not len(emissions_TV):
        return []
    emissions = np.ascontiguousarray(emissions_TV, dtype=np.float32)
    emissions = np.maximum(emissions, np.float32(-1e30))  # the search adds them up
    if scorer is None:
        return decoder.decode(emissions.ctypes.data, *emissions.shape)
    decoder.decode_begin()
    for start in range(0, len(emissions), scorer.every):
        part = emissions[start : start + scorer.every]
        decoder.decode_step(part.ctypes.data, *part.shape)
        scorer.look(decoder.get_all_final_hypothesis())
    decoder.decode_end()
    return decoder.get_all_final_hypothesis()


def _flashlight() -> tuple[Any, Any]:
    try:
        from flashlight.lib.text import decoder, dictionary
    except ImportError:
        raise DataError(
            "beam search needs flashlight-text: pip install 'data2vec-platform[decoding]', or use "
            "decoding.type=viterbi"
        ) from None
    return decoder, dictionary


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Hold back what C++ writes to standard error, and let out all but KenLM's bar and its advice."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if line.strip("*") and not line.startswith(_BARS):
                    sys.stderr.write(line + "\n")


def _kenlm(path: Path, words: Any) -> Any:
    from flashlight.lib.text.decoder.kenlm import KenLM

    try:
        with _without_bars():
            return KenLM(str(path), words)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise DataError(
            f"language model {path} cannot be read: {' '.join(str(error).split())[:300]}"
        ) from None
