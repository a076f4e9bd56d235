"""What the registry needs to know about text models: signature, reload check, lines of the card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data2vec.errors import DataError

from .serving import EMBEDDING, POOLED, SCORES, VECTOR, Served, Use, class_columns, signature_of, usual_limits

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

CHECK_TEXTS = (
    "The committee met on Tuesday and agreed to nothing.",
    "Where the river bends, an old mill still turns.",
    "Numbers such as 3.14 and 2,718 are tokens too!",
)


def text_signature(config: Mapping[str, Any]) -> ModelSignature:
    """Columns of texts, params with the defaults of the model's kind, and output columns."""
    if config["kind"] == "pretrained":
        return signature_of({"text": "text"}, VECTOR, "embedding")
    outputs = class_columns(config)
    if config["task"].get("regression") or len(outputs) == 2:  # no labels
        outputs = {"score": "number"}
    return signature_of({"text": "text", "text_pair?": "text"}, outputs, "scores")


def text_check(model: Any) -> dict[str, Any]:
    """Three texts and their scores, or embeddings of a model without a head."""
    texts, scores = list(CHECK_TEXTS), model.config["kind"] != "pretrained"
    outputs = model.classify(texts)[1] if scores else model.embed(texts, pooling="mean", layer=-1)
    return {
        "output": "scores" if scores else "embedding",
        "texts": texts,
        "expected": [[float(x) for x in row] for row in outputs],
    }


def text_use(kind: str, has_labels: bool) -> Use:
    """Embeddings, or scores of sentences."""
    table = 'pd.DataFrame({"text": ["Some text.", "Some more."]})'
    if kind == "pretrained":
        return Use(
            table=table, inputs="`text`", outputs=EMBEDDING, call='embed(["Some text."])', params=POOLED
        )
    return Use(
        table=table,
        inputs="`text`, and `text_pair` where the task is on pairs",
        outputs=SCORES if has_labels else "`score`",
        call='classify(["Some text."])',
        more=f"`params={POOLED}` gives embeddings instead.",
    )


def no_files(model: Any, place: Path, options: Any) -> None:
    """``d2v embed`` reads files of images and recordings."""
    raise DataError(f"{options.model} reads text; use data2vec.load(...).embed([...]) for sentences")


def limits(kind: str) -> list[str]:
    """Those of all encoders and classifiers, and the length of texts."""
    return [*usual_limits(kind), "Texts longer than the model's positions are cut, with a warning."]


SERVED = {
    "TEXT": Served(
        entry=Path(__file__).with_name("pyfunc_entry.py"),
        signature=text_signature,
        check=text_check,
        use=text_use,
        noun=lambda config: "sentence classifier" if config["kind"] == "sentence_classifier" else "",
        limits=limits,
        verbs={
            "embed": "d2v_platform.registry.text_models:no_files",
            "probe": "d2v_platform.inference.labelled_probes:probe_texts",
        },
    )
}
