"""``d2v prepare audio-manifest``, ``audio-labels``, ``-events``, ``-subsets`` and ``language-model``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from data2vec.errors import DataError
from data2vec.folders import printable

from ..figures import duration
from ..storage.local_places import folder_to_write
from .destination import Dest, OutputDir

if TYPE_CHECKING:
    from .audio import ManifestReport


def audio_manifest(
    root: Annotated[Path, typer.Argument(help="Folder that is searched recursively.")],
    dest: Dest = Path("."),
    ext: Annotated[str, typer.Option(help="Extension of the files, without dot.")] = "flac",
    valid_percent: Annotated[float, typer.Option(help="Fraction (0 to 1) for valid.tsv.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 42,
    path_must_contain: Annotated[str | None, typer.Option(help="Keep paths that contain this.")] = None,
    name: Annotated[str, typer.Option(help="Name of the manifest beside valid.tsv.")] = "train",
    layout: Annotated[
        str | None, typer.Option(help="Official layout: librispeech or librilight (100h, 960h, 10min, ...).")
    ] = None,
    sample_rate: Annotated[int, typer.Option(help="Rate that files must have.")] = 16_000,
    min_samples: Annotated[int, typer.Option(help="Leave shorter files out.")] = 1,
    resample: Annotated[
        Path | None, typer.Option(help="Write converted copies here.", parser=folder_to_write)
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every file: finds silent ones.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop if a file cannot be used.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; default: all cores.")] = None,
) -> None:
    """A folder of audio to train.tsv and valid.tsv, as the reference's script writes them."""
    from .audio import LAYOUTS, ManifestOptions, prepare_manifests

    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"--layout {layout!r}: choose {' or '.join(LAYOUTS)}")
    console = Console(markup=False, soft_wrap=True)
    options = ManifestOptions(
        ext=ext,
        valid_percent=valid_percent,
        seed=seed,
        path_must_contain=path_must_contain,
        sample_rate=sample_rate,
        min_samples=min_samples,
        resample=resample,
        decode=decode,
        strict=strict,
        workers=workers,
        name=name,
        layout=layout,
    )
    _show(prepare_manifests(root, dest, options, console), console)


def audio_labels(
    tsv: Annotated[Path, typer.Argument(help="Manifest of the recordings.")],
    output_dir: OutputDir,
    output_name: Annotated[str, typer.Option("--output-name", help="Name of the label files.")],
    build_dict: Annotated[
        bool, typer.Option("--build-dict", help="Make dict.ltr.txt from these transcripts.")
    ] = False,
    dict_: Annotated[Path | None, typer.Option("--dict", help="dict.ltr.txt to use.")] = None,
    transcripts: Annotated[
        Path | None, typer.Option(help="CSV or TSV of paths and texts; default: LibriSpeech's files.")
    ] = None,
    path_column: Annotated[
        str | None,
        typer.Option(help="Name of its column of paths (number without a header); default: guess."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="The same of its column of texts.")] = None,
) -> None:
    """Transcripts to .wrd and .ltr lines and dict.ltr.txt (default: the released letters).

    The transcripts are LibriSpeech's files beside the audio, or a table of your own: --transcripts. Its paths
    may have other leading folders and endings than the manifest's, and its rows may be of more files.
    """
    from .audio_labels import prepare_labels
    from .transcript_tables import TranscriptTable

    if transcripts is None and (path_column or text_column) is not None:
        raise DataError("--path-column and --text-column are of a table: give --transcripts FILE")
    table = None
    if transcripts is not None:
        table = TranscriptTable(file=transcripts, path_column=path_column, text_column=text_column)
    console = Console(markup=False, soft_wrap=True)
    report = prepare_labels(
        tsv, output_dir, output_name, table=table, build_dict=build_dict, dictionary=dict_
    )
    console.print(
        f"{report.folder}/{report.name}.ltr, .wrd: {report.lines:,} utterances, {report.words:,} words, "
        f"{report.letters:,} letters; dict.ltr.txt {report.dictionary[:12]}",
        highlight=False,
    )
    if report.unknown:
        shown = ", ".join(f"{symbol!r} x {count}" for symbol, count in list(report.unknown.items())[:10])
        console.print(
            f"{sum(report.unknown.values())} letters are not in the dictionary and become <unk>: "
            f"{shown}; write transcripts in its letters (upper case), or give --build-dict",
            style="yellow",
            highlight=False,
        )


