"""What a decoding leaves: the reference's text files, a table of all utterances, and a page of the worst."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from data2vec.folders import inside, write_text
from data2vec.speech_metrics import ErrorCount

from ..preparation.sole_writer import sole_writer
from ..reports.worst_utterances import worst_utterances, wrong_words

logger = logging.getLogger(__name__)

Records = Sequence[Mapping[str, Any]]
_SUBSETS = ".inference.json"  # names the subsets whose results a folder holds
# What inferences of any kind leave. Not wer.<n>: these are made to be collected.
_OUTPUTS = (
    "hypo.word", "hypo.units", "ref.word", "ref.units", "asr_score", "wer", "utterances.parquet",
    "utterances.csv", "worst.html", "predictions.parquet", "predictions.csv", "per_class.csv",
    "confusion.csv", "confusion.png", "summary.json",
)  # fmt: skip


@contextlib.contextmanager
def own_results(folder: Path, subsets: Sequence[str]) -> Iterator[Path]:
    """A folder for the results of one inference: nobody else writes there, and none of an earlier one stay.

    Raises:
        DataError: another inference is writing there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder, "d2v infer", "common_eval.results_path"):
        record = folder / _SUBSETS
        if record.is_file():
            earlier = json.loads(record.read_text(encoding="utf-8"))
            logger.info("note: results of an earlier inference in %s are replaced", folder)
            for place in (folder, *(inside(folder, name) for name in earlier)):
                for name in _OUTPUTS:
                    (place / name).unlink(missing_ok=True)
        write_text(record, json.dumps(list(subsets)))
        yield folder


def errors_of(records: Records) -> ErrorCount | None:
    """Errors of a subset; ``None`` without references."""
    if not records or "reference" not in records[0]:
        return None
    return ErrorCount(
        substitutions=sum(r["substitutions"] for r in records),
        deletions=sum(r["deletions"] for r in records),
        insertions=sum(r["insertions"] for r in records),
        reference=sum(r["reference_words"] for r in records),
    )


def write_outputs(
    folder: Path,
    records: Records,
    decoding: Mapping[str, Any],
    worst: int,
    *,
    subset: str = "",
    unique_wer_file: bool = False,
) -> None:
    """Write everything about one subset into a folder.

    ``hypo.word``, ``hypo.units``, ``ref.word``, ``ref.units``, ``asr_score`` and ``wer`` are the reference's;
    ids are positions in the data set after skipping, and lines are in the order of ids.

    Args:
        folder: made where it does not exist.
        records: one an utterance.
        decoding: the settings, kept in ``wer``.
        worst: utterances on the page of the worst.
        subset: its name, for the page.
        unique_wer_file: ``wer.<n>`` instead of ``wer``, with n a hash of the settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(records, key=lambda r: r["id"])
    texts = {
        "hypo.word": [f"{r['hypothesis']} (None-{r['id']})" for r in ordered],
        "hypo.units": [f"{r['units']} (None-{r['id']})" for r in ordered],
        "asr_score": [f"{r['score']} (None-{r['id']})" for r in ordered],
    }
    errors = errors_of(ordered)
    if errors is not None:
        texts["ref.word"] = [f"{r['reference']} (None-{r['id']})" for r in ordered]
        texts["ref.units"] = [f"{r['reference_units']} (None-{r['id']})" for r in ordered]
        settings = yaml.safe_dump(dict(decoding), sort_keys=False)
        head = f"WER: {errors.rate}\nerr / num_ref_words = {errors.errors} / {errors.reference}\n"
        name = "wer"
        if unique_wer_file:
            digest = hashlib.md5(settings.encode(), usedforsecurity=False).hexdigest()
            name = f"wer.{int(digest, 16) % 1_000_000}"
        (folder / name).write_text(f"{head}\n{settings}", encoding="utf-8")
    for name, lines in texts.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    table = utterance_table(ordered)
    table.to_parquet(folder / "utterances.parquet", index=False)
    plain = table.assign(**{c: table[c].map(json.dumps) for c in ("words", "nbest") if c in table})
    plain.to_csv(folder / "utterances.csv", index=False)
    if errors is not None:
        page = worst_utterances(ordered, errors, worst, decoding, subset or folder.name)
        (folder / "worst.html").write_text(page, encoding="utf-8")


def utterance_table(records: Records) -> pd.DataFrame:
    """One row an utterance, with the time of each word and the utterance's own error rate."""
    rows = []
    for r in records:
        row = {name: r[name] for name in ("id", "file", "seconds", "hypothesis")}
        if "reference" in r:
            wrong = wrong_words(r)
            row |= {name: r[name] for name in ("reference", "substitutions", "deletions", "insertions")}
            row["wer"] = 100.0 * wrong / r["reference_words"] if r["reference_words"] else float("nan")
        row |= {"score": r["score"], "model_s": r["model_s"], "search_s": r["search_s"]}
        row["words"] = [
            {"text": str(text), "start_s": float(start), "end_s": float(end)}
            for text, start, end in r["words"]
        ]
        if r.get("nbest"):
            row["nbest"] = [{"text": str(text), "score": float(score)} for text, score in r["nbest"]]
        rows.append(row)
    return pd.DataFrame(rows)
