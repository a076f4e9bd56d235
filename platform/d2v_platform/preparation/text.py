"""Raw text to the reference's token files on all cores: parallel, resumable, with a card.

A source file is cut into chunks at line ends. Processes turn chunks into files of BPE ids under
``<dest>/.prepare`` (what a killed run leaves there is used again), then the chunks are mapped through the
dictionary and put together in order. The processes come from joblib's loky, which does not import the
parent's main module: they never load torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from joblib.externals.loky.process_executor import TerminatedWorkerError
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from data2vec.data.bpe import shared_bpe
from data2vec.data.dictionary import Dictionary
from data2vec.data.encoding import chunk_bounds, model_ids
from data2vec.data.indexed import IndexedTokensWriter, splits_in, token_dtype
from data2vec.data.prepared import fingerprint_files, read_card, split_files, write_card
from data2vec.data.text_chunks import ChunkJob, ChunkResult, encode_chunk, read_chunk
from data2vec.data.tokenizer import DICTIONARY_NAME, TextTokenizer
from data2vec.errors import DataError
from data2vec.folders import file_sha256, write_text

from ..bars import Bars
from .sole_writer import sole_writer

CHUNK_BYTES = 4 << 20
WORK_FOLDER = ".prepare"


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How text is encoded."""

    dictionary: Path | None = None  # dict.txt to use
    build_dict: bool = False  # make one from the training text; neither: identity order
    threshold: int = 0  # of a built dictionary
    max_size: int | None = None  # of a built dictionary
    encoder_json: Path | None = None  # default: GPT-2's
    vocab_bpe: Path | None = None
    keep_empty: bool = True  # empty lines mark ends of documents
    workers: int | None = None  # default: all cores
    chunk_bytes: int = CHUNK_BYTES


@dataclass(frozen=True, kw_only=True)
class TextSplitReport:
    """One prepared split."""

    source: str
    source_bytes: int
    source_sha256: str
    lines: int
    empty_lines: int
    tokens: int  # eos included
    unknown_tokens: int
    key: str  # hash of source and options: an equal one is not made again
    skipped: bool = False  # it was there already


@dataclass(frozen=True, kw_only=True)
class TextReport:
    """What :func:`prepare_text` did."""

    folder: Path
    splits: dict[str, TextSplitReport]
    dictionary: str  # hash
    vocabulary: int  # <mask> included
    encoded_tokens: int  # by this run
    reused_tokens: int  # from chunks of an interrupted run
    seconds: float
    cpu_s: float  # of all processes, for encoding (without loading the vocabulary, 0.5 s a process)

    @property
    def tokens_per_cpu_s(self) -> float:
        """Encoding speed of one core."""
        return self.encoded_tokens / self.cpu_s if self.cpu_s else 0.0


def prepare_text(
    sources: Mapping[str, Path],
    dest: Path,
    options: TextOptions | None = None,
    console: Console | None = None,
) -> TextReport:
    """Make ``<dest>/<split>.bin``, ``.idx``, ``dict.txt`` and ``card.json``.

    Args:
        sources: split name to UTF-8 text: one paragraph a line, an empty line ends a document.
        dest: the folder for ``task.data``.
        options: how.
        console: where progress is shown; ``None`` shows none.

    Raises:
        DataError: sources or options are wrong (all problems at once), text is not UTF-8 (file, line and
            byte), or
            ``dest`` holds data that contradicts them.
    """
    options = options or TextOptions()
    begin = time.monotonic()
    check_sources(sources, options)
    dest = dest.absolute()  # processes that encode may have been started in another folder
    dest.mkdir(parents=True, exist_ok=True)
    with sole_writer(dest):
        return _Run(dict(sources), dest, options, console or Console(quiet=True)).run(begin)


