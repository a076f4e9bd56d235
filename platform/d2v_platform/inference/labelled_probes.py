"""``d2v probe`` of texts and recordings with a class each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data2vec.errors import DataError

from ..tasks.labelled_probe import Reader, judge, read_recordings, read_texts, taught_and_judged
from .command_options import Probed, ProbeOptions


def probe_texts(models: Sequence[Any], place: str, options: ProbeOptions) -> Probed:
    """``SUBSET.tsv`` of ``class<TAB>text`` lines, or ``class<TAB>text<TAB>number`` for a word of each."""
    return _probe(read_texts, models, place, options)


def probe_recordings(models: Sequence[Any], place: str, options: ProbeOptions) -> Probed:
    """A manifest ``SUBSET.tsv`` and ``SUBSET.wrd`` with a class a line."""
    return _probe(read_recordings, models, place, options)


def _probe(read: Reader, models: Sequence[Any], place: str, options: ProbeOptions) -> Probed:
    if options.pooling != "mean":
        raise DataError(f"--pooling {options.pooling}: these features are the mean over positions")
    sides = (options.bank, options.subset or "valid")
    taught, judged = taught_and_judged(place, sides, read, "the probe's data")
    scores = [judge(model, taught, judged, options.layer, options.neighbours, seed=1) for model in models]
    return Probed(sides, (len(taught.inputs), len(judged.inputs)), scores)
