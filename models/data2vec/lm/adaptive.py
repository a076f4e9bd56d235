"""Vocabularies in bands: frequent words get wide vectors, rare words narrow ones (Baevski and Auli, 2018).

Band 0 holds the first ``cutoff[0]`` words of the dictionary, which is sorted by frequency; each further band
is narrower by a factor. The softmax of band 0 also has one class for each further band, and a word's
probability is its band's times its own inside the band, so log probabilities are exact.

N positions, D width, E embedding width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

PAD = 1


def band_ends(cutoff: Sequence[int], vocab_size: int) -> list[int]:
    """Where the bands end, the last one at the end of the vocabulary."""
    return [*cutoff, vocab_size] if vocab_size > cutoff[-1] else list(cutoff)


class AdaptiveInput(nn.Module):
    """Embeddings in bands, each projected to the model's width.

    Unlike the reference, only ``<pad>`` itself has a zero vector; there, word number 1 of every band has.
    """

    def __init__(self, vocab_size: int, dim: int, width: int, factor: float, cutoff: Sequence[int]) -> None:
        super().__init__()
        self.ends, self.width = band_ends(cutoff, vocab_size), width
        self.embeddings = nn.ModuleList()
        begin = 0
        for band, end in enumerate(self.ends):
            inner = int(dim // factor**band)
            words = nn.Embedding(end - begin, inner, padding_idx=PAD if band == 0 else None)
            self.embeddings.append(nn.Sequential(words, nn.Linear(inner, width, bias=False)))
            begin = end

    def forward(self, source: torch.Tensor) -> torch.Tensor:
        """Token ids of any shape to vectors of the model's width."""
        out = self.tensors(0)[1].new_zeros(*source.shape, self.width)
        begin = 0
        for band, end in zip(self.embeddings, self.ends, strict=True):
            inside = (source >= begin) & (source < end)
            if bool(inside.any()):
                out[inside] = band(source[inside] - begin).to(out.dtype)
            begin = end
        return out

    def tensors(self, band: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Words (V of the band, E) and projection (D, E) of a band."""
        part = self.embeddings[band]
        assert isinstance(part, nn.Sequential)
        words, projection = part[0], part[1]
        assert isinstance(words, nn.Embedding)
        assert isinstance(projection, nn.Linear)
        return words.weight, projection.weight


class _Head(nn.Module):
    """First band, whose words are the embeddings' (tied), and classes of the further bands."""

    def __init__(self, width: int, num_bands: int) -> None:
        super().__init__()
        self.class_proj = nn.Linear(width, num_bands, bias=False)

    def forward(self, hidden_ND: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.linear(hidden_ND, words), self.class_proj(hidden_ND)], dim=-1)


class AdaptiveSoftmax(nn.Module):
    """A softmax in bands.

    Args:
        vocab_size: V.
        width: D.
        factor: see the module.
        cutoff: ends of the bands.
        dropout: inside the bands after the first, and on the input.
        tied: embeddings whose words are used; ``None`` for words of its own.
        tie_projections: use the embeddings' projections too.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        factor: float,
        cutoff: Sequence[int],
        dropout: float = 0.0,
        tied: AdaptiveInput | None = None,
        tie_projections: bool = False,
    ) -> None:
        super().__init__()
        self.ends, self.vocab_size, self.dropout = band_ends(cutoff, vocab_size), vocab_size, dropout
        self._tied = [tied] if tied is not None else []  # in a list: not a part of this module
        self.tie_projections = tie_projections
        further = len(self.ends) - 1
        if tied is None:
            self.head: nn.Module = nn.Linear(width, self.ends[0] + further, bias=False)
        else:
            self.head = _Head(width, further)
        self.tail = nn.ModuleList()
        for band in range(further):
            inner = int(width // factor ** (band + 1))
            parts = nn.ModuleDict()  # named as in the reference: 0 projection, 1 dropout, 2 words
            if tied is None or not tie_projections:
                parts["0"] = nn.Linear(width, inner, bias=False)
            if tied is None:
                parts["2"] = nn.Linear(inner, self.ends[band + 1] - self.ends[band], bias=False)
            self.tail.append(parts)

    def nll(self, hidden_ND: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
        """(N,) negative natural log probabilities of the targets; only the bands that occur are computed."""
        hidden_ND = F.dropout(hidden_ND, self.dropout, self.training)
        first = self.ends[0]
        band_N = torch.bucketize(target_N, torch.tensor(self.ends, device=target_N.device), right=True)
        head_N = torch.where(band_N == 0, target_N, first + band_N - 1)
        loss_N = F.cross_entropy(self._head(hidden_ND).float(), head_N, reduction="none")
        for band in range(1, len(self.ends)):
            rows = (band_N == band).nonzero().squeeze(1)
            if len(rows):
                logits = self._tail(band, hidden_ND[rows]).float()
                inside = F.cross_entropy(logits, target_N[rows] - self.ends[band - 1], reduction="none")
                loss_N = loss_N.index_add(0, rows, inside)
        return loss_N

    def log_probs(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """(N, V) natural log probabilities."""
        first = self.ends[0]
        head = F.log_softmax(self._head(hidden_ND).float(), dim=-1)
        parts = [head[:, :first]]
        for band in range(1, len(self.ends)):
            inside = F.log_softmax(self._tail(band, hidden_ND).float(), dim=-1)
            parts.append(inside + head[:, first + band - 1, None])
        return torch.cat(parts, dim=-1)

    def _head(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        return self.head(hidden_ND, self._tied[0].tensors(0)[0]) if self._tied else self.head(hidden_ND)

    def _tail(self, band: int, hidden_ND: torch.Tensor) -> torch.Tensor:
        parts = self.tail[band - 1]
        assert isinstance(parts, nn.ModuleDict)
        tied = self._tied[0].tensors(band) if self._tied else None
        if "0" in parts:
            inner = parts["0"](hidden_ND)
        else:
            assert tied is not None
            inner = F.linear(hidden_ND, tied[1].t())
        inner = F.dropout(inner, self.dropout, self.training)
        if "2" in parts:
            return parts["2"](inner)
        assert tied is not None
        return F.linear(inner, tied[0])