class _Run:
    """State of one call."""

    def __init__(self, sources: dict[str, Path], dest: Path, options: TextOptions, console: Console) -> None:
        self.sources, self.dest, self.options, self.console = sources, dest, options, console
        self.encoder_json = None if options.encoder_json is None else str(options.encoder_json.resolve())
        self.vocab_bpe = None if options.vocab_bpe is None else str(options.vocab_bpe.resolve())
        self.bpe = shared_bpe(self.encoder_json, self.vocab_bpe)
        self.card = read_card(dest) or {}
        self.results: list[ChunkResult] = []

    def run(self, begin: float) -> TextReport:
        hashes = {split: file_sha256(path) for split, path in self.sources.items()}
        given = self._given_dictionary()
        keys = {split: self._key(split, hashes, given) for split in self.sources}
        done = {split: report for split in self.sources if (report := self._finished(split, keys[split]))}
        todo = [split for split in self.sources if split not in done]
        if given is not None:
            self._refuse_conflicts(given, todo)
        chunks = self._encode(todo)
        dictionary = given if given is not None else self._built_dictionary(chunks)
        if given is None:
            self._refuse_conflicts(dictionary, todo)
        if todo:
            write_text(self.dest / DICTIONARY_NAME, dictionary.text())
        reports = dict(done)
        for split in todo:
            reports[split] = self._merge(split, chunks[split], dictionary, keys[split], hashes[split])
            self._write_card(dictionary, split, reports[split])
        shutil.rmtree(self.dest / WORK_FOLDER, ignore_errors=True)
        return TextReport(
            folder=self.dest,
            splits={split: reports[split] for split in self.sources},
            dictionary=dictionary.digest(),
            vocabulary=len(dictionary),
            encoded_tokens=sum(r.tokens for r in self.results if not r.reused),
            reused_tokens=sum(r.tokens for r in self.results if r.reused),
            seconds=time.monotonic() - begin,
            cpu_s=sum(r.cpu_s for r in self.results if not r.reused),
        )

    def _given_dictionary(self) -> Dictionary | None:
        """The dictionary, unless it is to be built from the text."""
        if self.options.dictionary is not None:
            return Dictionary.load(self.options.dictionary).with_mask()
        return None if self.options.build_dict else Dictionary.identity(self.bpe.size).with_mask()

    def _key(self, split: str, hashes: dict[str, str], given: Dictionary | None) -> str:
        """Everything that the split's files depend on."""
        built = [self.options.threshold, self.options.max_size]
        built += [hashes[name] for name in sorted(hashes) if name.startswith("train")]
        words = given.digest() if given is not None else built
        parts = [hashes[split], self.bpe.digest(), self.options.keep_empty, words]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _finished(self, split: str, key: str) -> TextSplitReport | None:
        """The split's report if an earlier run finished it from the same source and options."""
        entry = self.card.get("splits", {}).get(split)
        if not isinstance(entry, dict) or entry.get("key") != key:
            return None
        path = self.dest / DICTIONARY_NAME
        if not path.is_file() or Dictionary.load(path).digest() != self.card.get("dictionary"):
            return None
        bytes_wanted = entry["tokens"] * token_dtype(self.card["vocabulary"]).itemsize
        files = [self.dest / f"{split}.bin", self.dest / f"{split}.idx"]
        if not all(f.is_file() for f in files) or files[0].stat().st_size != bytes_wanted:
            return None
        names = TextSplitReport.__dataclass_fields__
        return TextSplitReport(**{**{k: v for k, v in entry.items() if k in names}, "skipped": True})

    def _refuse_conflicts(self, dictionary: Dictionary, todo: list[str]) -> None:
        """Data of one folder must share one dictionary."""
        path = self.dest / DICTIONARY_NAME
        if not todo or not path.is_file() or Dictionary.load(path).text() == dictionary.text():
            return
        others = sorted(set(splits_in(self.dest)) - set(todo))
        if self.options.dictionary is None:
            raise DataError(
                f"{path} exists with other content than this run would write; give --dict {path} to use it, "
                "choose "
                "another --dest, or remove the folder"
            )
        if others and Dictionary.load(path).digest() != dictionary.digest():
            raise DataError(
                f"{self.dest} also holds {', '.join(others)}, made with another dictionary than "
                f"{self.options.dictionary}; "
                "choose another --dest or prepare these splits in the same command"
            )

    def _encode(self, todo: list[str]) -> dict[str, list[Path]]:
        """BPE ids of all splits, chunk by chunk, on all cores."""
        jobs: dict[str, list[ChunkJob]] = {}
        for split in todo:
            folder = self.dest / WORK_FOLDER / split
            folder.mkdir(parents=True, exist_ok=True)
            source = self.sources[split].resolve()
            jobs[split] = [
                ChunkJob(
                    source=source,
                    start=start,
                    end=end,
                    target=folder / f"{start:015d}-{end:015d}.npz",
                    keep_empty=self.options.keep_empty,
                    encoder_json=self.encoder_json,
                    vocab_bpe=self.vocab_bpe,
                    tokenizer=self.bpe.digest(),
                    parent=os.getpid(),
                )
                for start, end in chunk_bounds(source, self.options.chunk_bytes)
            ]
            wanted = {job.target for job in jobs[split]}
            for stale in set(folder.iterdir()) - wanted:
                stale.unlink()
        everything = [(split, job) for split in todo for job in jobs[split]]
        workers = min(self.options.workers or joblib.cpu_count(), max(len(everything), 1))
        settings: dict[str, Any] = {"n_jobs": workers, "batch_size": 1, "return_as": "generator"}
        # An ordered generator: results arrive as they are needed and few chunks are in flight.
        pool = joblib.Parallel(backend="loky", **settings)
        with progress_bars(self.console) as progress:
            bars = {
                split: progress.add_task(split, total=sum(j.end - j.start for j in jobs[split]), rate="")
                for split in todo
            }
            begin, tokens = time.monotonic(), 0
            try:
                found: Any = pool(joblib.delayed(encode_chunk)(job) for _, job in everything)
                for (split, _), result in zip(everything, found, strict=True):
                    self.results.append(result)
                    tokens += 0 if result.reused else result.tokens
                    rate = tokens / max(time.monotonic() - begin, 1e-6) / 1e6
                    progress.update(bars[split], advance=result.bytes, rate=f"{rate:.2f} M tokens/s")
            except TerminatedWorkerError as error:
                raise DataError(
                    "a worker process was killed (out of memory?); finished chunks are kept: run the same "
                    "command again, "
                    f"with fewer --workers than {workers} if memory was short"
                ) from error
        return {split: [job.target for job in jobs[split]] for split in todo}

    def _built_dictionary(self, chunks: dict[str, list[Path]]) -> Dictionary:
        """Count the training text; if that is finished, the folder's dictionary was made from it."""
        training = [path for split, paths in chunks.items() if split.startswith("train") for path in paths]
        if not training:
            return Dictionary.load(self.dest / DICTIONARY_NAME).with_mask()
        counts = np.zeros(self.bpe.size + 1, dtype=np.int64)
        for path in training:
            counts += np.bincount(read_chunk(path).ids, minlength=len(counts))
        seen = {str(i): int(n) for i, n in enumerate(counts[:-1]) if n}
        threshold, max_size = self.options.threshold, self.options.max_size
        return Dictionary.from_counts(seen, threshold=threshold, max_size=max_size).with_mask()

    def _merge(
        self, split: str, chunks: list[Path], dictionary: Dictionary, key: str, sha256: str
    ) -> TextSplitReport:
        """Chunks, in order, through the dictionary into the split's files."""
        lines = empty = unknown = 0
        with IndexedTokensWriter(self.dest / split, len(dictionary)) as writer:
            for path in chunks:
                encoded = read_chunk(path)
                ids = model_ids(encoded.ids, dictionary, self.bpe.size)
                writer.add_lines(ids, encoded.sizes)
                lines, empty = lines + len(encoded.sizes), empty + int((encoded.sizes == 1).sum())
                unknown += int((ids == Dictionary.unk).sum())
            tokens = writer.num_tokens
            if lines == empty:
                raise DataError(f"{self.sources[split]} holds no text, only empty lines")
        source = self.sources[split]
        return TextSplitReport(
            source=source.name,
            source_bytes=source.stat().st_size,
            source_sha256=sha256,
            lines=lines,
            empty_lines=empty,
            tokens=tokens,
            unknown_tokens=unknown,
            key=key,
        )

    def _write_card(self, dictionary: Dictionary, split: str, report: TextSplitReport) -> None:
        entry: dict[str, Any] = {k: v for k, v in vars(report).items() if k != "skipped"}
        entry["keep_empty"] = self.options.keep_empty
        files = [(DICTIONARY_NAME, self.dest / DICTIONARY_NAME), *split_files(self.dest, split, False)]
        entry["fingerprint"] = fingerprint_files(files)
        kept = self.card.get("splits", {}) if self.card.get("dictionary") == dictionary.digest() else {}
        self.card = {
            "format": 1,
            "kind": "text",
            "dictionary": dictionary.digest(),
            "tokenizer": TextTokenizer(self.bpe, dictionary).digest(),
            "vocabulary": len(dictionary),
            "splits": {**kept, split: entry},
        }
        if self.bpe.own:
            self.bpe.save(self.dest)
        write_card(self.dest, self.card)


