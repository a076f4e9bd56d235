"""Utterances of a subset to hypotheses: emissions in batches, then greedy or beam search.

Everything crosses into Ray workers as plain values, and each worker keeps the model and the decoder.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data2vec.artifact import read_artifact
from data2vec.ctc_decoding import BeamOptions, LetterBeam, LexiconBeam
from data2vec.data.batching import epoch_batches
from data2vec.data.letters import greedy_ids, words_of_ids
from data2vec.data.speech import SpeechDataset, SpeechOptions
from data2vec.errors import CheckpointError
from data2vec.speech_metrics import word_errors
from data2vec.speech_model import SAMPLE_RATE, SpeechModel

from .options import InferOptions


@dataclass(frozen=True)
class Job:
    """What a worker needs to decode a part of a subset; plain values.

    Attributes:
        model: model folder.
        data: folder of the manifests.
        subset: name of the manifest.
        labels: extension of the labels, or ``None``.
        max_tokens: samples of audio in a batch.
        batch_size: utterances in a batch.
        max_sample_size: longer recordings are refused.
        min_sample_size: shorter ones are left out.
        kind: ``viterbi`` or ``kenlm``.
        unit: language model over letters.
        lexicon: path, or ``None``.
        language_model: path, or ``None``.
        beam: fields of :class:`BeamOptions`.
        threads: of PyTorch.
    """

    model: str
    data: str
    subset: str
    labels: str | None
    max_tokens: int
    batch_size: int | None
    max_sample_size: int | None
    min_sample_size: int | None
    kind: str
    unit: bool
    lexicon: str | None
    language_model: str | None
    beam: tuple[tuple[str, Any], ...]
    threads: int | None = None


def make_job(options: InferOptions, model: Path, data: str, subset: str) -> Job:
    """The job of one subset; labels are read where the subset has them."""
    labels = options.task.labels
    if labels is not None and not (Path(data) / f"{subset}.{labels}").is_file():
        labels = None
    d = options.decoding
    return Job(
        model=str(model),
        data=data,
        subset=subset,
        labels=labels,
        max_tokens=options.dataset.max_tokens,
        batch_size=options.dataset.batch_size,
        max_sample_size=options.task.max_sample_size,
        min_sample_size=options.task.min_sample_size,
        kind=d.type,
        unit=d.unitlm,
        lexicon=d.lexicon,
        language_model=d.lmpath,
        beam=tuple(asdict(options.beam_options()).items()),
    )


def open_dataset(job: Job) -> SpeechDataset:
    """The utterances, longest first in their batches; nothing is dropped but what the options say."""
    speech = _model(job.model)
    options = SpeechOptions(
        sample_rate=SAMPLE_RATE,
        normalize=speech.normalize,
        pad=True,
        max_sample_size=job.max_sample_size,
        min_sample_size=job.min_sample_size,
        labels=job.labels,
        max_tokens=job.max_tokens,
    )
    return SpeechDataset(job.data, job.subset, options, dictionary=speech.letters)


def batches(dataset: SpeechDataset, job: Job) -> list[list[int]]:
    """Batches of similar lengths, the longest first."""
    found = epoch_batches(
        dataset.sizes,
        seed=1,
        epoch=1,
        max_tokens=job.max_tokens,
        batch_size=job.batch_size,
        required_batch_size_multiple=1,
        shuffle=False,
        order="longest",
    )
    return [batch.tolist() for batch in found]


def decode_batches(job: Job, parts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Results of some batches: one plain record an utterance."""
    if job.threads:
        torch.set_num_threads(job.threads)
    dataset, search = open_dataset(job), _search(job)
    records: list[dict[str, Any]] = []
    for indices, emissions, frames, model_s in _emissions(job, dataset, parts):
        for row, index in enumerate(indices):
            records.append(_record(job, dataset, index, emissions[row][: frames[row]], search, model_s[row]))
    return records


def _emissions(
    job: Job, dataset: SpeechDataset, parts: Sequence[Sequence[int]]
) -> Iterator[tuple[Sequence[int], np.ndarray, list[int], list[float]]]:
    """Log-probabilities of each batch, with the frames and the model seconds of each utterance."""
    speech = _model(job.model)
    assert speech.ctc is not None
    for indices in parts:
        batch = dataset.collate([dataset[index] for index in indices])
        begin = time.perf_counter()
        with torch.inference_mode():
            output = speech.ctc(batch["source"], batch["padding_mask"])
            emissions = output.emissions().numpy()
        spent = time.perf_counter() - begin
        share = batch["frames"].double() / batch["frames"].sum()
        yield indices, emissions, output.frames_B.tolist(), (share * spent).tolist()


def _record(
    job: Job, dataset: SpeechDataset, index: int, emissions_TV: np.ndarray, search: Any, model_s: float
) -> dict[str, Any]:
    speech = _model(job.model)
    assert speech.letters is not None
    begin = time.perf_counter()
    if search is None:
        transcript = speech.greedy(emissions_TV)
        ids = greedy_ids(emissions_TV.argmax(-1).tolist())
        text, score = transcript.text, float(emissions_TV.max(-1).sum())
        times = [(word.text, word.start_s, word.end_s) for word in transcript.words]
    else:
        best = search.decode(emissions_TV)[0]
        ids, text, score = list(best.letters), best.text, best.score
        ends = [round(end * speech.frame_s, 3) for end in best.word_ends]
        times = list(zip(text.split(), [0.0, *ends[:-1]], ends, strict=False)) if ends else []
    record: dict[str, Any] = {
        "id": index,
        "file": dataset.manifest.name(index),
        "seconds": round(int(dataset.manifest.frames[index]) / SAMPLE_RATE, 3),
        "hypothesis": text,
        "units": " ".join(speech.letters.symbol(i) for i in ids),
        "score": score,
        "words": times,
        "model_s": model_s,
        "search_s": time.perf_counter() - begin,
    }
    if job.labels is not None:
        target = dataset.target(index).tolist()
        reference = words_of_ids(target, speech.letters)
        errors = word_errors(reference, text)
        record |= {
            "reference": reference,
            "reference_units": " ".join(speech.letters.symbol(i) for i in target),
            "substitutions": errors.substitutions,
            "deletions": errors.deletions,
            "insertions": errors.insertions,
            "reference_words": errors.reference,
        }
    return record


@functools.lru_cache(maxsize=1)
def _model(folder: str) -> SpeechModel:
    artifact = read_artifact(folder)
    if artifact.kind != "ctc":
        raise CheckpointError(
            f"{folder} holds a {artifact.kind} model; decoding needs one fine-tuned for CTC"
        )
    model = SpeechModel(artifact)
    if model.letters is None:
        raise CheckpointError(f"{folder} has no dictionary of letters; import it again with its dict.ltr.txt")
    return model


@functools.lru_cache(maxsize=1)
def _search(job: Job) -> LexiconBeam | LetterBeam | None:
    if job.kind == "viterbi":
        return None
    letters = _model(job.model).letters
    assert letters is not None
    options = BeamOptions(**dict(job.beam))
    path = None if job.language_model is None else Path(job.language_model)
    if job.lexicon is None:
        return LetterBeam(letters, path, options)
    return LexiconBeam(letters, Path(job.lexicon), path, options)
