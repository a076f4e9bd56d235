"""Image folders to tar shards in the WebDataset layout: verified, shuffled once, resumable.

Each shard is a function of its list of images alone, is written beside and renamed, and has a record of what
went into it; a second run skips shards whose record fits. An index with class names and counts comes last.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from data2vec.data.batching import permutation
from data2vec.data.image_files import UnreadableImageError, read_image
from data2vec.data.image_shards import INDEX_NAME, SOURCE_NAME, read_index
from data2vec.data.image_sources import FolderSource
from data2vec.errors import DataError
from data2vec.folders import write_text, written_file

from ..bars import Bars
from .sole_writer import sole_writer

BAD_NAME = "bad_images.tsv"


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How folders become shards."""

    images_per_shard: int = 1000
    resize: int | None = None  # make the shorter side this long where it is longer; null = keep the files
    seed: int = 1  # of the order of images
    unlabelled: bool = False  # images at any depth, without classes
    strict: bool = False  # stop if an image cannot be read
    workers: int | None = None  # processes; default: all cores


@dataclass
class SubsetReport:
    """What became of one subset."""

    images: int = 0
    shards: int = 0
    reused: int = 0  # shards of an earlier run
    bad: list[tuple[str, str]] = field(default_factory=list)  # path and reason
    odd: dict[str, int] = field(default_factory=dict)  # images by oddity; they are kept
    notes: list[str] = field(default_factory=list)  # what the folder holds beside its images


@dataclass(frozen=True)
class _Job:
    path: str
    record: str
    key: str
    folder: str
    files: list[tuple[int, str, int]]  # number, name below the folder, class id
    resize: int | None


def prepare_images(
    root: Path, dest: Path, splits: Sequence[str], options: ImageOptions, console: Console
) -> dict[str, SubsetReport]:
    """Write ``<dest>/<split>/<split>-000000.tar`` ... and ``<dest>/index.json``.

    Args:
        root: holds ``<split>/<class>/...``.
        dest: made if missing; what it holds of other subsets stays.
        splits: subsets; empty: all of train, val, test that are there.
        options: see there.
        console: shows progress.

    Raises:
        DataError: a folder is missing or empty, classes differ, or (strict) an image is unreadable.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    names = list(splits) or [name for name in ("train", "val", "valid", "test") if (root / name).is_dir()]
    missing = [name for name in names if not (root / name).is_dir()]
    if missing or not names:
        have = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())[:8]) or "none"
        raise DataError(f"{root} has no folder {(missing or ['train'])[0]!r} (subfolders: {have})")
    sources = {name: FolderSource(root / name, labelled=not options.unlabelled) for name in names}
    classes = sources[names[0]].classes
    for name, source in sources.items():
        if source.classes != classes:
            differ = sorted(set(source.classes) ^ set(classes))
            raise DataError(f"{root}: {name} has other classes than {names[0]}, such as {differ[0]!r}")
    dest.mkdir(parents=True, exist_ok=True)
    with sole_writer(dest):
        index = _index_with(dest, classes)
        reports = {
            name: _split(root / name, name, source, dest, options, console)
            for name, source in sources.items()
        }
        bad = [(name, path, reason) for name, report in reports.items() for path, reason in report.bad]
        write_text(
            dest / BAD_NAME,
            _bad_of_others(dest, names)
            + "".join(f"{split}\t{path}\t{reason}\n" for split, path, reason in bad),
        )
        if bad and options.strict:
            raise DataError(f"{len(bad)} images cannot be read, listed in {dest / BAD_NAME} (--strict)")
        index["splits"] |= {name: {"images": r.images, "shards": r.shards} for name, r in reports.items()}
        write_text(dest / INDEX_NAME, json.dumps(index, indent=2) + "\n")
    return reports


def _index_with(dest: Path, classes: list[str]) -> dict[str, Any]:
    """The folder's index with what earlier runs wrote of other subsets; all labelled ones share the classes.

    Raises:
        DataError: the folder holds subsets of other classes.
    """
    path = dest / INDEX_NAME
    if not path.is_file():
        return {"classes": classes, "splits": {}}
    try:
        before = read_index(path)
    except DataError as error:
        raise DataError(f"{error}; choose another --dest") from None
    known, splits = before.classes, before.splits
    if known and classes and known != classes:
        differ = sorted(set(known) ^ set(classes))
        raise DataError(
            f"{dest} holds {', '.join(sorted(splits))} with other classes ({len(differ)} differ, such as "
            f"{differ[0]!r}); choose another --dest, or --unlabelled for images without classes"
        )
    return {"classes": classes or known, "splits": splits}


def _bad_of_others(dest: Path, names: Sequence[str]) -> str:
    """Lines of the list of bad images that are of other subsets than these."""
    path = dest / BAD_NAME
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return "".join(line for line in lines if line.partition("\t")[0] not in names)


def _split(
    folder: Path, name: str, source: FolderSource, dest: Path, options: ImageOptions, console: Console
) -> SubsetReport:
    place = dest / name
    place.mkdir(parents=True, exist_ok=True)
    order = permutation(len(source), "shards", options.seed).tolist()
    rows = [(number, source.name(at), int(source.labels[at])) for number, at in enumerate(order)]
    sizes, count = [source.size(at) for at in order], options.images_per_shard
    jobs = [
        _job(place, name, folder, i // count, rows[i : i + count], sizes[i : i + count], options)
        for i in range(0, len(rows), count)
    ]
    for left in place.glob("*.tmp"):
        left.unlink()  # of a run that was killed while it wrote
    for stale in set(place.glob(f"{name}-*.tar")) - {Path(job.path) for job in jobs}:
        stale.unlink()  # of an earlier run with other settings: it would be read as data
    report = SubsetReport(shards=len(jobs), notes=source.notes)
    report.bad += [(path, "the path is not UTF-8") for path in source.not_utf8]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    workers = min(options.workers or os.cpu_count() or 1, len(jobs))
    with Bars(*columns, console=console) as bars, _mapper(workers) as mapped:
        bar = bars.add_task(f"{name}: images", total=len(rows))
        for job, record in zip(jobs, mapped(_make_shard, jobs), strict=True):
            report.images += record["images"]
            report.reused += record["reused"]
            report.bad += [(path, reason) for path, reason in record["bad"]]
            for kind, count in record["odd"].items():
                report.odd[kind] = report.odd.get(kind, 0) + count
            bars.advance(bar, len(job.files))
    return report


@contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """``map`` over so many processes; one alone is this process."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool.map


