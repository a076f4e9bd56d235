"""``d2v probe``; what needs PyTorch is imported when it runs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from data2vec.errors import DataError

from ..storage.cache import local_data
from .command_options import Device

Model = Annotated[str, typer.Option("--model", help="Any model name: models:/NAME@ALIAS, a folder, a .pt.")]
Layer = Annotated[int, typer.Option(help="Shared block whose output is taken; -1 = the last, 0 = the first.")]
Pooling = Literal["mean", "cls"]
PoolingOption = Annotated[Pooling, typer.Option(help="Mean over patches, or the class token.")]


def probe_command(
    data: Annotated[str, typer.Argument(help="Folder with the two subsets, in class folders.")],
    model: Model,
    bank: Annotated[str, typer.Option(help="Subset that teaches the probes.")] = "train",
    subset: Annotated[str, typer.Option(help="Subset that they are judged on.")] = "val",
    layer: Layer = -1,
    pooling: PoolingOption = "mean",
    neighbours: Annotated[int, typer.Option(help="k of the kNN probe.")] = 20,
    random_weights: Annotated[
        int, typer.Option(help="Judge so many random initialisations beside it: the baseline.")
    ] = 0,
    device: Device = "auto",
) -> None:
    """kNN and linear probe of a frozen image model's features, in percent."""
    from data2vec.in_use import device_of

    from ..registry.model_folders import model_folder
    from .image_probes import probe
    from .image_rows import load_image_model, open_any, run_model

    if neighbours < 1:
        raise DataError(f"--neighbours {neighbours} must be >= 1")
    if random_weights < 0:
        raise DataError(f"--random-weights {random_weights} must be >= 0")
    where, place = device_of(device), local_data(data)
    sources = [open_any(place, name, True) for name in (bank, subset)]
    if sources[0].classes != sources[1].classes:
        differ = sorted(set(sources[0].classes) ^ set(sources[1].classes))
        raise DataError(f"{data}: {subset} has other classes than {bank}, such as {differ[0]!r}")
    loaded = load_image_model(model_folder(model)[0], where)
    models = [("model", loaded)]
    models += [(f"random {seed}", loaded.untrained(seed)) for seed in range(1, random_weights + 1)]
    table = Table("weights", "bank", "images", "judged on", "images", f"kNN (k={neighbours}) %", "linear %")
    console, odd = Console(markup=False), dict[str, None]()
    for what, judged in models:
        sides = [run_model(judged, source, "features", pooling, layer) for source in sources]
        scores = probe(sides[0], sides[1], neighbours, seed=1)
        counts = [str(len(side.names)) for side in sides]
        figures = [f"{scores['knn']:.2f}", f"{scores['linear_probe']:.2f}"]
        table.add_row(what, bank, counts[0], subset, counts[1], *figures)
        odd |= dict.fromkeys(line for side in sides for line in side.odd)
    for line in odd:
        console.print(line, style="yellow", markup=False)
    console.print(table)
