"""Raw text to token files over words or letters with a dictionary of their own, for language models.

The counterpart of :mod:`text` without BPE: one process, in chunks, finished splits are not made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from data2vec.data.dictionary import Dictionary
from data2vec.data.encoding import chunk_bounds, text_lines
from data2vec.data.indexed import IndexedTokensWriter, splits_in
from data2vec.data.prepared import fingerprint_files, read_card, split_files, write_card
from data2vec.data.tokenizer import DICTIONARY_NAME
from data2vec.data.units import Units, unit_symbols
from data2vec.errors import DataError
from data2vec.folders import file_sha256, write_text

from .sole_writer import sole_writer
from .text import TextOptions, TextReport, TextSplitReport, check_sources, progress_bars


def prepare_units(
    sources: Mapping[str, Path],
    dest: Path,
    units: Units,
    options: TextOptions,
    console: Console | None = None,
) -> TextReport:
    """Make ``<dest>/<split>.bin``, ``.idx``, ``dict.txt`` and ``card.json``.

    Args:
        sources: split name to UTF-8 text, a sentence a line; empty lines are left out.
        dest: the folder for ``task.data``.
        units: "words" (split at white space) or "letters" (``A MAN`` is ``A | M A N |``).
        options: dictionary and its size; what belongs to BPE must not be given.
        console: where progress is shown.

    Raises:
        DataError: sources or options are wrong (all problems at once), text is not UTF-8, or ``dest`` holds
            data with another dictionary.
    """
    begin = time.monotonic()
    problems = []
    if options.encoder_json is not None or options.vocab_bpe is not None:
        problems.append(f"--encoder-json and --vocab-bpe belong to BPE, not to --units {units}")
    if not options.build_dict and options.dictionary is None:
        problems.append(f"--units {units} needs --build-dict, or --dict with an existing dict.txt")
    check_sources(sources, options, problems)
    dest.mkdir(parents=True, exist_ok=True)
    with sole_writer(dest), progress_bars(console or Console(quiet=True)) as progress:
        dictionary = _dictionary(sources, dest, units, options, progress)
        card = read_card(dest) or {}
        reports: dict[str, TextSplitReport] = {}
        done = 0
        for split, path in sources.items():
            sha256 = file_sha256(path)
            key = hashlib.sha256(json.dumps([sha256, units, dictionary.digest()]).encode()).hexdigest()
            known = card.get("splits", {}).get(split, {})
            if known.get("key") == key and all(
                (dest / f"{split}{end}").is_file() for end in (".bin", ".idx")
            ):
                names = TextSplitReport.__dataclass_fields__
                stored = {k: v for k, v in known.items() if k in names}
                reports[split] = TextSplitReport(**{**stored, "skipped": True})
                continue
            reports[split] = _write(split, path, dest, units, dictionary, sha256, key, progress)
            done += reports[split].tokens
            card = _with_split(card, dest, units, dictionary, reports[split], split)
            write_card(dest, card)
    elapsed = time.monotonic() - begin
    return TextReport(
        folder=dest,
        splits=reports,
        dictionary=dictionary.digest(),
        vocabulary=len(dictionary),
        encoded_tokens=done,
        reused_tokens=0,
        seconds=elapsed,
        cpu_s=elapsed,
    )


def _dictionary(
    sources: Mapping[str, Path], dest: Path, units: Units, options: TextOptions, progress: Progress
) -> Dictionary:
    """The given dictionary or one of the training text, written into the folder."""
    if options.dictionary is not None:
        dictionary = Dictionary.load(options.dictionary)
    else:
        counts: Counter[str] = Counter()
        for split, path in sources.items():
            if split.startswith("train"):
                for line in _lines(path, f"count {split}", progress):
                    counts.update(unit_symbols(line, units))
        dictionary = Dictionary.from_counts(
            counts, threshold=options.threshold, max_size=options.max_size, padding_factor=8
        )
    path = dest / DICTIONARY_NAME
    if path.is_file() and Dictionary.load(path).digest() != dictionary.digest():
        others = sorted(set(splits_in(dest)) - set(sources))
        if others or options.dictionary is None:
            raise DataError(
                f"{path} exists with other content than this run would write; give --dict {path} to use it, "
                "choose another --dest, or remove the folder"
            )
    write_text(path, dictionary.text())
    return dictionary


def _write(
    split: str,
    path: Path,
    dest: Path,
    units: Units,
    dictionary: Dictionary,
    sha256: str,
    key: str,
    progress: Progress,
) -> TextSplitReport:
    lines = empty = unknown = 0
    with IndexedTokensWriter(dest / split, len(dictionary)) as writer:
        for line in _lines(path, split, progress):
            ids = [dictionary.index(symbol) for symbol in unit_symbols(line, units)]
            if not ids:
                empty += 1
                continue
            lines += 1
            unknown += ids.count(Dictionary.unk)
            ids.append(Dictionary.eos)
            writer.add_lines(np.asarray(ids, dtype=np.int64), np.asarray([len(ids)], dtype=np.int32))
        if not lines:
            raise DataError(f"{path} holds no text, only empty lines")
        tokens = writer.num_tokens
    return TextSplitReport(
        source=path.name,
        source_bytes=path.stat().st_size,
        source_sha256=sha256,
        lines=lines,
        empty_lines=empty,
        tokens=tokens,
        unknown_tokens=unknown,
        key=key,
    )


def _with_split(
    card: dict[str, Any],
    dest: Path,
    units: Units,
    dictionary: Dictionary,
    report: TextSplitReport,
    split: str,
) -> dict[str, Any]:
    entry: dict[str, Any] = {k: v for k, v in vars(report).items() if k != "skipped"}
    files = [(DICTIONARY_NAME, dest / DICTIONARY_NAME), *split_files(dest, split, False)]
    entry["fingerprint"] = fingerprint_files(files)
    kept = card.get("splits", {}) if card.get("dictionary") == dictionary.digest() else {}
    return {
        "format": 1,
        "kind": "text",
        "units": units,
        "dictionary": dictionary.digest(),
        "vocabulary": len(dictionary),
        "splits": {**kept, split: entry},
    }


def _lines(path: Path, name: str, progress: Progress) -> Iterator[str]:
    bar = progress.add_task(name, total=path.stat().st_size, rate="")
    with path.open("rb") as file:
        for start, end in chunk_bounds(path, 4 << 20):
            file.seek(start)
            yield from text_lines(file.read(end - start), start == 0, path, byte_offset=start)
            progress.update(bar, advance=end - start)
