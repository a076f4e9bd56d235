"""What a decoding leaves: the reference's text files, a table of all utterances, and a page of the worst."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from data2vec.speech_metrics import ErrorCount

Records = Sequence[Mapping[str, Any]]


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


def write_outputs(folder: Path, records: Records, decoding: Mapping[str, Any], worst: int) -> None:
    """Write everything about one subset into a folder.

    ``hypo.word``, ``hypo.units``, ``ref.word``, ``ref.units``, ``asr_score`` and ``wer`` are the reference's;
    ids are positions in the data set after skipping, and lines are in the order of ids.
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
        (folder / "wer").write_text(f"{head}\n{settings}", encoding="utf-8")
    for name, lines in texts.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    table = utterance_table(ordered)
    table.to_parquet(folder / "utterances.parquet", index=False)
    table.drop(columns="words").to_csv(folder / "utterances.csv", index=False)
    if errors is not None:
        (folder / "worst.html").write_text(worst_page(ordered, errors, worst), encoding="utf-8")


def utterance_table(records: Records) -> pd.DataFrame:
    """One row an utterance, with the time of each word and the utterance's own error rate."""
    rows = []
    for r in records:
        row = {name: r[name] for name in ("id", "file", "seconds", "hypothesis")}
        if "reference" in r:
            wrong = r["substitutions"] + r["deletions"] + r["insertions"]
            row |= {name: r[name] for name in ("reference", "substitutions", "deletions", "insertions")}
            row["wer"] = 100.0 * wrong / r["reference_words"] if r["reference_words"] else float("nan")
        row |= {"score": r["score"], "model_s": r["model_s"], "search_s": r["search_s"]}
        row["words"] = [
            {"text": str(text), "start_s": float(start), "end_s": float(end)}
            for text, start, end in r["words"]
        ]
        rows.append(row)
    return pd.DataFrame(rows)


def worst_page(records: Records, errors: ErrorCount, count: int) -> str:
    """The utterances with the most errors as one HTML page without scripts."""

    def wrong(r: Mapping[str, Any]) -> int:
        return r["substitutions"] + r["deletions"] + r["insertions"]

    rows = []
    for r in sorted(records, key=lambda r: (-wrong(r), r["id"]))[:count]:
        cells = (str(r["id"]), r["file"], f"{r['seconds']:.1f}", f"{wrong(r)} / {r['reference_words']}",
                 r["reference"], r["hypothesis"])  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{h}</th>" for h in ("id", "file", "seconds", "errors", "reference", "hypothesis"))
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Worst utterances</title><style>"
        "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{border:1px solid #ccc;padding:4px 8px;text-align:left;vertical-align:top}</style></head><body>"
        f"<h1>WER {errors.rate:.2f} %</h1><p>{errors.errors} errors in {errors.reference} words: "
        f"{errors.substitutions} substitutions, {errors.deletions} deletions, "
        f"{errors.insertions} insertions; "
        f"{len(records)} utterances.</p><table><tr>{heads}</tr>{''.join(rows)}</table></body></html>\n"
    )
