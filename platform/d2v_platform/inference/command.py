"""``d2v infer`` and ``experiments/infer.py``: decode subsets with a model, here or over Ray workers."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data2vec.artifact import read_artifact
from data2vec.folders import file_sha256

from ..figures import duration
from ..home import home_folder
from ..registry.model_folders import model_folder
from ..storage.cache import local_data
from ..tracking.scores import Score
from .decoding import Search, check_utterances, load_search, make_job, make_search, open_dataset
from .options import InferOptions, read_runs
from .outputs import errors_of, own_results, write_outputs
from .recording import owner_of, record, update_of
from .spread import decode_subset

logger = logging.getLogger(__name__)


def infer_command(arguments: Sequence[str], prog: str) -> None:
    """Decode, write the results and show the table, for each of the inferences that are asked for."""
    runs, notes = read_runs(arguments, prog)
    show_notes(notes)
    console, stamped = Console(markup=False), _stamped_folder()
    for number, (name, options) in enumerate(runs.items()):
        if len(runs) > 1:
            place = Path(options.common_eval.results_path or stamped) / str(number)
            options.common_eval.results_path = str(place)
            console.print(f"{number}: {name}", highlight=False, markup=False)
        infer(options, console)


def show_notes(notes: Sequence[str]) -> None:
    """What was accepted without effect, or read as something else."""
    for note in notes:
        logger.info("note: %s", note)


def infer(options: InferOptions, console: Console | None = None) -> dict[str, float | None]:
    """Decode or classify every subset of the options; scores go to MLflow where it knows the model.

    Args:
        options: of the call.
        console: where progress and results are shown.

    Returns:
        The main metric of each subset in percent, ``None`` without labels.

    Raises:
        Data2VecError: a model, manifest, lexicon or language model that is missing or does not fit.
    """
    folder, uri = model_folder(options.common_eval.path)
    config = read_artifact(folder).config
    owner = owner_of(options.common_eval.path, uri, config, options.common_eval.run)
    scores = score_subsets(options, console)
    record(owner, scores)
    return {score.subset: score.value for score in scores}


def score_subsets(options: InferOptions, console: Console | None = None) -> list[Score]:
    """Decode or classify every subset of the options, and write the results.

    Raises:
        Data2VecError: a model, manifest, lexicon or language model that is missing or does not fit; another
            inference is writing to the same folder.
    """
    with own_results(_results(options), options.subsets()) as results:
        return _score_subsets(options, results, console)


def _score_subsets(options: InferOptions, results: Path, console: Console | None) -> list[Score]:
    folder, uri = model_folder(options.common_eval.path)
    artifact = read_artifact(folder)
    if artifact.modality == "IMAGE":
        from .images import infer_images

        return infer_images(options, folder, results, console)
    if artifact.kind == "audio_classifier":
        from .audio_events import infer_events

        return infer_events(options, folder, results, console)
    data = local_data(options.task.data)
    search = make_search(options.decoding, options.platform.chosen_device())
    jobs = {subset: make_job(options, folder, data, subset, search) for subset in options.subsets()}
    for job in jobs.values():
        check_utterances(job)  # all subsets before the first one is decoded
    load_search(str(folder), search)  # what is wrong with lexicon and language model is said here, once
    table = Table("subset", "utterances", "length", "WER %", "S", "D", "I", "real-time factor")
    scores: list[Score] = []
    facts = {"weights": file_sha256(folder / "model.safetensors"), "update": update_of(artifact.config),
             "decoding": decoding_facts(options, search)}  # fmt: skip
    for subset, job in jobs.items():
        begin = time.perf_counter()
        records = decode_subset(job, options.platform.num_workers, console)
        elapsed = time.perf_counter() - begin
        place = results / subset if len(jobs) > 1 else results
        decoding = asdict(options.decoding) | {"model": uri}
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


def _results(options: InferOptions) -> Path:
    if options.common_eval.results_path is not None:
        return Path(options.common_eval.results_path)
    return _stamped_folder()


def _stamped_folder() -> Path:
    return home_folder("inference") / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
