"""``d2v embed``: images or recordings to Parquet; what needs PyTorch is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import data2vec
from data2vec.errors import DataError

from ..storage.cache import local_data
from ..storage.local_places import file_to_write
from .command_options import BatchSize, Device, EmbedOptions, Pooling


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
    from data2vec.in_use import device_of

    from ..registry.model_folders import model_folder
    from ..registry.served_models import served_of

    where = device_of(device)  # said first where it is not here
    loaded = data2vec.load(model_folder(model)[0], device=where)
    embed = served_of(loaded.config).verb("embed")
    if embed is None:
        raise DataError(f"{model}: d2v embed has no reader for what it reads; use data2vec.load(...)")
    options = EmbedOptions(
        model=model, dest=dest, subset=subset, unlabelled=unlabelled, layer=layer, pooling=pooling,
        batch_size=batch_size,
    )  # fmt: skip
    embed(loaded, Path(local_data(data)), options)
