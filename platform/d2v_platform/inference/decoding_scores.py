"""``d2v infer`` on speech: transcripts of every subset, with error rates where labels are known."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data2vec.artifact import read_artifact
from data2vec.folders import file_sha256

from ..figures import duration
from ..storage.cache import local_data
from ..tracking.scores import Score
from .decoding import Search, check_utterances, load_search, make_job, make_search, open_dataset
from .options import InferOptions
from .outputs import errors_of, write_outputs
from .recording import updates_seen
from .spread import decode_subset


def infer_transcripts(
    options: InferOptions, folder: Path, results: Path, console: Console | None, model: str
) -> list[Score]:
    """Decode every subset of the options.

    Raises:
        Data2VecError: a manifest, lexicon or language model that is missing or does not fit.
    """
    data = local_data(options.task.data)
    search = make_search(options.decoding, options.platform.chosen_device())
    jobs = {subset: make_job(options, folder, data, subset, search, model) for subset in options.subsets()}
    for job in jobs.values():
        check_utterances(job)  # all subsets before the first one is decoded
    # What is wrong with lexicon and language model is said here, once; workers' GPUs are not this machine's.
    load_search(str(folder), replace(search, device="cpu") if options.platform.num_workers else search)
    table = Table("subset", "utterances", "length", "WER %", "S", "D", "I", "real-time factor")
    scores: list[Score] = []
    facts = {
        "weights": file_sha256(folder / "model.safetensors"),
        "update": updates_seen(read_artifact(folder).config),
        "decoding": decoding_facts(options, search),
    }
    for subset, job in jobs.items():
        begin = time.perf_counter()
        records = decode_subset(job, options.platform.num_workers, console)
        elapsed = time.perf_counter() - begin
        place = results / subset if len(jobs) > 1 else results
        decoding = asdict(options.decoding) | {"model": model}
        unique = options.decoding.unique_wer_file
        worst = options.platform.worst
        write_outputs(place, records, decoding, worst, subset=subset, unique_wer_file=unique)
        errors = errors_of(records)
        metrics = {} if errors is None else {"wer": errors.rate}
        data_hash = open_dataset(job).fingerprint()
        scores.append(Score(subset=subset, metrics=metrics, data=data_hash, samples=len(records), **facts))
        seconds = sum(record["seconds"] for record in records)
        counts = ["-"] * 4
        if errors is not None:
            counts = [
                f"{errors.rate:.2f}",
                *map(str, (errors.substitutions, errors.deletions, errors.insertions)),
            ]
        factor = f"{elapsed / max(seconds, 1e-9):.3f}"
        table.add_row(subset, str(len(records)), duration(seconds), *counts, factor)
    if console is not None:
        console.print(table)
        console.print(f"results: {results}", highlight=False)
    return scores


def decoding_facts(options: InferOptions, search: Search) -> dict[str, Any]:
    """What decides over a decoding besides model and data; files by their content too."""
    limits = {
        name: getattr(options.task, name)
        for name in ("min_sample_size", "max_sample_size")
        if getattr(options.task, name) is not None
    }
    if search.kind == "viterbi":
        return {"type": "viterbi"} | limits
    facts = {"type": search.kind, "unitlm": search.unit, **dict(search.beam)}
    for name, path in (("lexicon", search.lexicon), ("lmpath", search.language_model)):
        if path is not None:
            file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
            facts |= {name: getattr(options.decoding, name), f"{name}_sha256": file_sha256(file)[:16]}
    return facts | limits
