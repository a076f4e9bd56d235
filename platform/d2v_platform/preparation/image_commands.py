"""``d2v prepare images``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from data2vec.errors import DataError

from ..storage.cache import local_data
from .destination import Dest


def images(
    root: Annotated[str, typer.Argument(help="Folder with train/CLASS/..., val/CLASS/...; local or a URI.")],
    dest: Dest,
    splits: Annotated[str, typer.Option(help="Subsets, separated by commas; default: all found.")] = "",
    images_per_shard: Annotated[int, typer.Option(help="Images in a shard.")] = 1000,
    resize: Annotated[int | None, typer.Option(help="Shrink to this shorter side, in pixels.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of images.")] = 1,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Images at any depth, no classes.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if an image cannot be read.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: all cores.")] = None,
) -> None:
    """Image folders to verified tar shards (WebDataset layout) and index.json.

    Every image is decoded; unreadable ones are left out and listed in bad_images.tsv. A killed run continues.
    """
    from .images import ImageOptions, prepare_images, summary

    if images_per_shard < 1:
        raise DataError(f"--images-per-shard {images_per_shard} must be >= 1")
    if resize is not None and resize < 1:
        raise DataError(f"--resize {resize} must be >= 1")
    console = Console(markup=False)
    options = ImageOptions(
        images_per_shard=images_per_shard,
        resize=resize,
        seed=seed,
        unlabelled=unlabelled,
        strict=strict,
        workers=workers,
    )
    wanted = [name.strip() for name in splits.split(",") if name.strip()]
    reports = prepare_images(Path(local_data(root)), dest, wanted, options, console)
    for line in summary(reports, dest):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(f"task.data={dest}", highlight=False, soft_wrap=True)
