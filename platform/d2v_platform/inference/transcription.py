"""``d2v transcribe``: recordings to text and time stamps."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from data2vec.errors import DataError

from ..storage.local_places import folder_to_write
from .command_options import BatchSize, Device


def transcribe_command(
    source: Annotated[Path, typer.Argument(help="A recording, a folder of recordings, or a .tsv.")],
    model: Annotated[str, typer.Option("--model", help="Any model name; it must be fine-tuned for CTC.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for NAME.txt and NAME.json.", parser=folder_to_write)
    ] = None,
    lexicon: Annotated[Path | None, typer.Option(help="Lexicon, for a language model.")] = None,
    lm: Annotated[Path | None, typer.Option("--lm", help="Language model (ARPA or KenLM binary).")] = None,
    beam: Annotated[int, typer.Option(help="Hypotheses kept a frame, with --lm.")] = 100,
    device: Device = "auto",
    batch_size: BatchSize = 16,
) -> None:
    """Recordings of any length, rate and number of channels to text.

    Long audio goes through the model in overlapping pieces. A file that cannot be read is reported at the
    end; the others are done.
    """
    import data2vec
    from data2vec.ctc_decoding import BeamOptions, LexiconBeam
    from data2vec.in_use import device_of
    from data2vec.speech_model import SpeechModel

    from ..training.preflight import model_folder
    from .recordings import ReadRecordings, find_recordings, report_unreadable

    if (lexicon is None) != (lm is None):
        raise DataError("--lm and --lexicon belong together")
    place = device_of(device)
    files = find_recordings(source)
    loaded = data2vec.load(model_folder(model)[0], device=place)
    if not isinstance(loaded, SpeechModel) or loaded.ctc is None or loaded.letters is None:
        raise DataError(f"{model} is no speech model with letters; give one that was fine-tuned for CTC")
    search = None
    if lexicon is not None:
        search = LexiconBeam(loaded.letters, lexicon, lm, BeamOptions(beam=beam))
    frame_s, stems = loaded.frame_s, dict(zip(files, output_stems(files, source), strict=True))
    recordings = ReadRecordings(loaded, files)
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
        print(f"{path}\t{text}" if len(files) > 1 else text)
        if out is not None:
            target = out / stems[path]
            target.parent.mkdir(parents=True, exist_ok=True)
            content = {"file": str(path), "text": text, "score": score, "words": words, "model": model}
            Path(f"{target}.txt").write_text(f"{text}\n", encoding="utf-8")
            Path(f"{target}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    report_unreadable(recordings.failed, len(files))


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