def _job(
    place: Path,
    name: str,
    folder: Path,
    number: int,
    rows: list[tuple[int, str, int]],
    sizes: list[int],
    options: ImageOptions,
) -> _Job:
    """A shard; its key changes with the files' sizes too, so that a repaired image is taken in."""
    path = place / f"{name}-{number:06d}.tar"
    digest = hashlib.sha256(json.dumps([str(folder), rows, sizes, options.resize, SOURCE_NAME]).encode())
    record = str(place / f".{path.stem}.json")
    return _Job(str(path), record, digest.hexdigest(), str(folder), rows, options.resize)


def _make_shard(job: _Job) -> dict[str, Any]:
    """Write one shard, or find it written; returns its record."""
    record_path, path = Path(job.record), Path(job.path)
    if record_path.is_file() and path.is_file():
        record = json.loads(record_path.read_text(encoding="utf-8"))
        if record.get("key") == job.key and record.get("bytes") == path.stat().st_size:
            return record | {"reused": 1}
    record: dict[str, Any] = {"key": job.key, "images": 0, "bad": [], "odd": {}}
    with written_file(path) as beside, tarfile.open(beside, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, name, label in job.files:
            file = f"{job.folder}/{name}"
            try:
                data = Path(file).read_bytes()
                image, oddity = read_image(data)
            except (UnreadableImageError, OSError) as error:
                record["bad"].append([file, str(error)])
                continue
            if oddity is not None:
                record["odd"][oddity] = record["odd"].get(oddity, 0) + 1
            extension = Path(file).suffix.lower()
            if job.resize is not None and min(image.size) > job.resize:
                data, extension = _resized(image, job.resize), ".jpg"
            _add(tar, f"{number:09d}{extension}", data)
            _add(tar, f"{number:09d}.{SOURCE_NAME}", os.fsencode(name))
            if label >= 0:
                _add(tar, f"{number:09d}.cls", str(label).encode())
            record["images"] += 1
    record["bytes"] = path.stat().st_size
    write_text(record_path, json.dumps(record) + "\n")
    return record | {"reused": 0}


def _resized(image: Any, side: int) -> bytes:
    scale = side / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    buffer = io.BytesIO()
    image.resize(size, resample=3).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no times or owners: the same images give the same bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def summary(reports: Mapping[str, SubsetReport], dest: Path) -> list[str]:
    """Lines for the terminal."""
    lines = []
    for name, report in reports.items():
        reused = f", {report.reused} of them from an earlier run" if report.reused else ""
        lines.append(f"{name}: {report.images:,} images in {report.shards} shards{reused}")
        lines += [f"  {count} {kind}" for kind, count in report.odd.items()]
        lines += [f"  {note}" for note in report.notes]
        if report.bad:
            lines.append(f"  {len(report.bad)} unreadable, left out: see {dest / BAD_NAME}")
            lines += [f"    {path}: {reason}" for path, reason in report.bad[:5]]
    return lines
