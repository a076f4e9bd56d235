"""``d2v export``: a model by any of its names, in another program's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from data2vec.errors import ConfigError, Problem

from ..storage.local_places import path_to_write
from ..tracking.tracker import Tracker

_FORMATS = ("fairseq", "huggingface", "safetensors")


def export_command(
    model: Annotated[
        str, typer.Argument(help="models:/NAME@ALIAS, a folder, s3://..., or a fairseq .pt file")
    ],
    to: Annotated[str, typer.Option("--to", help="fairseq, huggingface or safetensors")],
    out: Annotated[
        Path,
        typer.Option(help="What to write: a .pt file for fairseq, else a new folder.", parser=path_to_write),
    ],
    half: Annotated[
        bool, typer.Option("--half", help="fairseq: the student in fp16, as its own files.")
    ] = False,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server of models:/ names.")] = None,
) -> None:
    """Write a model for fairseq, for Hugging Face's transformers, or as plain safetensors with a key table.

    Hugging Face has classes for v1 audio, text and vision with their heads, which also compute v2 text.
    """
    problems: list[Problem] = []
    if to not in _FORMATS:
        problems.append(Problem("--to", to, f"must be one of {', '.join(_FORMATS)}"))
    if half and to != "fairseq":
        problems.append(Problem("--half", True, "is for --to fairseq"))
    if to == "fairseq" and out.suffix != ".pt":
        problems.append(Problem("--out", str(out), "must end in .pt for fairseq"))
    if problems:
        raise ConfigError(problems, "the command line")
    from data2vec.artifact import read_artifact
    from data2vec.interop.export import export_fairseq, export_safetensors
    from data2vec.interop.huggingface import export_folder

    from ..registry.model_folders import model_folder

    if tracking_uri is not None:
        from ..registry.model_source import resolve

        with Tracker(tracking_uri) as tracker:
            model = str(resolve(model, tracker).path)
    folder, _ = model_folder(model)
    artifact = read_artifact(folder)
    if to == "fairseq":
        remarks = export_fairseq(artifact, out, half=half)
    elif to == "huggingface":
        remarks = [f"left out: {words}" for words in export_folder(artifact, out)]
    else:
        remarks = export_safetensors(artifact, out)
    console = Console(markup=False, soft_wrap=True, highlight=False)
    console.print(f"{artifact.kind} model of {folder} written to {out} ({to})", markup=False)
    for remark in remarks:
        console.print(f"  {remark}", markup=False)