def audio_events(
    tsv: Annotated[Path, typer.Argument(help="Manifest of the clips.")],
    output_dir: OutputDir,
    output_name: Annotated[str, typer.Option("--output-name", help="Name of the label file.")],
    segments: Annotated[
        Path | None, typer.Option(help='AudioSet\'s table: id, start, end, "label,label" a line.')
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="AudioSet's class_labels_indices.csv.")] = None,
    level: Annotated[int, typer.Option(help="Folder above the file that is its class.")] = 1,
    sample_rate: Annotated[int, typer.Option(help="Rate of the files.")] = 16_000,
) -> None:
    """Classes of clips to .lbl lines and label_descriptors.csv, for audio-event recipes.

    Without --segments each clip's class is the folder it lies in. Prepare the training split first: further
    splits take its classes.
    """
    from .audio_events import prepare_events

    report = prepare_events(
        tsv, output_dir, output_name, segments=segments, classes=classes, level=level, sample_rate=sample_rate
    )
    Console(markup=False, soft_wrap=True).print(
        f"{report.folder}/{report.name}.lbl: {report.clips:,} clips, {report.labels:,} labels of "
        f"{report.classes:,} classes",
        highlight=False,
    )


def audio_subsets(
    tsv: Annotated[Path, typer.Argument(help="Training manifest; its label files go along.")],
    dest: Annotated[
        Path, typer.Option("--dest", help="Folder that gets 1m/, 3m/, ....", parser=folder_to_write)
    ],
    minutes: Annotated[str, typer.Option(help="Amounts, separated by commas.")] = "1,3,10",
    sample_rate: Annotated[int, typer.Option(help="Rate of the files.")] = 16_000,
    seed: Annotated[int, typer.Option(help="Seed of the draw, one for all amounts.")] = 42,
) -> None:
    """A few minutes of a manifest, each amount in a folder of its own, smaller ones inside larger ones.

    The folder's other files (validation and test manifests, dictionary) are copied into each; a sweep over
    amounts is then: d2v sweep minutes task.data=DEST model.w2v_path=MODEL
    """
    from .audio_subsets import prepare_subsets

    try:
        amounts = [float(part) for part in minutes.split(",") if part.strip()]
    except ValueError:
        raise DataError(
            f"--minutes {minutes!r} must be numbers separated by commas, such as 1,3,10"
        ) from None
    console = Console(markup=False, soft_wrap=True)
    table = Table("folder", "utterances", "minutes")
    for subset in prepare_subsets(tsv, dest, amounts, sample_rate=sample_rate, seed=seed):
        table.add_row(str(subset.folder), f"{subset.utterances:,}", f"{subset.minutes:.2f}")
    console.print(table)


def language_model(
    text: Annotated[Path, typer.Argument(help="Transcripts, a sentence a line (such as train.wrd).")],
    dest: Annotated[
        Path, typer.Option("--dest", help="Folder for lm.arpa and lexicon.txt.", parser=folder_to_write)
    ],
    order: Annotated[int, typer.Option(help="n of the n-grams.")] = 3,
    words: Annotated[
        list[Path] | None, typer.Option(help="Further texts whose words the lexicon has.")
    ] = None,
) -> None:
    """An n-gram model (interpolated Witten-Bell) of a small text, and a lexicon of its letters.

    For large corpora KenLM's lmplz is the better tool; its ARPA and binary files are read too.
    """
    from data2vec.language_model import NgramModel, lexicon_text

    sentences = [line.split() for line in _lines(text) if line.strip()]
    model = NgramModel.estimate(sentences, order)
    known = [word for sentence in sentences for word in sentence]
    for path in words or []:
        known += [word for line in _lines(path) for word in line.split()]
    dest.mkdir(parents=True, exist_ok=True)
    (dest / "lm.arpa").write_text(model.arpa(), encoding="utf-8")
    (dest / "lexicon.txt").write_text(lexicon_text(sorted(set(known))), encoding="utf-8")
    Console(markup=False, soft_wrap=True).print(
        f"{dest}/lm.arpa: {len(model.log10):,} n-grams up to order {order}, perplexity "
        f"{model.perplexity(sentences):.1f} on its own text; lexicon.txt: {len(set(known)):,} words",
        highlight=False,
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8") from None


def _show(report: ManifestReport, console: Console) -> None:
    table = Table("manifest", "files", "length")
    for name, (files, hours) in report.splits.items():
        table.add_row(f"{name}.tsv", f"{files:,}", duration(3600 * hours))
    console.print(table)
    if report.resampled:
        console.print(f"{report.resampled} files were converted")
    for reason, count in Counter(entry.remark for entry in report.remarks).items():
        console.print(f"{count} files: {reason}", highlight=False)
    if report.dropped:
        console.print(f"{len(report.dropped)} files were left out (all in dropped.tsv):")
        for entry in report.dropped[:10]:
            console.print(f"  {printable(entry.path)}: {entry.problem}", highlight=False, markup=False)
    console.print(f"task.data={report.folder}", highlight=False)
