"""An n-gram language model for small texts, in the ARPA format that KenLM reads, and lexicons of letters.

Interpolated Witten-Bell smoothing: ``P(w | h) = (c(h w) + t(h) P(w | h')) / (c(h) + t(h))`` with t(h) the
number of different words after h. It needs no discounts, so it works on a few hundred words, where the tools
for large corpora give up; for those, KenLM's own ``lmplz`` is the better estimator.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from .data.letters import WORD_END
from .errors import DataError

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
_NGRAM_BYTES = 4  # of the shortest line: a probability, a tab, a word and a line end
Ngram = tuple[str, ...]


class NgramModel:
    """Probabilities and backoff weights of an n-gram model.

    Attributes:
        order: n.
        log10: log10 probability of every stored n-gram.
        backoff: log10 weight of every stored history.
    """

    def __init__(self, order: int, log10: dict[Ngram, float], backoff: dict[Ngram, float]) -> None:
        self.order, self.log10, self.backoff = order, log10, backoff

    @classmethod
    def estimate(cls, sentences: Iterable[Sequence[str]], order: int = 3) -> NgramModel:
        """A model of sentences.

        Args:
            sentences: words of each sentence.
            order: n.

        Raises:
            DataError: there is no word, or ``order`` is impossible.
        """
        if not 1 <= order <= 6:
            raise DataError(f"order = {order} must lie in 1 ... 6")
        counts: Counter[Ngram] = Counter()
        for words in sentences:
            padded = (BEGIN, *words, END)
            for end in range(1, len(padded)):
                for length in range(1, min(order, end + 1) + 1):
                    counts[padded[end + 1 - length : end + 1]] += 1
        if not counts:
            raise DataError("a language model needs at least one sentence")
        total: Counter[Ngram] = Counter()
        kinds: defaultdict[Ngram, int] = defaultdict(int)
        for ngram, count in counts.items():
            total[ngram[:-1]] += count
            kinds[ngram[:-1]] += 1
        vocabulary = {ngram[0] for ngram in counts if len(ngram) == 1} | {UNKNOWN}
        uniform = 1.0 / len(vocabulary)
        probability: dict[Ngram, float] = {}
        for word in vocabulary:
            weight = total[()] + kinds[()]
            probability[(word,)] = (counts[(word,)] + kinds[()] * uniform) / weight
        for ngram in sorted((n for n in counts if len(n) > 1), key=len):
            history = ngram[:-1]
            lower = probability[ngram[1:]]
            weight = total[history] + kinds[history]
            probability[ngram] = (counts[ngram] + kinds[history] * lower) / weight
        log10 = {ngram: math.log10(p) for ngram, p in probability.items()}
        log10[(BEGIN,)] = -99.0  # never predicted
        backoff = {
            history: math.log10(kinds[history] / (total[history] + kinds[history]))
            for history in total
            if history and len(history) < order
        }
        return cls(order, log10, backoff)

    def score(self, word: str, history: Sequence[str]) -> float:
        """log10 P(word | history); words outside the vocabulary count as ``<unk>``."""
        known = [w if (w,) in self.log10 else UNKNOWN for w in (*history, word)]
        context = tuple(known[:-1])[-(self.order - 1) :] if self.order > 1 else ()
        return self._score(known[-1], context)

    def _score(self, word: str, context: Ngram) -> float:
        if (*context, word) in self.log10:
            return self.log10[(*context, word)]
        return self.backoff.get(context, 0.0) + self._score(word, context[1:])

    def sentence(self, words: Sequence[str]) -> float:
        """log10 probability of a sentence and its end."""
        history: list[str] = [BEGIN]
        total = 0.0
        for word in (*words, END):
            total += self.score(word, history)
            history.append(word)
        return total

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> float:
        """Per word, ends of sentences included."""
        total, words = 0.0, 0
        for sentence in sentences:
            total += self.sentence(sentence)
            words += len(sentence) + 1
        return 10 ** (-total / max(words, 1))

    def arpa(self) -> str:
        """The model as an ARPA file."""
        by_length: dict[int, list[Ngram]] = {length: [] for length in range(1, self.order + 1)}
        for ngram in self.log10:
            by_length[len(ngram)].append(ngram)
        lines = ["\\data\\", *(f"ngram {n}={len(ngrams)}" for n, ngrams in by_length.items()), ""]
        for length, ngrams in by_length.items():
            lines.append(f"\\{length}-grams:")
            for ngram in sorted(ngrams):
                weight = self.backoff.get(ngram)
                tail = "" if length == self.order else f"\t{0.0 if weight is None else weight:.7f}"
                lines.append(f"{self.log10[ngram]:.7f}\t{' '.join(ngram)}{tail}")
            lines.append("")
        return "\n".join([*lines, "\\end\\", ""])


def lexicon_text(words: Iterable[str]) -> str:
    """``WORD<TAB>W O R D |`` for every word, in order, once."""
    return "".join(f"{word}\t{' '.join(word)} {WORD_END}\n" for word in dict.fromkeys(words))


def arpa_unigrams(path: Path) -> set[str] | None:
    """The words of an ARPA file; ``None`` if the file is binary.

    Raises:
        DataError: it is not UTF-8, or its header claims what such a file cannot hold.
    """
    words: set[str] = set()
    with path.open("rb") as file:
        if not file.read(64).lstrip().startswith(b"\\data\\"):
            return None
        file.seek(0)
        most = path.stat().st_size // _NGRAM_BYTES
        inside = False
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise DataError(
                    f"language model {path}, line {number} is not UTF-8; convert it, for example with: "
                    "iconv -f latin1 -t utf-8"
                ) from None
            if line.startswith("\\"):
                if inside:
                    break
                inside = line.strip() == "\\1-grams:"
            elif inside:
                fields = line.split("\t")
                if len(fields) >= 2:
                    words.add(fields[1])
            elif line.startswith("ngram "):
                count = line.partition("=")[2].strip()
                if not (count.isascii() and count.isdecimal()) or len(count) > 18 or int(count) > most:
                    raise DataError(
                        f"language model {path}, line {number}: {line[:60]!r} is no number of n-grams that a "
                        f"file of {path.stat().st_size} bytes can hold; it is damaged or cut off"
                    )
    return words


_TRY = """
import sys
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary
units = Dictionary()
for symbol in sys.stdin.buffer.read().decode().split("\\n"):
    units.add_entry(symbol)
try:
    model = KenLM(sys.argv[1], units)
except (RuntimeError, ValueError, MemoryError):
    sys.exit()
start = model.start(False)
state, last = start, 0
for index in range(units.index_size()):
    after_start, _ = model.score(start, index)
    model.score(after_start, last)
    state, _ = model.score(state, index)
    last = index
"""


def try_binary(path: Path, symbols: Iterable[str]) -> None:
    """Load a KenLM binary and look every unit up in a process of its own.

    KenLM takes a binary's bytes as they are: damaged ones end the process that reads them, or hold
    it for ever.

    Raises:
        DataError: that process did not survive.
    """
    patience = 60 + path.stat().st_size / 1e7
    try:
        tried = subprocess.run(
            [sys.executable, "-P", "-c", _TRY, str(path)],
            input="\n".join(symbols).encode(),
            capture_output=True,
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"language model {path} is damaged: looking words up in it did not end within {patience:.0f} s"
        ) from None
    if tried.returncode < 0:
        name = signal.Signals(-tried.returncode).name
        raise DataError(
            f"language model {path} is damaged: reading it ended a process with {name}; copy or "
            "build it again"
        )
