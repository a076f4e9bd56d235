"""What the registry needs to know about language models: signature, and the inputs of the reload check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .serving import Served, Use, signature_of

if TYPE_CHECKING:
    from mlflow.models import ModelSignature


def language_signature(config: Mapping[str, Any]) -> ModelSignature:
    """A column of texts in; log probability, tokens and perplexity out."""
    outputs = {"log_prob": "number", "tokens": "whole", "perplexity": "number"}
    return signature_of({"text": "text"}, outputs, "log_prob", pooled=False)


def check_texts(model: Any) -> list[str]:
    """Sentences of the model's own symbols, the same on every machine, one with an unknown word."""
    symbols = [s for s in model.dictionary.symbols[4:] if not s.startswith("madeupword")]
    joiner = "" if model.units == "letters" else " "
    picked = [symbols[(7 * index) % len(symbols)] for index in range(9)]
    return [joiner.join(picked[:4]), joiner.join(picked[2:]), f"{picked[0]} \u00a4\u00a4"]


def language_check_outputs(model: Any, texts: list[str]) -> list[list[float]]:
    """What the reload check compares: the log probability of each text."""
    return [[value] for value in model.score(texts)]


def language_check(model: Any) -> dict[str, Any]:
    """Three texts and their log probabilities."""
    texts = check_texts(model)
    return {"output": "log_prob", "texts": texts, "expected": language_check_outputs(model, texts)}


def language_use(kind: str, has_labels: bool) -> Use:
    """Scores of texts."""
    return Use(
        table='pd.DataFrame({"text": ["SOME TEXT"]})',
        inputs="`text`, in the case of its dictionary",
        outputs="`log_prob` (natural logarithm, end of sentence included), `tokens`, `perplexity`",
        call='score(["SOME TEXT"])',
        more="For decoding: `decoding.type=fairseqlm decoding.lmpath=models:/...` with a lexicon in the "
        "case of its dictionary.",
    )


SERVED = {
    "language_model": Served(
        entry=Path(__file__).with_name("pyfunc_language_entry.py"),
        signature=language_signature,
        check=language_check,
        use=language_use,
        noun=lambda config: (
            f"Transformer language model over {(config.get('task') or {}).get('units', 'tokens')}"
        ),
        limits=lambda kind: [
            "It knows the words of its dictionary, as they are written there; all others are <unk>."
        ],
        verbs={"embed": "d2v_platform.registry.text_models:no_files"},
    )
}
