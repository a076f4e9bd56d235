"""What the registry knows of each kind of model: MLflow's code and columns, the reload check, card, verbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from .model_versions import PRETRAINED

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

EMBEDDING = "`embedding` (a list of numbers); `layer`: -1 = last block, 0 = first"
POOLED = '{"output": "embedding", "pooling": "mean", "layer": -1}'
SCORES = "`label`, `score`, and one `score_CLASS` for each class"


@dataclass(frozen=True, kw_only=True)
class Use:
    """How a model of one kind is used, for its card."""

    table: str  # what predict is given, as a line of Python
    inputs: str  # columns, in words
    outputs: str  # columns, in words
    call: str  # of the library's model
    params: str = ""  # of predict, where the example gives some
    more: str = ""  # a further sentence


VECTOR = {"embedding": ["number"]}
"""The column of an embedding, for :func:`signature_of`."""


def class_columns(config: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a classifier, for :func:`signature_of`."""
    labels = [str(label) for label in config["task"].get("labels", [])]
    return {"label": "text", "score": "number"} | {f"score_{label}": "number" for label in labels}


def signature_of(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], output: str, *, pooled: bool = True
) -> ModelSignature:
    """Columns and params in MLflow's terms.

    Args:
        inputs: kind by name ("name?" where a table may be without it): "text", "number", "whole", "bytes", a
            type of MLflow's, or a list of one kind.
        outputs: likewise.
        output: the param's default, which says what is given.
        pooled: embeddings may be asked for: params ``pooling`` and ``layer``.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    # double, not float: JSON and pandas carry float64, and MLflow refuses to narrow it.
    plain = {"text": DataType.string, "number": DataType.double, "whole": DataType.long,
             "bytes": DataType.binary}  # fmt: skip

    def type_of(kind: Any) -> Any:
        if isinstance(kind, list):
            return Array(type_of(kind[0]))
        return plain[kind] if isinstance(kind, str) else kind

    def schema(kinds: Mapping[str, Any]) -> Schema:
        named = ((name.removesuffix("?"), name, kind) for name, kind in kinds.items())
        return Schema([ColSpec(type_of(k), short, required=short == name) for short, name, k in named])

    params = [ParamSpec("output", DataType.string, output)]
    if pooled:
        params += [ParamSpec("pooling", DataType.string, "mean"), ParamSpec("layer", DataType.long, -1)]
    return ModelSignature(inputs=schema(inputs), outputs=schema(outputs), params=ParamSchema(params))


def usual_limits(kind: str) -> list[str]:
    """Those of encoders, and of models that give scores."""
    if kind == PRETRAINED:
        return ["A pretrained encoder: its features need a task head or a distance; it judges nothing."]
    return ["Scores are not calibrated probabilities."]


@dataclass(frozen=True, kw_only=True)
class Served:
    """What the registry must know of one modality, or of one kind of model.

    Attributes:
        entry: the file that MLflow runs (models from code); it imports ``data2vec`` and ``code`` at most.
        signature: of a model folder's ``config.json``: columns in and out, params with their defaults.
        check: of a ready model: what ``check.json`` holds, the inputs, ``output`` and ``expected``.
        use: of kind and labels: the card's lines.
        code: further files that go into each version.
        noun: what such a model is, from its ``config.json``; empty for an encoder.
        limits: what its users must know, from its kind.
        verbs: ``package.module:function`` of ``d2v infer``, ``embed`` and ``probe``, by the verb.
    """

    entry: Path
    signature: Callable[[Mapping[str, Any]], ModelSignature]
    check: Callable[[Any], Mapping[str, Any]]
    use: Callable[[str, bool], Use]
    code: tuple[Path, ...] = ()
    noun: Callable[[Mapping[str, Any]], str] = lambda config: ""
    limits: Callable[[str], Sequence[str]] = usual_limits
    verbs: Mapping[str, str] = field(default_factory=dict)

    def verb(self, name: str) -> Any:
        """The function of a verb, ``None`` without one."""
        return resolve_name(self.verbs[name]) if name in self.verbs else None


SERVED: dict[str, Served] = {}  # by modality, in capitals, or by a kind of its own


def register_served(name: str, served: Served) -> None:
    """Serve models of a modality, in capitals, or of a kind of its own."""
    SERVED[name] = served
