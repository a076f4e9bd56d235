"""Folders of audio to manifests: the reference's files, made in parallel, with a report of what was left out.

Paths are sorted before the split is drawn, so that one seed gives one split on every machine; the reference
takes them in the file system's order.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile as sf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from data2vec.data.audio_files import read_audio, read_header
from data2vec.data.manifest import manifest_text
from data2vec.errors import DataError
from data2vec.folders import printable, write_text, written_file

from ..bars import Bars
from .sole_writer import sole_writer

TAIL = 1600  # samples read at the end of each file, which finds files that break off

# Official layouts: manifest name to the folders below the root whose files it lists.
LIBRISPEECH: dict[str, tuple[str, ...]] = {
    "train_100h": ("train-clean-100",),
    "train_460h": ("train-clean-100", "train-clean-360"),
    "train_960h": ("train-clean-100", "train-clean-360", "train-other-500"),
    **{name.replace("-", "_"): (name,) for name in ("dev-clean", "dev-other", "test-clean", "test-other")},
}
LIBRILIGHT: dict[str, tuple[str, ...]] = {
    **{f"train_10min_{part}": (f"1h/{part}",) for part in range(6)},
    "train_1h": ("1h",),
    "train_10h": ("1h", "9h"),
}
LAYOUTS = {"librispeech": LIBRISPEECH, "librilight": LIBRILIGHT}


@dataclass(frozen=True, kw_only=True)
class ManifestOptions:
    """How a folder becomes manifests."""

    ext: str = "flac"  # extension without dot, case-sensitive
    valid_percent: float = 0.01  # fraction (0 ... 1) that goes to valid.tsv
    seed: int = 42  # of the split
    path_must_contain: str | None = None  # keep a file only if its absolute path has this
    sample_rate: int = 16_000  # wanted rate
    min_samples: int = 1  # shorter files are left out
    resample: Path | None = None  # write converted copies of files of another rate here
    decode: bool = False  # decode every file completely (finds silence and damage in the middle)
    strict: bool = False  # stop if any file is left out
    workers: int | None = None  # threads; default: all cores
    name: str = "train"  # of the manifest that is not valid.tsv
    layout: str | None = None  # official layout instead of a random split


@dataclass(frozen=True)
class Looked:
    """What was found in one file: its length, or why it is left out, and what is worth a remark."""

    path: Path
    frames: int
    problem: str | None = None
    remark: str | None = None


@dataclass(kw_only=True)
class ManifestReport:
    """What :func:`prepare_manifests` wrote."""

    folder: Path
    splits: dict[str, tuple[int, float]] = field(default_factory=dict)  # files and hours by split
    dropped: list[Looked] = field(default_factory=list)
    remarks: list[Looked] = field(default_factory=list)
    resampled: int = 0


def prepare_manifests(
    root: Path, dest: Path, options: ManifestOptions | None = None, console: Console | None = None
) -> ManifestReport:
    """Write ``train.tsv`` and ``valid.tsv``, or the manifests of an official layout.

    Args:
        root: folder searched recursively; hidden files and folders are skipped.
        dest: folder to write.
        options: how.
        console: where progress is shown; ``None`` shows none.

    Raises:
        DataError: options are impossible, nothing was found, or (strict) files had to be left out.
    """
    options = options or ManifestOptions()
    if not 0.0 <= options.valid_percent <= 1.0:
        raise DataError(f"--valid-percent {options.valid_percent} must be a fraction, 0 to 1")
    if options.name == "valid" and options.layout is None and options.valid_percent not in (0.0, 1.0):
        raise DataError(
            f"--name valid: valid.tsv takes the share --valid-percent {options.valid_percent}; "
            "for all files in it say --valid-percent 0"
        )
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if options.layout is not None and (options.name, options.valid_percent) != (
        ManifestOptions.name,
        ManifestOptions.valid_percent,
    ):
        raise DataError("--layout decides what is in which manifest: leave out --name and --valid-percent")
    files = [path for path in _files(root, options.ext) if _wanted(path, options.path_must_contain)]
    if options.resample is not None:  # copies of an earlier run are no sources
        files = [path for path in files if not path.is_relative_to(os.path.realpath(options.resample))]
    if not files:
        others = sorted({p.suffix for p in root.rglob("*") if p.is_file() and p.suffix})[:6]
        hint = f"; there are files with {', '.join(others)} (--ext)" if others else ""
        raise DataError(f"{root} has no *.{options.ext} files{hint}")
    dest.mkdir(parents=True, exist_ok=True)
    with sole_writer(dest):  # else a train.tsv of one run could stand beside a valid.tsv of another
        return _prepare(root, dest, files, options, console or Console(quiet=True))


def _prepare(
    root: Path, dest: Path, files: list[Path], options: ManifestOptions, console: Console
) -> ManifestReport:
    report = ManifestReport(folder=dest)
    looked = list(_look_at_all(files, options, console))
    if options.resample is not None:
        looked = _converted(root, looked, options, report, console)
    report.dropped = [entry for entry in looked if entry.problem is not None]
    report.remarks = [entry for entry in looked if entry.problem is None and entry.remark is not None]
    if options.strict and report.dropped:
        raise DataError(
            _dropped_text(report.dropped, f"{len(report.dropped)} files cannot be used (--strict)")
        )
    usable = [entry for entry in looked if entry.problem is None]
    if not usable:
        raise DataError(_dropped_text(report.dropped, f"none of {len(files)} files in {root} can be used"))
    real_root = Path(os.path.realpath(root))
    base = real_root if options.resample is None else Path(os.path.commonpath(
        [real_root, os.path.realpath(options.resample)]))  # fmt: skip
    entries = {entry.path: (os.path.relpath(entry.path, base), entry.frames) for entry in usable}
    for name, members in _splits(real_root, usable, options).items():
        listed = [entries[entry.path] for entry in members]
        write_text(dest / f"{name}.tsv", manifest_text(str(base), listed))
        hours = sum(frames for _, frames in listed) / options.sample_rate / 3600
        report.splits[name] = (len(listed), hours)
    if dropped := report.dropped:
        lines = [f"{printable(entry.path)}\t{entry.problem}\n" for entry in dropped]
        write_text(dest / "dropped.tsv", "".join(lines))
    return report


def _files(root: Path, ext: str) -> list[Path]:
    """Files below a folder by name, links followed and resolved, hidden ones skipped, sorted by path."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not _leads_back(folder, name)
        )
        found += [Path(folder) / name for name in names
                  if name.endswith(f".{ext}") and not name.startswith(".")]  # fmt: skip
    return [Path(os.path.realpath(path)) for path in sorted(found, key=str)]


