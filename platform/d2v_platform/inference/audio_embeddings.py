"""Embeddings of recordings to Parquet: one row a recording, or one a frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from data2vec.audio_model import BATCH, AudioModel
from data2vec.errors import DataError
from data2vec.folders import printable, written_file

from ..bars import Bars
from .command_options import EmbedOptions
from .recordings import ReadRecordings, find_recordings, report_unreadable

_ROWS = 4096  # rows of a row group: memory stays small whatever the corpus


@dataclass(kw_only=True)
class Embedded:
    """What :func:`embed_recordings` wrote."""

    recordings: int = 0
    rows: int = 0
    dim: int = 0
    failed: list[str] = field(default_factory=list)  # path and reason of what could not be read


def embed_recordings(
    model: AudioModel,
    files: Sequence[Path],
    dest: Path,
    *,
    pooling: Literal["mean", "none"] = "mean",
    layer: int = -1,
    batch_size: int = BATCH,
    console: Console | None = None,
) -> Embedded:
    """Write ``file``, ``seconds`` and ``embedding`` of each recording, in the order of the files.

    Without pooling the columns are ``file``, ``start_s`` and ``embedding`` of each frame (20 ms). The file
    appears complete or not at all. A recording that cannot be read is left out and reported.

    Raises:
        DataError: the layer does not exist, or none of the recordings can be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    report = Embedded()
    second = "seconds" if pooling == "mean" else "start_s"
    dest.parent.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    numbers: list[float] = []
    vectors: list[np.ndarray] = []
    writer: pq.ParquetWriter | None = None

    def flush() -> None:
        nonlocal writer
        if not names:
            return
        flat = np.ascontiguousarray(np.stack(vectors), dtype=np.float32)
        table = pa.table(
            {
                "file": pa.array(names, type=pa.string()),
                second: pa.array(numbers, type=pa.float64()),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1]),
            }
        )
        if writer is None:
            writer = pq.ParquetWriter(beside, table.schema)
        writer.write_table(table)
        for column in (names, numbers, vectors):
            column.clear()

    with written_file(dest) as beside:
        recordings = ReadRecordings(model, _shown(files, console))
        report.failed = recordings.failed
        embedded = model.embed_each(recordings, pooling, layer, batch_size=batch_size)
        for index, found in enumerate(embedded):
            path, seconds = recordings.done[index]
            rows = found[None] if pooling == "mean" else found
            starts = [seconds] if pooling == "mean" else np.arange(len(rows)) * model.frame_s
            names += [printable(path)] * len(rows)
            numbers += [round(float(value), 4) for value in starts]
            vectors += list(rows)
            report.recordings += 1
            report.rows += len(rows)
            report.dim = rows.shape[1]
            if len(names) >= _ROWS:
                flush()
        flush()
        if writer is None:
            raise DataError("none of the recordings can be read:\n  " + "\n  ".join(report.failed[:10]))
        writer.close()
    return report


def _shown(files: Sequence[Path], console: Console | None) -> Iterator[Path]:
    with Bars(*Bars.get_default_columns(), console=console, transient=True, disable=console is None) as bars:
        yield from bars.track(files, description="embedding recordings")


def embed_audio(model: AudioModel, place: Path, options: EmbedOptions) -> None:
    """``d2v embed`` of recordings."""
    if options.pooling == "cls":
        raise DataError("--pooling cls is for images; recordings have mean and none")
    source = place if options.subset is None else place / options.subset
    if options.subset is not None and not source.exists():
        source = place / f"{options.subset}.tsv"
    console = Console(markup=False, soft_wrap=True)
    files = find_recordings(source)
    report = embed_recordings(
        model,
        files,
        options.dest,
        pooling=options.pooling,
        layer=options.layer,
        batch_size=options.batch_size,
        console=console,
    )
    frames = f", {report.rows:,} frames" if options.pooling == "none" else ""
    console.print(
        f"{options.dest}: {report.recordings:,} recordings{frames}, embeddings of {report.dim} values",
        highlight=False,
        markup=False,
    )
    report_unreadable(report.failed, len(files))
