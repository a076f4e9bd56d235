"""The GLUE test server's files: the winners' predictions of the test splits."""

from __future__ import annotations

import dataclasses
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data2vec.artifact import read_artifact
from data2vec.data.glue import GLUE_TASKS, GlueTask, write_submission
from data2vec.errors import Data2VecError
from data2vec.folders import file_sha256
from data2vec.loading import load
from data2vec.metrics import sentence_metrics

from ..inference.recording import updates_seen
from ..recipe.local_data import see_data
from ..recipe.schema import Recipe
from ..recipe.sweep_definition import SweepDefinition
from ..recipe.text_components import SentencePredictionCriterion, SentencePredictionTask
from ..tasks.sentence_prediction import metrics_of, open_sentences
from ..tracking.scores import RecordScores, Score
from .capacity import Capacity
from .results import StoredTrial
from .selection import Choice

logger = logging.getLogger(__name__)

FOLDER = "glue_submission"
ZIP_NAME = f"{FOLDER}.zip"


@dataclass(frozen=True)
class Predictions:
    """Predictions of one split, a row of the test file each."""

    values: list[float]  # class ids, or scores
    labels: list[str]  # label of each class id; empty for regression
    truncated: int  # rows that were too long for the model
    metrics: dict[str, float]  # of a split whose labels are known, else empty
    data: str  # fingerprint of the split


def write_test_files(
    definition: SweepDefinition,
    choices: Mapping[str, Choice],
    folder: Path,
    capacity: Capacity,
    record: RecordScores = lambda task, scores: None,
) -> dict[str, Path]:
    """Predict the test split of every task that has one, and write the server's files and one zip.

    Args:
        definition: says whether test files are wanted.
        choices: winners with their exported models.
        folder: of the sweep; a folder in it receives ``CoLA.tsv``, ....
        capacity: what one prediction may occupy.
        record: receives the scores of splits whose labels are known.

    Returns:
        The zip by its name; empty if no task has a test split.
    """
    import ray
    from ray.exceptions import RayTaskError

    if not definition.test_files:
        return {}
    folder = folder / FOLDER
    wanted = [
        (choice, task, split) for choice in choices.values() for task, split in _splits(choice.record.stored)
    ]
    if not wanted:
        return {}
    options: dict[str, Any] = {"num_cpus": max(1, capacity.threads)}
    if capacity.gpus:
        options["num_gpus"] = min(capacity.gpus, 1)
    plain: Any = predict_split  # Ray's stubs know positional parameters only
    remote: Any = ray.remote(**options)(plain)
    running = [
        remote.remote(
            choice.record.stored.trial.recipe.to_dict(), str(choice.record.model_folder), split,
            threads=capacity.threads, gpu=capacity.gpus > 0,
        )
        for choice, _, split in wanted
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for reference, (choice, task, split) in zip(running, wanted, strict=True):
        try:
            found: Predictions = ray.get(reference)
        except RayTaskError as error:
            if not isinstance(error.cause, Data2VecError):
                raise
            logger.warning("no test file for %s: %s", task.name, error.cause)
            continue
        if found.truncated:
            logger.warning(
                "%s %s: %d rows are longer than the model takes and were cut",
                task.name,
                split,
                found.truncated,
            )
        if found.metrics:
            record(choice.point.task, [_score(choice, split, found)])
        path = folder / task.submission[split]
        written.append(write_submission(task, found.values, path, labels=found.labels or None))
    if not written:
        return {}
    archive = folder / ZIP_NAME
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in written:
            file.write(path, path.name)
    names = ", ".join(path.name for path in written)
    logger.info(
        "test-server files %s in %s (the server wants all of its tasks, WNLI and AX too)", names, archive
    )
    return {archive.name: archive}


def predict_split(
    recipe: dict[str, Any], model_folder: str, split: str, *, threads: int, gpu: bool
) -> Predictions:
    """Predict one test split, every row of it, in the order of the file."""

    torch.set_num_threads(threads)
    typed = Recipe.from_dict(recipe)
    see_data(typed)
    task = typed.task
    assert isinstance(task, SentencePredictionTask)
    full = open_sentences(_with_task(typed, max_positions=10**9, shorten_method="none"), split)
    data = open_sentences(_with_task(typed, shorten_method="truncate", shorten_data_split_list=""), split)
    classifier = load(model_folder).classifier
    assert classifier is not None
    device = torch.device("cuda" if gpu else "cpu")
    classifier.to(device)
    regression = data.regression
    values: list[float] = [0.0] * len(data)
    order = sorted(range(len(data)), key=lambda index: int(data.sizes[index]))
    with torch.inference_mode():
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            batch = data.collate([data[row] for row in rows])
            logits = classifier(batch["source"].to(device), batch["padding_mask"].to(device))
            found = logits[:, 0] if regression else logits.argmax(-1)
            for row, value in zip(rows, found.tolist(), strict=True):
                values[row] = value
    truncated = int((full.sizes > data.sizes).sum())
    metrics: dict[str, float] = {}
    criterion = typed.criterion
    if data.targets is not None and isinstance(criterion, SentencePredictionCriterion):
        metrics = sentence_metrics(
            values, data.targets.reshape(-1), data.labels, regression, metrics_of(criterion)
        )
    return Predictions(values, list(data.labels), truncated, metrics, data.fingerprint())


def _score(choice: Choice, split: str, found: Predictions) -> Score:
    folder = choice.record.model_folder
    return Score(
        subset=split,
        metrics=found.metrics,
        data=found.data,
        weights=file_sha256(folder / "model.safetensors"),
        samples=len(found.values),
        update=updates_seen(read_artifact(folder).config),
    )


def _with_task(recipe: Recipe, **changes: Any) -> Recipe:
    """For reading only: no row may be dropped, whatever its length."""
    dataset = dataclasses.replace(recipe.dataset, max_tokens_valid=None)
    return dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, **changes), dataset=dataset)


def _splits(stored: StoredTrial) -> list[tuple[GlueTask, str]]:
    """The task's test splits that its data folder holds."""
    task = GLUE_TASKS.get(stored.task)
    node = stored.trial.recipe.task
    if task is None:
        return []
    folder = Path(node.data) / "input0"
    return [(task, split) for split in task.submission if (folder / f"{split}.idx").is_file()]
