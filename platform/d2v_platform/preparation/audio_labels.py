"""Transcripts beside audio to label files: words, letters and the letter dictionary.

The transcripts are LibriSpeech's: ``<speaker>-<chapter>.trans.txt`` in the folder of each utterance, with
``<utterance> WORDS`` a line; or a table of the user's own (:mod:`transcript_tables`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data2vec.data.dictionary import Dictionary
from data2vec.data.letters import letter_dictionary, letter_line, released_letters
from data2vec.data.manifest import Manifest, read_manifest
from data2vec.errors import DataError
from data2vec.folders import write_text

from .transcript_tables import TranscriptTable, table_transcripts


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What :func:`prepare_labels` wrote."""

    folder: Path
    name: str
    lines: int
    words: int
    letters: int
    dictionary: str  # hash
    unknown: dict[str, int]  # symbols that the dictionary lacks, with their counts


def prepare_labels(
    tsv: Path,
    output_dir: Path,
    output_name: str,
    *,
    table: TranscriptTable | None = None,
    build_dict: bool = False,
    dictionary: Path | None = None,
) -> LabelReport:
    """Write ``<name>.wrd``, ``<name>.ltr`` and ``dict.ltr.txt``, line by line as the manifest lists files.

    Args:
        tsv: the manifest.
        output_dir: folder to write.
        output_name: name of the label files without extension.
        table: the transcripts; default: LibriSpeech's files beside the audio.
        build_dict: make the dictionary from these transcripts; otherwise the released one is written, unless
            the folder has one already.
        dictionary: dictionary to use instead.

    Raises:
        DataError: transcripts are missing or malformed (all of them in one report), or the folder's
            dictionary has another order.
    """
    manifest = read_manifest(tsv)
    wrong: list[str] = []
    if table is None:
        texts = _beside_the_audio(manifest, wrong)
    else:
        texts = table_transcripts(manifest, table, wrong)
    if wrong:
        more = f"\n  ... and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise DataError(f"transcripts of {tsv}:\n  " + "\n  ".join(wrong[:10]) + more)
    letters = _dictionary(output_dir, texts, build_dict, dictionary)
    lines = [letter_line(text) for text in texts]
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text(output_dir / f"{output_name}.wrd", "".join(f"{' '.join(text.split())}\n" for text in texts))
    write_text(output_dir / f"{output_name}.ltr", "".join(f"{line}\n" for line in lines))
    write_text(output_dir / "dict.ltr.txt", letters.text())
    counts = Counter(symbol for line in lines for symbol in line.split(" "))
    return LabelReport(
        folder=output_dir,
        name=output_name,
        lines=len(lines),
        words=sum(len(text.split()) for text in texts),
        letters=sum(counts.values()),
        dictionary=letters.digest(),
        unknown={symbol: n for symbol, n in counts.most_common() if letters.index(symbol) == Dictionary.unk},
    )


def _beside_the_audio(manifest: Manifest, wrong: list[str]) -> list[str]:
    """LibriSpeech's transcript of each file."""
    transcripts: dict[Path, dict[str, str]] = {}
    texts: list[str] = []
    for index in range(len(manifest)):
        name = manifest.name(index)
        parts = name.split("/")
        folder = Path(manifest.root, *parts[:-1])
        if len(folder.parts) < 2:
            wrong.append(f"line {index + 2}: {name}: not in a <speaker>/<chapter> folder")
            continue
        path = folder / f"{folder.parts[-2]}-{folder.parts[-1]}.trans.txt"
        if path not in transcripts:
            transcripts[path] = _read_transcripts(path, wrong)
        key = parts[-1].split(".")[0]
        text = transcripts[path].get(key)
        if text is None:
            if path.is_file():
                wrong.append(f"line {index + 2}: {key} is not in {path}")
            continue
        texts.append(text)
    return texts


def _read_transcripts(path: Path, wrong: list[str]) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        wrong.append(f"{path}: no such file")
        return {}
    except UnicodeDecodeError as error:
        wrong.append(f"{path}: byte {error.start} is not UTF-8")
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        key, _, words = line.strip().replace("\t", " ").partition(" ")
        if not words.strip():
            if key:
                wrong.append(f"{path}, line {number}: {line[:60]!r} has no words")
            continue
        found[key] = words
    return found


def _dictionary(folder: Path, texts: list[str], build: bool, given: Path | None) -> Dictionary:
    """The letters to use; those of a folder that has some already must stay."""
    path = folder / "dict.ltr.txt"
    present = Dictionary.load(path) if path.is_file() else None
    if given is not None:
        wanted = Dictionary.load(given)
    elif build:
        wanted = letter_dictionary(texts)
    else:
        return present if present is not None else released_letters()
    if present is not None and present.digest() != wanted.digest():
        raise DataError(
            f"{path} has other letters than this run would write; label files of one folder share it: remove "
            "it, or choose another --output-dir"
        )
    return wanted
