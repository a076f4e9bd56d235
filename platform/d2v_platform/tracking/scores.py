"""Scores of test subsets as results: metrics of the run, tags of the registered version, each of them once.

A score belongs to what it was measured with: the data, the subset, the decoding and the weights. Their hash
is its id; the tag ``d2v.score.ID`` holds all of it as JSON, and the metric ``test/SUBSET/METRIC`` the value.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import filelock

from data2vec.errors import Data2VecError

from ..home import home_folder
from ..markdown import code, literal, table
from ..redaction import redact, redact_text
from .metric_queue import MetricPoint
from .mlflow_access import error_code

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from .tracker import Tracker

SCORE_TAG = "d2v.score."
CARD_FILE = "model_card.md"
_MAX_DESCRIPTION = 5000  # characters; MLflow's limit


@dataclass(frozen=True, kw_only=True)
class Score:
    """Metrics of one subset.

    Attributes:
        subset: its name.
        metrics: by name, the main one first; empty where nothing is known to compare with.
        data: fingerprint of the subset and its labels.
        weights: hash of the model's weights.
        samples: how many were scored.
        decoding: what else decided, such as the search and its language model.
        update: of the weights, 0 where unknown.
    """

    subset: str
    metrics: Mapping[str, float]
    data: str
    weights: str
    samples: int
    decoding: Mapping[str, Any] = field(default_factory=dict)
    update: int = 0

    @property
    def value(self) -> float | None:
        """Of the main metric."""
        return next(iter(self.metrics.values()), None)

    @property
    def id(self) -> str:
        """Hash of everything that the value follows from."""
        parts = [self.subset, self.data, self.weights, self.samples, dict(self.decoding)]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


RecordScores = Callable[[str, Sequence[Score]], None]
"""Takes the scores of one task of a sweep."""


@dataclass(frozen=True, kw_only=True)
class StoredScore:
    """A score as a tag holds it."""

    id: str  # see :class:`Score`
    metrics: dict[str, float]  # full metric name to value
    subset: str = ""  # name
    data: str = ""  # fingerprint
    samples: int = 0  # how many
    decoding: dict[str, Any] = field(default_factory=dict)  # what else decided
    update: int = 0  # of the weights
    weights: str = ""  # their hash
    recorded: str = ""  # when, ISO 8601

    @property
    def decoded(self) -> str:
        """What decided besides model and data in words, without hashes."""
        shown = {key: value for key, value in self.decoding.items() if not key.endswith("_sha256")}
        return ", ".join(f"{key} {value}" for key, value in shown.items() if value is not None) or "-"


def stored_scores(tags: Mapping[str, str]) -> list[StoredScore]:
    """The scores in the tags of a run or of a version, in the order in which they were recorded."""
    found: list[StoredScore] = []
    for tag, text in tags.items():
        if not tag.startswith(SCORE_TAG):
            continue
        try:
            held = json.loads(text)
            known = {name: held[name] for name in StoredScore.__dataclass_fields__ if name in held}
            found.append(StoredScore(id=tag.removeprefix(SCORE_TAG), **known))
        except (ValueError, TypeError):  # changed by hand
            continue
    return sorted(found, key=lambda score: (score.recorded, score.id))


def record_scores(
    tracker: Tracker, scores: Sequence[Score], run_id: str | None, version: tuple[str, int] | None = None
) -> list[str]:
    """Put scores into MLflow: metrics and tags of a run, tags of a version. The run may be over.

    Args:
        tracker: where.
        scores: those without metrics are passed over, those that are there already are left alone.
        run_id: ``None`` for a version without a run.
        version: registered name and number.

    Returns:
        What was done, a line each.

    Raises:
        Data2VecError: the run does not exist.
    """
    scores = [score for score in scores if score.metrics]
    lines: list[str] = []
    with filelock.FileLock(home_folder("queue", tracker.home) / "scores.lock", timeout=120):
        if run_id:
            lines += _to_run(tracker, scores, run_id)
        if version is not None:
            lines += _to_version(tracker, scores, *version)
    return lines


def _to_run(tracker: Tracker, scores: Sequence[Score], run_id: str) -> list[str]:
    try:
        run = tracker.client.get_run(run_id)
    except Exception as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise Data2VecError(f"MLflow has no run {run_id!r}") from error
    new = _new(scores, run.data.tags)
    now = round(datetime.now(UTC).timestamp() * 1000)
    points = [
        MetricPoint(key, score.update, float(value), now)
        for score, named in new
        for key, value in named.items()
    ]
    where = f"run {run.info.run_name or run_id}"
    if points:
        tracker.log(run_id, points)
        tracker.set_tags(run_id, {SCORE_TAG + score.id: _as_json(score, named) for score, named in new})
        tracker.sender.add_run(run_id)
        waiting = tracker.flush(run_id)
        if waiting:
            where += f" ({waiting} items wait for MLflow and are sent by the next start of d2v)"
    return _told(where, new, len(scores))


def _to_version(tracker: Tracker, scores: Sequence[Score], name: str, number: int) -> list[str]:
    held = tracker.client.get_model_version(name, str(number))
    new = _new(scores, dict(held.tags))
    _put(tracker, held, {SCORE_TAG + score.id: _as_json(score, named) for score, named in new})
    return _told(f"models:/{name}/{number}", new, len(scores))


def take_scores(
    tracker: Tracker, scores: Sequence[StoredScore], run_tags: Mapping[str, str], name: str, number: int
) -> None:
    """Give a version what its run was scored with before it was registered.

    Args:
        tracker: where.
        scores: of these weights.
        run_tags: of the run, which hold them.
        name: registered name.
        number: of the version.
    """
    held = tracker.client.get_model_version(name, str(number))
    tags = [SCORE_TAG + score.id for score in scores]
    _put(tracker, held, {tag: run_tags[tag] for tag in tags if tag not in held.tags})


def with_scores(card: str, scores: Sequence[StoredScore]) -> str:
    """A card with these test scores, instead of those that it shows, before its lineage."""
    card = re.sub(r"\n\n## Test scores\n(\n\|.*)+", "", card)
    rows = [
        (
            code(name),
            f"{value:.4g}",
            str(score.samples),
            code(score.data[:12]),
            literal(redact_text(score.decoded)),
        )
        for score in scores
        for name, value in score.metrics.items()
    ]
    if not rows:
        return card
    shown = table(("metric", "value", "samples", "data", "decoding"), rows)
    head, mark, rest = card.partition("\n\n## Lineage")
    return f"{head.rstrip()}\n\n## Test scores\n\n{shown}{mark}{rest}" + ("" if mark else "\n")


def fitting_card(card: str) -> str:
    """What MLflow takes as a description."""
    if len(card) <= _MAX_DESCRIPTION:
        return card
    note = f"\n\n(The card goes on in {CARD_FILE} of this version.)"
    head = card[: _MAX_DESCRIPTION - len(note)]
    return head[: head.rfind("\n")] + note


def _put(tracker: Tracker, held: ModelVersion, texts: Mapping[str, str]) -> None:
    """Scores as tags of a version and on its card; last the tag that says that a score is complete."""
    if texts and held.description:  # without a card there is nothing to add to
        card = with_scores(held.description, stored_scores({**held.tags, **texts}))
        tracker.client.update_model_version(held.name, held.version, fitting_card(card))
    for tag, text in texts.items():
        for key, value in json.loads(text)["metrics"].items():
            tracker.client.set_model_version_tag(held.name, held.version, key, f"{value:.6g}")
        tracker.client.set_model_version_tag(held.name, held.version, tag, text)


def _new(scores: Sequence[Score], tags: Mapping[str, str]) -> list[tuple[Score, dict[str, float]]]:
    """The scores that the tags do not hold, with the metric names that are free for them."""
    stored = stored_scores(tags)
    ids, taken = {score.id for score in stored}, {key for score in stored for key in score.metrics}
    new: list[tuple[Score, dict[str, float]]] = []
    for score in scores:
        if score.id in ids:
            continue
        names = {metric: _metric_name(score, metric) for metric in score.metrics}
        if taken & set(names.values()):  # the same subset with other data, decoding or weights
            names = {metric: f"{name}-{score.id}" for metric, name in names.items()}
        named = {names[metric]: value for metric, value in score.metrics.items()}
        ids.add(score.id)
        taken |= set(named)
        new.append((score, named))
    return new


def _metric_name(score: Score, metric: str) -> str:
    """``test/dev-other/wer``, with a language model ``test/dev-other/wer_kenlm``."""
    search = str(score.decoding.get("type", "viterbi"))
    ending = "" if search == "viterbi" else f"_{search}"
    return f"test/{re.sub(r'[^A-Za-z0-9_.-]', '_', score.subset)}/{metric}{ending}"


def _as_json(score: Score, named: Mapping[str, float]) -> str:
    content = {
        "subset": score.subset,
        "metrics": dict(named),
        "samples": score.samples,
        "data": score.data,
        "decoding": dict(score.decoding),
        "update": score.update,
        "weights": score.weights,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return json.dumps(redact(content), default=str)


def _told(where: str, new: Sequence[tuple[Score, Mapping[str, float]]], total: int) -> list[str]:
    values = [f"{key} {value:.4g}" for _, named in new for key, value in named.items()]
    lines = [f"{where}: {', '.join(values)}"] if values else []
    if total > len(new):
        lines.append(f"{where}: {total - len(new)} of {total} scores are there already")
    return lines
