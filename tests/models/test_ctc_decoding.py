"""Decoding: beam search against an exhaustive one, language models, lexicons, error rates, transcripts."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import jiwer
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.artifact import save_artifact
from data2vec.config import Data2VecMultiConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.ctc_decoding import BeamOptions, LetterBeam, LexiconBeam
from data2vec.data.dictionary import Dictionary
from data2vec.data.letters import released_letters
from data2vec.errors import CheckpointError, ConfigError, DataError
from data2vec.language_model import NgramModel, arpa_unigrams, lexicon_text
from data2vec.lexicon import read_lexicon
from data2vec.loading import load
from data2vec.speech_metrics import count_errors, total, word_errors

pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")

LETTERS = Dictionary(["|", "A", "B"], [1, 1, 1])  # ids 4, 5, 6
WORDS = ("A", "AB", "BA")
SENTENCES = (["A", "AB"], ["BA", "A"], ["AB", "AB", "A"], ["BA"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, NgramModel]:
    folder = tmp_path_factory.mktemp("lm")
    model = NgramModel.estimate(SENTENCES, order=2)
    (folder / "lm.arpa").write_text(model.arpa())
    (folder / "lexicon.txt").write_text(lexicon_text(WORDS))
    return folder / "lexicon.txt", folder / "lm.arpa", model


def best_alignment(emissions: np.ndarray, labels: list[int]) -> float:
    """Score of the best path that collapses to ``labels``, by dynamic programming."""
    states = [0]
    for label in labels:
        states += [label, 0]
    scores = np.full(len(states), -math.inf)
    scores[0] = emissions[0, 0]
    if len(states) > 1:
        scores[1] = emissions[0, states[1]]
    for frame in emissions[1:]:
        before = scores.copy()
        for s, label in enumerate(states):
            reach = [before[s], before[s - 1] if s else -math.inf]
            if s > 1 and label != 0 and label != states[s - 2]:
                reach.append(before[s - 2])
            scores[s] = max(reach) + frame[label]
    return max(scores[-1], scores[-2] if len(states) > 1 else -math.inf)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(2, 5),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([-1.0, 0.0, 1.5]),
)
def test_the_beam_finds_what_an_exhaustive_search_finds(
    files: tuple[Path, Path, NgramModel], seed: int, frames: int, weight: float, word_score: float
) -> None:
    lexicon, path, model = files
    rng = np.random.default_rng(seed)
    emissions = np.full((frames, len(LETTERS)), -30.0, dtype=np.float32)
    emissions[:, [0, 4, 5, 6]] = rng.normal(0, 2, (frames, 4))
    emissions -= np.log(np.exp(emissions).sum(1, keepdims=True))
    beam = LexiconBeam(
        LETTERS,
        lexicon,
        path,
        BeamOptions(beam=2000, beam_threshold=1e4, lm_weight=weight, word_score=word_score),
    )
    found = beam.decode(emissions)[0]

    def score(words: tuple[str, ...]) -> float:
        """Best path of the words; each ends with its delimiter, and further silences may stand anywhere."""
        spelt = [[LETTERS.index(c) for c in word] + [4] for word in words]
        paths = []
        for lead, *extra in itertools.product(range(4), *[range(2)] * len(words)):
            labels = [4] * lead
            for letters, more in zip(spelt, extra, strict=True):
                labels += letters + [4] * more
            paths.append(best_alignment(emissions.astype(float), labels))
        return max(paths) + weight * model.sentence(words) + word_score * len(words)

    every = [words for count in range(3) for words in itertools.product(WORDS, repeat=count)]
    assert found.score == pytest.approx(max(score(words) for words in every), abs=1e-3)
    assert found.score == pytest.approx(score(tuple(found.text.split())), abs=1e-3)


def test_the_language_model_decides_between_like_sounding_words(tmp_path: Path) -> None:
    letters = released_letters()
    model = NgramModel.estimate([["THE", "CAT", "SAT"]] * 5 + [["THE", "RAT", "RAN"]], order=3)
    (tmp_path / "lm.arpa").write_text(model.arpa())
    (tmp_path / "lex").write_text(lexicon_text(["THE", "CAT", "RAT", "SAT", "RAN"]))
    emissions = np.full((24, len(letters)), -12.0, dtype=np.float32)
    for frame, letter in enumerate("THE|RAT|SAT|"):
        emissions[2 * frame, letters.index(letter)] = 0.0
        emissions[2 * frame + 1, 0] = 0.0
    emissions[8, letters.index("C")] = -0.2  # RAT is heard a little better than CAT
    for weight, wanted in ((0.0, "THE RAT SAT"), (2.0, "THE CAT SAT")):
        beam = LexiconBeam(letters, tmp_path / "lex", tmp_path / "lm.arpa", BeamOptions(lm_weight=weight))
        best = beam.decode(emissions)[0]
        assert best.text == wanted
        assert best.frames[0] == 0 and len(best.word_ends) == 3
    plain = LetterBeam(letters, None, BeamOptions()).decode(emissions)[0]
    assert (
        plain.text == "THE RAT SAT"
        and LetterBeam(letters, None, BeamOptions()).decode(emissions[:0])[0].text == ""
    )


def test_ngram_probabilities_sum_to_one_and_survive_arpa(files: tuple[Path, Path, NgramModel]) -> None:
    _, path, model = files
    words = {ngram[0] for ngram in model.log10 if len(ngram) == 1} - {"<s>"}
    for history in ([], ["<s>"], ["A"], ["AB"], ["never seen"]):
        assert sum(10 ** model.score(word, history) for word in words) == pytest.approx(1.0)
    assert arpa_unigrams(path) == words | {"<s>"}
    assert model.perplexity(SENTENCES) < NgramModel.estimate(SENTENCES, order=1).perplexity(SENTENCES)
    with pytest.raises(DataError, match="order"):
        NgramModel.estimate(SENTENCES, order=0)
    with pytest.raises(DataError, match="sentence"):
        NgramModel.estimate([])


def test_lexicons_and_language_models_that_do_not_fit(
    tmp_path: Path, files: tuple[Path, Path, NgramModel]
) -> None:
    lexicon, arpa, _ = files
    (tmp_path / "bad").write_text("A A |\nCAB C A B |\nAB A B\nBA\n")
    with pytest.raises(DataError) as caught:
        read_lexicon(tmp_path / "bad", LETTERS)
    assert all(f"line {n}:" in str(caught.value) for n in (3, 4)) and "CAB" not in str(caught.value)
    (tmp_path / "lower.arpa").write_text(NgramModel.estimate([["a", "ab"]], 2).arpa())
    with pytest.raises(DataError, match="0 of 3 words"):
        LexiconBeam(LETTERS, lexicon, tmp_path / "lower.arpa", BeamOptions())
    (tmp_path / "junk.bin").write_bytes(b"no language model at all" * 10)
    with pytest.raises(DataError, match=r"junk\.bin"):
        LexiconBeam(LETTERS, lexicon, tmp_path / "junk.bin", BeamOptions())
    with pytest.raises(ConfigError) as wrong:
        LexiconBeam(LETTERS, lexicon, arpa, BeamOptions(beam=0, beam_threshold=0.0))
    assert {p.field for p in wrong.value.problems} >= {"decoding.beam", "decoding.beamthreshold"}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from("abcd"), min_size=1, max_size=6),
            st.lists(st.sampled_from("abcd"), max_size=6),
        ),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_word_error_rate_is_jiwers(pairs: list[tuple[list[str], list[str]]]) -> None:
    references = [" ".join(reference) for reference, _ in pairs]
    hypotheses = [" ".join(hypothesis) for _, hypothesis in pairs]
    counts = total(word_errors(r, h) for r, h in zip(references, hypotheses, strict=True))
    theirs = jiwer.process_words(references, hypotheses)
    assert counts.rate == pytest.approx(100 * theirs.wer)
    assert counts.errors == theirs.substitutions + theirs.deletions + theirs.insertions
    assert count_errors([], []).rate == 0.0 and count_errors([], [1]).rate == math.inf


def test_a_stored_model_transcribes_audio_of_any_length(tmp_path: Path) -> None:
    config = Data2VecMultiConfig.from_dict(
        {"supported_modality": "AUDIO", "embed_dim": 16, "num_heads": 2, "depth": 1,
         "average_top_k_layers": 1, "ema_encoder_only": False, "modalities": {"text": None, "audio": {
             "feature_encoder_spec": "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8,2,2)] * 2", "prenet_depth": 0,
             "conv_pos_width": 9, "conv_pos_depth": 3, "conv_pos_groups": 2, "decoder": None}}}
    )  # fmt: skip
    letters = released_letters()
    model = CTCModel(config, CTCConfig(), num_symbols=len(letters))
    folder = save_artifact(
        tmp_path / "model", kind="ctc", model_config=config, head_config=model.options,
        state=model.state_dict(), letters=letters,
        task={"normalize": True, "num_symbols": 32, "sample_rate": 16_000},
    )  # fmt: skip
    speech = load(folder)
    audio = np.random.default_rng(0).normal(size=16_000 * 40).astype(np.float32)
    long = speech.emissions(audio)
    assert long.shape == (1999, 32)
    with torch.inference_mode():
        whole = speech.ctc(torch.nn.functional.layer_norm(torch.from_numpy(audio), audio.shape)[None])
    difference = np.abs(long - whole.emissions()[0].numpy())
    assert difference[:1300].max() < 0.2, "far from the seam chunks agree up to their missing context"
    assert speech.embed([audio[:8000], (audio[:8000], 8000)])[0].shape == (16,)
    (transcript,) = speech.transcribe([audio[:20_000]])
    assert transcript.text == " ".join(word.text for word in transcript.words)
    assert all(0 <= w.start_s < w.end_s <= 1.3 for w in transcript.words)
    assert speech.transcribe([np.zeros(10, dtype=np.float32)])[0].text is not None, "shorter than one frame"
    with pytest.raises(DataError, match="layer"):
        speech.embed([audio[:800]], layer=7)
    (folder / "dict.ltr.txt").write_text("A 1\n")
    with pytest.raises(CheckpointError, match="dictionary"):
        load(folder)


def test_greedy_words_have_times(tmp_path: Path) -> None:
    from data2vec.audio_model import AudioModel

    speech = AudioModel.__new__(AudioModel)
    speech.letters, speech.frame_s = released_letters(), 0.02
    best = [0, 7, 7, 0, 4, 0, 17, 7, 7, 9, 4, 4]
    emissions = np.full((len(best), 32), -9.0)
    emissions[range(len(best)), best] = 0.0
    found = speech.greedy(emissions)
    assert [(w.text, w.start_s, w.end_s) for w in found.words] == [("A", 0.02, 0.06), ("MAN", 0.12, 0.2)]
    assert speech.greedy(np.log(np.eye(32)[[0, 0]] + 1e-9)).text == ""
