"""Utterances of a subset to hypotheses: emissions in batches, then greedy or beam search.

Everything crosses into Ray workers as plain values, and each worker keeps the model and the decoder.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data2vec.artifact import read_artifact
from data2vec.audio_model import SAMPLE_RATE, AudioModel
from data2vec.ctc_decoding import BeamOptions, LetterBeam, LexiconBeam
from data2vec.data.audio import AudioDataset, AudioOptions
from data2vec.data.batching import epoch_batches
from data2vec.data.letters import greedy_ids, words_of_ids
from data2vec.data.manifest import Manifest
from data2vec.errors import CheckpointError, DataError
from data2vec.lm.loaded import LanguageModel
from data2vec.speech_metrics import word_errors

from ..registry.model_folders import model_folder
from ..storage.cache import local_data, on_this_node
from ..tasks.audio_data import check_symbols
from .options import DecodingOptions, InferOptions, TaskOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search for words; plain values."""

    kind: str  # ``viterbi``, ``kenlm`` or ``fairseqlm``
    unit: bool  # the language model is over letters
    lexicon: str | None  # path, or ``None``
    language_model: str | None  # ARPA or KenLM file, or the model folder of a transformer
    beam: tuple[tuple[str, Any], ...]  # fields of :class:`BeamOptions`
    device: str = "cpu"  # of a transformer language model
    language_model_name: str | None = None  # by which a node that lacks it brings it


@dataclass(frozen=True, kw_only=True)
class DecodingJob:
    """What a worker needs to decode a part of a subset; plain values."""

    model: str  # model folder
    data: str  # folder of the manifests
    subset: str  # name of the manifest
    labels: str | None  # extension of the labels, or ``None``
    max_tokens: int  # samples of audio in a batch
    batch_size: int | None  # utterances in a batch
    max_sample_size: int | None  # longer recordings are refused
    min_sample_size: int | None  # shorter ones are left out
    search: Search  # how words are found
    device: str = "cpu"  # of the acoustic model
    threads: int | None = None  # of PyTorch
    model_name: str = ""  # by which a node that lacks the folder brings it
    data_name: str = ""  # the same of the data


def job_on_this_node(job: DecodingJob) -> DecodingJob:
    """The driver's job with folders and files as this node has them.

    Raises:
        Data2VecError: one of them is on the driver's node alone.
    """

    def model(name: str) -> str:
        return str(model_folder(name)[0])

    search, of_letters = job.search, job.search.kind != "fairseqlm"
    if search.lexicon is not None:
        on_this_node("decoding.lexicon", search.lexicon, search.lexicon)
    if search.language_model is not None:
        name, bring = search.language_model_name or search.language_model, str if of_letters else model
        found = on_this_node("decoding.lmpath", search.language_model, name, bring)
        search = replace(search, language_model=found)
    return replace(
        job,
        model=on_this_node("common_eval.path", job.model, job.model_name or job.model, model),
        data=on_this_node("task.data", job.data, job.data_name or job.data, local_data),
        search=search,
    )


def make_job(
    options: InferOptions, model: Path, data: str, subset: str, search: Search, model_name: str = ""
) -> DecodingJob:
    """The job of one subset; labels are read where the subset has them."""
    labels = options.task.labels
    if labels is not None and not (Path(data) / f"{subset}.{labels}").is_file():
        if labels != TaskOptions().labels:
            there = (
                ", ".join(sorted(p.name for p in Path(data).glob(f"{subset}.*"))) or "nothing of this name"
            )
            raise DataError(
                f"task.labels = {labels!r}: {data} has no {subset}.{labels} (there is {there}); null decodes "
                "without error rates"
            )
        logger.info("note: %s has no %s.%s: no error rates", data, subset, labels)
        labels = None
    return DecodingJob(
        model=str(model),
        data=data,
        subset=subset,
        labels=labels,
        max_tokens=options.dataset.max_tokens,
        batch_size=options.dataset.batch_size,
        max_sample_size=options.task.max_sample_size,
        min_sample_size=options.task.min_sample_size,
        search=search,
        device=search.device,
        model_name=model_name,
        data_name=options.task.data,
    )


def make_search(decoding: DecodingOptions, device: str) -> Search:
    """The search that the options ask for; a transformer language model is brought to this machine.

    Raises:
        Data2VecError: the language model's name is unknown, or it is none.
    """
    path, name = decoding.lmpath, decoding.lmpath
    if decoding.type == "fairseqlm":
        assert path is not None
        folder, name = model_folder(path)
        kind = read_artifact(folder).kind
        if kind != "language_model":
            raise CheckpointError(
                f"decoding.lmpath = {path!r} holds a {kind} model, not a transformer language model"
            )
        path = str(folder)
    return Search(
        kind=decoding.type,
        unit=decoding.unitlm,
        lexicon=decoding.lexicon,
        language_model=path,
        beam=tuple(asdict(decoding.beam_options()).items()),
        device=device,
        language_model_name=name,
    )


def open_dataset(job: DecodingJob) -> AudioDataset:
    """The utterances, longest first in their batches; nothing is dropped but what the options say."""
    speech = load_acoustic(job.model)
    options = AudioOptions(
        sample_rate=SAMPLE_RATE,
        normalize=speech.normalize,
        pad=True,
        min_sample_size=job.min_sample_size,
        labels=job.labels,
        max_tokens=job.max_tokens,
    )
    return AudioDataset(job.data, job.subset, options, dictionary=speech.letters)


