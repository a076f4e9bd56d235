"""Raw GLUE folders, downloaded if asked, to prepared task folders."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from data2vec.data.bpe import shared_bpe
from data2vec.data.dictionary import Dictionary
from data2vec.data.glue import GLUE_TASKS, GlueReport, GlueTask, prepare_task
from data2vec.data.tokenizer import TextTokenizer
from data2vec.errors import DataError, nearest_names
from data2vec.folders import written_folder

from .download import download, file_name, unpack

_GLUE = "https://dl.fbaipublicfiles.com/glue/data"
_SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data"


@dataclass(frozen=True)
class GlueArchive:
    """Where a task's raw files can be had: one zip that holds its folder, or MRPC's three parts."""

    urls: tuple[str, ...]


#: Addresses as the GLUE makers and the common loaders give them; no checksums are published, so none are
# here.
GLUE_ARCHIVES: dict[str, GlueArchive] = {
    "cola": GlueArchive((f"{_GLUE}/CoLA.zip",)),
    "qnli": GlueArchive((f"{_GLUE}/QNLIv2.zip",)),
    "mrpc": GlueArchive(
        (
            f"{_SENTEVAL}/msr_paraphrase_train.txt",
            f"{_SENTEVAL}/msr_paraphrase_test.txt",
            f"{_GLUE}/mrpc_dev_ids.tsv",
        )
    ),
    "rte": GlueArchive((f"{_GLUE}/RTE.zip",)),
    "sst_2": GlueArchive((f"{_GLUE}/SST-2.zip",)),
    "mnli": GlueArchive((f"{_GLUE}/MNLI.zip",)),
    "qqp": GlueArchive((f"{_GLUE}/QQP-clean.zip",)),
    "sts_b": GlueArchive((f"{_GLUE}/STS-B.zip",)),
}


def prepare_glue(
    raw_folder: Path,
    dest: Path,
    tasks: Sequence[str] = ("all",),
    *,
    dictionary: Path | None = None,
    encoder_json: Path | None = None,
    vocab_bpe: Path | None = None,
    fetch: bool = False,
    sha256: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> list[GlueReport]:
    """Prepare GLUE tasks.

    Args:
        raw_folder: holds ``CoLA/``, ``SST-2/``, ...; with ``fetch`` it receives what is missing.
        dest: receives ``CoLA-bin/``, ....
        tasks: recipe names (``cola``, ``sst_2``, ...) or folder names; ``all`` for the eight.
        dictionary: ``dict.txt``; default is the identity order.
        encoder_json: default is GPT-2's.
        vocab_bpe: default is GPT-2's.
        fetch: download missing tasks.
        sha256: expected SHA-256 of a task's archive, by task name.
        console: where progress is shown.

    Returns:
        One report a task.

    Raises:
        DataError: everything that is wrong with any task, after the others were prepared.
    """
    console = console or Console(quiet=True)
    chosen = choose_tasks(tasks)
    checksums = _checksums(sha256 or {}, chosen, fetch)
    words = Dictionary.load(dictionary) if dictionary is not None else None
    files = (encoder_json, vocab_bpe)
    tokenizer = TextTokenizer(shared_bpe(*(None if f is None else str(f) for f in files)), words)
    reports: list[GlueReport] = []
    errors: list[str] = []
    for task in chosen:
        try:
            if fetch and not (raw_folder / task.folder).is_dir():
                download_task(task, raw_folder, checksums.get(task.name), console)
            with console.status(f"preparing {task.folder}"):
                reports.append(prepare_task(task, raw_folder, dest, tokenizer))
        except DataError as error:
            errors.append(str(error))
    if errors:
        done = f"\nprepared: {', '.join(r.task for r in reports)}" if reports else ""
        raise DataError("\n".join(errors) + done)
    return reports


def choose_tasks(names: Sequence[str]) -> list[GlueTask]:
    """Tasks by recipe or folder name; each entry may be a comma list.

    Raises:
        DataError: unknown names, with the nearest ones.
    """
    words = [word.strip() for name in names for word in name.split(",") if word.strip()]
    if not words or "all" in words:
        return list(GLUE_TASKS.values())
    keys = [word.lower().replace("-", "_") for word in words]
    if wrong := [w for w, key in zip(words, keys, strict=True) if key not in GLUE_TASKS]:
        near = nearest_names(wrong[0].lower().replace("-", "_"), GLUE_TASKS)
        raise DataError(
            f"unknown GLUE task {', '.join(map(repr, wrong))}; choose {', '.join(GLUE_TASKS)} or all{near}"
        )
    return [GLUE_TASKS[key] for key in dict.fromkeys(keys)]


def download_task(task: GlueTask, raw_folder: Path, sha256: str | None, console: Console) -> None:
    """Fetch a task's raw files into ``<raw_folder>/<TASK>``.

    Raises:
        DataError: see :func:`~.download.download`; or the archive does not hold the task's folder.
    """
    store = raw_folder / ".downloads"
    parts: list[Path] = []
    urls = GLUE_ARCHIVES[task.name].urls
    for url in urls:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
        ) as bar:
            number = bar.add_task(file_name(url), total=None)

            def show(done: int, total: int | None, bar: Progress = bar, number: object = number) -> None:
                bar.update(number, completed=done, total=total)  # pyright: ignore[reportArgumentType]

            got = download(url, store / file_name(url), sha256, show)
        if not got.verified:
            console.print(
                f"{got.path.name}: SHA-256 {got.sha256} (computed, not verified: no checksum was given)"
            )
        parts.append(got.path)
    if len(parts) == 1:
        unpack(parts[0], raw_folder)
    else:
        assemble_mrpc(parts[0], parts[1], parts[2], raw_folder / task.folder)
    if not (raw_folder / task.folder).is_dir():
        raise DataError(
            f"{parts[0]} does not hold a folder {task.folder}/; unpack it by hand into {raw_folder}"
        )


def assemble_mrpc(train: Path, test: Path, dev_ids: Path, folder: Path) -> None:
    """MRPC as GLUE lays it out: the corpus' train file divided by GLUE's list of dev pairs, the test file
    numbered.

    Raises:
        DataError: a file does not have the corpus' five columns, or no pair of the list is in it.
    """
    header, *rows = _rows(train, 5)
    _, *test_rows = _rows(test, 5)
    dev = {tuple(row) for row in _rows(dev_ids, 2)}
    parts = {
        "train.tsv": [header, *(row for row in rows if (row[1], row[2]) not in dev)],
        "dev.tsv": [header, *(row for row in rows if (row[1], row[2]) in dev)],
        "test.tsv": [["index", *header[1:]], *([str(i), *row[1:]] for i, row in enumerate(test_rows))],
    }
    if len(parts["dev.tsv"]) == 1:
        raise DataError(f"none of the pairs of {dev_ids} is in {train}; these files do not belong together")
    with written_folder(folder) as beside:
        for name, content in parts.items():
            text = "".join("\t".join(row) + "\n" for row in content)
            (beside / name).write_text(text, encoding="utf-8")


def _rows(path: Path, fields: int) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if wrong := [i for i, row in enumerate(rows, start=1) if len(row) != fields]:
        raise DataError(f"{path}, line {wrong[0]}: not {fields} tab-separated fields")
    return rows


def _checksums(given: Mapping[str, str], chosen: Sequence[GlueTask], fetch: bool) -> dict[str, str]:
    """Checksums by recipe name; each must belong to something that is downloaded."""
    if given and not fetch:
        raise DataError("--sha256 checks downloads; it needs --download")
    found = {task.name: value for name, value in given.items() for task in choose_tasks([name])}
    for name in found:
        if len(GLUE_ARCHIVES[name].urls) > 1:
            raise DataError(
                f"--sha256 {name}=...: {name} comes in {len(GLUE_ARCHIVES[name].urls)} files, not one archive"
            )
        if name not in {task.name for task in chosen}:
            raise DataError(f"--sha256 {name}=...: {name} is not among the chosen tasks")
    return found
