"""``d2v transcribe``: recordings to text and time stamps."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

import data2vec
from data2vec.errors import ConfigError, DataError, Problem

from ..bars import Bars
from ..storage.local_places import folder_to_write
from .command_options import BatchSize, Device
from .subtitles import FORMATS
from .subtitles import subtitles as make_subtitles

if TYPE_CHECKING:
    import numpy as np

    from .options import DecodingOptions
    from .recordings import ReadRecordings


def transcribe_command(
    source: Annotated[Path, typer.Argument(help="A recording, a folder of recordings, or a .tsv.")],
    model: Annotated[str, typer.Option("--model", help="Any model name; it must be fine-tuned for CTC.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for NAME.txt and NAME.json.", parser=folder_to_write)
    ] = None,
    lexicon: Annotated[Path | None, typer.Option(help="Short for decoding.lexicon=...")] = None,
    lm: Annotated[
        str | None, typer.Option("--lm", help="Short for decoding.type=... decoding.lmpath=...")
    ] = None,
    beam: Annotated[int | None, typer.Option(help="Short for decoding.beam=...")] = None,
    device: Device = "auto",
    batch_size: BatchSize = 16,
    subtitles: Annotated[
        list[str] | None, typer.Option(help="Write NAME.srt or NAME.vtt too: srt, vtt; may be repeated.")
    ] = None,
    chunk_s: Annotated[float, typer.Option(help="Longer audio goes in pieces of so many seconds.")] = 30.0,
    overlap_s: Annotated[float, typer.Option(help="Overlap of those pieces in seconds.")] = 4.0,
    decoding: Annotated[
        list[str] | None,
        typer.Argument(metavar="[decoding.KEY=VALUE]...", help="As d2v sweep decoding prints them."),
    ] = None,
) -> None:
    """Recordings of any length, rate and number of channels to text.

    Long audio goes through the model in overlapping pieces. A file that cannot be read is reported at the
    end; the others are done.
    """
    from data2vec.in_use import device_of

    from ..registry.model_folders import model_folder
    from .decoding import load_search, make_search
    from .recordings import ReadRecordings, find_recordings, report_unreadable

    forms = list(dict.fromkeys(subtitles or ()))
    options = _decoding(decoding or (), lm, lexicon, beam)
    _check(forms, out, chunk_s, overlap_s)
    place = device_of(device)
    files = find_recordings(source)
    folder = model_folder(model)[0]
    loaded: Any = data2vec.load(folder, device=place)
    if getattr(loaded, "ctc", None) is None or loaded.letters is None:
        raise DataError(f"{model} is no speech model with letters; give one that was fine-tuned for CTC")
    loaded.chunk_s, loaded.overlap_s = chunk_s, overlap_s
    search = load_search(str(folder), make_search(options, str(place)))
    frame_s, stems = loaded.frame_s, dict(zip(files, output_stems(files, source), strict=True))
    recordings = ReadRecordings(loaded, files)
    errors = Console(markup=False, file=sys.stderr, soft_wrap=True, highlight=False)
    with _bars(errors) as bars:
        task = bars.add_task("transcribing", total=len(files))
        for index, emissions in enumerate(loaded.emissions_each(recordings, batch_size=batch_size)):
            path = recordings.done[index][0]
            transcript = loaded.greedy(emissions)
            words = [{"text": w.text, "start_s": w.start_s, "end_s": w.end_s} for w in transcript.words]
            text, score = transcript.text, transcript.score
            if search is not None:
                best = search.decode(emissions)[0]
                text, score = best.text, best.score
                words = [
                    {"text": word, "start_s": round(start * frame_s, 3), "end_s": round(end * frame_s, 3)}
                    for word, start, end in best.spans(loaded.letters)
                ]
            content: dict[str, Any] = {
                "file": str(path), "text": text, "score": score, "words": words, "model": model,
            }  # fmt: skip
            print(f"{path}\t{text}" if len(files) > 1 else text, flush=True)
            if not text:
                content["empty"] = _why_empty(path, emissions, transcript.text, recordings)
                errors.print(f"{path}: no words: {content['empty']}", markup=False)
            if out is not None:
                _write(out / stems[path], content, forms)
            bars.update(task, advance=1)
    if out is not None:
        count = len(recordings.done)
        endings = ", ".join(f"NAME.{ending}" for ending in ("txt", "json", *forms))
        errors.print(
            f"{count} transcript{'' if count == 1 else 's'} written to {out} ({endings})", markup=False
        )
    report_unreadable(recordings.failed, len(files))


def _decoding(
    words: Sequence[str], lm: str | None, lexicon: Path | None, beam: int | None
) -> DecodingOptions:
    """The search that the command line asks for, in the words of ``d2v infer`` or in the short options."""
    other = [word for word in words if not word.lstrip("+").startswith("decoding.")]
    if other:
        raise DataError(
            f"{' '.join(other)}: after the recordings only decoding.KEY=VALUE is read, as d2v sweep decoding "
            "prints them; several recordings are given as a folder or a .tsv"
        )
    if lm is None and (lexicon is not None or beam is not None) and not words:
        raise DataError("--lexicon and --beam need --lm")
    from .options import read_options

    options = read_options(["task.data=.", "common_eval.path=.", *words])[0].decoding
    if lm is not None:
        file = Path(lm)
        options.type = "kenlm" if file.is_file() and file.suffix != ".pt" else "fairseqlm"
        options.lmpath = lm
    options.lexicon = str(lexicon) if lexicon is not None else options.lexicon
    options.beam = beam if beam is not None else options.beam
    if problems := options.problems():
        raise ConfigError(problems, "the command line")
    return options


def _check(forms: Sequence[str], out: Path | None, chunk_s: float, overlap_s: float) -> None:
    problems = [
        Problem("--subtitles", form, f"must be one of {', '.join(FORMATS)}")
        for form in forms
        if form not in FORMATS
    ]
    if forms and out is None:
        problems.append(Problem("--subtitles", ", ".join(forms), "needs --out FOLDER"))
    if not 1.0 <= chunk_s < math.inf:
        problems.append(Problem("--chunk-s", chunk_s, "must be at least 1 second"))
    elif not 0.0 <= overlap_s <= chunk_s / 2:
        problems.append(
            Problem("--overlap-s", overlap_s, f"must lie in 0 ... {chunk_s / 2:g} (half a piece)")
        )
    if problems:
        raise ConfigError(problems, "the command line")


def _why_empty(path: Path, emissions_TV: np.ndarray, greedy: str, recordings: ReadRecordings) -> str:
    seconds = dict(recordings.done)[path]
    if path in recordings.silent:
        return f"the {seconds:.2f} s of audio are silent"
    if greedy:
        return f"the search found no words of the lexicon (without it the letters are {greedy!r})"
    return f"the model hears no letter in {seconds:.2f} s ({len(emissions_TV)} frames)"


def _bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("recordings"),
        TimeRemainingColumn(), console=console, transient=True, redirect_stdout=sys.stdout.isatty(),
    )  # fmt: skip


def _write(target: Path, content: Mapping[str, Any], forms: Sequence[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    texts = {form: make_subtitles(content["words"], form) for form in forms}
    texts |= {"txt": f"{content['text']}\n", "json": json.dumps(content, indent=2, ensure_ascii=False) + "\n"}
    for ending, text in texts.items():
        Path(f"{target}.{ending}").write_text(text, encoding="utf-8", errors="backslashreplace")


def output_stems(files: Sequence[Path], source: Path) -> list[Path]:
    """Where each recording's results go below the output folder, without ending.

    The folders of the source are kept. Recordings that differ in their ending alone keep it, so that none
    overwrites another's results.
    """
    # Without "..", which a manifest's names may hold: a result never leaves the output folder.
    places = [Path(os.path.abspath(file)) for file in files]
    root = os.path.abspath(source) if source.is_dir() else os.path.commonpath([p.parent for p in places])
    names = [place.relative_to(root) for place in places]
    counts = Counter(name.with_suffix("") for name in names)
    return [name if counts[name.with_suffix("")] > 1 else name.with_suffix("") for name in names]