def check_utterances(job: DecodingJob) -> None:
    """What is wrong with the utterances of a subset, before any of them is decoded.

    Raises:
        DataError: files that are missing or damaged, recordings that are too long, labels of other letters.
    """
    dataset, letters = open_dataset(job), load_acoustic(job.model).letters
    dataset.verify()
    refuse_longer(dataset.manifest, job.max_sample_size)
    if job.labels is not None and letters is not None:
        told = check_symbols(dataset, letters, "task.labels must name the labels in this model's letters")
        if told:
            logger.warning("%s", told)


def refuse_longer(manifest: Manifest, limit: int | None) -> None:
    """Raise if recordings are longer than ``task.max_sample_size``: a part would be judged as the whole."""
    longer = np.flatnonzero(manifest.frames > limit) if limit is not None else []
    if len(longer):
        raise DataError(
            f"{manifest.path}: {len(longer)} of {len(manifest)} recordings are longer than "
            f"task.max_sample_size {limit}, first {manifest.name(int(longer[0]))}; leave them out, or give "
            "null for any length"
        )


def batches(dataset: AudioDataset, job: DecodingJob) -> list[list[int]]:
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


def decode_batch(job: DecodingJob, dataset: AudioDataset, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Results of a batch: one plain record an utterance."""
    if job.threads:
        torch.set_num_threads(job.threads)
    search = load_search(job.model, job.search)
    emissions, frames, model_s = compute_emissions(job, dataset, indices)
    return [
        decode_one(job, dataset, index, emissions[row][: frames[row]], search, model_s[row])
        for row, index in enumerate(indices)
    ]


def compute_emissions(
    job: DecodingJob, dataset: AudioDataset, indices: Sequence[int]
) -> tuple[np.ndarray, list[int], list[float]]:
    """Log-probabilities of a batch (B, T, V), with the frames and the model seconds of each utterance."""
    speech = load_acoustic(job.model)
    assert speech.ctc is not None
    speech.ctc.to(job.device)
    batch = dataset.collate([dataset[index] for index in indices])
    begin = time.perf_counter()
    with torch.inference_mode():
        output = speech.ctc(batch["source"].to(job.device), _moved(batch["padding_mask"], job.device))
        emissions = output.emissions().float().cpu().numpy()
    spent = time.perf_counter() - begin
    share = batch["frames"].double() / batch["frames"].sum()
    return emissions, output.frames_B.tolist(), (share * spent).tolist()


def _moved(mask: torch.Tensor | None, device: str) -> torch.Tensor | None:
    return None if mask is None else mask.to(device)


def decode_one(
    job: DecodingJob, dataset: AudioDataset, index: int, emissions_TV: np.ndarray, search: Any, model_s: float
) -> dict[str, Any]:
    """The record of one utterance."""
    speech = load_acoustic(job.model)
    assert speech.letters is not None
    begin = time.perf_counter()
    others: list[tuple[str, float]] = []
    if search is None:
        transcript = speech.greedy(emissions_TV)
        ids = greedy_ids(emissions_TV.argmax(-1).tolist())
        text, score = transcript.text, float(emissions_TV.max(-1).sum())
        times = [(word.text, word.start_s, word.end_s) for word in transcript.words]
    else:
        best, *rest = search.decode(emissions_TV)
        ids, text, score = list(best.letters), best.text, best.score
        times = [
            (word, round(start * speech.frame_s, 3), round(end * speech.frame_s, 3))
            for word, start, end in best.spans(speech.letters)
        ]
        others = [(h.text, h.score) for h in (best, *rest)] if rest else []
    record: dict[str, Any] = {
        "id": index,
        "file": dataset.manifest.name(index),
        "seconds": round(int(dataset.manifest.frames[index]) / SAMPLE_RATE, 3),
        "hypothesis": text,
        "units": " ".join(speech.letters.symbol(i) for i in ids),
        "score": score,
        "words": times,
        "nbest": others,
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


def all_records(job: DecodingJob, parts: Sequence[Sequence[int]]) -> Iterator[list[dict[str, Any]]]:
    """The records of batch after batch, in this process."""
    dataset = open_dataset(job)
    for indices in parts:
        yield decode_batch(job, dataset, indices)


@functools.lru_cache(maxsize=1)
def load_acoustic(folder: str) -> AudioModel:
    """The acoustic model of a folder, kept while it is the same.

    Raises:
        CheckpointError: it is not fine-tuned for CTC, or has no letters.
    """
    artifact = read_artifact(folder)
    if artifact.kind != "ctc":
        raise CheckpointError(
            f"{folder} holds a {artifact.kind} model; decoding needs one fine-tuned for CTC"
        )
    model = AudioModel(artifact)
    if model.letters is None:
        raise CheckpointError(f"{folder} has no dictionary of letters; import it again with its dict.ltr.txt")
    return model


@functools.lru_cache(maxsize=1)
def load_search(model: str, search: Search) -> LexiconBeam | LetterBeam | None:
    """The decoder of a search, kept while it is the same; ``None`` decodes greedily."""
    if search.kind == "viterbi":
        return None
    letters = load_acoustic(model).letters
    assert letters is not None
    options = BeamOptions(**dict(search.beam))
    scores: Path | LanguageModel | None = None
    if search.language_model is not None:
        scores = Path(search.language_model)
        if search.kind == "fairseqlm":
            scores = load_language_model(search.language_model, search.device)
    if search.lexicon is None:
        return LetterBeam(letters, scores, options)
    return LexiconBeam(letters, Path(search.lexicon), scores, options, unit=search.unit)


@functools.lru_cache(maxsize=1)
def load_language_model(folder: str, device: str) -> LanguageModel:
    """A transformer language model, kept while it is the same."""
    return LanguageModel(read_artifact(folder), device)
