"""``d2v probe``; what needs PyTorch is imported when it runs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from data2vec.errors import DataError

Model = Annotated[str, typer.Option("--model", help="Any model name: models:/NAME@ALIAS, a folder, a .pt.")]
Layer = Annotated[int, typer.Option(help="Block whose output is taken; -1 = the last, 0 = the first.")]
Pooling = Literal["mean", "cls"]


def probe_command(
    data: Annotated[str, typer.Argument(help="Folder with the two subsets, in class folders.")],
    model: Model,
    bank: Annotated[str, typer.Option(help="Subset that teaches the probes.")] = "train",
    subset: Annotated[str, typer.Option(help="Subset that they are judged on.")] = "val",
    layer: Layer = -1,
    pooling: Annotated[Pooling, typer.Option(help="Mean over patches, or the class token.")] = "mean",
    neighbours: Annotated[int, typer.Option(help="k of the kNN probe.")] = 20,
) -> None:
    """kNN and linear probe of a frozen image model's features, in percent."""
    from ..storage.cache import local_data
    from ..training.preflight import model_folder
    from .images import load_image_model, open_any, probe, run_model

    if neighbours < 1:
        raise DataError(f"--neighbours {neighbours} must be >= 1")
    loaded, place = load_image_model(model_folder(model)[0]), local_data(data)
    sides = [run_model(loaded, open_any(place, name), "features", pooling, layer) for name in (bank, subset)]
    scores = probe(sides[0], sides[1], neighbours)
    table = Table("bank", "images", "judged on", "images", f"kNN (k={neighbours}) %", "linear %")
    counts = [str(len(side.names)) for side in sides]
    table.add_row(bank, counts[0], subset, counts[1], f"{scores['knn']:.2f}", f"{scores['linear_probe']:.2f}")
    Console().print(table)