def check_sources(sources: Mapping[str, Path], options: TextOptions, problems: Sequence[str] = ()) -> None:
    """Raise :class:`DataError` with everything that is wrong, ``problems`` found elsewhere included."""
    problems = list(problems)
    if not sources:
        problems.append("no text was given; use --train FILE and --valid FILE")
    for split, path in sources.items():
        if not path.exists():
            problems.append(f"{path} ({split}) does not exist")
        elif not path.is_file():
            problems.append(f"{path} ({split}) is not a file; give one text file a split")
        elif not path.stat().st_size:
            problems.append(f"{path} ({split}) is empty")
    if options.dictionary is not None and options.build_dict:
        problems.append("--dict and --build-dict exclude each other: use a dictionary or make one")
    if options.build_dict and sources and not any(split.startswith("train") for split in sources):
        problems.append(
            "--build-dict counts the training text; give --train, or --dict with an existing dictionary"
        )
    if not options.build_dict and (options.threshold or options.max_size is not None):
        problems.append("--threshold and --max-size shape a built dictionary; they need --build-dict")
    if options.threshold < 0 or (options.max_size is not None and options.max_size < 5):
        problems.append("--threshold must be >= 0 and --max-size >= 5 (four specials and a symbol)")
    if options.workers is not None and options.workers < 1:
        problems.append(f"--workers {options.workers} must be >= 1")
    if options.chunk_bytes < 1:
        problems.append(f"chunk_bytes {options.chunk_bytes} must be >= 1")
    if problems:
        raise DataError("text cannot be prepared:\n  " + "\n  ".join(problems))


def progress_bars(console: Console) -> Bars:
    """One bar a file, with the speed and the time that is left."""
    return Bars(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console,
    )  # fmt: skip
