"""``d2v infer`` and ``experiments/infer.py``: decode subsets with a model, here or over Ray workers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data2vec.artifact import read_artifact
from data2vec.errors import DataError

from ..home import home_folder
from ..storage.cache import local_data
from ..training.preflight import model_folder
from .decoding import Job, batches, decode_batches, make_job, open_dataset
from .options import InferOptions, read_options
from .outputs import errors_of, write_outputs

logger = logging.getLogger(__name__)


def infer_command(arguments: Sequence[str], prog: str) -> dict[str, float | None]:
    """Decode, write the results, show the table; returns the word error rate of each subset."""
    if any(word in ("-h", "--help") for word in arguments):
        print(_HELP % {"prog": prog})
        return {}
    options, notes = read_options(arguments)
    for note in notes:
        logger.info("%s", note)
    return infer(options, Console())


def infer(options: InferOptions, console: Console | None = None) -> dict[str, float | None]:
    """Decode every subset of the options.

    Raises:
        Data2VecError: a model, manifest, lexicon or language model that is missing or does not fit.
    """
    folder, uri = model_folder(options.common_eval.path)
    if read_artifact(folder).modality == "IMAGE":
        from .images import infer_images

        return infer_images(options, folder, _results(options), console)
    data = local_data(options.task.data)
    jobs = {subset: make_job(options, folder, data, subset) for subset in options.subsets()}
    results = _results(options)
    for job in jobs.values():
        open_dataset(job).verify()  # all subsets before the first one is decoded
    table = Table("subset", "utterances", "hours", "WER %", "S", "D", "I", "real-time factor")
    rates: dict[str, float | None] = {}
    for subset, job in jobs.items():
        begin = time.perf_counter()
        records = decode_subset(job, options.platform.num_workers)
        elapsed = time.perf_counter() - begin
        place = results / subset if len(jobs) > 1 else results
        decoding = asdict(options.decoding) | {"model": uri}
        write_outputs(place, records, decoding, options.platform.worst)
        errors = errors_of(records)
        rates[subset] = None if errors is None else errors.rate
        seconds = sum(record["seconds"] for record in records)
        counts = ["-"] * 4
        if errors is not None:
            counts = [
                f"{errors.rate:.2f}",
                *map(str, (errors.substitutions, errors.deletions, errors.insertions)),
            ]
        factor = f"{elapsed / max(seconds, 1e-9):.3f}"
        table.add_row(subset, str(len(records)), f"{seconds / 3600:.2f}", *counts, factor)
    if console is not None:
        console.print(table)
        console.print(f"results: {results}", highlight=False)
    return rates


def _results(options: InferOptions) -> Path:
    if options.common_eval.results_path is not None:
        return Path(options.common_eval.results_path)
    return home_folder("inference") / time.strftime("%Y%m%d-%H%M%S")


def decode_subset(job: Job, num_workers: int) -> list[dict[str, Any]]:
    """All records of a subset, by id; with Ray workers each takes every k-th batch."""
    parts = batches(open_dataset(job), job)
    if num_workers == 0 or len(parts) < 2:
        records = decode_batches(job, parts)
    else:
        records = _over_ray(job, parts, num_workers)
    ids = [record["id"] for record in records]
    if len(set(ids)) != len(ids):
        raise DataError(
            f"subset {job.subset}: an utterance was decoded twice; this is a bug, please report it"
        )
    return sorted(records, key=lambda record: record["id"])


def _over_ray(job: Job, parts: list[list[int]], num_workers: int) -> list[dict[str, Any]]:
    import ray

    from ..training.ray_session import connected

    with connected():
        remote = ray.remote(num_cpus=1, max_retries=2)(decode_batches)
        job = replace(job, threads=1)
        shares = [parts[worker::num_workers] for worker in range(min(num_workers, len(parts)))]
        found = ray.get([remote.remote(job, share) for share in shares])
    return [record for records in found for record in records]


_HELP = """usage: %(prog)s [--config-dir DIR] [--config-name infer] group.key=value ...

  %(prog)s task.data=/manifests common_eval.path=models:/NAME@ALIAS dataset.gen_subset=dev,test
  %(prog)s ... decoding.type=kenlm decoding.lexicon=lexicon.txt decoding.lmpath=lm.arpa decoding.beam=500
  %(prog)s ... platform.num_workers=4        # spread over Ray workers

  %(prog)s task.data=/images common_eval.path=models:/NAME@ALIAS dataset.gen_subset=val   # an image model

images: predictions.parquet, predictions.csv, per_class.csv, confusion.csv and confusion.png, summary.json;
speech: hypo.word, hypo.units, ref.word, ref.units, wer, utterances.parquet, utterances.csv and worst.html;
all in common_eval.results_path."""
