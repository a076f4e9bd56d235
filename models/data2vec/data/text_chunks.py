"""One chunk of a text file to a file of BPE ids: what each process of ``d2v prepare text`` runs. No torch "
"here."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..folders import written_file
from .bpe import shared_bpe
from .encoding import EncodedLines, encode_lines, text_lines


@dataclass(frozen=True)
class ChunkJob:
    """A byte range of a source file, and where its ids go."""

    source: Path
    start: int
    end: int
    target: Path
    keep_empty: bool
    encoder_json: str | None
    vocab_bpe: str | None
    tokenizer: str  # digest of the BPE files
    parent: int  # process whose end also ends this one


@dataclass(frozen=True)
class ChunkResult:
    """What one chunk gave."""

    target: Path
    bytes: int
    tokens: int
    cpu_s: float
    reused: bool  # an earlier, interrupted run had made it from the same bytes with the same options


def encode_chunk(job: ChunkJob) -> ChunkResult:
    """Encode one chunk, or keep the file of an earlier run if bytes and options are the same."""
    if os.getpid() != job.parent:
        _leave_with(job.parent)
    bpe = shared_bpe(job.encoder_json, job.vocab_bpe)
    begin = time.process_time()  # loading the vocabulary, once a process, is not encoding
    with job.source.open("rb") as file:
        file.seek(job.start)
        data = file.read(job.end - job.start)
    key = hashlib.sha256(data + f"\0{job.tokenizer}\0{job.keep_empty}".encode()).hexdigest()
    tokens = _stored_tokens(job.target, key)
    reused = tokens is not None
    if tokens is None:
        lines = text_lines(data, job.start == 0, job.source, byte_offset=job.start)
        encoded = encode_lines(bpe, lines, job.keep_empty)
        with written_file(job.target) as beside, beside.open("wb") as file:
            np.savez(file, ids=encoded.ids, sizes=encoded.sizes, key=np.array(key))
        tokens = len(encoded.ids)
    return ChunkResult(job.target, job.end - job.start, tokens, time.process_time() - begin, reused)


def read_chunk(path: Path) -> EncodedLines:
    """What :func:`encode_chunk` stored."""
    with np.load(path, allow_pickle=False) as stored:
        return EncodedLines(stored["ids"], stored["sizes"])


@lru_cache(maxsize=1)
def _leave_with(parent: int) -> None:
    """End this process soon after its parent was killed: loky's workers would wait for more work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _stored_tokens(path: Path, key: str) -> int | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return len(stored["ids"]) if str(stored["key"]) == key else None
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        return None  # damaged: made again
