"""What the registry needs to know about audio models: signature, and the inputs of the reload check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .serving import EMBEDDING, POOLED, SCORES, VECTOR, Served, Use, class_columns, signature_of, usual_limits

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_RATE = 16_000
_VERBS = {
    "embed": "d2v_platform.inference.audio_embeddings:embed_audio",
    "probe": "d2v_platform.inference.labelled_probes:probe_recordings",
}
_NOUNS = {"ctc": "speech recogniser (CTC)", "audio_classifier": "classifier of audio events"}


def audio_signature(config: Mapping[str, Any]) -> ModelSignature:
    """Columns of recordings, params with the defaults of the model's kind, and output columns."""
    inputs = {"audio?": ["number"], "rate?": "whole", "file?": "bytes"}
    if config["kind"] == "audio_classifier":
        return signature_of(inputs, class_columns(config), "scores")
    if config["kind"] != "ctc":
        return signature_of(inputs, VECTOR, "embedding")
    from mlflow.types import DataType
    from mlflow.types.schema import Object, Property

    times = (Property(name, DataType.double) for name in ("start_s", "end_s"))
    word = Object([Property("text", DataType.string), *times])
    return signature_of(inputs, {"text": "text", "words": [word], "score": "number"}, "transcript")


def check_recordings() -> list[list[float]]:
    """Two short recordings, the same on every machine: a chirp, and a chord that fades."""
    time = np.arange(int(0.4 * _RATE)) / _RATE
    chirp = np.sin(2 * np.pi * (200 * time + 1500 * time**2))
    chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in (220.0, 277.2, 329.6)) * np.exp(-4 * time)
    return [np.round(0.3 * wave, 4).tolist() for wave in (chirp, chord)]


def audio_check_outputs(model: Any) -> tuple[str, list[list[float]]]:
    """What the reload check compares: emissions, class scores, or embeddings of a model without a head."""
    recordings = [np.asarray(samples, dtype=np.float32) for samples in check_recordings()]
    if model.config["kind"] == "ctc":
        return "emissions", [model.emissions(r).astype(float).ravel().tolist() for r in recordings]
    if model.config["kind"] == "audio_classifier":
        return "scores", model.classify(recordings)[1].tolist()
    rows = model.embed(recordings, pooling="mean", layer=-1)
    return "embedding", [row.astype(float).tolist() for row in rows]


def audio_check(model: Any) -> dict[str, Any]:
    """Two recordings and what the model gives for them."""
    output, expected = audio_check_outputs(model)
    return {"output": output, "audio": check_recordings(), "expected": expected}


def audio_use(kind: str, has_labels: bool) -> Use:
    """Embeddings, transcripts, or scores of events."""
    table = 'pd.DataFrame({"file": [open("talk.wav", "rb").read()]})'
    inputs = (
        "`file` (the content of an audio file) or `audio` (arrays of samples), `rate` (16000 where absent)"
    )
    if kind == "pretrained":
        return Use(table=table, inputs=inputs, outputs=EMBEDDING, call='embed(["talk.wav"])', params=POOLED)
    embedding = f"`params={POOLED}` gives embeddings instead."
    if kind == "ctc":
        return Use(
            table=table,
            inputs=inputs,
            outputs="`text`, `words` (each with `text`, `start_s`, `end_s`), `score`",
            call='transcribe(["talk.wav"])',
            more=f'`params={{"output": "emissions"}}` gives frames x symbols, and {embedding}',
        )
    return Use(table=table, inputs=inputs, outputs=SCORES, call='classify(["talk.wav"])', more=embedding)


_ENCODER = Served(
    entry=Path(__file__).with_name("pyfunc_audio_entry.py"),
    signature=audio_signature,
    check=audio_check,
    use=audio_use,
    noun=lambda config: _NOUNS.get(config["kind"], ""),
    limits=lambda kind: [] if kind == "ctc" else usual_limits(kind),
    verbs=_VERBS,
)
SERVED = {
    "AUDIO": _ENCODER,
    "ctc": replace(
        _ENCODER, verbs=_VERBS | {"infer": "d2v_platform.inference.decoding_scores:infer_transcripts"}
    ),
    "audio_classifier": replace(
        _ENCODER, verbs=_VERBS | {"infer": "d2v_platform.inference.audio_events:infer_events"}
    ),
}
