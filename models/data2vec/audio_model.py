"""An audio model in use: embeddings, transcripts and events of audio of any length and rate.

T frames, D width, V symbols, C classes.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch

from .artifact import Artifact, load_strictly
from .audio_events import AudioEventConfig, AudioEventModel
from .config import Data2VecMultiConfig
from .conv_spec import ConvLayer, frame_count, parse_conv_layers, samples_needed, total_stride
from .ctc import BLANK, CTCConfig, CTCModel
from .data.audio_files import decode_bytes, normalized, read_audio, to_model_rate
from .data.letters import WORD_END, words_of_ids
from .errors import CheckpointError, DataError
from .in_use import ModelInUse, items_of
from .student import Data2VecMulti
from .v1.audio import Data2VecAudio
from .v1.config import Data2VecAudioConfig

SAMPLE_RATE = 16_000
CHUNK_S, OVERLAP_S = 30.0, 4.0  # of long audio, in seconds; half of the overlap is dropped at each seam
BATCH, BATCH_S = 16, 10.0  # recordings in a batch, and seconds of each: longer ones take the room of several
_WINDOW = 8  # batches that are read together, so that recordings of similar length meet
Pooling = Literal["mean", "none"]
Audio = np.ndarray | bytes | str | Path | tuple[np.ndarray, int]
"""Samples at 16 kHz, (samples, rate), the content of an audio file, or its path."""
_Run = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Word:
    """A recognised word and where it is."""

    text: str  # the word
    start_s: float  # begin of its first letter, in seconds
    end_s: float  # end of its last letter, in seconds


@dataclass(frozen=True)
class Transcript:
    """What was recognised in one recording."""

    text: str  # the words
    words: tuple[Word, ...]  # the same with times
    score: float  # mean log-probability of the chosen class a frame


class AudioModel(ModelInUse):
    """An audio model in evaluation mode."""

    def __init__(self, artifact: Artifact) -> None:
        config = artifact.model_config
        assert isinstance(config, Data2VecMultiConfig | Data2VecAudioConfig), "an audio model"
        self.config, self.model_config = artifact.config, config
        self.normalize = bool(artifact.config["task"].get("normalize", True))
        self.letters = artifact.letters
        self.ctc: CTCModel | None = None
        self.classifier: AudioEventModel | None = None
        self.classes = [str(name) for name in artifact.config["task"].get("labels") or []]
        self.network: Data2VecMulti | Data2VecAudio
        if artifact.kind == "ctc":
            assert isinstance(artifact.head_config, CTCConfig)
            symbols = int(artifact.config["task"]["num_symbols"])
            self.ctc = CTCModel(config, artifact.head_config, num_symbols=symbols)
            load_strictly(self.ctc, artifact.state, artifact.folder)
            self.network = self.ctc.trunk
        elif artifact.kind == "audio_classifier":
            assert isinstance(artifact.head_config, AudioEventConfig)
            self.classifier = AudioEventModel(config, artifact.head_config)
            load_strictly(self.classifier, artifact.state, artifact.folder)
            self.network = self.classifier.trunk
        else:
            self.network = _bare(config)
            load_strictly(self.network, artifact.trunk_state, artifact.folder)
        self._module = (self.ctc or self.classifier or self.network).eval()
        self.layers: tuple[ConvLayer, ...] = conv_layers(self.model_config)
        self.frame_s = total_stride(self.layers) / SAMPLE_RATE
        #: pieces of long audio, in seconds
        self.chunk_s, self.overlap_s = CHUNK_S, OVERLAP_S

    def untrained(self, seed: int = 1) -> AudioModel:
        """The same architecture with random initial weights, without a head: the baseline of a probe.

        Args:
            seed: of the weights; the ones that a pretraining with this ``common.seed`` starts from.
        """
        return self._with(_bare(self.network.config, seed))

    @overload
    def embed(
        self, recordings: Audio, pooling: Pooling = ..., layer: int = ..., *, batch_size: int = ...
    ) -> np.ndarray: ...
    @overload
    def embed(
        self,
        recordings: Sequence[Audio],
        pooling: Pooling = "mean",
        layer: int = -1,
        *,
        batch_size: int = BATCH,
    ) -> list[np.ndarray]: ...
    def embed(
        self,
        recordings: Audio | Sequence[Audio],
        pooling: Pooling = "mean",
        layer: int = -1,
        *,
        batch_size: int = BATCH,
    ) -> np.ndarray | list[np.ndarray]:
        """Features of recordings.

        Args:
            recordings: one recording, or B; those of more than 30 s go through in overlapping pieces.
            pooling: "mean" over frames, or "none".
            layer: block whose output is taken; -1 is the last, 0 the first.
            batch_size: recordings of up to 10 s that go through the model together, fewer of longer ones.

        Returns:
            Of one recording (D,), or (T, D) without pooling, where a frame is 20 ms; of several a list of B
            such arrays.
        """
        given, single = items_of(recordings, _is_recording, _A_RECORDING, batch_size)
        found = list(self.embed_each(given, pooling, layer, batch_size=batch_size))
        return found[0] if single else found

    def embed_each(
        self,
        recordings: Iterable[Audio],
        pooling: Pooling = "mean",
        layer: int = -1,
        *,
        batch_size: int = BATCH,
    ) -> Iterator[np.ndarray]:
        """As :meth:`embed`, one after another in order; no more is read ahead than some batches."""
        depth = self.model_config.depth
        if not -depth <= layer < depth:
            raise DataError(
                f"layer = {layer} must lie in {-depth} ... {depth - 1}: the model has {depth} blocks"
            )
        if pooling not in ("mean", "none"):
            raise DataError(f"pooling = {pooling!r} must be one of mean, none")

        def run(source_BS: torch.Tensor, padding_BS: torch.Tensor | None) -> torch.Tensor:
            return self.network(source_BS, padding_BS, all_layers=True).layers[layer]

        for x_TD in self._every_frame(recordings, run, batch_size):
            yield x_TD.mean(0) if pooling == "mean" else x_TD

    def classify(
        self, recordings: Audio | Sequence[Audio], *, batch_size: int = BATCH
    ) -> tuple[list[str], np.ndarray]:
        """Probabilities of events; they do not exclude each other.

        Recordings of more than 30 s go through in pieces of equal length, whose probabilities are averaged.

        Args:
            recordings: one recording, or B.
            batch_size: as of :meth:`embed`.

        Returns:
            The class names, and (C,) probabilities of one recording or (B, C) of a list.
        """
        if self.classifier is None:
            raise CheckpointError(f"this is a {self.config['kind']} model without event classes: use embed()")
        given, single = items_of(recordings, _is_recording, _A_RECORDING, batch_size)
        classifier = self.classifier

        def run(source_BS: torch.Tensor, padding_BS: torch.Tensor | None) -> torch.Tensor:
            return classifier(source_BS, padding_BS).probabilities().double()

        scores: list[np.ndarray] = []
        for window in self._windows(given, batch_size):
            parts = [samples.chunk(-(-len(samples) // int(CHUNK_S * SAMPLE_RATE))) for samples in window]
            found = self._in_batches([piece for pieces in parts for piece in pieces], run, batch_size)
            scores += [np.mean([next(found) for _ in pieces], axis=0) for pieces in parts]
        scores_BC = np.array(scores).reshape(len(given), len(self.classes))
        return self.classes, scores_BC[0] if single else scores_BC

    @overload
    def emissions(self, recordings: Audio, *, batch_size: int = ...) -> np.ndarray: ...
    @overload
    def emissions(self, recordings: Sequence[Audio], *, batch_size: int = ...) -> list[np.ndarray]: ...
    def emissions(
        self, recordings: Audio | Sequence[Audio], *, batch_size: int = BATCH
    ) -> np.ndarray | list[np.ndarray]:
        """(T, V) log-probabilities of one recording, or B such arrays of a list.

        Long audio goes through in overlapping pieces.
        """
        given, single = items_of(recordings, _is_recording, _A_RECORDING, batch_size)
        found = list(self.emissions_each(given, batch_size=batch_size))
        return found[0] if single else found

    def emissions_each(self, recordings: Iterable[Audio], *, batch_size: int = BATCH) -> Iterator[np.ndarray]:
        """As :meth:`emissions`, one after another in order; no more is read ahead than some batches."""
        if self.ctc is None:
            raise CheckpointError(f"this is a {self.config['kind']} model without letters: use embed()")
        ctc = self.ctc
        return self._every_frame(recordings, lambda *source: ctc(*source).emissions(), batch_size)

    def _every_frame(self, recordings: Iterable[Audio], run: _Run, batch_size: int) -> Iterator[np.ndarray]:
        """(T, ...) results of every frame of each recording; seams of long audio are cut off.

        Args:
            recordings: in order.
            run: (B, S) samples and their padding to (B, T, ...) results.
            batch_size: as of :meth:`embed`.
        """
        for window in self._windows(recordings, batch_size):
            parts = [self._pieces(samples) for samples in window]
            found = self._in_batches([samples for pieces in parts for samples, _ in pieces], run, batch_size)
            for pieces in parts:
                kept = [
                    next(found)[: frame_count(self.layers, len(samples))][frames]
                    for samples, frames in pieces
                ]
                yield kept[0] if len(kept) == 1 else np.concatenate(kept)

    def _pieces(self, samples: torch.Tensor) -> list[tuple[torch.Tensor, slice]]:
        """A prepared recording in overlapping chunks, and the frames that each of them stands for."""
        chunk, overlap = int(self.chunk_s * SAMPLE_RATE), int(self.overlap_s * SAMPLE_RATE)
        if len(samples) <= chunk:
            return [(samples, slice(None))]
        stride = total_stride(self.layers)
        step = (chunk - overlap) // stride * stride  # whole frames, so that chunks fit together
        starts = range(0, max(len(samples) - overlap, 1), step)
        drop = overlap // stride // 2
        pieces: list[tuple[torch.Tensor, slice]] = []
        for index, start in enumerate(starts):
            last = index == len(starts) - 1
            part = samples[start:] if last else samples[start : start + chunk]
            pieces.append((part, slice(drop if index else 0, None if last else drop + step // stride)))
        return pieces

    def _windows(self, recordings: Iterable[Audio], batch_size: int) -> Iterator[list[torch.Tensor]]:
        """Prepared recordings in order, so many at a time as fill some batches."""
        window: list[torch.Tensor] = []
        room = _WINDOW * batch_size * BATCH_S * SAMPLE_RATE
        for recording in recordings:
            window.append(self._prepared(self.samples(recording)))
            if sum(map(len, window)) >= room:
                yield window
                window = []
        if window:
            yield window

    def _in_batches(self, pieces: Sequence[torch.Tensor], run: _Run, batch_size: int) -> Iterator[np.ndarray]:
        """Results of pieces of audio in order; those of similar length went through the model together."""
        found: list[np.ndarray] = [np.empty(0)] * len(pieces)
        for rows in self._batches([len(piece) for piece in pieces], batch_size):
            lengths = torch.tensor([len(pieces[row]) for row in rows])
            source = torch.nn.utils.rnn.pad_sequence([pieces[row] for row in rows], batch_first=True)
            padding = torch.arange(source.shape[1])[None, :] >= lengths[:, None]
            padded = int(lengths.min()) < source.shape[1]
            with torch.inference_mode():
                out = run(source.to(self.device), padding.to(self.device) if padded else None)
            out = (out if out.dtype == torch.float64 else out.float()).cpu().numpy()
            for row, result in zip(rows, out, strict=True):
                found[row] = result
        return iter(found)

    def _batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Pieces of similar length together; of the same length where padding would reach real frames."""
        room, batches = batch_size * BATCH_S * SAMPLE_RATE, list[list[int]]()
        for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
            fits = bool(batches) and len(batches[-1]) < batch_size
            fits = fits and (len(batches[-1]) + 1) * lengths[row] <= room
            if not fits or (self._padding_counts and lengths[batches[-1][0]] != lengths[row]):
                batches.append([])
            batches[-1].append(row)
        return batches

    @property
    def _padding_counts(self) -> bool:
        """Whether padding changes what real frames give, as it does in the reference."""
        config = self.network.config
        part = config if isinstance(config, Data2VecAudioConfig) else config.modalities.audio
        pooled = self.classifier is not None and self.classifier.options.pool_padding
        return pooled or (part is not None and part.padding_leaks)

    @overload
    def transcribe(self, recordings: Audio, *, batch_size: int = ...) -> Transcript: ...
    @overload
    def transcribe(self, recordings: Sequence[Audio], *, batch_size: int = ...) -> list[Transcript]: ...
    def transcribe(
        self, recordings: Audio | Sequence[Audio], *, batch_size: int = BATCH
    ) -> Transcript | list[Transcript]:
        """The most likely letters of every frame, as words (greedy decoding).

        Args:
            recordings: one recording, or B.
            batch_size: as of :meth:`embed`.

        Returns:
            One transcript, or B of a list.
        """
        given, single = items_of(recordings, _is_recording, _A_RECORDING, batch_size)
        found = [self.greedy(emissions) for emissions in self.emissions_each(given, batch_size=batch_size)]
        return found[0] if single else found

    def greedy(self, emissions_TV: np.ndarray) -> Transcript:
        """Words with times from emissions."""
        if self.letters is None:
            raise CheckpointError(
                "this model has no dictionary of letters; import it again with its dict.ltr.txt"
            )
        best_T = emissions_TV.argmax(axis=-1)
        change_T = np.flatnonzero(np.diff(best_T, prepend=-1))
        runs = [(int(best_T[t]), int(t)) for t in change_T]
        ends = [*change_T[1:].tolist(), len(best_T)]
        words: list[Word] = []
        letters: list[int] = []
        first = last = 0
        delimiter = self.letters.index(WORD_END)

        def finish() -> None:
            text = words_of_ids(letters, self.letters) if self.letters is not None else ""
            if text:
                words.append(Word(text, round(first * self.frame_s, 3), round(last * self.frame_s, 3)))
            letters.clear()

        for (symbol, start), end in zip(runs, ends, strict=True):
            if symbol == BLANK:
                continue
            if symbol == delimiter:
                finish()
                continue
            if not letters:
                first = start
            letters.append(symbol)
            last = end
        finish()
        score = float(emissions_TV.max(axis=-1).mean()) if len(emissions_TV) else 0.0
        return Transcript(" ".join(word.text for word in words), tuple(words), score)

    def samples(self, recording: Audio) -> np.ndarray:
        """Any recording as (samples,) float32 at 16 kHz."""
        if isinstance(recording, bytes | bytearray | memoryview):
            return decode_bytes(bytes(recording), SAMPLE_RATE)
        if isinstance(recording, str | Path):
            return read_audio(str(recording), SAMPLE_RATE, resample=True)
        samples, rate = recording if isinstance(recording, tuple) else (recording, SAMPLE_RATE)
        array = np.asarray(samples)
        if array.ndim == 2 and array.shape[1] > array.shape[0]:  # their mean would be a handful of samples
            raise DataError(
                f"audio of shape {array.shape} has more channels than samples; give (samples,) or (samples, "
                "channels), and several recordings as a list"
            )
        return to_model_rate(array, int(rate), SAMPLE_RATE)

    def _prepared(self, samples: np.ndarray) -> torch.Tensor:
        """As the model was trained: normalised over the whole recording, and at least one frame long."""
        shortest = samples_needed(self.layers)
        tensor = torch.from_numpy(np.ascontiguousarray(samples))
        if frame_count(self.layers, len(tensor)) == 0:
            tensor = torch.nn.functional.pad(tensor, (0, shortest - len(tensor)))
        return normalized(tensor) if self.normalize else tensor


