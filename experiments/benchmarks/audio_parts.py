"""Parts of the audio models by themselves, forward and backward: waveform and positional convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch

from data2vec.audio import AudioEncoder
from data2vec.config import AudioModalityConfig, Data2VecMultiConfig
from data2vec.conv_spec import frame_count, parse_conv_layers
from data2vec.flops import StepShape, pretraining_step

from .measure import Case
from .pretraining import load

PARTS = {"convolutions": "convolutional front end", "positions": "positional convolutions"}


def cases(recipe_name: str, samples: int, length: int, clones: int) -> list[Case]:
    """Both parts at the size of a v2 step.

    Args:
        recipe_name: a v2 audio recipe.
        samples: B.
        length: samples of the waveform.
        clones: M; the positions are computed for each clone.
    """
    config = _model(recipe_name)
    assert isinstance(config.modality, AudioModalityConfig)
    frames = frame_count(parse_conv_layers(config.modality.feature_encoder_spec), length)
    shape = StepShape(samples=samples, positions=frames, kept=frames, clones=clones, raw=length)
    work = {part.name: part.forward + part.backward for part in pretraining_step(config, shape).parts}
    return [
        Case(
            name=f"{title} alone, forward + backward",
            build=build_part,
            options={
                "recipe_name": recipe_name,
                "part": part,
                "samples": samples,
                "length": length,
                "clones": clones,
            },
            matrix_flops=work[part],
            units=samples * length / 16000,
            unit="seconds of audio",
        )
        for part, title in PARTS.items()
    ]


def build_part(recipe_name: str, part: str, samples: int, length: int, clones: int) -> Callable[[int], None]:
    """Forward and backward of one part; the input of the positions learns, as in a step."""
    config = _model(recipe_name)
    encoder = AudioEncoder(config, with_decoder=False)
    source, frames = torch.randn(samples, length), frame_count(encoder.layers, length)
    hidden = torch.randn(samples * clones, frames, config.embed_dim, requires_grad=True)

    def step(_: int) -> None:
        encoder.zero_grad(set_to_none=True)
        hidden.grad = None
        if part == "convolutions":
            out = encoder.compute_local_features(source)
        else:
            out = encoder.relative_positions(hidden)
        out.backward(torch.ones_like(out))

    return step


def _model(recipe_name: str) -> Data2VecMultiConfig:
    config = load(recipe_name, []).model
    assert isinstance(config, Data2VecMultiConfig)
    return config
