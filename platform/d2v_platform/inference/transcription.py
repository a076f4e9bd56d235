"""``d2v transcribe``: recordings to text and time stamps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from data2vec.data.audio_files import SUFFIXES
from data2vec.errors import DataError

OTHER_SUFFIXES = (".aiff", ".aif", ".au", ".mp3", ".opus", ".caf", ".w64")


def transcribe_command(
    source: Annotated[Path, typer.Argument(help="A recording, or a folder of recordings.")],
    model: Annotated[str, typer.Option("--model", help="Any model name; it must be fine-tuned for CTC.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for NAME.txt and NAME.json.")] = None,
    lexicon: Annotated[Path | None, typer.Option(help="Lexicon, for a language model.")] = None,
    lm: Annotated[Path | None, typer.Option("--lm", help="Language model (ARPA or KenLM binary).")] = None,
    beam: Annotated[int, typer.Option(help="Hypotheses kept a frame, with --lm.")] = 100,
) -> None:
    """Recordings of any length, rate and number of channels to text.

    Long audio goes through the model in overlapping pieces. A file that cannot be read is reported at the
    end; the others are done.
    """
    import data2vec
    from data2vec.ctc_decoding import BeamOptions, LexiconBeam
    from data2vec.speech_model import SpeechModel

    from ..training.preflight import model_folder

    if (lexicon is None) != (lm is None):
        raise DataError("--lm and --lexicon belong together")
    files = find_recordings(source)
    loaded = data2vec.load(model_folder(model)[0])
    if not isinstance(loaded, SpeechModel) or loaded.ctc is None or loaded.letters is None:
        raise DataError(f"{model} is no speech model with letters; give one that was fine-tuned for CTC")
    search = None
    if lexicon is not None:
        search = LexiconBeam(loaded.letters, lexicon, lm, BeamOptions(beam=beam))
    failed: list[str] = []
    for path in files:
        try:
            emissions = loaded.emissions(path)
        except DataError as error:
            failed.append(str(error))
            continue
        transcript = loaded.greedy(emissions)
        words = [{"text": w.text, "start_s": w.start_s, "end_s": w.end_s} for w in transcript.words]
        text, score = transcript.text, transcript.score
        if search is not None:
            best = search.decode(emissions)[0]
            text, score = best.text, best.score
            ends = [round(frame * loaded.frame_s, 3) for frame in best.word_ends]
            starts = [0.0, *ends[:-1]]
            words = [
                {"text": word, "start_s": start, "end_s": end}
                for word, start, end in zip(text.split(), starts, ends, strict=True)
            ]
        print(f"{path}\t{text}" if len(files) > 1 else text)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            target = out / path.relative_to(source).with_suffix("") if source.is_dir() else out / path.stem
            target.parent.mkdir(parents=True, exist_ok=True)
            content = {"file": str(path), "text": text, "score": score, "words": words, "model": model}
            Path(f"{target}.txt").write_text(f"{text}\n", encoding="utf-8")
            Path(f"{target}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if failed:
        console = Console(file=sys.stderr, soft_wrap=True)
        console.print(f"{len(failed)} of {len(files)} recordings could not be read:", highlight=False)
        for line in failed[:20]:
            console.print(f"  {line}", highlight=False)
        raise SystemExit(2)


def find_recordings(source: Path) -> list[Path]:
    """The recordings of a folder, sorted, or the one file.

    Raises:
        DataError: nothing is there.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder")
    known = (*SUFFIXES, *OTHER_SUFFIXES)
    files = sorted(p for p in source.rglob("*") if p.is_file() and p.suffix.lower() in known)
    if not files:
        raise DataError(f"{source} holds no recordings ({', '.join(known)})")
    return files
