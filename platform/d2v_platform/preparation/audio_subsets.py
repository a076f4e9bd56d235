"""Small training sets of a few minutes each, cut out of one manifest with its labels.

The smaller sets lie inside the larger ones, so that a curve over minutes compares amounts, not draws.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data2vec.data.letters import read_label_lines
from data2vec.data.manifest import manifest_text, read_manifest
from data2vec.errors import DataError
from data2vec.folders import write_text

LABELS = ("ltr", "wrd", "phn", "lbl")  # extensions of label files that go along line by line


@dataclass(frozen=True, kw_only=True)
class AudioSubset:
    """One folder that :func:`prepare_subsets` wrote."""

    folder: Path
    utterances: int
    minutes: float


def prepare_subsets(
    tsv: Path, dest: Path, minutes: Sequence[float], *, sample_rate: int = 16_000, seed: int = 42
) -> list[AudioSubset]:
    """Write ``<minutes>m/`` folders with that much of a manifest; everything beside it is copied unchanged.

    Args:
        tsv: the training manifest; label files of the same stem go along.
        dest: folder of the new folders.
        minutes: how much audio each one gets at most.
        sample_rate: of the files.
        seed: of the order in which utterances are taken, the same for all amounts.

    Raises:
        DataError: an amount is impossible, or larger than the manifest; label files do not fit it.
    """
    manifest = read_manifest(tsv)
    available = float(manifest.frames.sum()) / sample_rate / 60
    wrong = [f"{m:g}" for m in minutes if not m > 0 or m > available]
    if wrong or not minutes:
        raise DataError(
            f"--minutes {', '.join(wrong) or 'is empty'}: {tsv} has {available:.1f} minutes; "
            "give amounts above 0 and up to that, such as 1,3,10"
        )
    labels = {
        name: read_label_lines(path, len(manifest))
        for name in LABELS
        if (path := tsv.with_suffix(f".{name}")).is_file()
    }
    order = list(range(len(manifest)))
    random.Random(seed).shuffle(order)
    own = {tsv.name, *(f"{tsv.stem}.{name}" for name in labels)}
    beside = [path for path in sorted(tsv.parent.iterdir()) if path.is_file() and path.name not in own]
    found: list[AudioSubset] = []
    for amount in minutes:
        chosen = _taken(order, manifest.frames.tolist(), int(amount * 60 * sample_rate))
        if not chosen:
            raise DataError(f"--minutes {amount:g}: the first utterance of the draw is longer than that")
        folder = dest / f"{amount:g}m"
        folder.mkdir(parents=True, exist_ok=True)
        entries = [(manifest.name(i), int(manifest.frames[i])) for i in chosen]
        write_text(folder / tsv.name, manifest_text(manifest.root, entries))
        for name, lines in labels.items():
            write_text(folder / f"{tsv.stem}.{name}", "".join(f"{lines[i]}\n" for i in chosen))
        for path in beside:
            shutil.copyfile(path, folder / path.name)
        seconds = sum(frames for _, frames in entries) / sample_rate
        found.append(AudioSubset(folder=folder, utterances=len(chosen), minutes=seconds / 60))
    return found


def _taken(order: Sequence[int], frames: Sequence[int], limit: int) -> list[int]:
    """The longest beginning of the order that fits, in the manifest's order."""
    total, chosen = 0, []
    for index in order:
        total += frames[index]
        if total > limit:
            break
        chosen.append(index)
    return sorted(chosen)
