"""Reading audio: one float32 channel at the model's rate, from files or from slices of uncompressed archives.

S samples.
"""

from __future__ import annotations

import io
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile as sf
import soxr

from ..errors import DataError

if TYPE_CHECKING:
    import torch

SUFFIXES = (".wav", ".flac", ".ogg")
_SLICE = re.compile(r"^(?P<archive>.+):(?P<offset>\d+):(?P<length>\d+)$")
_MAGIC = (b"RIFF", b"fLaC", b"OggS")
_ATTEMPTS = 3
MIN_RATE, MAX_RATE = 1_000, 768_000  # samples a second; below, resampling multiplies a small file
# Samples of all channels that any file may hold (4.6 hours at 16 kHz), and that each byte of a larger one may
# hold: speech has one or two, silence in FLAC some hundreds.
MAX_SAMPLES, MAX_SAMPLES_PER_BYTE = 2**28, 64


@dataclass(frozen=True)
class AudioHeader:
    """What a file says about itself, without decoding."""

    frames: int  # samples of each channel
    rate: int  # samples a second
    channels: int  # number of channels
    subtype: str  # libsndfile's name of the sample format, such as ``PCM_16``


def read_header(path: Path | str) -> AudioHeader:
    """The header of an audio file.

    Raises:
        DataError: the file is missing, no audio, or claims what its bytes cannot hold; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: empty file")
    try:
        info = sf.info(os.fsencode(path))  # pyright: ignore[reportArgumentType]
    except (sf.LibsndfileError, RuntimeError) as error:
        raise DataError(f"{path}: not readable as audio ({_plain(error)})") from None
    try:
        _check_claims(info.frames * info.channels, info.samplerate, path.stat().st_size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return AudioHeader(int(info.frames), int(info.samplerate), int(info.channels), str(info.subtype))


def read_audio(path: str, sample_rate: int, *, resample: bool = False) -> np.ndarray:
    """The samples of a file as one float32 channel.

    Args:
        path: an audio file, a ``.npy`` array, or ``<archive>:<byte offset>:<byte length>`` of a stored zip.
        sample_rate: wanted samples a second.
        resample: convert other rates; otherwise they are an error, as in the reference.

    Returns:
        (S,) float32; several channels are averaged.

    Raises:
        DataError: missing, unreadable after three attempts, empty, of another rate, or not finite.
    """
    samples, rate = _decoded(path)
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if not len(samples):
        raise DataError(f"{path}: no samples")
    if not np.isfinite(samples).all():
        raise DataError(f"{path}: has samples that are not finite numbers")
    if rate is not None and rate != sample_rate:
        if not resample:
            raise DataError(
                f"{path}: {rate} Hz, but task.sample_rate is {sample_rate}; convert it, for example with "
                "d2v prepare audio-manifest ... --resample FOLDER"
            )
        samples = soxr.resample(samples, rate, sample_rate)
    return np.ascontiguousarray(samples, dtype=np.float32)


def decode_bytes(data: bytes, sample_rate: int, name: str = "the audio") -> np.ndarray:
    """The samples of an audio file's content as one float32 channel at ``sample_rate``: (S,).

    Raises:
        DataError: the content is no audio, or empty.
    """
    try:
        samples, rate = _read(io.BytesIO(data), len(data))
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except (sf.LibsndfileError, RuntimeError, TypeError, MemoryError) as error:
        raise DataError(f"{name}: not readable as audio ({_plain(error)})") from None
    return to_model_rate(samples, rate, sample_rate, name)


def _read(file: str | io.BytesIO, size: int) -> tuple[np.ndarray, int]:
    """All samples and the rate; what the header claims is checked before memory is taken for it.

    Raises:
        DataError: without the file's name: more samples than so many bytes hold, or an impossible rate.
    """
    name: Any = file if isinstance(file, io.BytesIO) else os.fsencode(file)  # bytes: not every name is UTF-8
    with sf.SoundFile(name) as sound:
        _check_claims(sound.frames * sound.channels, sound.samplerate, size)
        return sound.read(dtype="float32"), int(sound.samplerate)


def _check_claims(samples: int, rate: int, size: int) -> None:
    limit = max(MAX_SAMPLES, MAX_SAMPLES_PER_BYTE * size)
    if samples > limit:
        raise DataError(f"its header claims {samples} samples; {size} bytes may hold {limit} at most")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise DataError(f"its header claims {rate} Hz; a recording has {MIN_RATE} ... {MAX_RATE}")


def to_model_rate(samples: np.ndarray, rate: int, sample_rate: int, name: str = "the audio") -> np.ndarray:
    """Any samples, (S,) or (S, channels), as one float32 channel at ``sample_rate``."""
    samples = np.asarray(samples, dtype=np.float32)
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if samples.ndim != 1 or not len(samples):
        raise DataError(f"{name}: has shape {samples.shape}; give (samples,) or (samples, channels)")
    if not np.isfinite(samples).all():
        raise DataError(f"{name}: has samples that are not finite numbers")
    return samples if rate == sample_rate else soxr.resample(samples, rate, sample_rate).astype(np.float32)


def normalized(samples_S: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance over the whole utterance (a layer norm without weights, epsilon 1e-5)."""
    from torch.nn.functional import layer_norm  # here: preparing data needs no torch

    return layer_norm(samples_S, samples_S.shape)


def _decoded(path: str) -> tuple[np.ndarray, int | None]:
    """Samples, and the rate if the file has one."""
    for attempt in range(_ATTEMPTS):
        try:
            return _decode_once(path)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (sf.LibsndfileError, RuntimeError, OSError, ValueError, EOFError, MemoryError) as error:
            if isinstance(error, DataError):
                raise DataError(str(error) if str(error).startswith(path) else f"{path}: {error}") from None
            if attempt == _ATTEMPTS - 1 or not isinstance(error, OSError):
                raise DataError(f"{path}: not readable as audio ({_plain(error)})") from None
            time.sleep(attempt)  # a network file system may come back
    raise AssertionError("the last attempt returns or raises")


def _decode_once(path: str) -> tuple[np.ndarray, int | None]:
    if path.endswith(".npy"):
        return np.load(path, mmap_mode="r", allow_pickle=False).astype(np.float32), None
    match = None if path.endswith(SUFFIXES) else _SLICE.match(path)
    if match is None:
        if not Path(path).is_file():
            raise FileNotFoundError(path)
        return _read(path, os.path.getsize(path))
    with open(match["archive"], "rb") as file:
        file.seek(int(match["offset"]))
        data = file.read(int(match["length"]))
    if len(data) != int(match["length"]) or not data.startswith(_MAGIC):
        raise DataError(
            f"{path}: the slice of the archive is no WAV, FLAC or OGG; it must be stored, not deflated"
        )
    return _read(io.BytesIO(data), len(data))


def _plain(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error)
    return " ".join(str(text).split()) or type(error).__name__
