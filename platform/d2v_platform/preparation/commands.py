"""``d2v prepare``: raw data to the folders that ``task.data`` names; its parts are imported when they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from data2vec.errors import DataError

from .audio_commands import audio_events, audio_labels, audio_manifest, audio_subsets, language_model
from .destination import Dest
from .image_commands import images

if TYPE_CHECKING:
    from data2vec.data.glue import GlueReport

    from .text import TextReport

app = typer.Typer(no_args_is_help=True, help="Turn raw data into folders for task.data.")
app.command("audio-manifest")(audio_manifest)
app.command("audio-labels")(audio_labels)
app.command("audio-events")(audio_events)
app.command("audio-subsets")(audio_subsets)
app.command("language-model")(language_model)
app.command("images", epilog="Example: d2v prepare images /imagenet --dest /shards --resize 256")(images)

Dict = Annotated[Path | None, typer.Option("--dict", help="dict.txt to use; needed for released models.")]
Encoder = Annotated[Path | None, typer.Option(help="encoder.json; default: GPT-2's.")]
Merges = Annotated[Path | None, typer.Option(help="vocab.bpe; default: GPT-2's.")]
Fetch = Annotated[bool, typer.Option("--download", help="Allow downloads.")]
Sha256 = Annotated[list[str] | None, typer.Option("--sha256", help="NAME=HEX: checksum of a download.")]


@app.command()
def text(
    dest: Dest,
    train: Annotated[list[str] | None, typer.Option(help="Training text; repeat for train1, ....")] = None,
    valid: Annotated[list[str] | None, typer.Option(help="Validation text; repeat for valid1, ....")] = None,
    test: Annotated[list[str] | None, typer.Option(help="Test text; repeat for test1, ....")] = None,
    dict_: Dict = None,
    build_dict: Annotated[
        bool, typer.Option("--build-dict", help="Make the dictionary from --train.")
    ] = False,
    threshold: Annotated[int, typer.Option(help="Leave rarer symbols out of a built dictionary.")] = 0,
    max_size: Annotated[int | None, typer.Option(help="Largest built dictionary, before padding.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: all cores.")] = None,
    keep_empty: Annotated[bool, typer.Option(help="Keep empty lines: they end documents.")] = True,
    encoder_json: Encoder = None,
    vocab_bpe: Merges = None,
    fetch: Fetch = False,
    sha256: Sha256 = None,
    units: Annotated[
        str, typer.Option(help="bpe (data2vec's models); words or letters for language models.")
    ] = "bpe",
) -> None:
    """Text files (UTF-8, one paragraph a line, an empty line ends a document) to .bin/.idx and dict.txt.

    A file may also be an http(s) address with --download. A killed run continues where it stopped.
    --units words and letters make data for language_modeling recipes: a sentence a line, in the letters
    (upper or lower case) of the transcripts that are to be decoded.
    """
    from .text import TextOptions, prepare_text
    from .unit_text import prepare_units

    if units not in ("bpe", "words", "letters"):
        raise DataError(f"--units {units!r} must be bpe, words or letters")
    console = Console(markup=False)
    named = {"train": train or [], "valid": valid or [], "test": test or []}
    checksums = _named_values(sha256 or [])
    sources = {
        f"{split}{number or ''}": _local(name, dest, fetch, checksums)
        for split, names in named.items()
        for number, name in enumerate(names)
    }
    if checksums:
        raise DataError(f"--sha256 {', '.join(checksums)}: nothing of this name is downloaded")
    options = TextOptions(
        dictionary=dict_,
        build_dict=build_dict,
        threshold=threshold,
        max_size=max_size,
        encoder_json=encoder_json,
        vocab_bpe=vocab_bpe,
        keep_empty=keep_empty,
        workers=workers,
    )
    if units == "bpe":
        report = prepare_text(sources, dest, options, console)
    else:
        report = prepare_units(sources, dest, "words" if units == "words" else "letters", options, console)
    _show_text(report, console)


@app.command()
def glue(
    raw_folder: Annotated[Path, typer.Argument(help="Folder with CoLA/, SST-2/, ....")],
    dest: Dest,
    tasks: Annotated[list[str], typer.Option(help="cola,rte,... or all.")] = ["all"],  # noqa: B006
    dict_: Dict = None,
    encoder_json: Encoder = None,
    vocab_bpe: Merges = None,
    fetch: Fetch = False,
    sha256: Sha256 = None,
) -> None:
    """Raw GLUE folders to <TASK>-bin folders in the reference's layout.

    Hugging Face's exports are taken too: sst2/train.csv, sst2/validation.csv, ... (tsv, jsonl, parquet).

    --download fetches missing tasks into RAW_FOLDER; --sha256 cola=HEX verifies an archive.
    """
    from .glue import prepare_glue

    console = Console(markup=False)
    reports = prepare_glue(
        raw_folder,
        dest,
        tasks,
        dictionary=dict_,
        encoder_json=encoder_json,
        vocab_bpe=vocab_bpe,
        fetch=fetch,
        sha256=_named_values(sha256 or []),
        console=console,
    )
    _show_glue(reports, dest, console)


def _local(name: str, dest: Path, fetch: bool, checksums: dict[str, str]) -> Path:
    """A path, or a downloaded copy of an address."""
    from .download import download_text, file_name

    if not name.startswith(("http://", "https://")):
        return Path(name)
    if not fetch:
        raise DataError(f"{name} is an address; add --download to fetch it, or give a local file")
    return download_text(name, dest / ".downloads", checksums.pop(file_name(name), None))


def _named_values(entries: Sequence[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in entries]
    if wrong := [
        entry for entry, (name, _, value) in zip(entries, pairs, strict=True) if not name or not value
    ]:
        raise DataError(f"--sha256 {wrong[0]!r} must be NAME=HEX")
    return {name: value for name, _, value in pairs}


def _show_text(report: TextReport, console: Console) -> None:
    table = Table("split", "lines", "empty", "tokens", "unknown", "state")
    for name, split in report.splits.items():
        state = "unchanged, skipped" if split.skipped else "written"
        numbers = (split.lines, split.empty_lines, split.tokens, split.unknown_tokens)
        table.add_row(name, *(f"{n:,}" for n in numbers), state)
    console.print(table)
    speed = f"{report.encoded_tokens / max(report.seconds, 1e-6) / 1e6:.2f} M tokens/s"
    if report.encoded_tokens:
        speed += f", {report.tokens_per_cpu_s / 1e6:.2f} M tokens per CPU second of encoding"
    reused = (
        f", {report.reused_tokens:,} tokens taken from an interrupted run" if report.reused_tokens else ""
    )
    console.print(
        f"{report.folder}: vocabulary {report.vocabulary}, dictionary {report.dictionary[:12]}, "
        f"{report.seconds:.1f} s, {speed}{reused}",
        highlight=False,
    )


def _show_glue(reports: Sequence[GlueReport], dest: Path, console: Console) -> None:
    table = Table("task", "class ids", "split", "rows", "kept", "dropped", "longest")
    for report in reports:
        labels = ", ".join(f"{i}={label}" for i, label in enumerate(report.labels)) or "score / 5"
        for number, (name, split) in enumerate(report.splits.items()):
            reasons = "; ".join(f"{count} {reason}" for reason, count in split.dropped.items()) or "0"
            head = (report.task, labels) if number == 0 else ("", "")
            table.add_row(*head, name, f"{split.rows:,}", f"{split.kept:,}", reasons, str(split.longest))
    console.print(table)
    console.print(f"task.data={dest}/<TASK>-bin", highlight=False)
