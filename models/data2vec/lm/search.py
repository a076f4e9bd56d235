"""A transformer language model as flashlight-text's decoders ask for it: one (prefix, word) at a time.

One forward pass a question would be slow, so the beam is looked at every few frames, and what the model says
after each of its prefixes is computed for all of them together. Scores are natural logarithms, as in the
reference; those of a KenLM file are decimal ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..data.dictionary import Dictionary
from ..errors import DataError
from .loaded import LanguageModel
from .prefixes import END, ROOT, STATE_LIMIT, Prefixes

_NEVER = -1e30  # instead of minus infinity, which times a weight of 0 is no number
_SHOWN = 6


class TransformerScorer:
    """What a decoder needs of a transformer language model.

    Args:
        decoder: flashlight-text's module.
        model: the language model.
        symbols: the decoder's words or letters in the order of its ids.
        over_letters: ``symbols`` are the acoustic model's, repeated and collapsed by the search.
        silence: letter whose further occurrences between words the search tells nobody (with a lexicon).
        limit: prefixes that are kept.

    Attributes:
        lm: the object that decoders take.
        prefixes: the tree of prefixes of this utterance.
    """

    def __init__(
        self,
        decoder: Any,
        model: LanguageModel,
        symbols: Sequence[str],
        *,
        over_letters: bool,
        silence: int | None = None,
        limit: int = STATE_LIMIT,
    ) -> None:
        ids = np.asarray([model.dictionary.index(s) if s not in _SPECIAL else 3 for s in symbols])
        self._unknown = np.append(ids == Dictionary.unk, False)
        self.prefixes = Prefixes(model.network, np.append(ids, END), limit)
        self._end, self._over_letters, self._silence = len(symbols), over_letters, silence
        self.every = 1 if over_letters else 4  # frames between two looks at the beam
        self._seen = 0
        self.lm = _make_lm(decoder, self)

    def begin(self) -> None:
        """A new utterance."""
        self.prefixes.clear()
        self._seen = 0

    def score(self, node: int, symbol: int) -> float:
        """Natural log probability of a symbol (or, for the last id, of the end) after a prefix."""
        return _NEVER if self._unknown[symbol] else float(self.prefixes.scores(node)[symbol])

    @property
    def end(self) -> int:
        """The id that stands for the end of the sentence."""
        return self._end

    def look(self, hypotheses: Iterable[Any]) -> None:
        """Compute what follows the prefixes that the beam holds, all together."""
        made = self.prefixes.made
        if made == self._seen:
            return
        self._seen = made
        paths = {self._path(hypothesis) for hypothesis in hypotheses}
        found = (self.prefixes.find(path) for path in paths)
        self.prefixes.compute([node for node in found if node is not None])

    def _path(self, hypothesis: Any) -> tuple[int, ...]:
        """The symbols that the model was asked about on the way to a hypothesis."""
        if not self._over_letters:
            return tuple(word for word in hypothesis.words if word >= 0)
        tokens, path = hypothesis.tokens, []
        last = tokens[0]  # the search opens with a silence that the model does not hear of
        for token in tokens[1:]:
            between = token == self._silence and (not path or path[-1] == token)
            if token not in (last, 0) and token >= 0 and not between:
                path.append(token)
            last = token
        return tuple(path)


_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def _make_lm(decoder: Any, scorer: TransformerScorer) -> Any:
    """A subclass of flashlight-text's ``LM``; made here, as the package is optional."""

    class PrefixLM(decoder.LM):
        def __init__(self) -> None:
            super().__init__()
            self.nodes: dict[Any, int] = {}  # also keeps the states alive: they are the same objects then

        def start(self, start_with_nothing: bool) -> Any:
            self.nodes.clear()
            scorer.begin()
            state = decoder.LMState()
            self.nodes[state] = ROOT
            return state

        def score(self, state: Any, symbol: int) -> tuple[Any, float]:
            node = self.nodes[state]
            following = state.child(symbol)
            if following not in self.nodes:
                self.nodes[following] = scorer.prefixes.child(node, symbol)
            return following, scorer.score(node, symbol)

        def finish(self, state: Any) -> tuple[Any, float]:
            return self.score(state, scorer.end)

    return PrefixLM()


def known_words(
    model: LanguageModel, entries: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], list[str]]:
    """The words of a lexicon that a language model knows, and the others.

    Raises:
        DataError: it knows (almost) none: other units, or upper against lower case.
    """
    known = {word: entry for word, entry in entries.items() if model.dictionary.index(word) > Dictionary.unk}
    if not known or (len(entries) > 100 and len(known) < 0.01 * len(entries)):
        _refuse(model, list(entries), len(known), name, "words")
    return known, [word for word in entries if word not in known]


def check_letters(model: LanguageModel, letters: Dictionary, name: str) -> None:
    """Refuse a language model that is not over an acoustic model's letters.

    Raises:
        DataError: it lacks the word delimiter, or half of the letters.
    """
    symbols = letters.symbols[4:]
    known = [s for s in symbols if model.dictionary.index(s) > Dictionary.unk]
    if model.dictionary.index("|") == Dictionary.unk or len(known) < math.ceil(len(symbols) / 2):
        _refuse(model, symbols, len(known), name, "letters")


def _refuse(model: LanguageModel, wanted: Sequence[str], known: int, name: str, units: str) -> None:
    there = [s for s in model.dictionary.symbols[4:] if not s.startswith("madeupword")]
    shown = ", ".join(there[:_SHOWN])
    folded = {s.casefold() for s in there}
    same = sum(word.casefold() in folded for word in wanted)
    told = f"language model {name} knows {known} of {len(wanted)} {units}; it has {shown}, ...: "
    if same > max(known, 0.5 * len(wanted)):
        upper = sum(word.isupper() for word in wanted) > len(wanted) / 2
        change = "'[:lower:]' '[:upper:]'" if upper else "'[:upper:]' '[:lower:]'"
        raise DataError(
            f"{told}it is in other letters (upper and lower case differ, {same} agree without case); write "
            f"its dict.txt in the case of the labels, in the same order (tr {change} < dict.txt), or train "
            "it on text in that case"
        )
    raise DataError(
        f"{told}it is over other units (its dictionary looks like {model.units}); see decoding.unitlm"
    )
