"""A language model in use: probabilities and perplexity of sentences.

B sentences, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import numpy as np
import torch

from ..artifact import Artifact, load_strictly
from ..data.dictionary import Dictionary, is_padding_word
from ..data.units import Units, unit_symbols
from ..errors import CheckpointError
from ..in_use import ModelInUse, device_of, items_of
from .config import TransformerLMConfig
from .prefixes import END
from .transformer import TransformerLM

_BATCH_TOKENS = 4096


class LanguageModel(ModelInUse):
    """A language model in evaluation mode with its dictionary.

    Args:
        artifact: a model folder of the kind "language_model".
        device: where it computes.

    Raises:
        CheckpointError: it has no dictionary, or weights and dictionary do not belong together.
    """

    def __init__(self, artifact: Artifact, device: torch.device | str = "cpu") -> None:
        config = artifact.model_config
        assert isinstance(config, TransformerLMConfig)
        if artifact.words is None:
            raise CheckpointError(
                f"{artifact.folder} has no dictionary: put its dict.txt beside it, or import it with --dict"
            )
        self.config, self.dictionary, self.folder = artifact.config, artifact.words, artifact.folder
        self.model_config = config
        self.network = TransformerLM(config, len(artifact.words), seed=None)
        load_strictly(self.network, artifact.state, artifact.folder)
        self._module = self.network.to(device_of(device)).eval()

    @property
    def units(self) -> Units:
        """What its tokens are, by its dictionary."""
        return units_of(self.dictionary)

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a sentence, int64, without ``</s>``; unknown ones become 3."""
        return np.asarray([self.dictionary.index(s) for s in unit_symbols(text, self.units)], dtype=np.int64)

    @overload
    def score(self, texts: str) -> float: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def score(self, texts: Sequence[str]) -> list[float]: ...
    def score(self, texts: str | Sequence[str]) -> float | list[float]:
        """Natural log probability of a sentence, or of each of a list, its ``</s>`` included."""
        if isinstance(texts, str):
            return float(self.token_scores(texts).sum())
        return [float(row.sum()) for row in self.token_scores(texts)]

    @overload
    def token_scores(self, texts: str) -> np.ndarray: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def token_scores(self, texts: Sequence[str]) -> list[np.ndarray]: ...
    @torch.inference_mode()
    def token_scores(self, texts: str | Sequence[str]) -> np.ndarray | list[np.ndarray]:
        """Natural log probability of each token, ``</s>`` last.

        Returns:
            (T + 1,) of one sentence, or B such arrays of a list.
        """
        given, single = items_of(texts, lambda item: isinstance(item, str), "a text")
        lines = [np.append(self.encode(text), END) for text in given]
        out: list[np.ndarray] = [np.empty(0)] * len(lines)
        device = self.device
        for rows in _batches([len(line) for line in lines]):
            longest = max(len(lines[row]) for row in rows)
            target = torch.full((len(rows), longest), Dictionary.pad)
            for index, row in enumerate(rows):
                target[index, : len(lines[row])] = torch.from_numpy(lines[row])
            source = torch.cat([torch.full((len(rows), 1), END), target[:, :-1]], dim=1).to(device)
            hidden = self.network(source)
            nll = self.network.nll(hidden.flatten(0, 1), target.to(device).flatten()).view(len(rows), longest)
            for index, row in enumerate(rows):
                out[row] = -nll[index, : len(lines[row])].double().cpu().numpy()
        return out[0] if single else out

    def perplexity(self, texts: str | Sequence[str]) -> float:
        """Per token of a sentence or of all of a list, ends of sentences included."""
        scores = self.token_scores([texts] if isinstance(texts, str) else texts)
        return math.exp(-sum(row.sum() for row in scores) / max(sum(map(len, scores)), 1))


def units_of(dictionary: Dictionary) -> Units:
    """Decimal numbers are BPE ids, single characters letters, anything else words."""
    symbols = [s for s in dictionary.symbols[4:] if not is_padding_word(s)]
    if symbols and all(s.isascii() and s.isdecimal() for s in symbols) and len(symbols) > 10:
        return "bpe"
    return "letters" if symbols and all(len(s) == 1 for s in symbols) else "words"


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Sentences of similar length together."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if not batches or (len(batches[-1]) + 1) * lengths[row] > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(row)
    return batches
