"""``d2v infer`` and ``experiments/infer.py``: score subsets with a model, as its kind asks for."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from data2vec.artifact import read_artifact
from data2vec.errors import CheckpointError

from ..home import home_folder
from ..registry.model_folders import model_folder
from ..registry.served_models import served_of
from ..tracking.scores import Score
from .options import InferOptions, read_runs
from .outputs import own_results
from .recording import owner_of, record

logger = logging.getLogger(__name__)


def infer_each(arguments: Sequence[str], prog: str) -> None:
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
    config = read_artifact(folder).config
    infer_kind = served_of(config).verb("infer")
    if infer_kind is None:
        kind = config["kind"]
        raise CheckpointError(f"{folder} holds a {kind} model; decoding needs one fine-tuned for CTC")
    return infer_kind(options, folder, results, console, model=uri)


def _results(options: InferOptions) -> Path:
    if options.common_eval.results_path is not None:
        return Path(options.common_eval.results_path)
    return _stamped_folder()


def _stamped_folder() -> Path:
    return home_folder("inference") / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
