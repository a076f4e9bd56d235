"""``d2v embed``: images or recordings to Parquet; what needs PyTorch is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from data2vec.errors import DataError

from ..storage.local_places import file_to_write
from .command_options import BatchSize, Device

if TYPE_CHECKING:
    from data2vec.image_model import ImageModel
    from data2vec.speech_model import SpeechModel

Pooling = Literal["mean", "cls", "none"]


def embed_command(
    data: Annotated[
        str, typer.Argument(help="Folder of images or recordings, a recording, a .tsv; or a URI.")
    ],
    model: Annotated[str, typer.Option("--model", help="Any model name: models:/NAME@ALIAS, a folder.")],
    dest: Annotated[Path, typer.Option("--dest", help="Parquet file to write.", parser=file_to_write)],
    subset: Annotated[str | None, typer.Option(help="Subset of the folder, such as val.")] = None,
    layer: Annotated[
        int, typer.Option(help="Shared block whose output is taken; -1 = last, 0 = first.")
    ] = -1,
    pooling: Annotated[
        Pooling,
        typer.Option(help="Mean, class token (images), or none: every patch, or a row for each 20 ms frame."),
    ] = "mean",
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Images at any depth; folders are no classes.")
    ] = False,
    device: Device = "auto",
    batch_size: BatchSize = 16,
) -> None:
    """Embeddings to Parquet.

    Images: columns file, label (class folders) and embedding, with --pooling none that of every patch.
    Recordings of any format, rate and length: file, seconds and embedding, or with --pooling none file,
    start_s and embedding of every frame. A recording that cannot be read is reported at the end; the others
    are done.
    """
    import data2vec
    from data2vec.image_model import ImageModel
    from data2vec.in_use import device_of
    from data2vec.speech_model import SpeechModel

    from ..registry.model_folders import model_folder
    from ..storage.cache import local_data

    where = device_of(device)
    loaded = data2vec.load(model_folder(model)[0], device=where)
    place = Path(local_data(data))
    if isinstance(loaded, ImageModel):
        labelled = False if unlabelled else None  # else what the folders say
        _images(loaded, place, dest, subset, labelled, layer, pooling, batch_size)
    elif isinstance(loaded, SpeechModel):
        _recordings(loaded, place, dest, subset, layer, pooling, batch_size)
    else:
        raise DataError(f"{model} reads text; use data2vec.load(...).embed([...]) for sentences")


def _images(
    model: ImageModel,
    place: Path,
    dest: Path,
    subset: str | None,
    labelled: bool | None,
    layer: int,
    pooling: Pooling,
    batch_size: int,
) -> None:
    from .image_rows import open_any, run_model, write_embeddings

    if place.is_file():
        raise DataError(f"{place} is a file; d2v embed takes the images of a folder")
    source = open_any(place, subset, labelled)
    rows = run_model(model, source, "features", pooling, layer, batch_size=batch_size)
    write_embeddings(rows, dest)
    console = Console(markup=False)
    for line in rows.odd:
        console.print(line, style="yellow", markup=False)
    console.print(
        f"{dest}: {len(rows.names):,} embeddings of {' x '.join(map(str, rows.values.shape[1:]))} values",
        highlight=False,
        markup=False,
    )


def _recordings(
    model: SpeechModel,
    place: Path,
    dest: Path,
    subset: str | None,
    layer: int,
    pooling: Pooling,
    batch_size: int,
) -> None:
    from .audio_embeddings import embed_recordings
    from .recordings import find_recordings, report_unreadable

    if pooling == "cls":
        raise DataError("--pooling cls is for images; recordings have mean and none")
    source = place if subset is None else place / subset
    if subset is not None and not source.exists():
        source = place / f"{subset}.tsv"
    console = Console(markup=False, soft_wrap=True)
    files = find_recordings(source)
    report = embed_recordings(
        model, files, dest, pooling=pooling, layer=layer, batch_size=batch_size, console=console
    )
    frames = f", {report.rows:,} frames" if pooling == "none" else ""
    console.print(
        f"{dest}: {report.recordings:,} recordings{frames}, embeddings of {report.dim} values",
        highlight=False,
        markup=False,
    )
    report_unreadable(report.failed, len(files))
