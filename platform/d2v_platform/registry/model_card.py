"""The model card: what a registered version is, where it comes from, how to load it, what not to conclude."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..markdown import code, literal
from ..markdown import table as markdown_table
from ..recipe.difference import recipe_section
from ..redaction import redact, redact_text
from .served_models import served_as


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card states; everything comes from the run, nothing is guessed.

    Attributes:
        name: registered name.
        kind: ``pretrained`` or ``sentence_classifier``.
        summary: one sentence, e.g. "data2vec 2.0 text encoder, 4 blocks, width 256".
        recipe: name of the recipe, e.g. ``v2/base_text_only_task``.
        recipe_difference: dotted key -> (value in the named recipe, value here).
        data: where the data lies.
        data_size: how much the training subset holds, in words.
        data_fingerprint: hash of the data it was trained or judged on.
        metrics: metric -> value.
        metrics_note: protocol in words: split, seeds, selection rule.
        seeds: the seeds behind the metrics.
        lineage: the lineage tags.
        languages: what the text is, where known.
        licence: of the weights, with the reason.
        parent: the model it was fine-tuned from, ``None`` if trained from scratch.
        labels: class names of a classifier.
        modality: ``text``, ``image`` or ``audio``.
        alias: under which the model is loaded in the example; a version number where it gets none.
        tracking_uri: of the MLflow where it is registered, for the example.
        extra: further sections, title -> Markdown.
    """

    name: str
    kind: str
    summary: str
    recipe: str
    data_fingerprint: str
    modality: str
    metrics: Mapping[str, float]
    recipe_difference: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    metrics_note: str = ""
    seeds: tuple[int, ...] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)
    languages: str = ""
    licence: str = ""
    parent: str | None = None
    labels: tuple[str, ...] = ()
    data: str = ""
    data_size: str = ""
    alias: str | None = None
    tracking_uri: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)


def model_card(facts: CardFacts) -> str:
    """The card as Markdown, without secrets."""
    sections = [
        f"# {_told(facts.name)}\n\n{_told(facts.summary)}",
        _what(facts),
        recipe_section(facts.recipe, facts.recipe_difference),
        _metrics(facts),
        _lineage(facts),
        "## How to load it\n\n" + _loading(facts),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(facts)),
        "## Licence\n\n" + (facts.licence or _DEFAULT_LICENCE),
        *(f"## {title}\n\n{body}" for title, body in facts.extra.items()),
    ]
    return redact_text("\n\n".join(sections)) + "\n"


_DEFAULT_LICENCE = (
    "The code is MIT. Weights trained here carry whatever terms the training data sets; if they start from "
    "published data2vec weights, the terms of those weights hold too."
)


def _what(facts: CardFacts) -> str:
    rows = [("kind", _told(facts.kind)), ("trained from", _told(facts.parent or "scratch"))]
    if facts.labels:
        rows.append(("labels", _told(", ".join(facts.labels))))
    if facts.languages:
        rows.append(("text", _told(facts.languages)))
    if facts.data:
        rows.append(("data", code(facts.data)))
    if facts.data_size:
        rows.append(("training data", _told(facts.data_size)))
    rows.append(("data fingerprint", code(facts.data_fingerprint)))
    return markdown_table(("", ""), rows)


def _metrics(facts: CardFacts) -> str:
    if not facts.metrics:
        return "## Results\n\n" + (facts.metrics_note or "None recorded.")
    rows = [(_told(name), f"{value:.4g}") for name, value in sorted(facts.metrics.items())]
    note = f"\n\n{_told(facts.metrics_note)}" if facts.metrics_note else ""
    return "## Results\n\n" + markdown_table(("metric", "value"), rows) + note


def _lineage(facts: CardFacts) -> str:
    # The difference stands readable above, and whole in lineage.json.
    told = {key: value for key, value in facts.lineage.items() if key != "recipe.difference"}
    if not told:
        return "## Lineage\n\nNone recorded."
    rows = [(_told(key), code(_short(value))) for key, value in sorted(redact(told).items())]
    return "## Lineage\n\n" + markdown_table(("tag", "value"), rows)


def _loading(facts: CardFacts) -> str:
    named = f"models:/{facts.name}@{facts.alias}" if facts.alias else f"models:/{facts.name}/1"
    remark = f"  # or models:/{facts.name}/1" if facts.alias else "  # or another version's number"
    use = served_as(facts.kind, facts.modality).use(facts.kind, bool(facts.labels))
    uri = facts.tracking_uri
    where = f"mlflow.set_tracking_uri({json.dumps(uri)})"
    if not uri or redact_text(uri) != uri:  # an address with a login is not to be read here
        where = "# MLFLOW_TRACKING_URI must name the server where it is registered"
    params = f", params={use.params}" if use.params else ""
    text = f"""From any folder, with MLflow and pandas:

```python
import mlflow, pandas as pd
{where}
model = mlflow.pyfunc.load_model("{named}"){remark}
table = {use.table}
print(model.predict(table{params}))
```

Columns in: {use.inputs}. Columns out: {use.outputs}.
"""
    if use.more:
        text += f"{use.more}\n"
    return f"""{text}
Without MLflow, `artifacts/model` of the version is a model folder for the library:

```python
import data2vec
print(data2vec.load("FOLDER").{use.call})
```

Nothing in the version is pickled: weights are safetensors, the rest is JSON and text."""


def _limits(facts: CardFacts) -> list[str]:
    limits = []
    if len(facts.seeds) == 1:
        limits.append(
            f"One seed ({facts.seeds[0]}) is noise: differences of a point or two between models of one seed "
            "mean nothing. Train several and compare medians."
        )
    elif facts.seeds:
        limits.append(f"{len(facts.seeds)} seeds ({', '.join(map(str, facts.seeds))}).")
    else:
        limits.append("The number of seeds is not recorded: read the figures as one seed, which is noise.")
    limits.append("Figures hold for the data with this fingerprint and for no other.")
    return [*limits, *served_as(facts.kind, facts.modality).limits(facts.kind)]


def _told(text: str) -> str:
    """A text from outside: without secrets first, as they are found in addresses, which this takes apart."""
    return literal(redact_text(text))


def _short(value: str, limit: int = 120) -> str:
    return value if len(value) <= limit else f"{value[:limit]}… ({len(value)} characters, see lineage.json)"
