"""``d2v import``: published and other foreign checkpoints become model folders and registered versions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Table

from data2vec.errors import CheckpointError, ConfigError, Problem

from ..home import home_folder
from ..storage.local_places import folder_to_write

_HEX = re.compile(r"[0-9a-f]{64}")


def import_command(
    file: Annotated[
        Path | None, typer.Argument(help="fairseq .pt file, data2vec_vision file or Hugging Face folder")
    ] = None,
    register: Annotated[str | None, typer.Option(help="Name in the model registry.")] = None,
    alias: Annotated[str | None, typer.Option(help="Alias to take, through the gate.")] = None,
    dict_: Annotated[
        Path | None, typer.Option("--dict", help="dict.txt (text) or dict.ltr.txt (CTC) that belongs to it.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Names of a classifier's classes by number, one a line.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Model folder to write; default: under D2V_HOME.", parser=folder_to_write),
    ] = None,
    weights: Annotated[str, typer.Option(help="student, or teacher: the averaged weights.")] = "student",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is inside and write nothing.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="The published files.")] = False,
    download: Annotated[
        list[str] | None, typer.Option(help="Fetch a published file by its name in --list; repeatable.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="Expected checksum of FILE or of the download.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Mirror to download from, instead of the readme's.")
    ] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server of --register.")] = None,
) -> None:
    """Turn a checkpoint of the reference (or of Hugging Face) into a model of ours.

    Its architecture and recipe are recognised from the file; nothing in it is executed. The report lists what
    was taken, dropped and missing.
    """
    _check_request(file, register, alias, weights, dry_run, list_, download, sha256)
    if list_:
        _show_list()
        return
    console = Console(markup=False, soft_wrap=True, highlight=False)
    if download:
        for name in download:
            file = fetch(name, sha256, address, console)
        if register is None and out is None and not dry_run:
            return
    assert file is not None
    if dry_run:
        _dry_run(file, dict_, console)
        return
    from .importing import ImportRequest, import_model

    asked = ImportRequest(
        file, dict_path=dict_, classes=classes, out=out, weights=weights, register=register, alias=alias,
        sha256=sha256 if not download else None, tracking_uri=tracking_uri,
    )  # fmt: skip
    done = import_model(asked)
    for line in done.lines:
        console.print(line, markup=False)


def _check_request(
    file: Path | None,
    register: str | None,
    alias: str | None,
    weights: str,
    dry_run: bool,
    list_: bool,
    download: list[str] | None,
    sha256: str | None,
) -> None:
    problems: list[Problem] = []
    if file is None and not list_ and not download:
        problems.append(Problem("FILE", None, "give a file, --list or --download NAME"))
    if file is not None and download:
        problems.append(Problem("FILE", str(file), "contradicts --download; give one of them"))
    if weights not in ("student", "teacher"):
        problems.append(Problem("--weights", weights, "must be student or teacher"))
    if alias is not None and register is None:
        problems.append(Problem("--alias", alias, "needs --register"))
    if dry_run and register is not None:
        problems.append(Problem("--register", register, "contradicts --dry-run, which writes nothing"))
    if sha256 is not None and not _HEX.fullmatch(sha256.lower()):
        problems.append(Problem("--sha256", sha256, "must be 64 hexadecimal digits"))
    if sha256 is not None and download and len(download) > 1:
        problems.append(Problem("--sha256", sha256, "is of one file; download them one by one"))
    if problems:
        raise ConfigError(problems, "the command line")


def downloads_folder() -> Path:
    """Where published files are kept: ``cache/published`` of the home."""
    folder = home_folder("cache") / "published"
    folder.mkdir(exist_ok=True)
    return folder


def fetch(name: str, sha256: str | None, address: str | None, console: Console) -> Path:
    """Download a published file, with resume and checksum; one that is there already is only checked.

    Raises:
        ConfigError: no such file, or only its page is known.
        DataError: no network, or a wrong checksum; what came so far is kept.
    """
    from data2vec.interop.published import BEIT_REPOSITORY, PUBLISHED, find

    from ..preparation.download import download

    published = find(name)
    if published is None:
        known = ", ".join(entry.name for entry in PUBLISHED)
        raise ConfigError(
            [Problem("--download", name, f"is no published file; there are {known}")], "the command line"
        )
    url = address or published.url
    if url is None:
        rule = f"its address stands on {BEIT_REPOSITORY}: fetch it by hand and give its path, or --address"
        raise ConfigError([Problem("--download", name, rule)], "the command line")
    dest = downloads_folder() / published.name
    columns = (DownloadColumn(), BarColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(markup=False, stderr=True), transient=True) as bar:
        task = bar.add_task(published.name, total=None)
        got = download(url, dest, sha256, lambda have, total: bar.update(task, completed=have, total=total))
    note = {"sha256": got.sha256, "bytes": got.bytes, "url": url, "verified": got.verified}
    dest.with_name(f"{dest.name}.json").write_text(json.dumps(note) + "\n", encoding="utf-8")
    checked = "checksum as given" if got.verified else "no checksum was given to compare with"
    console.print(
        f"{published.name}: {dest} ({got.bytes:,} bytes, sha256 {got.sha256}; {checked})", markup=False
    )
    console.print(f"licence: {published.licence}", markup=False)
    if published.dictionary_url:
        console.print(f"its dictionary: {published.dictionary_url}", markup=False)
    return dest


def _show_list() -> None:
    from data2vec.interop.published import BEIT_FILES, BEIT_REPOSITORY, PUBLISHED

    table = Table("name", "modality", "model", "fine-tuned on", "pretrained on", "licence", "recipe", "here")
    for entry in (*PUBLISHED, *BEIT_FILES):
        table.add_row(
            entry.name, entry.modality.lower(), entry.size, entry.finetuning or "-", entry.dataset,
            entry.licence, entry.recipe or "not recorded", "yes" if _here(entry.name) else "no",
        )  # fmt: skip
    console = Console(markup=False)
    wide = Console(markup=False, width=None if console.is_terminal else 230, highlight=False)
    wide.print(table)
    for entry in PUBLISHED:
        wide.print(f"{entry.name}  {entry.url}{_here(entry.name)}", markup=False, soft_wrap=True)
    wide.print(f"data2vec_vision/*  {BEIT_REPOSITORY}", markup=False, soft_wrap=True)
    wide.print("Sizes and checksums are not published; both are shown once a file is here.", soft_wrap=True)


def _here(name: str) -> str:
    """Size and checksum of a file that was downloaded; empty if it is not here."""
    path = downloads_folder() / name
    if not path.is_file():
        return ""
    try:
        note = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        return f"  (here: {note['bytes']:,} bytes, sha256 {note['sha256']})"
    except (OSError, ValueError, KeyError):
        return f"  (here: {path.stat().st_size:,} bytes)"


def _dry_run(file: Path, dict_path: Path | None, console: Console) -> None:
    from data2vec.data.dictionary import Dictionary
    from data2vec.interop.fairseq import import_checkpoint
    from data2vec.interop.inspection import inspect

    from .importing import summary_lines

    if file.is_dir():
        from data2vec.interop.huggingface import import_folder

        for line in summary_lines(import_folder(file), {}):
            console.print(line, markup=False)
        return
    contents = inspect(file)
    for line in contents.lines:
        console.print(line, markup=False)
    if contents.checkpoint is None:
        raise CheckpointError(contents.problem or f"{file} cannot be read")
    dictionary = None if dict_path is None else Dictionary.load(dict_path)
    imported = import_checkpoint(contents.checkpoint, dictionary)
    for line in summary_lines(imported, contents.checkpoint.cfg):
        console.print(line, markup=False)
