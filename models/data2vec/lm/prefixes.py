"""Scores of many prefixes that share their beginnings, as a beam search asks for them.

A prefix is a node of a tree: its parent and one token more. A node costs one position of the transformer,
whatever its length: keys and values of its ancestors are kept. Nodes are computed many at a time. At most
``limit`` nodes are kept; when there are more, all but the asked ones' ancestors are forgotten and computed
again if they are asked for.

N nodes, S kept nodes, D width, V tokens whose scores are wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ..v1.layers import EncoderLayer
from .transformer import TransformerLM, step_layer

END = 2  # </s>, which also begins every sequence
ROOT = 0
STATE_LIMIT = 20_000  # as in the reference
_BYTES = 2 << 30  # bound of the keys and values, and of the scores, each
_BATCH = 256


class Prefixes:
    """A tree of prefixes and what the model says follows them.

    Args:
        model: in evaluation mode, on the device that computes.
        columns: (V,) token ids whose log probabilities are wanted; tokens are named by their place here.
        limit: nodes whose keys, values and scores are kept.
    """

    def __init__(self, model: TransformerLM, columns: np.ndarray, limit: int = STATE_LIMIT) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.columns = torch.as_tensor(columns, dtype=torch.int64, device=self.device)
        self._ids = np.asarray(columns, dtype=np.int64)
        config = model.config
        width, layers = config.decoder_embed_dim, config.decoder_layers
        self.limit = max(2, min(limit, _BYTES // (8 * width * layers), _BYTES // (4 * max(len(columns), 1))))
        self._keys = [torch.zeros(0, width, device=self.device) for _ in range(layers)]
        self._values = [torch.zeros(0, width, device=self.device) for _ in range(layers)]
        self.computed = 0  # nodes, over the whole life: what tests and reports look at
        self.batches = 0
        self.clear()

    def clear(self) -> None:
        """Forget every prefix but the empty one: a new utterance begins."""
        self._parent, self._token = [-1], [-1]
        self._children: dict[tuple[int, int], int] = {}
        self._forget()

    def _forget(self) -> None:
        self._place: dict[int, int] = {}  # node -> row of keys and values
        self._rows: dict[int, np.ndarray] = {}  # node -> scores

    def child(self, node: int, token: int) -> int:
        """The prefix one token longer."""
        found = self._children.get((node, token))
        if found is None:
            found = self._children[node, token] = len(self._parent)
            self._parent.append(node)
            self._token.append(token)
        return found

    @property
    def made(self) -> int:
        """How many prefixes there are."""
        return len(self._parent)

    def find(self, tokens: Iterable[int]) -> int | None:
        """The node of a prefix, if it was made."""
        node: int | None = ROOT
        for token in tokens:
            node = self._children.get((node, token))
            if node is None:
                return None
        return node

    def scores(self, node: int) -> np.ndarray:
        """(V,) natural log probabilities of what follows a prefix."""
        row = self._rows.get(node)
        if row is None:
            self.compute([node])
            row = self._rows[node]
        return row

    @torch.inference_mode()
    def compute(self, nodes: Sequence[int]) -> None:
        """Make the scores of these nodes, in batches; those that are there cost nothing."""
        wanted = [node for node in dict.fromkeys(nodes) if node not in self._rows]
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            missing = self._missing(part)
            if len(self._place) + sum(map(len, missing)) > self.limit:
                self._forget()
                missing = self._missing(part)
            for level in missing:
                self._run(level)

    def _missing(self, nodes: Sequence[int]) -> list[list[int]]:
        """The nodes and those of their ancestors that are not kept, parents before children."""
        found: set[int] = set()
        for node in nodes:
            here = node
            while here >= 0 and here not in found and (here == node or here not in self._place):
                found.add(here)
                here = self._parent[here]
        by_depth: dict[int, list[int]] = {}
        for node in sorted(found):
            by_depth.setdefault(self._level(node, found), []).append(node)
        return [by_depth[level] for level in sorted(by_depth)]

    def _level(self, node: int, missing: set[int]) -> int:
        """How many missing ancestors a node has: nodes with equally many are computed together."""
        level, here = 0, self._parent[node]
        while here in missing:
            level, here = level + 1, self._parent[here]
        return level

    def _run(self, nodes: list[int]) -> None:
        """One position of each node, whose ancestors are kept."""
        for node in nodes:
            self._place.setdefault(node, len(self._place))
        self._grow(len(self._place))
        paths = [self._path(node) for node in nodes]
        length = max(map(len, paths))
        seen = torch.zeros(len(nodes), length, dtype=torch.int64)
        for row, path in enumerate(paths):
            seen[row, : len(path)] = torch.tensor(path)
        sizes = torch.tensor([len(path) for path in paths])
        bias = torch.zeros(len(nodes), length)
        bias.masked_fill_(torch.arange(length)[None] >= sizes[:, None], float("-inf"))
        own = torch.tensor([path[-1] for path in paths], device=self.device)
        seen, bias = seen.to(self.device), bias.to(self.device)
        decoder = self.model.decoder
        tokens = torch.tensor([self._id(node) for node in nodes], device=self.device)
        x_ND = decoder.embed(tokens, sizes.to(self.device) - 1)
        for layer, keys, values in zip(decoder.layers, self._keys, self._values, strict=True):
            assert isinstance(layer, EncoderLayer)
            x_ND = step_layer(layer, x_ND, keys, values, own, seen, bias)
        scores = self.model.log_probs(decoder.finish(x_ND)).index_select(1, self.columns).cpu().numpy()
        self._rows.update(zip(nodes, scores, strict=True))
        self.computed += len(nodes)
        self.batches += 1

    def _id(self, node: int) -> int:
        """The last token of a prefix; the empty one has the sentence's beginning."""
        return END if node == ROOT else int(self._ids[self._token[node]])

    def _path(self, node: int) -> list[int]:
        """Rows of a node's ancestors and of itself, from the root on."""
        path = []
        while node >= 0:
            path.append(self._place[node])
            node = self._parent[node]
        return path[::-1]

    def _grow(self, size: int) -> None:
        have = len(self._keys[0])
        if size <= have:
            return
        more = max(size, 2 * have, 256) - have
        for store in (self._keys, self._values):
            for index, old in enumerate(store):
                store[index] = torch.cat([old, old.new_zeros(more, old.shape[1])])
