"""Real-time factors of CTC decoding: the network's emissions, the best letters, and words with a KenLM model.

The search is timed on emissions of sentences: each letter lasts two frames, blanks lie between, and noise
makes some letters doubtful, as a fine-tuned model's are. The language model is estimated from English prose
that is installed with Python, and written as ARPA text, which KenLM reads.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data2vec.config import Data2VecMultiConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.ctc_decoding import BLANK, BeamOptions, LexiconBeam
from data2vec.data.letters import encode_letters, greedy_ids, letter_line, released_letters, words_of_ids
from data2vec.language_model import NgramModel, lexicon_text
from experiments.demo.prose import collect

from .measure import Case
from .pretraining import load

FRAME_S, RATE = 0.02, 16000
_SENTENCES = 10  # of one measured pass
_LETTER_FRAMES = 2
_BLANK_FRAMES = 2
_PEAK, _NOISE = 6.0, 1.2  # height of the right symbol among logits, and their spread
BEAM = BeamOptions(beam=500, lm_weight=2.0, word_score=-1.0)


def cases(recipe_name: str, samples: int) -> list[Case]:
    """Emissions of a base network, greedy decoding, and the beam search with a language model.

    Args:
        recipe_name: an audio recipe with the network's size.
        samples: length of the clip whose emissions are computed.
    """
    wanted, taught = sentences()
    spoken = FRAME_S * sum(map(len, emissions(wanted)))
    network = {"recipe_name": recipe_name, "samples": samples}
    found: list[tuple[str, Callable[..., Any], dict[str, Any], float]] = [
        ("emissions of a base network", build_network, network, samples / RATE),
        ("greedy decoding of emissions", build_greedy, {"texts": wanted}, spoken),
        (f"KenLM decoding, beam {BEAM.beam}", build_beam, {"texts": wanted, "taught": taught}, spoken),
    ]
    unit = "seconds of audio"
    return [Case(name, build, options, 0.0, seconds, unit) for name, build, options, seconds in found]


def sentences() -> tuple[list[str], list[list[str]]]:
    """Sentences to decode, and the words of others to estimate a language model from."""
    wanted: list[str] = []
    taught: list[list[str]] = []
    for document in collect(packages=()):
        for sentence in document.sentences:
            words = re.findall(r"[A-Z']+", sentence.upper())
            if document.part == "task_dev":
                if len(wanted) < _SENTENCES and 4 <= len(words) <= 30:
                    wanted.append(" ".join(words))
            elif words:
                taught.append(words)
    return wanted, taught


def emissions(texts: list[str]) -> Iterator[np.ndarray]:
    """(T, V) float32 log-probabilities of each text."""
    letters, random = released_letters(), np.random.default_rng(0)
    for text in texts:
        symbols: list[int] = []
        for letter in encode_letters(letter_line(text), letters):
            symbols += [int(letter)] * _LETTER_FRAMES + [BLANK] * _BLANK_FRAMES
        logits = random.normal(0.0, _NOISE, (len(symbols), len(letters))).astype(np.float32)
        logits[np.arange(len(symbols)), symbols] += _PEAK
        yield torch.from_numpy(logits).log_softmax(dim=-1).numpy()


def build_network(recipe_name: str, samples: int) -> Callable[[int], None]:
    """Emissions of one clip."""
    config = load(recipe_name, []).model
    assert isinstance(config, Data2VecMultiConfig)
    model = CTCModel(config, CTCConfig(), num_symbols=len(released_letters())).eval()
    source = torch.randn(1, samples)

    def step(_: int) -> None:
        with torch.inference_mode():
            model(source).emissions()

    return step


def build_greedy(texts: list[str]) -> Callable[[int], None]:
    """The best letters of every frame, as words."""
    letters, heard = released_letters(), list(emissions(texts))

    def step(_: int) -> None:
        for emissions_TV in heard:
            words_of_ids(greedy_ids(emissions_TV.argmax(axis=-1).tolist()), letters)

    return step


def build_beam(
    texts: list[str], taught: list[list[str]], options: BeamOptions = BEAM
) -> Callable[[int], None]:
    """The beam search over the words of the prose, with a language model of three words."""
    heard = list(emissions(texts))
    with tempfile.TemporaryDirectory(prefix="d2v_decoding_") as name:
        model, lexicon = Path(name, "words.arpa"), Path(name, "lexicon.txt")
        model.write_text(NgramModel.estimate(taught).arpa(), encoding="utf-8")
        lexicon.write_text(lexicon_text(word for line in taught for word in line), encoding="utf-8")
        beam = LexiconBeam(released_letters(), lexicon, model, options)

    def step(_: int) -> None:
        for emissions_TV in heard:
            beam.decode(emissions_TV)

    return step
