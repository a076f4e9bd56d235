"""What each number of the beam search does, on emissions small enough to search by hand."""

from __future__ import annotations

import itertools
import math
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from data2vec.ctc_decoding import BeamOptions, Hypothesis, LetterBeam, LexiconBeam
from data2vec.data.dictionary import Dictionary
from data2vec.errors import DataError
from data2vec.language_model import NgramModel, arpa_unigrams, lexicon_text
from data2vec.lexicon import check_language_model, read_lexicon

pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")

LETTERS = Dictionary(["|", "A", "B"], [1, 1, 1])  # ids 4, 5, 6
WIDE = {"beam": 2000, "beam_threshold": 1e4}


def emissions(seed: int, frames: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = np.full((frames, len(LETTERS)), -30.0, dtype=np.float32)
    found[:, [0, 4, 5, 6]] = rng.normal(0, 2, (frames, 4))
    return found - np.log(np.exp(found).sum(1, keepdims=True))


def letters_of(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def best_letters(
    frames: np.ndarray, silence: float, model: NgramModel | None, weight: float
) -> tuple[float, tuple[int, ...]]:
    """The best path over blank, |, A and B: emissions, a number for each frame of |, the model of letters.

    The search stands in | at the beginning, so that one there is no new letter to the language model.
    """
    best: tuple[float, tuple[int, ...]] = (-math.inf, ())
    for path in itertools.product((0, 4, 5, 6), repeat=len(frames)):
        found = letters_of(path)
        score = float(sum(frames[t, s] for t, s in enumerate(path))) + silence * path.count(4)
        if model is not None:
            told = found[1:] if path[0] == 4 else found
            score += weight * model.sentence([LETTERS.symbols[s] for s in told])
        best = max(best, (score, found))
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("silence", "weight"), [(0.0, 0.0), (-2.0, 0.0), (1.5, 0.0), (0.5, 1.5)])
def test_letters_are_the_best_path(seed: int, silence: float, weight: float, tmp_path: Path) -> None:
    frames, model, path = emissions(seed), None, None
    if weight:
        model, path = NgramModel.estimate([list("AB|A|"), list("BBA|")], order=2), tmp_path / "lm.arpa"
        path.write_text(model.arpa())
    options = BeamOptions(**WIDE, lm_weight=weight, sil_weight=silence)
    (found,) = LetterBeam(LETTERS, path, options).decode(frames)
    score, wanted = best_letters(frames, silence, model, weight)
    assert found.score == pytest.approx(score, abs=2e-3) and found.letters == wanted
    assert len(found.frames) == len(wanted) and list(found.frames) == sorted(found.frames)


def test_the_frames_are_where_letters_begin() -> None:
    path = (0, 5, 5, 0, 5, 6, 4, 0)
    frames = np.full((len(path), 7), -20.0, dtype=np.float32)
    frames[range(len(path)), path] = 0.0
    (found,) = LetterBeam(LETTERS, None, BeamOptions()).decode(frames)
    assert (found.letters, found.frames, found.text) == ((5, 5, 6, 4), (1, 4, 5, 6), "AAB")


def test_other_numbers_of_the_same_search() -> None:
    frames = emissions(1)
    beam = LetterBeam(LETTERS, None, BeamOptions(**WIDE))
    other = beam.with_options(BeamOptions(**WIDE, sil_weight=-50.0, nbest=3))
    few = other.decode(frames)
    assert len(few) == 3 and all(4 not in hypothesis.letters for hypothesis in few)
    assert [h.score for h in few] == sorted((h.score for h in few), reverse=True)
    assert len(beam.decode(frames)) == 1, "the first one keeps its own"
    narrow = beam.with_options(BeamOptions(beam=50, beam_threshold=50.0, beam_size_token=1)).decode(frames)[0]
    assert narrow.letters == letters_of(tuple(frames.argmax(axis=1).tolist())), "one symbol a frame"


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    (tmp_path / "lexicon.txt").write_text(lexicon_text(["A", "AB", "BA"]))
    return tmp_path / "lexicon.txt"


def spoken(text: str) -> np.ndarray:
    """Certain emissions of letters, each followed by a blank."""
    path = [s for letter in text for s in (LETTERS.index(letter), 0)]
    frames = np.full((len(path), 7), -20.0, dtype=np.float32)
    frames[range(len(path)), path] = 0.0
    return frames


def test_scores_of_words_and_silences_are_added(lexicon: Path) -> None:
    frames = spoken("AB|A|")
    for word_score, silence, wanted in ((0.0, 0.0, 0.0), (1.5, 0.0, 3.0), (0.0, -0.5, -1.0), (1.0, 1.0, 4.0)):
        options = BeamOptions(**WIDE, lm_weight=0.0, word_score=word_score, sil_weight=silence)
        found = LexiconBeam(LETTERS, lexicon, None, options).decode(frames)[0]
        assert found.text == "AB A" and found.score == pytest.approx(wanted, abs=1e-4)
        assert found.spans(LETTERS) == [("AB", 0, 3), ("A", 6, 7)]
        assert len(found.word_ends) == 2 and max(found.word_ends) <= len(frames)


def test_numbers_of_the_lexicons_search(lexicon: Path) -> None:
    frames = np.concatenate([spoken("AB|"), spoken("A|")])
    frames[2, 5] = -0.5  # AB may be A
    beam = LexiconBeam(LETTERS, lexicon, None, BeamOptions(**WIDE, lm_weight=0.0))
    found = beam.with_options(BeamOptions(**WIDE, lm_weight=0.0, nbest=4)).decode(frames)
    assert len(found) == 4 and found[0].text == "AB A"
    assert len({(h.text, h.letters) for h in found}) > 1 and len(beam.decode(frames)) == 1
    (nothing,) = beam.decode(frames[:0])
    assert (nothing.text, nothing.score) == ("", -math.inf)


def test_spans_of_a_hypothesis() -> None:
    letters = (4, 5, 6, 4, 4, 6)  # | A B | | B
    found = Hypothesis("AB B", 0.0, letters, (0, 2, 5, 6, 7, 9), ())
    assert found.spans(LETTERS) == [("AB", 2, 6), ("B", 9, 10)]


# ---- language models and lexicons of text ------------------------------------------------------------------


def test_witten_bell_by_hand() -> None:
    """Two sentences: A B and A A. After A stand B, A and the end, once each: three kinds in three."""
    model = NgramModel.estimate([["A", "B"], ["A", "A"]], order=2)
    unigrams = {"A": 3, "B": 1, "</s>": 2}
    kinds, total, words = 3, 6, 4  # <unk> is a word too
    p = {word: (count + kinds / words) / (total + kinds) for word, count in unigrams.items()}
    p["<unk>"] = (kinds / words) / (total + kinds)
    for word in p:
        assert 10 ** model.score(word, []) == pytest.approx(p[word])
        seen = {"B": 1, "A": 1, "</s>": 1}.get(word, 0)
        assert 10 ** model.score(word, ["A"]) == pytest.approx((seen + 3 * p[word]) / 6), word
        seen = {"</s>": 1}.get(word, 0)
        assert 10 ** model.score(word, ["A", "B"]) == pytest.approx((seen + p[word]) / 2), word
    assert model.score("other", ["A"]) == model.score("<unk>", ["A"])
    chain = [model.score("A", ["<s>"]), model.score("B", ["A"]), model.score("</s>", ["B"])]
    assert model.sentence(["A", "B"]) == pytest.approx(sum(chain))
    assert model.perplexity([["A", "B"]]) == pytest.approx(10 ** (-sum(chain) / 3))


def test_longer_histories_are_used_as_far_as_the_order_goes() -> None:
    model = NgramModel.estimate([list("ABAC"), list("BBAB")], order=3)
    assert model.score("C", ["B", "A"]) != model.score("C", ["A"])
    assert model.score("C", ["X", "B", "A"]) == model.score("C", ["B", "A"])
    plain = NgramModel.estimate([list("AB")], order=1)
    assert plain.score("A", ["B"]) == plain.score("A", [])


def test_an_arpa_file(tmp_path: Path) -> None:
    model = NgramModel.estimate([["A", "B"]], order=2)
    lines = model.arpa().splitlines()
    assert lines[:3] == ["\\data\\", "ngram 1=5", "ngram 2=3"] and lines[-1] == "\\end\\"
    unigrams = lines[lines.index("\\1-grams:") + 1 : lines.index("\\2-grams:") - 1]
    rows = {row.split("\t")[1]: row.split("\t") for row in unigrams}
    assert set(rows) == {"<s>", "</s>", "<unk>", "A", "B"} and rows["<s>"][0].startswith("-99")
    assert float(rows["A"][0]) == pytest.approx(model.log10["A",], abs=1e-6)
    assert float(rows["A"][2]) == pytest.approx(math.log10(1 / 2), abs=1e-6), "one kind after one A"
    (tmp_path / "a.arpa").write_text(model.arpa())
    assert arpa_unigrams(tmp_path / "a.arpa") == set(rows)
    (tmp_path / "binary").write_bytes(b"mmap lm http://kheafield.com")
    assert arpa_unigrams(tmp_path / "binary") is None


def test_lexicons(tmp_path: Path) -> None:
    assert lexicon_text(["AB", "A", "AB"]) == "AB\tA B |\nA\tA |\n"
    path = tmp_path / "lexicon"
    path.write_text("AB A B |\n\nAB B A |\nA\tA |\n")
    assert read_lexicon(path, LETTERS) == {"AB": [["A", "B", "|"], ["B", "A", "|"]], "A": [["A", "|"]]}
    path.write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        read_lexicon(path, LETTERS)
    with pytest.raises(DataError, match="does not exist"):
        read_lexicon(tmp_path / "nothing", LETTERS)
    path.write_text("".join(f"W{n} A\n" for n in range(12)))
    with pytest.raises(DataError, match=r"line 10: .*\n.*and 2 more"):
        read_lexicon(path, LETTERS)


def test_words_in_foreign_letters_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lexicon"
    path.write_text("AB A B |\nCAFÉ A É |\nAB A X |\nB B |\nQ Q |\nZ Z |\n")
    assert read_lexicon(path, LETTERS) == {"AB": [["A", "B", "|"]], "B": [["B", "|"]]}
    (said,) = caplog.messages
    assert said == (
        f"lexicon {path}: 4 spellings have symbols that the dictionary lacks and are left out: 'CAFÉ' with É "
        "(line 2); 'AB' with X (line 3); 'Q' with Q (line 5); ..."
    )
    path.write_text("a a |\nb b |\n")
    with pytest.raises(DataError, match=r"2 spellings have .*'a' with a .*None is left"):
        read_lexicon(path, LETTERS)


def test_damaged_language_models_are_told(tmp_path: Path) -> None:
    good = NgramModel.estimate([["A", "B"]], order=2).arpa()
    path = tmp_path / "lm.arpa"
    for claim in ("-5", "", "5x", "²", "1e3", str(2**63), str(len(good)), "9" * 5000):
        path.write_text(good.replace("ngram 1=5", f"ngram 1={claim}"))
        with pytest.raises(DataError, match=r"lm\.arpa, line 2: 'ngram 1=.* can hold"):
            check_language_model(path, {"A": []})
    path.write_bytes(good.encode().replace(b"\tB", b"\t\xc9"))
    with pytest.raises(DataError, match=r"lm\.arpa, line \d+ is not UTF-8"):
        check_language_model(path, {"A": []})


def trie_of_noise() -> bytes:
    """KenLM's header of a trie of three orders, and noise after it."""
    magic = b"mmap lm http://kheafield.com/code format version 5\n".ljust(56, b"\0")
    sanity = struct.pack("<fffIIIQ", 0.0, 1.0, -0.5, 1, 2**32 - 1, 0, 1)
    settings = struct.pack("<B3xfi?3xI", 3, 1.5, 2, False, 1)
    counts = struct.pack("<3Q4x", 50, 100, 100)
    return magic + sanity + settings + counts + random.Random(1).randbytes(3_000_000)


def test_a_binary_that_ends_the_process_that_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    (tmp_path / "lm.bin").write_bytes(trie_of_noise())
    with pytest.raises(DataError, match=r"lm\.bin is damaged: reading it ended a process with SIGSEGV"):
        check_language_model(tmp_path / "lm.bin", {f"W{n}": [] for n in range(40)})


def test_a_language_model_over_other_units_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text(NgramModel.estimate([["A", "B"]], order=1).arpa())
    check_language_model(path, {"A": [], "C": []})
    with pytest.raises(DataError, match="knows 0 of 2 words; it has A, B"):
        check_language_model(path, {"C": [], "D": []})
    many = {f"W{n}": [] for n in range(200)} | {"A": []}
    with pytest.raises(DataError, match="knows 1 of 201 words"):
        check_language_model(path, many)
    check_language_model(path, many, unit="letters")
    check_language_model(path, many | {"B": [], "</s>": []})
    with pytest.raises(DataError, match="does not exist"):
        check_language_model(tmp_path / "nothing", many)
