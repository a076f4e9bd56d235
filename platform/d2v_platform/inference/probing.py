"""``d2v probe``; what needs PyTorch is imported when it runs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

import data2vec
from data2vec.errors import DataError

from ..storage.cache import local_data
from .command_options import Device, ProbeOptions

DATA = (
    "Folder with two subsets. Images: class folders. Text: SUBSET.tsv of class<TAB>text lines, or "
    "class<TAB>text<TAB>number of a word in it. Audio: manifest SUBSET.tsv, SUBSET.wrd with a class a line."
)


def probe_command(
    data: Annotated[str, typer.Argument(help=DATA)],
    model: Annotated[
        str, typer.Option("--model", help="Any model name: models:/NAME@ALIAS, a folder, a .pt.")
    ],
    bank: Annotated[str, typer.Option(help="Subset that teaches the probes.")] = "train",
    subset: Annotated[
        str | None, typer.Option(help="Subset that they are judged on; default: val of images, else valid.")
    ] = None,
    layer: Annotated[
        int, typer.Option(help="Shared block whose output is taken; -1 = the last, 0 = the first.")
    ] = -1,
    pooling: Annotated[
        Literal["mean", "cls"], typer.Option(help="Of images: mean over patches, or the class token.")
    ] = "mean",
    neighbours: Annotated[int, typer.Option(help="k of the kNN probe.")] = 20,
    random_weights: Annotated[
        int, typer.Option(help="Judge so many random initialisations beside it: the baseline.")
    ] = 0,
    device: Device = "auto",
) -> None:
    """kNN and linear probe of a frozen model's features, in percent."""
    from data2vec.in_use import device_of

    from ..registry.model_folders import model_folder
    from ..registry.served_models import served_of

    if neighbours < 1:
        raise DataError(f"--neighbours {neighbours} must be >= 1")
    if random_weights < 0:
        raise DataError(f"--random-weights {random_weights} must be >= 0")
    where, place = device_of(device), local_data(data)
    loaded = data2vec.load(model_folder(model)[0], device=where)
    probe = served_of(loaded.config).verb("probe")
    if probe is None:
        raise DataError(f"{model}: d2v probe has no reader for what it reads; use data2vec.load(...)")
    seeds = range(1, random_weights + 1)
    options = ProbeOptions(bank=bank, subset=subset, layer=layer, pooling=pooling, neighbours=neighbours)
    found = probe([loaded, *(loaded.untrained(seed) for seed in seeds)], place, options)
    table = Table("weights", "bank", "items", "judged on", "items", f"kNN (k={neighbours}) %", "linear %")
    for what, scores in zip(["model", *(f"random {seed}" for seed in seeds)], found.scores, strict=True):
        cells = (found.sides[0], str(found.counts[0]), found.sides[1], str(found.counts[1]))
        table.add_row(what, *cells, f"{scores['knn']:.2f}", f"{scores['linear_probe']:.2f}")
    console = Console(markup=False)
    for line in found.odd:
        console.print(line, style="yellow", markup=False)
    console.print(table)
