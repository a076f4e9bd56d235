"""The audio input of a training: FLAC files read, normalised, cropped and collated as the loop gets them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from d2v_platform.tasks.audio_pretraining import open_recordings

from .input_passes import passes
from .measure import Case
from .pretraining import load

_RATE = 16000
_CLIPS = 64  # of one measured pass
_SECONDS = (9.0, 15.0)  # shortest and longest one: about LibriSpeech's


def case(recipe_name: str) -> Case:
    """Reading batches with a recipe's settings, in the process that trains.

    Args:
        recipe_name: an audio pretraining recipe.
    """
    return Case(
        name="input pipeline, FLAC",
        build=build_epoch,
        options={"recipe_name": recipe_name},
        matrix_flops=0.0,
        units=sum(lengths()) / _RATE,
        unit="seconds of audio",
    )


def lengths() -> list[int]:
    """Samples of each clip."""
    low, high = (int(seconds * _RATE) for seconds in _SECONDS)
    return np.random.default_rng(0).integers(low, high, size=_CLIPS).tolist()


def build_epoch(recipe_name: str) -> Callable[[int], None]:
    """One pass over made-up clips; the argument is the number of passes made."""
    folder = tempfile.TemporaryDirectory(prefix="d2v_input_")
    write_clips(Path(folder.name))
    recipe = load(recipe_name, [], folder.name)
    dataset = open_recordings(recipe, recipe.dataset.train_subset)
    return passes(dataset, recipe, _CLIPS, folder)


def write_clips(folder: Path) -> None:
    """FLAC files of noise that is as loud as speech and louder at low pitch, and their manifest."""
    random = np.random.default_rng(1)
    lines = [str(folder)]
    for index, length in enumerate(lengths()):
        noise = np.cumsum(random.standard_normal(length))
        noise -= np.convolve(noise, np.full(64, 1 / 64), "same")  # below 250 Hz there is little
        name = f"{index:04}.flac"
        soundfile.write(folder / name, (0.1 * noise / noise.std()).astype(np.float32), _RATE)
        lines.append(f"{name}\t{length}")
    (folder / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