def _leads_back(folder: str, name: str) -> bool:
    """Whether a folder below ``folder`` is a link to one that it lies in."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(os.path.join(folder, name)))


def _wanted(path: Path, part: str | None) -> bool:
    return part is None or part in str(path)


def _look_at_all(files: Sequence[Path], options: ManifestOptions, console: Console) -> Iterable[Looked]:
    workers = options.workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool, _progress(console) as progress:
        task = progress.add_task("reading", total=len(files))
        for looked in pool.map(lambda path: look_at(path, options), files):
            progress.advance(task)
            yield looked


def look_at(path: Path, options: ManifestOptions) -> Looked:
    """Whether a file can be trained on; never raises for what is wrong with it."""
    if "\t" in str(path) or "\n" in str(path) or str(path).endswith("\r"):
        return Looked(path, 0, "a path with a tab or line break does not fit a manifest")
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return Looked(path, 0, "the path is not UTF-8")
    try:
        header = read_header(path)
        if header.frames == 0:
            return Looked(path, 0, "no samples")
        tail = _decoded_part(path, header.frames, options.decode)
    except DataError as error:
        return Looked(path, 0, str(error).removeprefix(f"{path}: "))
    if len(tail) == 0:
        return Looked(path, header.frames, "breaks off: the end cannot be decoded")
    if not np.isfinite(tail).all():
        return Looked(path, header.frames, "has samples that are not finite numbers")
    if options.decode and not np.abs(tail).max() > 0:
        return Looked(path, header.frames, "silent: every sample is 0")
    if header.rate != options.sample_rate:
        return Looked(
            path, header.frames, f"{header.rate} Hz, not {options.sample_rate}; --resample converts it"
        )
    if header.frames < options.min_samples:
        return Looked(path, header.frames, _too_short(header.frames, options.min_samples))
    remark = f"{header.channels} channels, averaged when read" if header.channels > 1 else None
    return Looked(path, header.frames, None, remark)


def _too_short(samples: int, shortest: int) -> str:
    return f"{samples} samples, fewer than {shortest}"


def _decoded_part(path: Path, frames: int, whole: bool) -> np.ndarray:
    """The last samples of a file, or all of them; empty if the file ends before."""
    try:
        with sf.SoundFile(os.fsencode(path)) as file:  # pyright: ignore[reportArgumentType]
            if not whole:
                file.seek(max(0, frames - TAIL))
            wanted = frames if whole else min(frames, TAIL)
            samples = file.read(wanted, dtype="float32")
    except (sf.LibsndfileError, RuntimeError) as error:
        raise DataError(f"{path}: breaks off or is damaged ({' '.join(str(error).split())})") from None
    return np.asarray(samples) if len(samples) == wanted else np.empty(0)


def _converted(
    root: Path, looked: list[Looked], options: ManifestOptions, report: ManifestReport, console: Console
) -> list[Looked]:
    """Copies at the wanted rate of the files that have another one."""
    assert options.resample is not None
    target = options.resample
    todo = [entry for entry in looked if entry.problem is not None and "--resample" in entry.problem]
    jobs = [(entry.path, target / f"{_below(entry.path, root)}.flac") for entry in todo]
    results: dict[Path, Looked] = {}
    workers = min(options.workers or os.cpu_count() or 1, max(len(jobs), 1))
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        _progress(console) as progress,
    ):
        task = progress.add_task("resampling", total=len(jobs))
        for (source, _), result in zip(
            jobs,
            pool.map(_convert, [(a, b, options.sample_rate, options.min_samples) for a, b in jobs]),
            strict=True,
        ):
            results[source] = result
            progress.advance(task)
    report.resampled = sum(result.problem is None for result in results.values())
    return [results.get(entry.path, entry) for entry in looked]


def _below(path: Path, root: Path) -> Path:
    """Where a file lies below the root; one that a link brought in, under its whole path."""
    real = Path(os.path.realpath(root))
    return path.relative_to(real) if path.is_relative_to(real) else Path("linked", *path.parts[1:])


def _convert(job: tuple[Path, Path, int, int]) -> Looked:
    source, copy, rate, shortest = job
    try:
        samples = read_audio(str(source), rate, resample=True)
        if len(samples) < shortest:
            return Looked(source, len(samples), _too_short(len(samples), shortest))
        copy.parent.mkdir(parents=True, exist_ok=True)
        with written_file(copy) as beside:
            sf.write(str(beside), np.clip(samples, -1.0, 1.0), rate, format="FLAC", subtype="PCM_16")
    except (DataError, OSError, sf.LibsndfileError) as error:
        return Looked(source, 0, str(error))
    return Looked(Path(os.path.realpath(copy)), len(samples))


def _splits(root: Path, usable: list[Looked], options: ManifestOptions) -> Mapping[str, list[Looked]]:
    if options.layout is not None:
        return _official(root, usable, options.layout)
    draw = random.Random(options.seed)  # the reference's own generator and order of draws
    train: list[Looked] = []
    valid: list[Looked] = []
    for entry in usable:
        (train if draw.random() > options.valid_percent else valid).append(entry)
    if options.valid_percent == 0:
        return {options.name: train + valid}
    return {options.name: train, "valid": valid}


def _official(root: Path, usable: list[Looked], layout: str) -> Mapping[str, list[Looked]]:
    splits: dict[str, list[Looked]] = {}
    for name, folders in LAYOUTS[layout].items():
        present = [folder for folder in folders if (root / folder).is_dir()]
        if present and len(present) < len(folders):
            continue  # a union of which a part is missing would have the wrong name
        inside = tuple(f"{os.path.realpath(root / folder)}{os.sep}" for folder in present)
        members = [entry for entry in usable if inside and str(entry.path).startswith(inside)]
        if members:
            splits[name] = members
    if not splits:
        wanted = sorted({folder for folders in LAYOUTS[layout].values() for folder in folders})
        raise DataError(f"{root} is no {layout} folder: none of {', '.join(wanted)} is there")
    return splits


def _dropped_text(dropped: Sequence[Looked], head: str) -> str:
    lines = [f"  {printable(entry.path)}: {entry.problem}" for entry in dropped[:10]]
    more = [f"  ... and {len(dropped) - 10} more"] if len(dropped) > 10 else []
    return "\n".join([head, *lines, *more])


def _progress(console: Console) -> Bars:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bars(*columns, console=console, transient=True)
