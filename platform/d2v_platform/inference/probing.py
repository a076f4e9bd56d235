"""``d2v probe``; what needs PyTorch is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

import data2vec
from data2vec.errors import DataError

from ..storage.cache import local_data
from .command_options import Device

if TYPE_CHECKING:
    from data2vec.audio_model import AudioModel
    from data2vec.image_model import ImageModel
    from data2vec.text_model import TextModel

Model = Annotated[str, typer.Option("--model", help="Any model name: models:/NAME@ALIAS, a folder, a .pt.")]
Layer = Annotated[int, typer.Option(help="Shared block whose output is taken; -1 = the last, 0 = the first.")]
Pooling = Literal["mean", "cls"]
Judge = Callable[[Any], dict[str, float]]
"""A model to its scores in percent."""
PoolingOption = Annotated[Pooling, typer.Option(help="Of images: mean over patches, or the class token.")]
DATA = (
    "Folder with two subsets. Images: class folders. Text: SUBSET.tsv of class<TAB>text lines. Audio: a "
    "manifest SUBSET.tsv and SUBSET.wrd with a class a line."
)


def probe_command(
    data: Annotated[str, typer.Argument(help=DATA)],
    model: Model,
    bank: Annotated[str, typer.Option(help="Subset that teaches the probes.")] = "train",
    subset: Annotated[
        str | None, typer.Option(help="Subset that they are judged on; default: val of images, else valid.")
    ] = None,
    layer: Layer = -1,
    pooling: PoolingOption = "mean",
    neighbours: Annotated[int, typer.Option(help="k of the kNN probe.")] = 20,
    random_weights: Annotated[
        int, typer.Option(help="Judge so many random initialisations beside it: the baseline.")
    ] = 0,
    device: Device = "auto",
) -> None:
    """kNN and linear probe of a frozen model's features, in percent."""
    from data2vec.audio_model import AudioModel
    from data2vec.image_model import ImageModel
    from data2vec.in_use import device_of
    from data2vec.text_model import TextModel

    from ..registry.model_folders import model_folder

    if neighbours < 1:
        raise DataError(f"--neighbours {neighbours} must be >= 1")
    if random_weights < 0:
        raise DataError(f"--random-weights {random_weights} must be >= 0")
    where, place = device_of(device), local_data(data)
    loaded = data2vec.load(model_folder(model)[0], device=where)
    console = Console(markup=False)
    if isinstance(loaded, ImageModel):
        sides = (bank, subset or "val")
        judge, counts = _images(place, sides, pooling, layer, neighbours, console)
    elif isinstance(loaded, TextModel | AudioModel):
        if pooling != "mean":
            raise DataError(f"--pooling {pooling}: features of text and audio are the mean over positions")
        sides = (bank, subset or "valid")
        judge, counts = _labelled(place, sides, loaded, layer, neighbours)
    else:
        raise DataError(f"{model} reads neither images nor text nor audio")
    judged = [("model", judge(loaded))]
    judged += [(f"random {seed}", judge(loaded.untrained(seed))) for seed in range(1, random_weights + 1)]
    table = Table("weights", "bank", "items", "judged on", "items", f"kNN (k={neighbours}) %", "linear %")
    for what, scores in judged:
        figures = [f"{scores['knn']:.2f}", f"{scores['linear_probe']:.2f}"]
        table.add_row(what, sides[0], str(counts[0]), sides[1], str(counts[1]), *figures)
    console.print(table)


def _images(
    place: str, sides: tuple[str, str], pooling: Pooling, layer: int, neighbours: int, console: Console
) -> tuple[Judge, list[int]]:
    """What judges an image model, and the images of both sides; odd ones are told once."""
    from .image_probes import probe
    from .image_rows import open_any, run_model

    sources = [open_any(place, name, True) for name in sides]
    if sources[0].classes != sources[1].classes:
        differ = sorted(set(sources[0].classes) ^ set(sources[1].classes))
        raise DataError(f"{place}: {sides[1]} has other classes than {sides[0]}, such as {differ[0]!r}")
    told: set[str] = set()

    def judge(model: ImageModel) -> dict[str, float]:
        rows = [run_model(model, source, "features", pooling, layer) for source in sources]
        for line in dict.fromkeys(line for side in rows for line in side.odd if line not in told):
            console.print(line, style="yellow", markup=False)
            told.add(line)
        counts[:] = [len(side.names) for side in rows]
        return probe(rows[0], rows[1], neighbours, seed=1)

    counts: list[int] = []
    return judge, counts


def _labelled(
    place: str, sides: tuple[str, str], model: TextModel | AudioModel, layer: int, neighbours: int
) -> tuple[Judge, list[int]]:
    """What judges a text or audio model, and the items of both sides."""
    from data2vec.text_model import TextModel

    from ..tasks import labelled_probe

    read = labelled_probe.read_texts if isinstance(model, TextModel) else labelled_probe.read_recordings
    taught, judged = labelled_probe.taught_and_judged(place, sides, read, "the probe's data")

    def judge(one: TextModel | AudioModel) -> dict[str, float]:
        return labelled_probe.judge(one, taught, judged, layer, neighbours, seed=1)

    return judge, [len(taught.inputs), len(judged.inputs)]
