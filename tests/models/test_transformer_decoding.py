"""Decoding with transformer language models: cached scores are the full forward's, the beam is exhaustive."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.artifact import save_artifact
from data2vec.ctc_decoding import BeamOptions, LetterBeam, LexiconBeam
from data2vec.data.dictionary import Dictionary
from data2vec.data.letters import words_of_ids
from data2vec.errors import CheckpointError, DataError
from data2vec.language_model import lexicon_text
from data2vec.lm.config import TransformerLMConfig
from data2vec.lm.loaded import LanguageModel
from data2vec.lm.prefixes import ROOT, Prefixes
from data2vec.lm.transformer import TransformerLM
from data2vec.loading import load

pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")

LETTERS = Dictionary(["|", "A", "B"], [1, 1, 1])  # ids 4, 5, 6
WORDS = ("A", "AB", "BA")
SMALL = {
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
}
BANDS = {"adaptive_input": True, "adaptive_input_cutoff": "8,16", "adaptive_softmax_cutoff": "8,16",
         "adaptive_input_factor": 2.0, "adaptive_softmax_factor": 2.0}  # fmt: skip
KINDS = {
    "plain": {},
    "shared, learned positions": {"share_decoder_input_output_embed": True, "decoder_learned_pos": True},
    "adaptive softmax": {"adaptive_softmax_cutoff": "8,16"},
    "all in bands, tied": {**BANDS, "tie_adaptive_weights": True, "tie_adaptive_proj": True,
                           "no_decoder_final_norm": True},
    "words tied, projections not": {**BANDS, "tie_adaptive_weights": True},
    "post-LN, other widths": {"decoder_normalize_before": False, "layernorm_embedding": True,
                              "decoder_input_dim": 8, "decoder_output_dim": 24, "activation_fn": "gelu"},
    "no positions": {"no_token_positional_embeddings": True, "no_scale_embedding": True},
}  # fmt: skip


def stored(folder: Path, symbols: list[str], seed: int = 3, **options: object) -> Path:
    """A random model over these symbols, with opinions strong enough to matter."""
    dictionary = Dictionary(symbols, [1] * len(symbols))
    config = TransformerLMConfig.from_dict({**SMALL, **options})
    network = TransformerLM(config, len(dictionary), seed=seed)
    with torch.no_grad():
        network.decoder.output_weight().mul_(4.0)
    return save_artifact(
        folder, kind="language_model", model_config=config, state=network.state_dict(), words=dictionary
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel, LanguageModel]:
    folder = tmp_path_factory.mktemp("lm")
    (folder / "lexicon.txt").write_text(lexicon_text(WORDS))
    return (
        folder / "lexicon.txt",
        load(stored(folder / "words", ["BA", "A", "C", "AB"])),
        load(stored(folder / "letters", ["A", "|", "B"])),
    )


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_cached_scores_are_those_of_the_full_forward(options: dict[str, object]) -> None:
    config = TransformerLMConfig.from_dict({**SMALL, **options})
    assert not config.problems() and not config.vocabulary_problems(30)
    model = TransformerLM(config, 30).eval()
    source = torch.randint(4, 30, (6, 9), generator=torch.Generator().manual_seed(0))
    source[3:, :5] = source[:3, :5]  # some prefixes share their beginning
    source[:, 0] = 2
    with torch.no_grad():
        hidden = model(source)
        wanted = model.log_probs(hidden.flatten(0, 1))
        target = torch.randint(0, 30, (54,), generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(model.nll(hidden.flatten(0, 1), target), -wanted[torch.arange(54), target])
    torch.testing.assert_close(wanted.exp().sum(-1), torch.ones(54))
    columns = np.array([7, 3, 2, 29, *range(4, 29)])
    place = {int(token): index for index, token in enumerate(columns)}
    for limit in (20_000, 12):  # with a small one prefixes are forgotten and made again
        prefixes = Prefixes(model, columns, limit)
        nodes: list[tuple[int, int, int]] = []
        for row in range(6):
            node = ROOT
            for position in range(9):
                if position:
                    node = prefixes.child(node, place[int(source[row, position])])
                nodes.append((node, row, position))
        order = np.random.default_rng(2).permutation(len(nodes))
        prefixes.compute([nodes[i][0] for i in order[:30]])
        for i in order:
            node, row, position = nodes[i]
            np.testing.assert_allclose(
                prefixes.scores(node), wanted.view(6, 9, -1)[row, position, columns], atol=2e-5
            )
        distinct = len({node for node, _, _ in nodes})
        assert prefixes.computed == distinct if limit > 100 else prefixes.computed > distinct
        assert limit > 100 or len(prefixes._place) <= 60


def test_prefixes_are_computed_together() -> None:
    model = TransformerLM(TransformerLMConfig.from_dict(SMALL), 30).eval()
    prefixes = Prefixes(model, np.arange(30))
    level = [ROOT]
    for _ in range(3):
        level = [prefixes.child(node, token) for node in level for token in (5, 6, 7)]
    prefixes.compute(level)
    assert prefixes.computed == 40 and prefixes.batches == 4, (
        "27 leaves with their 13 ancestors: one batch a level"
    )


def noise(seed: int, frames: int) -> np.ndarray:
    emissions = np.full((frames, len(LETTERS)), -30.0, dtype=np.float32)
    emissions[:, [0, 4, 5, 6]] = np.random.default_rng(seed).normal(0, 2, (frames, 4))
    return emissions - np.log(np.exp(emissions).sum(1, keepdims=True))


CASES = (
    st.integers(0, 10_000),
    st.integers(2, 5),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([-1.0, 1.5]),
)


@settings(max_examples=12, deadline=None)
@given(*CASES)
def test_words_are_what_an_exhaustive_search_finds(
    models: tuple[Path, LanguageModel, LanguageModel],
    seed: int,
    frames: int,
    weight: float,
    word_score: float,
) -> None:
    lexicon, model, _ = models
    emissions = noise(seed, frames)
    options = BeamOptions(beam=2000, beam_threshold=1e4, lm_weight=weight, word_score=word_score)
    found = LexiconBeam(LETTERS, lexicon, model, options).decode(emissions)[0]
    every: dict[str, float] = {}
    for path in itertools.product((0, 4, 5, 6), repeat=frames):
        words = complete_words([k for k, _ in itertools.groupby(path) if k])
        if words is not None:
            total, text = float(emissions[range(frames), list(path)].sum()), " ".join(words)
            every[text] = max(every.get(text, -math.inf), total + word_score * len(words))
    every = {text: score + weight * model.score([text])[0] for text, score in every.items()}
    assert found.score == pytest.approx(max(every.values()), abs=1e-3)
    assert found.score == pytest.approx(every[found.text], abs=1e-3)


@settings(max_examples=8, deadline=None)
@given(*CASES)
def test_letters_are_what_an_exhaustive_search_finds(
    models: tuple[Path, LanguageModel, LanguageModel],
    seed: int,
    frames: int,
    weight: float,
    word_score: float,
) -> None:
    """Without a lexicon, and with one that only allows some sequences (the model is over letters in both)."""
    lexicon, _, model = models
    emissions = noise(seed, frames)
    options = BeamOptions(beam=4000, beam_threshold=1e4, lm_weight=weight, word_score=word_score)
    free = LetterBeam(LETTERS, model, options).decode(emissions)[0]
    bound = LexiconBeam(LETTERS, lexicon, model, options, unit=True).decode(emissions)[0]
    without, within, known = -math.inf, -math.inf, {}
    for path in itertools.product((0, 4, 5, 6), repeat=frames):
        total = float(emissions[range(frames), list(path)].sum())
        # The search opens with a silence of its own: a delimiter in the first frame repeats it.
        said = tuple(k for k, _ in itertools.groupby((4, *path)) if k)[1:]
        without = max(without, total + weight * letter_score(model, said, known))
        words = complete_words([k for k, _ in itertools.groupby(path) if k])
        if words is not None:  # further silences between words are told to nobody
            said = tuple(LETTERS.index(symbol) for word in words for symbol in f"{word}|")
            score = weight * letter_score(model, said, known) + word_score * len(words)
            within = max(within, total + score)
    assert free.score == pytest.approx(without, abs=1e-3)
    assert free.text == words_of_ids(free.letters, LETTERS)
    assert bound.score == pytest.approx(within, abs=1e-3)
    assert set(bound.text.split()) <= set(WORDS)


def complete_words(labels: list[int]) -> list[str] | None:
    """The words of letters that all belong to whole words of the lexicon, delimiters included."""
    text = "".join(LETTERS.symbol(label) for label in labels)
    words = text.split("|")
    if words[-1]:
        return None
    words = [word for word in words if word]
    return words if set(words) <= set(WORDS) else None


def letter_score(model: LanguageModel, said: tuple[int, ...], known: dict[tuple[int, ...], float]) -> float:
    if said not in known:
        ids = [model.dictionary.index(LETTERS.symbol(label)) for label in said]
        with torch.no_grad():
            hidden = model.network(torch.tensor([[2, *ids]]))[0]
            known[said] = -float(model.network.nll(hidden, torch.tensor([*ids, 2])).sum())
    return known[said]


def test_scores_do_not_depend_on_when_the_beam_is_looked_at(
    models: tuple[Path, LanguageModel, LanguageModel],
) -> None:
    lexicon, model, _ = models
    emissions = noise(5, 30)
    options = BeamOptions(beam=40, lm_weight=1.0, nbest=5)
    found = []
    for every in (1, 4, 1000):
        beam = LexiconBeam(LETTERS, lexicon, model, options)
        assert beam._scorer is not None
        beam._scorer.every = every
        found.append(beam.decode(emissions))
        again = beam.decode(emissions)  # nothing of an utterance is left for the next one
        assert [h.text for h in again] == [h.text for h in found[-1]]
    for other in found[1:]:
        assert [h.text for h in other] == [h.text for h in found[0]]
        np.testing.assert_allclose([h.score for h in other], [h.score for h in found[0]], atol=1e-4)


def test_other_units_and_cases_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lex").write_text(lexicon_text(["A", "AB", "BA", "BB"]))
    lower = load(stored(tmp_path / "lower", ["a", "ab", "ba", "bb"]))
    with pytest.raises(DataError, match=r"upper and lower case differ.*tr '\[:lower:\]'"):
        LexiconBeam(LETTERS, tmp_path / "lex", lower, BeamOptions())
    foreign = load(stored(tmp_path / "foreign", ["UN", "DEUX"]))
    with pytest.raises(DataError, match=r"knows 0 of 4 words.*other units"):
        LexiconBeam(LETTERS, tmp_path / "lex", foreign, BeamOptions())
    with pytest.raises(DataError, match="knows 0 of 3 letters"):
        LetterBeam(LETTERS, foreign, BeamOptions())
    some = load(stored(tmp_path / "some", ["A", "AB"]))
    found = LexiconBeam(LETTERS, tmp_path / "lex", some, BeamOptions(beam=50)).decode(noise(1, 12))[0]
    assert set(found.text.split()) <= {"A", "AB"} and math.isfinite(found.score)
    assert "2 words" in caplog.text and "BA, BB" in caplog.text


def test_a_stored_language_model_scores_sentences(tmp_path: Path) -> None:
    folder = stored(tmp_path / "m", ["BA", "A", "AB"])
    model = load(folder)
    assert isinstance(model, LanguageModel) and model.units == "words"
    together = model.score(["A AB", "BA", "", "A ZEBRA A A"])
    assert together == pytest.approx(
        [model.score([text])[0] for text in ("A AB", "BA", "", "A ZEBRA A A")], abs=1e-5
    )
    assert model.perplexity(["A AB"]) == pytest.approx(math.exp(-together[0] / 3), rel=1e-5)
    (folder / "dict.txt").write_text("A 1\nBA 1\nAB 1\n")
    with pytest.raises(CheckpointError, match="not the dictionary"):
        load(folder)
