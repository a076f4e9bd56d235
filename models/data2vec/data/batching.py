"""The order of samples and batches: pure functions of (seed, epoch).

Which worker takes which batch is decided elsewhere; the list here is global, so it does not depend on their
number. Reference rules: ``fairseq/data/data_utils.py`` (batch_by_size) and ``fairseq/data/iterators.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, overload

import numpy as np
import torch

from ..errors import ConfigError, DataError, Problem
from ..randomness import row_keys

SampleOrder = Literal["size", "longest", "random", "file"]


class BatchList(Sequence[np.ndarray]):
    """Batches as views of one index array: millions of batches cost two arrays, not millions of objects.

    Args:
        indices: sample numbers, batch after batch.
        offsets: ``(num_batches + 1,)`` where each batch begins.
        order: ``(num_batches,)`` in which the batches are taken; default as they stand.
    """

    def __init__(self, indices: np.ndarray, offsets: np.ndarray, order: np.ndarray | None = None) -> None:
        self.indices, self.offsets = indices, offsets
        self._order = np.arange(len(offsets) - 1) if order is None else order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> BatchList: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | BatchList:
        if isinstance(index, slice):
            return BatchList(self.indices, self.offsets, self._order[index])
        batch = int(self._order[index])
        return self.indices[self.offsets[batch] : self.offsets[batch + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def reordered(self, order: np.ndarray) -> BatchList:
        """The same batches, taken in another order."""
        return BatchList(self.indices, self.offsets, self._order[order])


def permutation(n: int, *parts: int | str) -> np.ndarray:
    """A permutation of 0 ... n-1 that depends on the key alone, on every machine and version of numpy."""
    keys = row_keys("permutation", *parts, ids_R=torch.arange(n)).numpy()
    return np.argsort(keys, kind="stable")


def ordered_indices(
    sizes: np.ndarray, *, seed: int, epoch: int = 0, order: SampleOrder = "size"
) -> np.ndarray:
    """The order in which samples fill batches.

    Args:
        sizes: ``(N,)`` lengths.
        seed: ``common.seed``.
        epoch: 0 for an order that is the same in every epoch.
        order: ``size``: by length, equal lengths in random order; ``longest``: the same, longest first
            (audio: a batch that does not fit the memory fails at once); ``random``: one permutation
            (sentence tasks); ``file``: as they stand.

    Returns:
        ``(N,)`` int64 permutation.
    """
    if order == "file":
        return np.arange(len(sizes))
    shuffled = permutation(len(sizes), "samples", seed, epoch)
    if order == "random":
        return shuffled
    in_order = np.asarray(sizes)[shuffled]
    return shuffled[np.argsort(-in_order if order == "longest" else in_order, kind="stable")]


def batches_by_size(
    indices: np.ndarray,
    sizes: np.ndarray,
    *,
    max_tokens: int | None,
    max_sentences: int | None,
    required_batch_size_multiple: int = 1,
    drop_ragged: bool = False,
) -> BatchList:
    """Greedy batches in the order of ``indices``.

    A batch obeys ``count * longest <= max_tokens``, ``count <= max_sentences``, and count below or a multiple
    of ``required_batch_size_multiple``; what breaks the multiple is carried to the next batch.

    Args:
        indices: sample numbers in order.
        sizes: ``(N,)`` length of every sample, by number.
        max_tokens: ``dataset.max_tokens``.
        max_sentences: ``dataset.batch_size``.
        required_batch_size_multiple: m.
        drop_ragged: leave out a last batch that is neither a multiple of m nor ``max_sentences``, as the
            reference
            does. Never use it in evaluation: samples would be lost.

    Raises:
        ConfigError: no limit is given, or one is impossible.
        DataError: a sample alone is longer than ``max_tokens``.
    """
    _check_limits(max_tokens, max_sentences, required_batch_size_multiple)
    m, n = required_batch_size_multiple, len(indices)
    in_order = np.asarray(sizes)[indices]
    longest = int(in_order.max()) if n else 0
    if max_tokens is not None and longest > max_tokens:
        sample = int(indices[int(in_order.argmax())])
        raise DataError(
            f"sample {sample} has {longest} tokens, more than dataset.max_tokens={max_tokens}; raise it"
        )
    if max_tokens is None or (max_sentences is not None and max_sentences * longest <= max_tokens):
        assert max_sentences is not None
        count = max_sentences if max_sentences < m else max_sentences - max_sentences % m
        ends = np.minimum(np.arange(count, n + count, count), n)
        if n % count >= m and n % count % m:  # the last, shorter batch obeys the multiple too
            ends = np.append(ends[:-1], [n - n % count % m, n])
    else:
        ends = np.asarray(_greedy_ends(in_order.tolist(), max_tokens, max_sentences or n, m), dtype=np.int64)
    offsets = np.concatenate([[0], ends]).astype(np.int64)
    if drop_ragged and len(offsets) > 1:
        last = int(offsets[-1] - offsets[-2])
        if last % m and last != max_sentences:
            offsets = offsets[:-1]
    return BatchList(indices, offsets)


def epoch_batches(
    sizes: np.ndarray,
    *,
    seed: int,
    epoch: int,
    max_tokens: int | None,
    batch_size: int | None,
    required_batch_size_multiple: int = 8,
    shuffle: bool = True,
    rebuild: bool = False,
    order: SampleOrder = "size",
    curriculum: int = 0,
    drop_ragged: bool = False,
) -> BatchList:
    """All batches of an epoch, for all workers together.

    Args:
        sizes: ``(N,)`` lengths (a data set's ``sizes``).
        seed: ``common.seed``.
        epoch: 1, 2, ....
        max_tokens: most tokens of a batch, padding included.
        batch_size: most samples of a batch.
        required_batch_size_multiple: see :func:`batches_by_size`.
        shuffle: take the batches in random order (training); false for evaluation.
        rebuild: draw the samples of each batch anew every epoch; otherwise only the order of batches changes.
        order: how samples fill batches (a data set's ``order``).
        curriculum: batches are not shuffled in the first so many epochs.
        drop_ragged: see :func:`batches_by_size`; the default keeps every sample.

    Returns:
        The batches; sample numbers are positions in ``sizes``. Every number occurs exactly once unless
        ``drop_ragged``.
    """
    indices = ordered_indices(sizes, seed=seed, epoch=epoch if rebuild else 0, order=order)
    batches = batches_by_size(
        indices,
        sizes,
        max_tokens=max_tokens,
        max_sentences=batch_size,
        required_batch_size_multiple=required_batch_size_multiple,
        drop_ragged=drop_ragged,
    )
    if shuffle and epoch > curriculum:
        return batches.reordered(permutation(len(batches), "batches", seed, epoch))
    return batches


def _greedy_ends(sizes: list[int], max_tokens: int, max_count: int, m: int) -> list[int]:
    ends: list[int] = []
    start, n = 0, len(sizes)
    while start < n:
        longest, pos, limit = 0, start, min(start + max_count, n)
        while pos < limit:
            longest = max(longest, sizes[pos])
            if longest * (pos - start + 1) > max_tokens:
                break
            pos += 1
        count = pos - start
        start += count if count < m else count - count % m
        ends.append(start)
    return ends


def _check_limits(max_tokens: int | None, max_sentences: int | None, multiple: int) -> None:
    problems = []
    if max_tokens is None and max_sentences is None:
        problems.append(Problem("dataset.batch_size", None, "set dataset.batch_size or dataset.max_tokens"))
    if max_tokens is not None and max_tokens < 1:
        problems.append(Problem("dataset.max_tokens", max_tokens, "must be > 0"))
    if max_sentences is not None and max_sentences < 1:
        problems.append(Problem("dataset.batch_size", max_sentences, "must be > 0"))
    if multiple < 1:
        problems.append(Problem("dataset.required_batch_size_multiple", multiple, "must be > 0"))
    if problems:
        raise ConfigError(problems)