_A_RECORDING = (
    "a recording (its path, the content of its file, an array of samples at 16 kHz, or (samples, rate))"
)


def _bare(config: Data2VecMultiConfig | Data2VecAudioConfig, seed: int = 1) -> Data2VecMulti | Data2VecAudio:
    """The network without its pretraining parts."""
    if isinstance(config, Data2VecAudioConfig):
        return Data2VecAudio(config, with_head=False, seed=seed)
    return Data2VecMulti(config, with_decoder=False, seed=seed)


def _is_recording(item: Any) -> bool:
    if isinstance(item, str | Path | bytes | bytearray | memoryview):
        return True
    if isinstance(item, tuple):
        return len(item) == 2 and isinstance(item[1], numbers.Real) and _is_samples(item[0])
    return _is_samples(item)


def _is_samples(item: Any) -> bool:
    """(samples,) or (samples, channels) numbers."""
    if isinstance(item, torch.Tensor):
        return item.ndim in (1, 2)
    return isinstance(item, np.ndarray) and item.ndim in (1, 2) and item.dtype.kind in "fiu"


def conv_layers(config: object) -> tuple[ConvLayer, ...]:
    """The convolutions over the waveform of a model configuration of either generation."""
    if isinstance(config, Data2VecAudioConfig):
        return parse_conv_layers(config.conv_feature_layers)
    audio = getattr(getattr(config, "modalities", None), "audio", None)
    if audio is None:
        raise CheckpointError("this is no audio model")
    return parse_conv_layers(audio.feature_encoder_spec)


SpeechModel = AudioModel  # the earlier name
