"""A speech model in use: embeddings, transcripts and events of audio of any length and rate.

T frames, D width, V symbols, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
from .student import Data2VecMulti
from .v1.config import Data2VecAudioConfig
from .v1.speech import Data2VecAudio

SAMPLE_RATE = 16_000
CHUNK_S, OVERLAP_S = 30.0, 4.0  # of long audio, in seconds; half of the overlap is dropped at each seam
Audio = np.ndarray | bytes | str | Path | tuple[np.ndarray, int]
"""Samples at 16 kHz, (samples, rate), the content of an audio file, or its path."""


@dataclass(frozen=True)
class Word:
    """A recognised word and where it is.

    Attributes:
        text: the word.
        start_s: begin of its first letter, in seconds.
        end_s: end of its last letter, in seconds.
    """

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Transcript:
    """What was recognised in one recording.

    Attributes:
        text: the words.
        words: the same with times.
        score: mean log-probability of the chosen class a frame.
    """

    text: str
    words: tuple[Word, ...]
    score: float


class SpeechModel:
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
            self.ctc.eval()
            self.network = self.ctc.trunk
        elif artifact.kind == "audio_classifier":
            assert isinstance(artifact.head_config, AudioEventConfig)
            self.classifier = AudioEventModel(config, artifact.head_config)
            load_strictly(self.classifier, artifact.state, artifact.folder)
            self.classifier.eval()
            self.network = self.classifier.trunk
        else:
            if isinstance(config, Data2VecAudioConfig):
                self.network = Data2VecAudio(config, with_head=False)
            else:
                self.network = Data2VecMulti(config, with_decoder=False)
            load_strictly(self.network, artifact.trunk_state, artifact.folder)
            self.network.eval()
        self.layers: tuple[ConvLayer, ...] = conv_layers(self.model_config)
        self.frame_s = total_stride(self.layers) / SAMPLE_RATE

    @torch.inference_mode()
    def embed(
        self, recordings: Sequence[Audio], pooling: Literal["mean", "none"] = "mean", layer: int = -1
    ) -> list[np.ndarray]:
        """Features of recordings.

        Args:
            recordings: B recordings; those of more than 30 s go through in overlapping pieces.
            pooling: "mean" over frames, or "none".
            layer: block whose output is taken; -1 is the last, 0 the first.

        Returns:
            B arrays: (D,), or (T, D) without pooling; a frame is 20 ms.
        """
        depth = self.model_config.depth
        if not -depth <= layer < depth:
            raise DataError(
                f"layer = {layer} must lie in {-depth} ... {depth - 1}: the model has {depth} blocks"
            )
        if pooling not in ("mean", "none"):
            raise DataError(f"pooling = {pooling!r} must be one of mean, none")
        out: list[np.ndarray] = []
        for recording in recordings:
            samples = self._prepared(self.samples(recording))
            x_TD = self._in_pieces(samples, lambda x_BS: self.network(x_BS, all_layers=True).layers[layer])
            out.append(x_TD.mean(0) if pooling == "mean" else x_TD)
        return out

    @torch.inference_mode()
    def classify(self, recordings: Sequence[Audio]) -> tuple[list[str], np.ndarray]:
        """Probabilities of events; they do not exclude each other.

        Recordings of more than 30 s go through in pieces of equal length, whose probabilities are averaged.

        Returns:
            The class names, and (B, C) probabilities.
        """
        if self.classifier is None:
            raise CheckpointError(f"this is a {self.config['kind']} model without event classes: use embed()")
        scores_BC = np.zeros((len(recordings), len(self.classes)))
        for row, recording in enumerate(recordings):
            samples = self._prepared(self.samples(recording))
            pieces = samples.chunk(-(-len(samples) // int(CHUNK_S * SAMPLE_RATE)))
            found = [self.classifier(piece[None]).probabilities()[0].double().numpy() for piece in pieces]
            scores_BC[row] = np.mean(found, axis=0)
        return self.classes, scores_BC

    @torch.inference_mode()
    def emissions(self, recording: Audio) -> np.ndarray:
        """(T, V) log-probabilities; long audio goes through in overlapping chunks."""
        if self.ctc is None:
            raise CheckpointError(f"this is a {self.config['kind']} model without letters: use embed()")
        ctc = self.ctc
        return self._in_pieces(self._prepared(self.samples(recording)), lambda x_BS: ctc(x_BS).emissions())

    def _in_pieces(self, samples: torch.Tensor, run: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        """(T, ...) results of every frame; long audio goes through in chunks, and seams are cut off.

        Args:
            samples: (S,) prepared samples.
            run: (1, S') samples to (1, T', ...) results.
        """
        chunk, overlap = int(CHUNK_S * SAMPLE_RATE), int(OVERLAP_S * SAMPLE_RATE)
        if len(samples) <= chunk:
            return run(samples[None])[0].float().numpy()
        stride = total_stride(self.layers)
        step = (chunk - overlap) // stride * stride  # whole frames, so that chunks fit together
        starts = list(range(0, max(len(samples) - overlap, 1), step))
        pieces: list[np.ndarray] = []
        drop = overlap // stride // 2
        for index, start in enumerate(starts):
            last = index == len(starts) - 1
            part = samples[start:] if last else samples[start : start + chunk]
            found_T = run(part[None])[0].float().numpy()
            begin = 0 if index == 0 else drop
            end = len(found_T) if last else drop + step // stride
            pieces.append(found_T[begin:end])
        return np.concatenate(pieces)

    def transcribe(self, recordings: Sequence[Audio]) -> list[Transcript]:
        """The most likely letters of every frame, as words (greedy decoding)."""
        return [self.greedy(self.emissions(recording)) for recording in recordings]

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
        if isinstance(recording, tuple):
            return to_model_rate(np.asarray(recording[0]), int(recording[1]), SAMPLE_RATE)
        return to_model_rate(np.asarray(recording), SAMPLE_RATE, SAMPLE_RATE)

    def _prepared(self, samples: np.ndarray) -> torch.Tensor:
        """As the model was trained: normalised over the whole recording, and at least one frame long."""
        shortest = samples_needed(self.layers)
        tensor = torch.from_numpy(np.ascontiguousarray(samples))
        if frame_count(self.layers, len(tensor)) == 0:
            tensor = torch.nn.functional.pad(tensor, (0, shortest - len(tensor)))
        return normalized(tensor) if self.normalize else tensor


def conv_layers(config: object) -> tuple[ConvLayer, ...]:
    """The convolutions over the waveform of a model configuration of either generation."""
    if isinstance(config, Data2VecAudioConfig):
        return parse_conv_layers(config.conv_feature_layers)
    audio = getattr(getattr(config, "modalities", None), "audio", None)
    if audio is None:
        raise CheckpointError("this is no audio model")
    return parse_conv_layers(audio.feature_encoder_spec)
