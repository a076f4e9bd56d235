"""A text model in use: embeddings, and classes or scores where it has a head.

B texts, T tokens, D width, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch

from .artifact import Artifact, load_strictly
from .config import Data2VecMultiConfig, SentenceHeadConfig
from .errors import CheckpointError, DataError
from .heads import SentenceClassifier, make_text_trunk, max_text_positions
from .in_use import ModelInUse, items_of
from .text import PAD
from .v1.text_config import Data2VecTextConfig

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls", "none"]
BATCH = 32


class TextModel(ModelInUse):
    """A text model in evaluation mode with its tokenizer."""

    def __init__(self, artifact: Artifact) -> None:
        if artifact.tokenizer is None:
            raise CheckpointError(f"{artifact.folder} has no tokenizer; import it again with its dictionary")
        assert isinstance(artifact.model_config, Data2VecMultiConfig | Data2VecTextConfig)
        assert artifact.head_config is None or isinstance(artifact.head_config, SentenceHeadConfig)
        self.config = artifact.config
        self.tokenizer = artifact.tokenizer
        self.model_config = artifact.model_config
        self.classifier: SentenceClassifier | None = None
        if artifact.head_config is not None:
            self.classifier = SentenceClassifier(
                artifact.model_config, artifact.head_config, vocab_size=artifact.vocab_size
            )
            load_strictly(self.classifier, artifact.state, artifact.folder)
            self.network = self.classifier.trunk
        else:
            self.network = make_text_trunk(artifact.model_config, vocab_size=artifact.vocab_size)
            load_strictly(self.network, artifact.trunk_state, artifact.folder)
        self._module = (self.classifier or self.network).eval()
        self._vocab_size = artifact.vocab_size

    def untrained(self, seed: int = 1) -> TextModel:
        """The same architecture with random initial weights, without a head: the baseline of a probe.

        Args:
            seed: of the weights; the ones that a pretraining with this ``common.seed`` starts from.
        """
        return self._with(make_text_trunk(self.network.config, vocab_size=self._vocab_size, seed=seed))

    @overload
    def embed(  # pyright: ignore[reportOverlappingOverload]  # a text is a sequence of texts too
        self, texts: str, pooling: Pooling = ..., layer: int = ..., *, batch_size: int = ...
    ) -> np.ndarray: ...
    @overload
    def embed(
        self, texts: Sequence[str], pooling: Pooling = ..., layer: int = ..., *, batch_size: int = ...
    ) -> list[np.ndarray]: ...
    @torch.inference_mode()
    def embed(
        self,
        texts: str | Sequence[str],
        pooling: Pooling = "mean",
        layer: int = -1,
        *,
        batch_size: int = BATCH,
    ) -> np.ndarray | list[np.ndarray]:
        """Features of texts.

        Args:
            texts: one text, or B texts.
            pooling: "mean" over real tokens, "cls" (the first token), or "none".
            layer: block whose output is taken; -1 is the last, 0 the first.
            batch_size: texts that go through the model together.

        Returns:
            Of one text (D,), or (T, D) without pooling; of several a list of B such arrays.
        """
        given, single = items_of(texts, lambda item: isinstance(item, str), "a text", batch_size)
        depth = self.model_config.depth
        if not -depth <= layer < depth:
            raise DataError(
                f"layer = {layer} must lie in {-depth} ... {depth - 1}: the model has {depth} blocks"
            )
        if pooling not in ("mean", "cls", "none"):
            raise DataError(f"pooling = {pooling!r} must be one of mean, cls, none")
        out: list[np.ndarray] = [np.empty(0)] * len(given)
        for rows, source, padding, lengths in self._batches([(text,) for text in given], batch_size):
            features = self.network(source, padding, all_layers=True).layers[layer].float()
            for row, x_TD, length in zip(rows, features, lengths, strict=True):
                real_TD = x_TD[:length]
                pooled = {"mean": real_TD.mean(0), "cls": real_TD[0], "none": real_TD}[pooling]
                out[row] = pooled.cpu().numpy()
        return out[0] if single else out

    def embed_words(
        self, texts: Sequence[str], numbers: Sequence[int], layer: int = -1, *, batch_size: int = BATCH
    ) -> list[np.ndarray]:
        """Features of one word of each text, as it stands there: the mean over its pieces.

        Args:
            texts: B texts; words are what white space separates.
            numbers: of the words, from 1.
            layer: as in :meth:`embed`.
            batch_size: texts that go through the model together.

        Returns:
            B arrays (D,).

        Raises:
            DataError: a word lies beyond what the model reads.
        """
        found: list[np.ndarray] = []
        step = 16 * batch_size  # sorted by their lengths, so that little is padding
        for start in range(0, len(texts), step):
            split = [text.split() for text in texts[start : start + step]]
            features = self.embed([" ".join(words) for words in split], "none", layer, batch_size=batch_size)
            for words, number, all_TD in zip(split, numbers[start:], features, strict=False):
                before, until = (self._pieces(words[:count]) for count in (number - 1, number))
                pieces_TD = all_TD[1 + before : 1 + until]  # <s> is the first
                if not len(pieces_TD):
                    raise DataError(
                        f"{words[number - 1]!r} lies beyond what the model reads; shorten its text"
                    )
                found.append(pieces_TD.mean(axis=0))
        return found

    def _pieces(self, words: list[str]) -> int:
        return len(self.tokenizer.encode(" ".join(words), append_eos=False))

    @torch.inference_mode()
    def classify(
        self,
        texts: str | tuple[str, str] | Sequence[str] | Sequence[tuple[str, str]],
        *,
        batch_size: int = BATCH,
    ) -> tuple[list[str], np.ndarray]:
        """Class probabilities of texts or text pairs, or the values of a regression.

        Args:
            texts: one text or one pair, the tuple (first, second); or a list of B texts or pairs.
            batch_size: texts that go through the model together.

        Returns:
            The class names, and (C,) probabilities of one text or (B, C) of a list; a regression gives
            (["score"], values of the same form).
        """
        if self.classifier is None:
            raise CheckpointError(f"this is a {self.config['kind']} model without a head: use embed()")
        task = self.config["task"]
        regression = bool(task.get("regression"))
        names = ["score"] if regression else [str(label) for label in task["labels"]]
        if isinstance(texts, list):  # pairs inside a list may be lists; alone a pair is a tuple
            texts = [tuple(item) if isinstance(item, list) else item for item in texts]  # pyright: ignore
        what = "a text or a (first, second) pair of texts"
        given, single = items_of(texts, _is_text_or_pair, what, batch_size)
        scores = np.zeros((len(given), len(names)))
        pairs = [(text,) if isinstance(text, str) else tuple(text) for text in given]
        for rows, source, padding, _ in self._batches(pairs, batch_size):
            logits = self.classifier(source, padding)
            scores[rows] = (logits if regression else logits.softmax(-1)).double().cpu().numpy()
        return names, scores[0] if single else scores

    def _batches(
        self, texts: Sequence[tuple[str, ...]], size: int
    ) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor | None, list[int]]]:
        """Row numbers, token ids, padding (where there is any) and lengths of batches of similar length."""
        dictionary = self.tokenizer.dictionary
        limit = max_text_positions(self.network.config)
        encoded: list[np.ndarray] = []
        for parts in texts:
            ids = np.concatenate([[dictionary.bos], self.tokenizer.encode(parts[0])])
            for part in parts[1:]:
                ids = np.concatenate([ids, [dictionary.eos], self.tokenizer.encode(part)])
            encoded.append(ids)
        too_long = sum(len(ids) > limit for ids in encoded)
        if too_long:
            logger.warning(
                "%d of %d texts are longer than %d tokens and were cut", too_long, len(texts), limit
            )
        encoded = [ids[:limit] for ids in encoded]
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            source = torch.full((len(rows), max(len(encoded[row]) for row in rows)), PAD, dtype=torch.int64)
            for index, row in enumerate(rows):
                source[index, : len(encoded[row])] = torch.from_numpy(encoded[row])
            lengths = [len(encoded[row]) for row in rows]
            padding = torch.arange(source.shape[1])[None, :] >= torch.tensor(lengths)[:, None]
            padded = min(lengths) < max(lengths)
            yield rows, source.to(self.device), padding.to(self.device) if padded else None, lengths


def _is_text_or_pair(item: Any) -> bool:
    if isinstance(item, str):
        return True
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)
