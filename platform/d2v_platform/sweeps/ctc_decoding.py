"""After a sweep of speech models: winners decoded on all listed subsets, greedy and with a language model."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..inference.command import score_subsets
from ..inference.options import (
    DatasetOptions,
    DecodingOptions,
    EvaluationOptions,
    InferOptions,
    TaskOptions,
    WorkerOptions,
)
from ..markdown import literal, table
from ..recipe.audio_components import AudioFinetuningTask
from ..recipe.sweep_definition import Evaluate, SweepDefinition
from ..tracking.scores import RecordScores
from ..training import ray_session
from .capacity import Capacity
from .selection import Choice

logger = logging.getLogger(__name__)


def decode_winners(
    definition: SweepDefinition,
    choices: Mapping[str, Choice],
    folder: Path,
    capacity: Capacity | None = None,
    record: RecordScores = lambda task, scores: None,
) -> dict[str, Path]:
    """Decode the winner of each task and write ``decoding.csv`` and ``decoding.md``.

    Args:
        definition: its ``evaluate`` part has subsets and language model.
        choices: winners by task.
        folder: of the sweep.
        capacity: what a trial occupied: as many processes decode, on the nodes of a cluster; this one alone
            without a cluster.
        record: receives each task's scores.

    Returns:
        Written files by name; empty if there is nothing to decode.
    """
    evaluate, workers = definition.evaluate, workers_of(capacity)
    rows: list[dict[str, Any]] = []
    for task, choice in choices.items():
        recipe = choice.record.stored.trial.recipe
        task_options = recipe.task
        assert isinstance(task_options, AudioFinetuningTask)
        model = choice.record.model_folder
        if model is None:
            logger.warning("%s: the winner's weights are gone; it is not decoded", task)
            continue
        subsets = evaluate.subsets or recipe.valid_subsets()
        row: dict[str, Any] = {
            "task": task,
            "trial": choice.record.stored.name,
            "lr": choice.record.stored.lr,
        }
        for name, decoding in searches(evaluate).items():
            options = InferOptions(
                task=TaskOptions(data=recipe.task.data, labels=task_options.labels),
                dataset=DatasetOptions(gen_subset=",".join(subsets)),
                decoding=decoding,
                common_eval=EvaluationOptions(
                    path=str(model), results_path=str(folder / "decoding" / str(task) / name)
                ),
                platform=workers,
            )
            options.check()
            scores = score_subsets(options)
            record(task, scores)
            for score in scores:
                value = score.value
                row[f"{score.subset} {name}"] = None if value is None else round(value, 2)
        rows.append(row)
    if not rows:
        return {}
    paths = {"decoding.csv": folder / "decoding.csv", "decoding.md": folder / "decoding.md"}
    paths["decoding.csv"].write_text(_csv(rows), encoding="utf-8")
    paths["decoding.md"].write_text(_markdown(rows), encoding="utf-8")
    for line in _markdown(rows).splitlines():
        logger.info("%s", line)
    return paths


def workers_of(capacity: Capacity | None) -> WorkerOptions:
    """Where winners are decoded: on all GPUs of the cluster, or else as many processes as it could train."""
    if capacity is None or not ray_session.on_cluster():
        return WorkerOptions()
    cluster = ray_session.cluster_info()
    if cluster.gpus >= 1:
        return WorkerOptions(num_workers=int(cluster.gpus), device="cuda")
    cpus = max(1.0, capacity.cpus / capacity.workers)
    return WorkerOptions(num_workers=cluster.holds(cpus, 0), device="cpu")


def searches(evaluate: Evaluate) -> dict[str, DecodingOptions]:
    """Greedy decoding, and beam search where a language model is given."""
    found = {"greedy": DecodingOptions()}
    if evaluate.lmpath is not None:
        found["LM"] = DecodingOptions(
            type=evaluate.type,
            lmpath=evaluate.lmpath,
            lexicon=evaluate.lexicon,
            beam=evaluate.beam,
            lmweight=evaluate.lmweight,
            wordscore=evaluate.wordscore,
            silweight=evaluate.silweight,
        )
    return found


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, _columns(rows))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = _columns(rows)
    cells = [["-" if row.get(c) is None else literal(row[c]) for c in columns] for row in rows]
    return "\n".join(["WER in percent, lower is better.", "", table([*map(literal, columns)], cells), ""])
